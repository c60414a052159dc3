"""What a data set's entries add up to: the pure rules of the ledger.

Trusts: entries whose chain holds (``ledger_entries.py``), and the accountant. It opens no file and
reads no clock. Promises: nothing that may have left is ever counted for less than it may have cost.

The rules:

1. A charge counts as settled, else as reserved. Settling only lowers; an aborted attempt stays.
2. All of a data set's charges go into one accountant, at the data set's one delta.
3. Bounds are for the budget's unit. A charge for a coarser unit also bounds the finer one: as it is
   under replace-one; at half the noise under add/remove, since changing a part of a unit is to
   remove it and to add another. A charge for a finer unit bounds the coarser one at the noise
   divided by ``most_records``, and refuses if nothing bounds those. Neither conversion keeps the
   amplification by sampling: it is accounted as if every record took part. What all charges
   together bound is add/remove: a sum that moves by at most 2C when a record is replaced moves by
   at most C when one goes.
4. Train and validation have an account each, and the data set costs the larger one, only while
   they are known to be disjoint for good: all charges of either side carry one and the same split
   digest, a split that never cuts the budget's unit, and the relation add/remove (a replaced record
   may change sides). Two runs that divide the records differently can show one record on both
   sides: from the first such charge on, everything composes. Charges on the whole data set count
   on both sides.
5. Held against the budget is, for the charges of one run, their epsilon: they were fixed when the
   run was approved. Over several runs it is the bound that stays true if a later run was chosen
   after seeing an earlier one (``accounting.adaptive_epsilon``).
6. A release without noise has no epsilon. It is kept by name, and from then on the data set's
   epsilon is infinite; what the budget holds is the noised releases alone.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from tacit.core.errors import BudgetError, RefusedError
from tacit.core.specification import Relation
from tacit.privacy.accounting import (
    PLD_ERROR,
    Mechanism,
    SampledGaussian,
    ZeroConcentrated,
    accountant_name,
    adaptive_epsilon,
    epsilon_of_events,
)
from tacit.privacy.ledger_entries import (
    Abort,
    Begin,
    Budget,
    Charge,
    ChargeKey,
    Cost,
    Entry,
    Expose,
    Reserve,
    Restore,
    Settle,
    Side,
    Terms,
    Unit,
    damaged,
)
from tacit.privacy.ledger_head import ledger_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_ROUNDING = 1e-9  # a budget that a plan was calibrated to may be met up to this share


@dataclass(frozen=True, kw_only=True)
class Held:
    """One charge as it stands.

    Attributes:
        entry: the reserve.
        charge: what was reserved.
        mechanism: what counts: the settled one, else the reserved one.
        closed: the entry that settled or aborted it.
    """

    entry: Entry
    charge: Charge
    mechanism: Mechanism
    closed: Entry | None = None

    @property
    def state(self) -> str:
        """``reserve``, ``settle`` or ``abort``."""
        return self.entry.kind if self.closed is None else self.closed.kind


@dataclass(frozen=True, kw_only=True)
class Account:
    """Where one data set stands.

    Attributes:
        terms: its life-long terms, with the budget as it is now.
        epsilon_by_side: ``train`` and ``validation``, or ``whole`` where they cannot be told apart.
        epsilon: of all noised releases together, at ``terms.delta``, for ``terms.unit``.
        held: what is held against the budget (rule 5).
        exposed: runs that released something without noise; none if ``epsilon`` says it all.
        charges: as they stand, in the order of their reserves.
    """

    terms: Terms
    epsilon_by_side: Mapping[str, float]
    epsilon: float
    held: float
    exposed: tuple[str, ...]
    charges: tuple[Held, ...]

    @property
    def delta(self) -> float:
        """The data set's delta."""
        return self.terms.delta

    @property
    def budget(self) -> float:
        """Largest epsilon over all runs."""
        return self.terms.budget

    @property
    def left(self) -> float:
        """What the budget still holds; epsilons do not add up, so this is a guide only."""
        return max(0.0, self.terms.budget - self.held)

    @property
    def true_epsilon(self) -> float:
        """``epsilon``, or infinity once something left without noise."""
        return math.inf if self.exposed else self.epsilon


@dataclass(kw_only=True)
class _Pages:
    """What is known of one data set."""

    terms: Terms
    charges: dict[ChargeKey, Held] = field(default_factory=dict)


