"""The data owner's ledger: what every release cost, written and flushed before it leaves.

One SQLite file in the node's state directory, mode 0600, append-only. Trusts: the file system to
keep what was flushed. Promises:

1. What a method has returned is on the disk (WAL with synchronous = FULL, and the directory).
2. Checking the budget and appending are one transaction: runs, threads and processes that share a
   data set share its budget.
3. A release is charged once: the same charge under the same run, message and attempt gives the
   entry that is there; another charge under that key refuses.
4. Before anything is appended, the chain has been walked from its first entry: once, and again
   whenever another connection has written; all that this process knew is still there, unchanged, in
   the file of that name. A damaged ledger appends nothing more; what can be read of it can still be
   read.
5. The head, signed, leaves with every claim; a head that comes back from others must still be a
   part of this ledger (``check_against``). A rewritten file has an unbroken chain, so this alone
   finds one; and so it finds a restored copy, and a second node on a copy.

What an entry says is in ``ledger_entries.py``; what entries add up to in ``ledger_account.py``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tacit.core.errors import RefusedError, TrustError, UnavailableError
from tacit.core.files import sync_path
from tacit.privacy.ledger_account import Account, Book, Held, verify_lower, verify_terms
from tacit.privacy.ledger_entries import (
    FIRST_PREVIOUS,
    Abort,
    Begin,
    Body,
    Budget,
    Charge,
    ChargeKey,
    Cost,
    Entry,
    Expose,
    Reserve,
    Restore,
    Row,
    Settle,
    Terms,
    damaged,
    parse_row,
    row_after,
    verify_same,
)
from tacit.privacy.ledger_head import Head, SignedHead, Signer, forked, rolled_back, sign_head
from tacit.privacy.ledger_store import (
    begin,
    connected,
    file_id,
    named,
    prepare,
    stored_rows,
    verify_in_place,
    verify_pages,
    written_by_others,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tacit.privacy.accounting import Mechanism

LEDGER_NAME = "ledger.sqlite"
MAX_EVIDENCE_BYTES = 1 << 20  # signatures of thousands of members


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What walking the whole chain found.

    Attributes:
        head: of the undamaged part; None if not even the first entry holds.
        problem: None if all is well, else the error that names the entry.
    """

    head: Head | None
    problem: TrustError | None


