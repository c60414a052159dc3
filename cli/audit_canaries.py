"""The work behind `tacit audit canaries RUN`: a twin of a run, with canaries in, and what they say.

It submits the run's own specification once more, with canaries: a run with its own approval and its
own charge at each owner, which keeps no model. Loads no torch: owners score directions, the
server's worker scores mislabelled records.
"""

from __future__ import annotations

import json as json_module
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tacit.audit.report import canaries_bytes
from tacit.cli.audit_federation import wait_for
from tacit.cli.canary_files import CANARIES_NAME, canaries_of
from tacit.cli.canary_view import show_canaries
from tacit.cli.output import emit
from tacit.cli.run import connected
from tacit.core.canary_spec import CanarySpec
from tacit.core.configuration import from_plain
from tacit.core.errors import UnavailableError, UsageError
from tacit.core.files import make_private_folder, write_atomic
from tacit.core.privacy_spec import PrivacyUnit, Relation
from tacit.core.specification import RunSpec, canonical_json
from tacit.core.twins import twin_of

if TYPE_CHECKING:
    from tacit.attacks.claim import Claim
    from tacit.cli.audit_federation import Where
    from tacit.protos.control_client import ControlClient
    from tacit.protos.control_pb2 import Run, ShowRunReply

_INITIAL = "initial.safetensors"
_FEWEST = {"directions": 600, "mislabelled": 300}  # where nobody says, and the claim needs no more


@dataclass(frozen=True, kw_only=True)
class TwinTerms:
    """What is asked; the options of the verb.

    Attributes:
        run: the tested run's id, or a unique beginning of it.
        directions, mislabelled: canaries of each kind, at each owner; None: as many as it takes.
        seed: of directions and rows.
    """

    run: str
    directions: int | None
    mislabelled: int | None
    seed: int


def audit_by_canaries(terms: TwinTerms, where: Where, *, detach: bool, json: bool) -> None:
    """Submit a twin, wait for its end, and show what the canaries say.

    Raises:
        UsageError: the run can have no such twin.
        AppError: the twin failed or was stopped.
        TacitError: the server cannot be reached, or refuses.
    """
    with connected(where.profile, where.home) as client:
        twin_id = _submitted(client, terms)
        typer.echo(
            f"Submitted the twin {twin_id}; owners who have to agree see it there.", err=True
        )
        if detach:
            typer.echo(
                f"Its report, once it is over: tacit audit show {twin_id} [--out FOLDER]", err=True
            )
            emit({"run_id": twin_id} if json else twin_id, json=json)
            return
        wait_for(client, twin_id, what="twin", json=json)
        report = canaries_of(client, twin_id)
    if report is None:
        raise UnavailableError("E-FILE-UNKNOWN", f"expected {CANARIES_NAME} of {twin_id}, got none")
    keep_canaries(report, where, json=json)


def keep_canaries(report: dict[str, Any], where: Where, *, json: bool) -> None:
    """Write a report on canaries into its folder, and show it: however it was fetched.

    Raises:
        UnavailableError: the folder that was asked for cannot be written.
    """
    folder = where.out or Path("audits") / report["canary_run"]
    kept = f"Report: {folder.resolve() / CANARIES_NAME}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_private_folder(folder)
        write_atomic(folder / CANARIES_NAME, canaries_bytes(report))
    except (UnavailableError, OSError) as error:
        if where.out is not None:
            raise
        kept = f"Not kept: {error}; name another folder: --out"
    if json:
        emit(report, json=True)
        return
    show_canaries(report)
    typer.echo(kept)


def _submitted(client: ControlClient, terms: TwinTerms) -> str:
    from tacit.protos.control_client import Submission  # noqa: PLC0415 - grpc

    found = client.find_run(terms.run)
    shown = client.show(found.run_id)
    run = from_plain(json_module.loads(shown.specification), RunSpec)
    _verify_testable(found, run)
    owners, claim = _claims(shown)
    canaries = planned_canaries(terms, found.run_id, claim, owners=owners)
    twin = twin_of(run, canaries)
    problems = [
        *(f"canaries.{key}: {text}" for key, text in canaries.problems()),
        *(f"{key}: {text}" for key, text in twin.problems()),
    ]
    if problems:
        raise UsageError("E-CANARY-TERMS", "; ".join(problems))
    with tempfile.TemporaryDirectory() as folder:
        files = [file for file in client.list_files(found.run_id) if file.path == _INITIAL]
        if not files:
            raise UnavailableError(
                "E-FILE-UNKNOWN", f"expected {_INITIAL} of {found.run_id}, which has left none"
            )
        initial = client.pull(found.run_id, files[0], Path(folder))
        canonical = canonical_json(twin)
        return client.submit(Submission(canonical=canonical, source_toml=b"", initial=initial))