class Book:
    """Folds entries, in order, into accounts; a state machine without storage.

    Attributes:
        ledger: id of the ledger; empty before the first entry.
    """

    def __init__(self) -> None:
        self.ledger = ""
        self._pages: dict[str, _Pages] = {}
        self._keys: dict[ChargeKey, Entry] = {}
        self._exposed: dict[str, list[str]] = {}  # kept also where no account is open yet

    def apply(self, entry: Entry) -> None:
        """Take in the next entry.

        Raises:
            TrustError: it breaks a rule of the ledger (``E-LEDGER-CORRUPT``, naming it).
        """
        try:
            self._apply(entry)
        except (RefusedError, KeyError) as error:
            why = error.message if isinstance(error, RefusedError) else "it refers to nothing"
            raise damaged(entry.sequence, f"it breaks a rule: {why}") from error

    def _apply(self, entry: Entry) -> None:
        body = entry.body
        if isinstance(body, Begin) != (entry.sequence == 1):
            raise RefusedError("E-LEDGER-ORDER", "a ledger begins once")
        match body:
            case Begin():
                self.ledger = ledger_id(body.random)
            case Terms():
                self._verify_new(body)
                self._pages[body.data_set] = _Pages(terms=body)
            case Budget():
                pages = self._pages[body.data_set]
                pages.terms = dataclasses.replace(pages.terms, budget=body.budget)
            case Reserve():
                self.verify_charge(body.charge)
                held = Held(entry=entry, charge=body.charge, mechanism=body.charge.mechanism)
                self._pages[body.charge.data_set].charges[body.charge.key] = held
                self._keys[body.charge.key] = entry
            case Settle() | Abort():
                self._close(entry, body)
            case Expose():
                self._exposed.setdefault(body.data_set, []).append(body.run)
                self._keys[body.key] = entry
            case Restore():
                pass
            case _:
                assert_never(body)

    def _verify_new(self, terms: Terms) -> None:
        if terms.data_set in self._pages:
            raise RefusedError("E-LEDGER-ORDER", f"{terms.data_set} is open already")

    def _close(self, entry: Entry, body: Settle | Abort) -> None:
        key = ChargeKey(body.run, body.message, body.attempt)
        charges = self._pages[body.data_set].charges
        held = charges[key]
        if held.closed is not None or held.entry.sequence != body.reserve:
            raise RefusedError("E-LEDGER-ORDER", "it closes another charge, or a closed one")
        mechanism = held.mechanism
        if isinstance(body, Settle):
            verify_lower(body.mechanism, than=mechanism)
            mechanism = body.mechanism
        charges[key] = dataclasses.replace(held, mechanism=mechanism, closed=entry)

    def data_sets(self) -> list[str]:
        """Return the names of the data sets, in the order in which they were opened."""
        return list(self._pages)

    def terms(self, data_set: str) -> Terms:
        """Return a data set's terms.

        Raises:
            RefusedError: ``E-LEDGER-CLOSED``: the data set has no account.
        """
        if data_set not in self._pages:
            raise RefusedError(
                "E-LEDGER-CLOSED",
                f"expected a data set with an account, got {data_set!r}",
                hint="The owner opens an account by declaring the data set in client.toml.",
            )
        return self._pages[data_set].terms

    def on(self, terms: Terms, planned: Iterable[Charge] = ()) -> Book:
        """Return this book with an account that is open on these terms; this one stays as it is.

        Args:
            terms: of the account.
            planned: charges of whole runs, one for each purpose; each counts in the place of what
                its run was charged for that purpose, unless that is more already.

        Raises:
            RefusedError: the account is open on other terms; see :func:`verify_terms`.
        """
        charges: dict[ChargeKey, Held] = {}
        if terms.data_set in self._pages:
            verify_terms(terms, self.terms(terms.data_set))
            charges = self._pages[terms.data_set].charges
        for charge in planned:
            charges = _with_planned(charges, charge)
        book = Book()
        book.ledger, book._keys, book._exposed = self.ledger, self._keys, self._exposed
        book._pages = self._pages | {terms.data_set: _Pages(terms=terms, charges=charges)}
        return book

    def exposed(self, data_set: str) -> tuple[str, ...]:
        """Return the runs that released something of a data set without noise."""
        return tuple(dict.fromkeys(self._exposed.get(data_set, ())))

    def entry_at(self, key: ChargeKey) -> Entry | None:
        """Return the entry that a release was charged with, or None."""
        return self._keys.get(key)

    def held(self, key: ChargeKey) -> Held:
        """Return a charge as it stands.

        Raises:
            RefusedError: ``E-LEDGER-UNKNOWN``: nothing was reserved under this key.
        """
        entry = self._keys.get(key)
        if entry is None or not isinstance(entry.body, Reserve):
            raise RefusedError(
                "E-LEDGER-UNKNOWN",
                f"expected a reserve for message {key.message}, attempt {key.attempt}, got none",
                hint="Reserve first: nothing leaves that was not charged before.",
            )
        return self._pages[entry.body.charge.data_set].charges[key]

    def account(self, data_set: str) -> Account:
        """Return where a data set stands.

        Raises:
            RefusedError: it has no account (``E-LEDGER-CLOSED``).
        """
        terms = self.terms(data_set)
        pages = self._pages[data_set]
        charges = tuple(pages.charges.values())
        found = {name: _epsilons(group, terms) for name, group in _sides(charges, terms).items()}
        return Account(
            terms=terms,
            epsilon_by_side={name: epsilon for name, (epsilon, _) in found.items()},
            epsilon=max(epsilon for epsilon, _ in found.values()),
            held=max(held for _, held in found.values()),
            exposed=self.exposed(data_set),
            charges=charges,
        )

    def verify_charge(self, charge: Charge) -> None:
        """Check what must hold for a charge whatever the budget is.

        Raises:
            RefusedError: it is incomplete (``E-LEDGER-CHARGE``), has another delta than the data
                set (``E-LEDGER-DELTA``), or bounds nothing for the budget's unit
                (``E-LEDGER-UNIT``).
        """
        terms = self.terms(charge.data_set)
        if problems := "; ".join(f"{key}: {text}" for key, text in charge.problems()):
            raise RefusedError("E-LEDGER-CHARGE", f"expected a complete charge, got {problems}")
        if charge.delta != terms.delta:
            raise RefusedError(
                "E-LEDGER-DELTA",
                f"expected delta {terms.delta:g}, that of {terms.data_set} for life, "
                f"got {charge.delta:g}",
                hint="Epsilons at different deltas have no sum: let the run name this delta.",
            )
        mechanism_for(charge, charge.mechanism, unit=terms.unit)

    def cost(self, charge: Charge, mechanism: Mechanism) -> Cost:
        """Return what the data set would cost with a charge in place, beside all others.

        Raises:
            RefusedError: no finite epsilon holds (``E-EPSILON-UNBOUNDED``).
        """
        terms = self.terms(charge.data_set)
        others = self._pages[charge.data_set].charges
        known = others.get(charge.key)
        entry = known.entry if known else _NOT_YET
        charges = others | {charge.key: Held(entry=entry, charge=charge, mechanism=mechanism)}
        found = [_epsilons(group, terms) for group in _sides(charges.values(), terms).values()]
        alone = mechanism_for(charge, mechanism, unit=terms.unit)
        return Cost(
            alone=epsilon_of_events((alone,), terms.delta),
            total=max(epsilon for epsilon, _ in found),
            held=max(held for _, held in found),
            accountant=accountant_name(),
            error=PLD_ERROR,
        )

    def verify_room(self, charge: Charge, cost: Cost) -> None:
        """Check that the budget has room.

        Raises:
            BudgetError: ``E-LEDGER-BUDGET``.
        """
        terms = self.terms(charge.data_set)
        if cost.held <= terms.budget * (1.0 + _ROUNDING):
            return
        others = self._pages[charge.data_set].charges
        before = [held for key, held in others.items() if key != charge.key]
        used = max(
            (_epsilons(group, terms)[1] for group in _sides(before, terms).values()), default=0.0
        )
        raise BudgetError(
            "E-LEDGER-BUDGET",
            f"{terms.data_set}: expected at most epsilon {terms.budget:g} over all runs, got "
            f"{cost.held:.4g} with this release (by itself {cost.alone:.4g}); used {used:.4g}, "
            f"left {max(0.0, terms.budget - used):.4g}, at delta {terms.delta:g} per "
            f"{terms.unit.value}",
            hint="Ask for more noise or fewer rounds; the owner alone can raise the budget of the "
            "data set in client.toml.",
        )


