"""The work behind `tacit audit run`: read the files, run the plan, write the report.

Imported when the verb runs, since it loads torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from tacit.attacks.files import load_model, load_predictions, load_records
from tacit.attacks.reference_cache import ReferenceCache
from tacit.attacks.runner import run_audit, verify_probes
from tacit.attacks.subject import Subject, subject_of_model, without_overlap
from tacit.audit.claims import claims_in, parse_claim
from tacit.audit.report import Provenance, report_of, write_report
from tacit.cli.audit_progress import AuditProgress
from tacit.cli.audit_view import plot_report
from tacit.core.artifacts import RunFolder, sha256_file
from tacit.core.configuration import load_config
from tacit.core.errors import UnavailableError, UsageError
from tacit.core.files import make_private_folder
from tacit.core.specification import RunSpec, canonical_json, specification_sha256
from tacit.simulation.new_folder import NewFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tacit.attacks.plans import AuditPlan
    from tacit.audit.claims import Claim


_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be audited, and how; the options of the verb.

    Attributes:
        members, non_members, population: files of records.
        model, recipe: the weights and the run.toml that made them.
        run_folder: holds both.
        predictions: a file, instead of all of these.
        owners: how many owners the run averaged in a round; None: as the run folder says.
        claim: what the model claims, as people write it; None: as the run folder says.
        plan: which plan.
        probes: only these; empty for the plan's.
        slices: columns.
        drop_overlap: leave out records that stand on two sides.
        out: the folder of the report; None for one of its own.
        seed, cache, workers: see :func:`tacit.attacks.runner.run_audit`.
    """

    members: Path | None
    non_members: Path | None
    population: Path | None
    model: Path | None
    recipe: Path | None
    run_folder: Path | None
    predictions: Path | None
    owners: int | None
    claim: str | None
    plan: AuditPlan
    probes: tuple[str, ...]
    slices: tuple[str, ...]
    drop_overlap: bool
    out: Path | None
    seed: int
    cache: Path | None
    workers: int


def audit_files(request: Request, *, quiet: bool) -> tuple[dict[str, Any], Path]:
    """Run an audit on files; return its report and the folder that it was written into.

    Raises:
        UsageError: the options do not fit one another (``E-AUDIT-FILES``), or the folder is not
            empty (``E-RUN-FOLDER``).
        TacitError: whatever is wrong with the files; see attacks/files.py and attacks/subject.py.
    """
    torch.set_num_threads(1)  # two threads on a small model cost more than they bring
    plan = request.plan
    if request.probes:
        plan = dataclasses.replace(plan, probes=tuple(dict.fromkeys(request.probes)))
    verify_probes(plan.probes)
    claims = _claims(request)
    folder = request.out or Path("audits") / f"{plan.name}-{secrets.token_hex(4)}"
    with NewFolder(folder) as new_folder, AuditProgress(quiet=quiet) as progress:
        subject, provenance = _subject(request)
        result = run_audit(
            subject,
            plan,
            seed=request.seed,
            progress=progress.show,
            cache=None if request.cache is None else ReferenceCache(folder=request.cache),
            workers=request.workers,
        )
        report = report_of(result, provenance, claims=claims)
        make_private_folder(folder)
        new_folder.keep()
        write_report(folder, report)
    plot_report(folder, report)
    return report, folder.resolve()


def _subject(request: Request) -> tuple[Subject, Provenance]:
    if request.predictions is not None:
        others = (request.members, request.non_members, request.population, request.model)
        if any(each is not None for each in (*others, request.recipe, request.run_folder)):
            raise _misfit("--predictions stands alone: it holds all that can be audited then")
        if request.slices:
            raise _misfit("--slice needs records: predictions have no columns")
        files = {"predictions": sha256_file(request.predictions).hex()}
        return load_predictions(request.predictions), _provenance(files, dropped=0)
    model_path, recipe_path = _model_and_recipe(request)
    if request.members is None or request.non_members is None:
        raise _misfit("expected --members and --nonmembers, or --predictions")
    spec = load_config(recipe_path, RunSpec).value
    model = load_model(model_path, spec)
    members, non_members = (
        load_records(path, spec, slices=request.slices)
        for path in (request.members, request.non_members)
    )
    population = None
    if request.population is not None:
        population = load_records(request.population, spec)
    trained_too, dropped = None, 0
    if request.drop_overlap:
        left = without_overlap(members, non_members, population)
        members, non_members, population = left.members, left.non_members, left.population
        trained_too, dropped = left.trained_too, left.dropped
    subject = subject_of_model(
        model,
        members=members,
        non_members=non_members,
        population=population,
        trained_too=trained_too,
        recipe=spec,
        owners=_owners(request),
    )
    paths = {
        "model": model_path,
        "members": request.members,
        "non-members": request.non_members,
        "population": request.population,
    }
    files = {name: _sha256(path) for name, path in paths.items() if path is not None}
    files["recipe"] = specification_sha256(canonical_json(spec)).hex()
    return subject, _provenance(files, dropped=dropped)


def _model_and_recipe(request: Request) -> tuple[Path, Path]:
    if request.run_folder is not None:
        if request.model is not None or request.recipe is not None:
            raise _misfit("--run brings model and recipe: leave out --model and --recipe")
        folder = RunFolder(request.run_folder)
        return folder.model, folder.run_toml
    if request.model is None or request.recipe is None:
        raise _misfit("expected --model and --recipe, or --run, or --predictions")
    return request.model, request.recipe


def _owners(request: Request) -> int:
    """Return how many owners a round averaged: as asked, as the manifest says, or one."""
    if request.owners is not None or request.run_folder is None:
        return request.owners or 1
    return _of_manifest(
        request.run_folder,
        lambda told: max(1, *(len(entry["cohort"]) for entry in told["rounds"])),
        otherwise=1,
    )


def _claims(request: Request) -> list[Claim]:
    """Return what the model claims: as said, as the manifest says, or nothing."""
    if request.claim is not None:
        return [parse_claim(request.claim)]
    if request.run_folder is None:
        return []
    return _of_manifest(request.run_folder, claims_in, otherwise=[])


def _of_manifest(run_folder: Path, read: Callable[[dict[str, Any]], _T], *, otherwise: _T) -> _T:
    try:
        return read(json.loads(RunFolder(run_folder).manifest.read_bytes()))
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnavailableError(
            "E-FILE-UNREADABLE",
            f"expected a run's manifest.json in {run_folder}, got something else",
            hint="Say it yourself: --owners N, --claim EPSILON,DELTA",
        ) from error


def _sha256(path: Path) -> str:
    """Return the hash of a file; of a folder of images, of its files' names and hashes."""
    if not path.is_dir():
        return sha256_file(path).hex()
    digest = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        digest.update(file.relative_to(path).as_posix().encode() + b"\0" + sha256_file(file))
    return digest.hexdigest()


def _provenance(files: dict[str, str], *, dropped: int) -> Provenance:
    versions = {
        "tacit": importlib.metadata.version("tacit"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    return Provenance(files=files, dropped_overlap=dropped, versions=versions)


def _misfit(message: str) -> UsageError:
    return UsageError("E-AUDIT-FILES", message, hint="tacit audit run --help")
