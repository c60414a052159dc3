"""An owner's comparison at home: the federated model, the owner alone, and a guess, in one table.

Exact numbers on the owner's own held-out records, for the owner's own eyes: nothing leaves, so
nothing is charged. The daemon may run or not; it is not asked.

1. Only a built-in run that was approved here is compared, with the files that were approved.
2. The data are prepared again as the run had them, and must split as ``split.json`` says.
3. A short-lived confined process (``compare.py``) trains and scores; only it loads torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tacit.client.approvals import Verdict, fingerprint_apps
from tacit.client.compare import CompareJob, OwnRow
from tacit.client.preparation import PREPARED_NAME, SPLIT_NAME, Preparation, PrepareJob
from tacit.client.received import RECEIVED_NAME, find_received
from tacit.client.runs import parse_specification
from tacit.client.workers import scrubbed_environment
from tacit.core.configuration import from_plain
from tacit.core.errors import (
    AppError,
    ConfigError,
    DataError,
    RefusedError,
    TacitError,
    UnavailableError,
)

if TYPE_CHECKING:
    from tacit.client.configuration import ClientConfig
    from tacit.client.store import RunRecord
    from tacit.core.specification import RunSpec


@dataclass(frozen=True, kw_only=True)
class OwnComparison:
    """The table of one owner.

    Attributes:
        run_id, name: the run.
        federated: which of its models was compared.
        held_out: validation records, on which all are scored.
        delta: the probability beside epsilon; None without noise.
        models: the rows.
    """

    run_id: str
    name: str
    federated: str
    held_out: int
    delta: float | None
    models: tuple[OwnRow, ...]


@dataclass(frozen=True, kw_only=True)
class Home:
    """What an owner compares with.

    Attributes:
        config: client.toml as it is now.
        folder: the run's, below the state directory.
        split_key: the file with the owner's key for row hashes.
    """

    config: ClientConfig
    folder: Path
    split_key: Path


def compare_at_home(run: RunRecord, home: Home, *, model: Path | None = None) -> OwnComparison:
    """Train the owner's alternatives, and score them beside the federated model.

    Args:
        run: what the node knows of the run.
        home: the owner's side.
        model: the federated model as safetensors; None takes the last one that the node received.

    Raises:
        RefusedError: the run brings an app of its own, or is not approved as it stands here.
        UnavailableError: no model was received, or a file is missing.
        ConfigError, DataError: the weights do not fit the run's model; the data are other ones.
        AppError: the training failed.
    """
    specification = parse_specification(run.specification)
    _verify_comparable(run, specification)
    path, federated = _federated(home.folder, model)
    with tempfile.TemporaryDirectory(prefix=".compare-", dir=home.folder) as scratch:
        _prepare_as_before(run, specification, home, Path(scratch))
        factory = specification.model is not None and specification.model.factory is not None
        policy = home.config.policy
        job = CompareJob(
            specification=run.specification.decode(),
            prepared=str(Path(scratch) / PREPARED_NAME),
            model=str(path.resolve()),
            writable=scratch,
            memory_bytes=policy.worker_memory_bytes,
            required=factory and not policy.allow_unisolated_apps,
        )
        # one owner's rounds, each of which may take a worker as long as the owner allows
        limit_s = policy.message_timeout_s * specification.participation.rounds
        answer = _answered(job, timeout_s=limit_s)
    return OwnComparison(
        run_id=run.run_id,
        name=run.name,
        federated=federated,
        held_out=int(answer["held_out"]),
        delta=answer["delta"],
        models=tuple(from_plain(row, OwnRow) for row in answer["models"]),
    )


def _verify_comparable(run: RunRecord, specification: RunSpec) -> None:
    if specification.app is not None or specification.model is None:
        raise RefusedError(
            "E-COMPARE-APP",
            "expected a run of a built-in app; this one brings its own, whose training and scores "
            "only it knows",
        )
    if run.verdict is not Verdict.APPROVED:
        raise RefusedError(
            "E-COMPARE-NOT-APPROVED",
            f"expected a run that was approved here, got one that is {run.verdict.value}",
            hint="Only what took part in a run can be compared with it.",
        )
    if specification.model.factory is not None and fingerprint_apps(specification) != (
        run.app_sha256
    ):
        raise RefusedError(
            "E-APPROVAL-APP",
            "expected the model factory's files as they were approved; they have changed",
            hint="Install the version that the run was approved with.",
        )


def _federated(folder: Path, model: Path | None) -> tuple[Path, str]:
    """Return the file of the federated weights, and what it is in words."""
    if model is not None:
        return model, f"the file {model}"
    received = find_received(folder)
    if received is None:
        raise UnavailableError(
            "E-COMPARE-NO-MODEL",
            "expected a model of this run; the node received none in its last round",
            hint="Ask the operator for the pulled model.safetensors, and give it as --model.",
        )
    rounds = received.trained_rounds
    what = "training" if received.message_type == "train" else "evaluation"
    return (
        folder / RECEIVED_NAME,
        f"the model after round {rounds}, received for the {what} of round {received.round_number}",
    )


def _prepare_as_before(run: RunRecord, specification: RunSpec, home: Home, scratch: Path) -> None:
    """Prepare the data again; they must be those that took part, on the sides they stood on."""
    data_set = home.config.data_sets.get(specification.data_set)
    try:
        before = json.loads((home.folder / SPLIT_NAME).read_bytes())
        key = home.split_key.read_bytes()
    except (OSError, ValueError) as error:
        raise UnavailableError(
            "E-COMPARE-NO-SPLIT",
            f"expected {home.folder / SPLIT_NAME} and {home.split_key}, got none",
            hint="A node writes them when it prepares the data of a run.",
        ) from error
    if data_set is None:
        raise ConfigError(
            "E-POLICY-DATA-SET",
            f"expected a data set of this node, got {specification.data_set!r}",
            hint="Declare it under [data_sets] in client.toml as it was in the run.",
        )
    Preparation().prepare(
        PrepareJob(
            specification=run.specification, data_set=data_set, folder=scratch, split_key=key
        )
    )
    if json.loads((scratch / SPLIT_NAME).read_bytes()) != before:
        raise DataError(
            "E-COMPARE-SPLIT",
            "expected the records and cleaning rules that the run had; its data file or "
            "client.toml has changed since",
            hint="Put them back as they were: otherwise records that were trained on may be "
            "scored as held out.",
        )


def _answered(job: CompareJob, *, timeout_s: float) -> dict[str, Any]:
    """Run the process; return its answer unless that is an error."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-s", "-B", "-m", "tacit.client.compare"],
            input=json.dumps(vars(job)).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a traceback could quote a record
            cwd=job.writable,
            env=scrubbed_environment(job.writable),
            timeout=timeout_s,
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        error = _error_of(answer["error"])
    except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as failure:
        raise UnavailableError(
            "E-COMPARE-FAILED",
            "expected the models to be compared; the process failed",
            hint="Memory may have run out, or time: see worker_memory_bytes and message_timeout_s "
            "in client.toml.",
        ) from failure
    if error is not None:
        raise error
    return answer


def _error_of(plain: dict[str, Any] | None) -> TacitError | None:
    if plain is None:
        return None
    code, message, hint = (str(plain[key]) for key in ("code", "message", "hint"))
    families = {each.__name__: each for each in (AppError, RefusedError, UnavailableError)}
    family = families.get(plain["family"])
    if family is not None:
        return family(code, message, hint=hint)
    return ConfigError(code, message, problems=tuple(map(str, plain["problems"])), hint=hint)