_NOT_YET = Entry(sequence=0, at_s=0.0, body=Begin(random=""), hash=b"")


def _with_planned(charges: Mapping[ChargeKey, Held], whole: Charge) -> dict[ChargeKey, Held]:
    """Put the charge of a whole run in the place of what it was charged so far."""
    so_far = {
        key: held
        for key, held in charges.items()
        if (held.charge.run, held.charge.purpose) == (whole.run, whole.purpose)
    }
    if sum(held.mechanism.steps for held in so_far.values()) >= whole.mechanism.steps:
        return dict(charges)  # rounds were tried again
    others = {key: held for key, held in charges.items() if key not in so_far}
    return others | {whole.key: Held(entry=_NOT_YET, charge=whole, mechanism=whole.mechanism)}


def mechanism_for(charge: Charge, mechanism: Mechanism, *, unit: Unit) -> Mechanism:
    """Return what a charge's mechanism costs one ``unit`` (rule 3).

    Raises:
        RefusedError: ``E-LEDGER-UNIT``: it has no finite cost for that unit.
    """
    if charge.unit is unit:
        return mechanism
    if charge.unit.covers(unit):
        return _scaled(mechanism, 1 if charge.relation is Relation.REPLACE_ONE else 2)
    if charge.most_records is None:
        raise RefusedError(
            "E-LEDGER-UNIT",
            f"expected a bound per {unit.value}, got one per {charge.unit.value} and no bound on "
            f"how many of those one {unit.value} may have",
            hint=f'The run must name privacy.unit = "{unit.value}".',
        )
    return _scaled(mechanism, charge.most_records)