def _verify_testable(found: Run, run: RunSpec) -> None:
    """Refuse a twin of a run that has no claim to test yet, or none of its own.

    Raises:
        UsageError: it has not finished, or is an audit or a twin (``E-TWIN-OF``).
    """
    what, hint = "", ""
    if run.audit is not None:
        what, hint = f"an audit of {run.audit.run}", f"tacit audit canaries {run.audit.run}"
    elif run.discards_model and run.canaries is not None:
        of = run.canaries.run
        what = f"a twin of {of}" if of else "a planned run's twin"
        hint = f"Another twin: tacit audit canaries {of}" if of else ""
    elif found.status != "finished":
        what, hint = found.status, f"To wait for its end: tacit run watch {found.run_id}"
    if what:
        raise UsageError(
            "E-TWIN-OF",
            f"expected a training run that has finished, got {found.run_id}, which is {what}",
            hint=hint,
        )


def planned_canaries(
    terms: TwinTerms, run_id: str, claim: Claim | None, *, owners: int
) -> CanarySpec:
    """Return how many canaries there will be, and guesses: the ceiling is known before any charge.

    Args:
        terms: as asked.
        run_id: the tested run's.
        claim: the largest of its owners'; None for a run that has not begun: half is guessed.
        owners: who share the error.

    Raises:
        UsageError: so many could not test the claim, and more could (``E-CANARY-POWER``).
    """
    asked = {"directions": terms.directions, "mislabelled": terms.mislabelled}
    kinds = sum(count != 0 for count in asked.values())
    if claim is None:
        counts = {kind: _FEWEST[kind] if n is None else n for kind, n in asked.items()}
        return CanarySpec(
            directions=counts["directions"],
            mislabelled=counts["mislabelled"],
            run=run_id,
            seed=terms.seed,
        )
    from tacit.attacks.bounds.bound import ALPHA  # noqa: PLC0415 - scipy
    from tacit.attacks.canary_plan import (  # noqa: PLC0415
        needed_canaries,
        one_run_ceiling,
        planned_guesses,
    )

    alpha = ALPHA / owners
    needed = needed_canaries(claim, kinds=max(1, kinds), alpha=alpha)
    counts, guesses = {}, {}
    for kind, count in asked.items():
        counts[kind] = max(_FEWEST[kind], needed or 0) if count is None else count
        guesses[kind] = 0
        if counts[kind] <= 0:
            continue
        number = planned_guesses(counts[kind], claim, kinds=kinds, alpha=alpha)
        guesses[kind] = number
        ceiling = one_run_ceiling(counts[kind], number, delta=claim.delta, alpha=alpha / kinds)
        if ceiling < claim.epsilon:
            _say_untestable(kind, counts[kind], claim, owners, ceiling=ceiling, needed=needed)
    return CanarySpec(
        directions=counts["directions"],
        mislabelled=counts["mislabelled"],
        run=run_id,
        direction_guesses=guesses["directions"],
        mislabelled_guesses=guesses["mislabelled"],
        seed=terms.seed,
    )


def _say_untestable(
    kind: str, count: int, claim: Claim, owners: int, *, ceiling: float, needed: int | None
) -> None:
    """Refuse canaries that are too few; where none are enough, warn and let figures be made."""
    among = "1 owner" if owners == 1 else f"{owners} owners"
    cannot = (
        f"{count} {kind} canaries cannot test epsilon {claim.epsilon:.2f} at delta "
        f"{claim.delta:g} with {among}: they could show {ceiling:.2f} at most"
    )
    if needed is None:
        typer.echo(
            f"beware: {cannot}, and more hardly more: the verdict will be inconclusive, whatever "
            "is found",
            err=True,
        )
        return
    raise UsageError(
        "E-CANARY-POWER",
        f"{cannot}; {needed} could",
        hint=f"Nothing was charged. Ask for --{kind} {needed} or more, or for none of them: "
        f"--{kind} 0",
    )


def _claims(shown: ShowRunReply) -> tuple[int, Claim | None]:
    """Return how many owners have claimed, and the largest of their claims on what was trained on.

    A run without noise has none: then half of the canaries is guessed, and owners refuse.
    """
    from tacit.attacks.claim import Claim  # noqa: PLC0415 - see _submitted

    manifest: dict[str, Any] = json_module.loads(shown.manifest_json) if shown.manifest_json else {}
    told = [
        sides["train"]
        for sides in manifest.get("claims", {}).values()
        if sides.get("train", {}).get("epsilon") is not None
    ]
    if not told:
        return 1, None
    largest = max(told, key=lambda claim: float(claim["epsilon"]))
    return len(told), Claim(
        epsilon=largest["epsilon"],
        delta=largest["delta"],
        unit=PrivacyUnit(largest["unit"]),
        relation=Relation(largest["relation"]),
    )
