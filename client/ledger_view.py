"""What an owner sees of their ledger without the daemon: where each data set stands, what is wrong.

Reads the ledger, the heads that the node has noted in its own store, and the terms that client.toml
declares now (ledger_terms.py); changes nothing. A ledger
is held against these heads wherever it is looked at, since a rewritten or restored one is sound in
itself.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.client.ledger_terms import on_declared_terms, read_declared, refused_terms
from tacit.client.restored import WAITS, read_mark
from tacit.client.store import STORE_NAME, open_store
from tacit.core.errors import TacitError, TrustError
from tacit.privacy.ledger import LEDGER_NAME, Ledger
from tacit.privacy.ledger_entries import RESTORE_HINT, Reserve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tacit.client.configuration import DataSet
    from tacit.privacy.ledger_account import Account
    from tacit.privacy.ledger_entries import Entry
    from tacit.privacy.ledger_head import Head, Signer


@dataclass(frozen=True, kw_only=True)
class DataSetStatus:
    """Where one data set stands.

    Attributes:
        unit: of the bound: record or subject.
        delta: one for life.
        epsilon: spent over all runs; None once something left without noise.
        budget, left: what may be spent by client.toml as it is now, and what of it is not held yet.
        entries: of the ledger that are about this data set.
        note: where the ledger's last entry has other terms; empty if nothing is to be said.
        is_refused: whether nothing more is charged by client.toml as it is now.
    """

    data_set: str
    unit: str
    delta: float
    epsilon: float | None
    budget: float
    left: float
    entries: int
    note: str = ""
    is_refused: bool = False


@dataclass(frozen=True, kw_only=True)
class LedgerStatus:
    """Where a node's ledger stands.

    Attributes:
        entries: that can be read and hold.
        head: hash of the last of them (hex); empty without any.
        data_sets: those with an account.
        restored: what a restored node waits for; empty if nothing.
        problem: what is wrong, naming the entry; empty if nothing.
        hint: what to do about it.
    """

    entries: int = 0
    head: str = ""
    data_sets: tuple[DataSetStatus, ...] = ()
    restored: str = ""
    problem: str = ""
    hint: str = ""


def _refuse(_: bytes) -> bytes:
    raise AssertionError("who looks does not sign")


def read_ledger(folder: Path) -> LedgerStatus:
    """Look at the ledger in a state directory, whether a daemon works with it or not."""
    try:
        mark, heads = read_mark(folder), noted_heads(folder)
        if not heads and not (folder / LEDGER_NAME).exists():
            return LedgerStatus()  # the node has not been started yet
        with open_to_read(folder) as ledger:
            problem = find_problem(ledger, heads)
            entries, accounts = ledger.entries(), ledger.accounts()
        declared = read_declared(folder)
    except TacitError as error:
        return LedgerStatus(problem=f"{error.message} [{error.code}]", hint=error.hint)
    return LedgerStatus(
        entries=len(entries),
        head=entries[-1].hash.hex() if entries else "",
        data_sets=tuple(_status_of(account, entries, declared) for account in accounts),
        restored=f"restored from {mark.copied}: {WAITS}" if mark else "",
        problem=f"{problem.message} [{problem.code}]" if problem else "",
        hint=problem.hint if problem else "",
    )


def twins_in(folder: Path) -> dict[str, str]:
    """Return the runs that this node knows as twins, whose models are discarded, by what they say.

    Returns:
        the tested run's id, or "a planned run", by the twin's id.
    """
    if not (folder / STORE_NAME).exists():
        return {}
    with contextlib.closing(open_store(folder / STORE_NAME, read_only=True)) as store:
        runs = store.list_runs()
    twins = {}
    for run in runs:
        with contextlib.suppress(ValueError):  # denied for this very reason
            canaries = json.loads(run.specification).get("canaries") or {}
            if canaries.get("twin"):
                twins[run.run_id] = canaries["run"] or "a planned run"
    return twins


def open_to_read(folder: Path, *, signer: Signer = _refuse) -> Ledger:
    """Open the ledger of a state directory to look at; unless told how, it signs nothing.

    Raises:
        UnavailableError: it is missing (``E-LEDGER-MISSING``) or cannot be opened.
        TrustError: it is no ledger, or is gone although the node has charged it.
    """
    heads = noted_heads(folder)
    verify_ledger_there(folder, heads)
    with naming_known(heads):
        return Ledger.open(folder / LEDGER_NAME, signer=signer, clock=time.time, read_only=True)


@contextlib.contextmanager
def naming_known(heads: Sequence[Head]) -> Iterator[None]:
    """Say of a damaged ledger which entry it must have had, by what the node has noted elsewhere.

    Raises:
        TrustError: as it came, with that entry.
    """
    try:
        yield
    except TrustError as error:
        if error.code != "E-LEDGER-CORRUPT" or not heads:
            raise
        raise TrustError(
            error.code,
            f"{error.message}; entry {_furthest(heads).count} must exist, which this node has "
            "noted in its own store",
            hint=error.hint,
        ) from error


def _furthest(heads: Sequence[Head]) -> Head:
    return max(heads, key=lambda head: head.count)


def noted_heads(folder: Path) -> list[Head]:
    """Return the heads that the node has noted in its store, if it has one.

    Raises:
        UnavailableError: the store cannot be opened.
    """
    path = folder / STORE_NAME
    if not path.exists():
        return []
    store = open_store(path, read_only=True)
    try:
        return store.list_heads()
    finally:
        store.close()


def verify_ledger_there(folder: Path, heads: Sequence[Head]) -> None:
    """Check that a ledger that the node has charged is still there.

    Raises:
        TrustError: ``E-LEDGER-ROLLBACK``, naming the entry that is missed.
    """
    path = folder / LEDGER_NAME
    if heads and not (path.exists() and path.stat().st_size):
        raise TrustError(
            "E-LEDGER-ROLLBACK",
            f"expected a ledger with entry {_furthest(heads).count} at {path}, got "
            f"{'an empty file' if path.exists() else 'no file'}",
            hint="Put it back: a node that has charged its ledger never begins another. "
            + RESTORE_HINT,
        )


def find_problem(ledger: Ledger, heads: Sequence[Head]) -> TrustError | None:
    """Walk the chain anew and hold it against the heads that were noted; None if all is well."""
    problem = ledger.verify().problem
    try:
        with naming_known(heads):
            if problem is not None:
                raise problem
            for head in heads:
                ledger.check_against(head)
    except TrustError as error:
        return error
    return None


def _status_of(
    account: Account, entries: Sequence[Entry], declared: Mapping[str, DataSet] | None
) -> DataSetStatus:
    refused = refused_terms(account, declared)
    account, note = on_declared_terms(account, declared)
    name, epsilon = account.terms.data_set, account.true_epsilon
    return DataSetStatus(
        data_set=name,
        unit=account.terms.unit.value,
        delta=account.delta,
        epsilon=epsilon if math.isfinite(epsilon) else None,
        budget=account.budget,
        left=account.left,
        entries=sum(_data_set(entry) == name for entry in entries),
        note=note,
        is_refused=refused is not None,
    )


def _data_set(entry: Entry) -> str:
    if isinstance(entry.body, Reserve):
        return entry.body.charge.data_set
    return str(getattr(entry.body, "data_set", ""))