class Ledger:
    """One node's ledger; safe to use from several threads. See the module's docstring."""

    def __init__(
        self, connection: sqlite3.Connection, *, signer: Signer, clock: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._signer = signer
        self._clock = clock
        self._lock = threading.RLock()
        self._book = Book()
        self._entries: list[Entry] = []
        self._problem: TrustError | None = None
        self._others = -1  # differs once another connection has written
        self._verify_in_place: Callable[[], None] = lambda: None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        signer: Signer,
        clock: Callable[[], float],
        read_only: bool = False,
    ) -> Self:
        """Open a ledger and walk its chain; make it where it does not exist.

        A damaged ledger opens too: ``verify`` says what is wrong, and nothing can be appended.

        Args:
            path: the SQLite file; its directory exists.
            signer: signs with the node's enrolment key.
            clock: seconds since 1970 (UTC).
            read_only: for verbs that look while the daemon works, or is stopped.

        Raises:
            UnavailableError: the file is missing (``E-LEDGER-MISSING``, when reading only), cannot
                be opened, or is of a later version.
            TrustError: it is no ledger, or cannot be read to its end (``E-LEDGER-CORRUPT``).
        """
        if read_only and not path.exists():
            raise UnavailableError(
                "E-LEDGER-MISSING",
                f"expected a ledger at {path}",
                hint="A node makes its ledger when it starts: `tacit client start`.",
            )
        ledger = cls(connected(path, read_only=read_only), signer=signer, clock=clock)
        try:
            ledger._verify_in_place = functools.partial(verify_in_place, path, file_id(path))
            ledger._begin(path, read_only=read_only)
        except BaseException as error:
            ledger.close()
            if isinstance(error, TrustError) and not read_only:  # only who looks can name the entry
                with cls.open(path, signer=signer, clock=clock, read_only=True) as damaged_one:
                    damaged_one.head()
            raise
        return ledger

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, path: Path, *, read_only: bool) -> None:
        with named():
            if prepare(self._connection, read_only=read_only) and not read_only:
                begin(self._connection, self._first_row)
                sync_path(path.parent)
        with self._lock:
            self._refresh()

    def _first_row(self) -> Row:
        return row_after((), Begin(random=secrets.token_hex(32)), at_s=self._clock())

    def open_data_set(self, terms: Terms) -> Account:
        """Open a data set's account, or check that it is open on these terms; follow its budget.

        Raises:
            RefusedError: another delta (``E-LEDGER-DELTA``), bound or unit (``E-LEDGER-TERMS``)
                than when the account was opened.
            TrustError: the ledger is damaged (``E-LEDGER-CORRUPT``).
        """
        if problems := "; ".join(f"{key}: {text}" for key, text in terms.problems()):
            raise RefusedError(
                "E-LEDGER-TERMS", f"expected the terms of an account, got {problems}"
            )
        with self._transaction():
            if terms.data_set not in self._book.data_sets():
                self._append(terms)
            else:
                known = self._book.terms(terms.data_set)
                verify_terms(terms, known)
                if terms.budget != known.budget:
                    self._append(Budget(data_set=terms.data_set, budget=terms.budget))
        return self.account(terms.data_set)

    def reserve(self, charge: Charge) -> Entry:
        """Charge a release at its worst; what this returns is on the disk, and it may leave.

        Raises:
            BudgetError: the budget has no room (``E-LEDGER-BUDGET``).
            RefusedError: the key is taken by another charge (``E-LEDGER-CONFLICT``), or the charge
                is none for this data set (``E-LEDGER-CLOSED``, ``E-LEDGER-CHARGE``,
                ``E-LEDGER-DELTA``, ``E-LEDGER-UNIT``, ``E-EPSILON-UNBOUNDED``).
            TrustError: the ledger is damaged (``E-LEDGER-CORRUPT``).
            UnavailableError: the disk is full, or the file is held by another process.
        """
        with self._transaction():
            known = self._book.entry_at(charge.key)
            if known is not None:
                same = isinstance(known.body, Reserve) and known.body.charge == charge
                return known if same else _conflict(charge.key, known)
            self._book.verify_charge(charge)
            cost = self._book.cost(charge, charge.mechanism)
            self._book.verify_room(charge, cost)
            return self._append(Reserve(charge=charge, cost=cost))

    def settle(
        self,
        key: ChargeKey,
        *,
        mechanism: Mechanism,
        evidence: bytes,
        realised_noise: float | None = None,
    ) -> Entry:
        """Lower a charge to what the evidence proves; who calls this has verified the evidence.

        Args:
            key: of the reserve.
            mechanism: what really ran: at least the reserved noise, at most its steps.
            evidence: such as the survivors' signatures, at most ``MAX_EVIDENCE_BYTES``.
            realised_noise: standard deviation of the noise that was added, if known.

        Raises:
            RefusedError: it would raise the charge (``E-LEDGER-SETTLE``), the charge is closed
                otherwise (``E-LEDGER-CONFLICT``) or unknown (``E-LEDGER-UNKNOWN``).
            TrustError: the ledger is damaged (``E-LEDGER-CORRUPT``).
        """
        if not 0 < len(evidence) <= MAX_EVIDENCE_BYTES:
            raise RefusedError(
                "E-LEDGER-SETTLE",
                f"expected 1 to {MAX_EVIDENCE_BYTES} bytes of evidence, got {len(evidence)}",
            )
        with self._transaction():
            held = self._book.held(key)
            verify_lower(mechanism, than=held.charge.mechanism)
            body = Settle(
                data_set=held.charge.data_set,
                run=key.run,
                message=key.message,
                attempt=key.attempt,
                reserve=held.entry.sequence,
                mechanism=mechanism,
                realised_noise=realised_noise,
                evidence=evidence.hex(),
                evidence_sha256=hashlib.sha256(evidence).hexdigest(),
                cost=self._book.cost(held.charge, mechanism),
            )
            return self._closed(held, body, key)

    def abort(self, key: ChargeKey, *, reason: str) -> Entry:
        """Note that an attempt came to nothing; its charge stays.

        Raises:
            RefusedError: the charge is settled (``E-LEDGER-CONFLICT``) or unknown
                (``E-LEDGER-UNKNOWN``).
            TrustError: the ledger is damaged (``E-LEDGER-CORRUPT``).
        """
        with self._transaction():
            held = self._book.held(key)
            body = Abort(
                data_set=held.charge.data_set,
                run=key.run,
                message=key.message,
                attempt=key.attempt,
                reserve=held.entry.sequence,
                reason=reason,
            )
            return self._closed(held, body, key)

    def expose(self, body: Expose) -> Entry:
        """Note, before it leaves, a release without noise that the owner's policy allows.

        The data set need not have an account yet: one that is opened later knows of it.

        Raises:
            RefusedError: the key is taken by another entry (``E-LEDGER-CONFLICT``).
            TrustError: the ledger is damaged (``E-LEDGER-CORRUPT``).
        """
        with self._transaction():
            known = self._book.entry_at(body.key)
            if known is not None:
                return known if known.body == body else _conflict(body.key, known)
            return self._append(body)

    def restore(self, highest: Head, *, reason: str) -> Entry:
        """Note that the state directory came back from a copy.

        It refuses unless the copy holds all of the highest head that others know: what left under
        lost entries stays spent, so no head is ever lowered.

        Raises:
            TrustError: entries are missing (``E-LEDGER-ROLLBACK``), it is another history
                (``E-LEDGER-FORK``), or it is damaged (``E-LEDGER-CORRUPT``).
        """
        with self._transaction():
            self.check_against(highest)
            return self._append(Restore(count=highest.count, hash=highest.hash, reason=reason))

    def data_sets(self) -> list[str]:
        """Return the names of the data sets that have an account, in the order of opening."""
        with self._fresh():
            return self._book.data_sets()

    def account(self, data_set: str) -> Account:
        """Return where a data set stands, by what can be read.

        Raises:
            RefusedError: it has no account (``E-LEDGER-CLOSED``).
        """
        with self._fresh():
            return self._book.account(data_set)

    def accounts(self) -> list[Account]:
        """Return where all data sets stand."""
        with self._fresh():
            return [self._book.account(name) for name in self._book.data_sets()]

    def held(self, key: ChargeKey) -> Held:
        """Return a charge as it stands.

        Raises:
            RefusedError: nothing was reserved under this key (``E-LEDGER-UNKNOWN``).
        """
        with self._fresh():
            return self._book.held(key)

    def preview(self, charge: Charge, terms: Terms, *, planned: Sequence[Charge] = ()) -> Cost:
        """Return what a charge would cost on these terms, if it has room, without writing either.

        Args:
            charge: what would be charged.
            terms: of its data set's account, open or not.
            planned: charges of whole runs, in the place of what these were charged so far.

        Raises:
            BudgetError, RefusedError, TrustError: as :meth:`open_data_set` and :meth:`reserve`.
        """
        with self._fresh():
            self._verify_sound()
            book = self._book.on(terms, planned)
            book.verify_charge(charge)
            cost = book.cost(charge, charge.mechanism)
            book.verify_room(charge, cost)
            return cost

    def rows(self) -> list[Row]:
        """Return what is stored, undamaged or not, by its number.

        Raises:
            TrustError: the file cannot be read to its end (``E-LEDGER-CORRUPT``).
        """
        with self._lock:
            return list(stored_rows(self._connection))

    def entries(self) -> list[Entry]:
        """Return all entries, up to the first damaged one."""
        with self._fresh():
            return list(self._entries)

    def head(self) -> SignedHead:
        """Return the signed head.

        Raises:
            TrustError: the ledger is damaged (``E-LEDGER-CORRUPT``).
        """
        with self._fresh():
            self._verify_sound()
            return sign_head(self._head(), self._signer)

    def check_against(self, highest: Head) -> None:
        """Check that a head that others have seen is a part of this ledger.

        Raises:
            TrustError: ``E-LEDGER-ROLLBACK``: entries are missing; ``E-LEDGER-FORK``: another
                history; ``E-LEDGER-CORRUPT``: it is damaged.
        """
        with self._fresh():
            if highest.ledger != self._book.ledger and self._entries:
                raise forked(highest, "this is another ledger")
            self._verify_sound()
            if highest.count > len(self._entries):
                raise rolled_back(highest, len(self._entries))
            if highest.count < 1 or self._entries[highest.count - 1].hash.hex() != highest.hash:
                raise forked(highest, f"entry {highest.count} is another one")

    def verify(self) -> Verification:
        """Walk the whole chain anew, as it is stored."""
        with self._lock:
            self._forget()
            self._refresh()
            head = self._head() if self._entries else None
            return Verification(head=head, problem=self._problem)

    def _head(self) -> Head:
        last = self._entries[-1]
        return Head(ledger=self._book.ledger, count=last.sequence, hash=last.hash.hex())

    def _closed(self, held: Held, body: Settle | Abort, key: ChargeKey) -> Entry:
        if held.closed is None:
            return self._append(body)
        was = held.closed.body
        if isinstance(was, Settle) and isinstance(body, Settle):
            same = (was.mechanism, was.evidence, was.realised_noise) == (
                body.mechanism,
                body.evidence,
                body.realised_noise,
            )
        else:
            same = isinstance(was, Abort) and isinstance(body, Abort)
        return held.closed if same else _conflict(key, held.closed)

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[None]:
        """Know what other processes have appended meanwhile."""
        with self._lock:
            self._refresh()
            yield

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Hold the file alone; on a clean exit what was appended is on the disk."""
        with self._lock, named():
            self._connection.execute("BEGIN IMMEDIATE")
            known = -1
            try:
                self._refresh()
                self._verify_sound()
                known = len(self._entries)
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if known not in (-1, len(self._entries)):
                    self._forget()  # what was appended here may not have been kept
                raise

    def _append(self, body: Body) -> Entry:
        row = row_after(self._entries, body, at_s=self._clock())
        entry = self._take(row)
        self._connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", row)
        return entry

    def _take(self, row: Row) -> Entry:
        previous = self._entries[-1].hash if self._entries else FIRST_PREVIOUS
        entry = parse_row(row, after=len(self._entries), previous=previous)
        self._book.apply(entry)
        self._entries.append(entry)
        return entry

    def _verify_sound(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _forget(self) -> None:
        self._book = Book()
        self._entries = []
        self._problem = None

    def _refresh(self) -> None:
        """Take in what was appended; see that what was known is there, all if others wrote."""
        if self._problem is not None:
            return
        known = len(self._entries)
        try:
            self._verify_in_place()
            others = written_by_others(self._connection)
            place = max(known - 1, 0) if others == self._others else 0
            since = (place + 1,) if place else ()
            for row in stored_rows(self._connection, *since):
                if place < known:
                    verify_same(row, self._entries[place])
                else:
                    self._take(row)
                place += 1
            if place < max(known, 1):
                raise damaged(place + 1, "it is missing")
            if not known:
                verify_pages(self._connection, after=len(self._entries))
            self._others = others
        except TrustError as error:
            self._problem = error


def _conflict(key: ChargeKey, known: Entry) -> Entry:
    raise RefusedError(
        "E-LEDGER-CONFLICT",
        f"expected what entry {known.sequence} says for message {key.message}, attempt "
        f"{key.attempt}, got something else",
        hint="One attempt is charged once. Another attempt has its own number and its own charge.",
    )