def _scaled(mechanism: Mechanism, times: int) -> Mechanism:
    """Return the mechanism for a difference ``times`` as large, without amplification."""
    if times == 1 and isinstance(mechanism, ZeroConcentrated):
        return mechanism
    match mechanism:
        case SampledGaussian():
            # Given which records were sampled, the sums differ by at most ``times`` clips.
            rate = mechanism.sample_rate if times == 1 else 1.0
            return dataclasses.replace(
                mechanism,
                noise_multiplier=mechanism.noise_multiplier / times,
                sample_rate=rate,
            )
        case ZeroConcentrated():
            return dataclasses.replace(mechanism, rho=mechanism.rho * times**2)
        case _:
            assert_never(mechanism)


def verify_terms(terms: Terms, known: Terms) -> None:
    """Check that an account's terms for life are what they were; the budget alone may change.

    Raises:
        RefusedError: another delta (``E-LEDGER-DELTA``), bound or unit (``E-LEDGER-TERMS``).
    """
    if terms.delta != known.delta:
        raise RefusedError(
            "E-LEDGER-DELTA",
            f"expected delta {known.delta:g}, that of {known.data_set} for life, "
            f"got {terms.delta:g}",
            hint="Put the delta back in client.toml: epsilons at different deltas have no sum.",
        )
    for name in ("records", "unit"):
        if getattr(terms, name) != getattr(known, name):
            raise RefusedError(
                "E-LEDGER-TERMS",
                f"expected {name} of {known.data_set} as it was when its account was opened "
                f"({getattr(known, name)}), got {getattr(terms, name)}",
                hint="Put it back in client.toml. Records that are new in every respect make a "
                "data set of another name.",
            )


def verify_lower(mechanism: Mechanism, *, than: Mechanism) -> None:
    """Check that a settled mechanism costs no more than the reserved one, whatever else there is.

    Raises:
        RefusedError: ``E-LEDGER-SETTLE``.
    """
    lower = 1 <= mechanism.steps <= than.steps
    match mechanism, than:
        case SampledGaussian(), SampledGaussian():
            lower = (
                lower
                and mechanism.noise_multiplier >= than.noise_multiplier
                and mechanism.sample_rate <= than.sample_rate
            )
        case ZeroConcentrated(), ZeroConcentrated():
            lower = (
                lower
                and mechanism.rho <= than.rho
                and mechanism.xi <= than.xi
                and mechanism.inexact <= than.inexact
            )
        case _:
            lower = False
    if not lower:
        raise RefusedError(
            "E-LEDGER-SETTLE",
            "expected a settlement with at least the reserved noise and at most its steps",
            hint="What was reserved stays charged.",
        )


def _sides(charges: Iterable[Held], terms: Terms) -> dict[str, list[Held]]:
    """Return the groups that compose within themselves (rule 4)."""
    everything = list(charges)
    divided = [held.charge for held in everything if held.charge.side is not Side.WHOLE]
    apart = (
        divided
        and len({charge.split for charge in divided}) == 1
        and all(charge.split_unit.covers(terms.unit) for charge in divided)
        and all(charge.relation is Relation.ADD_REMOVE for charge in divided)
        and terms.unit is not Unit.CLIENT
    )
    if not apart:
        return {Side.WHOLE.value: everything}
    return {
        side.value: [held for held in everything if held.charge.side in (side, Side.WHOLE)]
        for side in (Side.TRAIN, Side.VALIDATION)
    }


def _epsilons(group: Sequence[Held], terms: Terms) -> tuple[float, float]:
    """Return epsilon of a group, and what of it is held against the budget (rule 5)."""
    events = [mechanism_for(held.charge, held.mechanism, unit=terms.unit) for held in group]
    epsilon = epsilon_of_events(events, terms.delta)
    if len({held.charge.run for held in group}) <= 1:
        return epsilon, epsilon
    return epsilon, adaptive_epsilon(events, terms.delta)
