"""Who may submit and stop what, and whether an audit, or a twin, is of the run that it names.

An auditor may submit audits and twins with canaries, whose models are discarded, and nothing else,
and stop their own. Owners approve an audit for what
it says: so the daemon, which has the run, refuses one that describes it otherwise, or that brings
other weights: an auditor who could send weights of their own making could ask records anything.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tacit.core.artifacts import load_arrays, weights_sha256
from tacit.core.configuration import from_plain
from tacit.core.errors import RefusedError, TacitError, TrustError, UsageError
from tacit.core.identity import Role
from tacit.core.specification import RunSpec, audited_run
from tacit.core.twins import is_twin_of
from tacit.server.catalogue import RunStatus

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.core.artifacts import RunFolder
    from tacit.server.catalogue import RunRecord
    from tacit.server.services.access import Caller

_SAME = ("data_set", "data", "model", "training", "privacy", "strategy", "app")


def verify_may_submit(who: Caller, specification: RunSpec) -> None:
    """Refuse a run that is no audit from an auditor.

    Raises:
        TrustError: it is one (``E-ROLE-REFUSED``).
    """
    names_run = specification.canaries is not None and bool(specification.canaries.run)
    if _is_auditor(who) and specification.audit is None and not names_run:
        raise TrustError("E-ROLE-REFUSED", f"{who.name} is an auditor, who submits audits alone")


def verify_may_stop(who: Caller, run: RunRecord) -> None:
    """Refuse an auditor who would stop what is not their own audit.

    Raises:
        TrustError: it is not (``E-ROLE-REFUSED``).
    """
    if not _is_auditor(who):
        return
    specification = json.loads(run.specification)
    asks = specification.get("audit") or (specification.get("canaries") or {}).get("run")
    if run.submitted_by != who.name or not asks:
        raise TrustError("E-ROLE-REFUSED", f"{who.name} is an auditor, who stops own audits alone")


def verify_audit(
    specification: RunSpec, folder: RunFolder, run: RunRecord, run_folder: RunFolder
) -> None:
    """Check that an audit describes the run that it names, and brings its final weights.

    Args:
        specification: of the audit.
        folder: with the weights that came with it.
        run: the audited run.
        run_folder: what that run left.

    Raises:
        UsageError: the run has not finished (``E-AUDIT-RUN``).
        RefusedError: the audit describes it otherwise (``E-AUDIT-RUN``), or other weights came
            (``E-AUDIT-MODEL``).
    """
    audit = specification.audit
    if audit is None:
        return
    known = from_plain(json.loads(run.specification), RunSpec)
    if run.status is not RunStatus.FINISHED or known.audit is not None:
        state = run.status.value if known.audit is None else f"an audit of {known.audit.run}"
        raise UsageError(
            "E-AUDIT-RUN",
            f"expected a training run that has finished, got {run.run_id}, {state}",
            hint="`tacit run list` shows which have.",
        )
    described = audited_run(specification)
    same = all(getattr(known, name) == getattr(described, name) for name in _SAME)
    if not same or known.participation.rounds != audit.rounds:
        raise RefusedError("E-AUDIT-RUN", f"expected the recipe of {run.run_id}, got another")
    digests = {audit.model_sha256, _digest(folder.initial), _digest(run_folder.model)}
    if len(digests) != 1:
        raise RefusedError(
            "E-AUDIT-MODEL", f"expected the final weights of {run.run_id}, got others"
        )


def verify_twin(
    specification: RunSpec, folder: RunFolder, run: RunRecord, run_folder: RunFolder
) -> None:
    """Check that a twin is the run that it names, value by value, from the same weights on.

    Args:
        specification: of the twin.
        folder: with the weights that came with it.
        run: the run that it tests.
        run_folder: what that run left.

    Raises:
        UsageError: the run has not finished, or is an audit or a twin itself (``E-TWIN-OF``).
        RefusedError: it is another (``E-TWIN-RUN``), or begins with other weights
            (``E-AUDIT-MODEL``).
    """
    known = from_plain(json.loads(run.specification), RunSpec)
    if run.status is not RunStatus.FINISHED or known.audit is not None or known.discards_model:
        raise UsageError(
            "E-TWIN-OF",
            f"expected a training run that has finished and kept its model, got {run.run_id}, "
            f"{run.status.value}",
        )
    if not is_twin_of(specification, known):
        raise RefusedError(
            "E-TWIN-RUN",
            f"expected {run.run_id} with canaries, and no evaluation or kept rounds, got another "
            "specification",
            hint="`tacit audit canaries RUN` makes the twin of a run.",
        )
    if _digest(folder.initial) != _digest(run_folder.initial):
        raise RefusedError(
            "E-AUDIT-MODEL", f"expected the first weights of {run.run_id}, got others"
        )


def _digest(path: Path) -> str:
    try:
        return weights_sha256(load_arrays(path))
    except TacitError as error:
        raise RefusedError("E-AUDIT-MODEL", "expected a run's final weights, got none") from error


def _is_auditor(who: Caller) -> bool:
    return who.identity is not None and who.identity.role is Role.AUDITOR
