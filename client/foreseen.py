"""What this node will say of a run that nobody has offered yet, by the rules that it judges by.

Looks at client.toml, at the ledger as it stands, and at the runs that are approved and not over;
changes nothing. What depends on a run's id is left out: only the node sees an audited run's split.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tacit.client.approvals import Offer, Verdict, refusals
from tacit.client.charges import Charges
from tacit.client.daemon import IDENTITY_FOLDER, epsilon_of
from tacit.client.ledger_view import open_to_read
from tacit.client.members import load_pinned
from tacit.client.placement import verify_readable
from tacit.client.runs import parse_specification
from tacit.client.store import STORE_NAME, open_store
from tacit.core.errors import RefusedError, TacitError
from tacit.core.membership import Membership
from tacit.privacy.ledger import LEDGER_NAME, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.client.configuration import ClientConfig
    from tacit.core.specification import RunSpec

_RUN_ID = "r-00000000"  # of the run that nobody has offered


def foreseen_refusals(
    specification: RunSpec, config: ClientConfig, folder: Path, *, isolated: bool
) -> list[RefusedError]:
    """Return what would deny a run here, in the order of the rules; empty: a person or a rule says.

    Args:
        specification: of the run.
        config: the owner's client.toml.
        folder: the node's state directory.
        isolated: whether a worker can be confined here.

    Raises:
        TacitError: the ledger, the store or the pinned members cannot be read.
    """
    pinned = None
    if specification.secure_aggregation is not None:
        pinned = load_pinned(folder, Membership(folder / IDENTITY_FOLDER))
    with _ledger(folder) as ledger:
        charges = Charges(ledger, config=config, public_key=bytes(32))
        offer = Offer(
            specification=specification,
            epsilon=planned_epsilon(specification, config),
            isolated=isolated,
            unaffordable=charges.refusal(specification, _RUN_ID, beside=_beside(folder)),
            unreadable=_unreadable(specification, config),
            pinned=() if pinned is None else pinned.keys,
            own_name="" if pinned is None else pinned.own_name,
        )
    return list(refusals(offer, config))


@contextlib.contextmanager
def _ledger(folder: Path) -> Iterator[Ledger]:
    """Open the node's ledger to read; an empty one where the node has not been started yet."""
    if (folder / LEDGER_NAME).exists():
        with open_to_read(folder) as ledger:
            yield ledger
        return
    with empty_ledger() as ledger:
        yield ledger


@contextlib.contextmanager
def empty_ledger() -> Iterator[Ledger]:
    """Give a ledger of an owner who has spent nothing; nothing of it is kept."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / LEDGER_NAME
        with Ledger.open(path, signer=lambda _: bytes(64), clock=time.time) as ledger:
            yield ledger


def _beside(folder: Path) -> dict[str, RunSpec]:
    """Return the runs that are approved and not over, by id."""
    path, found = folder / STORE_NAME, {}
    if path.exists():
        store = open_store(path, read_only=True)
        with contextlib.closing(store):
            for run in store.list_runs():
                if run.verdict is Verdict.APPROVED and not run.ended:
                    with contextlib.suppress(TacitError):  # of a version that said otherwise
                        found[run.run_id] = parse_specification(run.specification)
    return found


def planned_epsilon(specification: RunSpec, config: ClientConfig) -> float | None:
    """Return what a whole run costs each unit of its data set; None without data set or account."""
    data_set = config.data_sets.get(specification.data_set)
    if data_set is None:
        return None
    try:
        return epsilon_of(specification, data_set.records, specification.training_releases)
    except TacitError:
        return None  # what is wrong is refused by name


def _unreadable(specification: RunSpec, config: ClientConfig) -> RefusedError | None:
    try:
        verify_readable(specification, config)
    except RefusedError as error:
        return error
    return None
