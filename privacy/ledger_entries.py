"""What a ledger holds: typed entries, and the hash chain that binds them.

Trusts: SHA-256. It opens no file.
Promises: an entry is canonical JSON; its hash covers its number, the hash before it and its
content, so that no entry can be changed, dropped or moved without another head
(``ledger_head.py``).
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tacit.core.configuration import from_plain
from tacit.core.errors import ConfigError, TrustError
from tacit.core.plain import plain
from tacit.core.specification import Relation
from tacit.privacy.accounting import Mechanism, SampledGaussian, ZeroConcentrated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FIRST_PREVIOUS = bytes(32)

RESTORE_HINT = (
    "Keep this folder as it is, and restore the newest undamaged copy into another one: "
    "`tacit client restore FILE --home FOLDER`. A copy that lacks entries which the server has "
    "seen is refused: nothing may leave under that node. If there is no newer copy, nobody knows "
    "what these records have cost; records that were never used can go on as a new node, with a "
    "new token and an empty folder."
)

_ENTRY_CONTEXT = b"tacit ledger entry v1\0"


class Unit(enum.Enum):
    """Whose presence a bound is about, from the finest to the coarsest."""

    RECORD = "record"
    SUBJECT = "subject"
    CLIENT = "client"  # the owner's whole data set

    def covers(self, other: Unit) -> bool:
        """Whether one of these holds every one of the other that it touches."""
        order = list(Unit)
        return order.index(self) >= order.index(other)


class Side(enum.Enum):
    """Which records of the data set an answer used."""

    TRAIN = "train"
    VALIDATION = "validation"
    WHOLE = "whole"


class Purpose(enum.Enum):
    """What left."""

    TRAINING = "training"
    METRICS = "metrics"
    QUERY = "query"
    AUDIT = "audit"


class ChargeKey(NamedTuple):
    """What a charge is idempotent by."""

    run: str
    message: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Begin:
    """The first entry of a ledger: a random value in hex."""

    random: str


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What holds for a data set's life, as its owner declared it; ``budget`` alone may change.

    Attributes:
        data_set: its name in client.toml.
        delta: probability that the bound fails, over all runs together; below 1 / records.
        records: the public bound on the number of records.
        unit: whose presence the budget is about.
        budget: largest epsilon over all runs together.
        delta_rule: where delta came from.
    """

    data_set: str
    delta: float
    records: int
    unit: Unit
    budget: float
    delta_rule: str = "below 1 / records, one for the life of the data set"

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.data_set:
            yield "data_set", "expected a name"
        if self.records < 1:
            yield "records", f"expected at least 1, got {self.records}"
        elif not 0 < self.delta < 1.0 / self.records:
            yield "delta", f"expected 0 < delta < 1 / records, got {self.delta}"
        if not (math.isfinite(self.budget) and self.budget > 0):
            yield "budget", f"expected a positive number, got {self.budget}"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The owner's new budget for a data set."""

    data_set: str
    budget: float


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One release as it will be charged, at its worst, before anything leaves.

    Attributes:
        data_set: whose records it uses.
        run, round, message, attempt: what asked for it.
        specification_sha256, model_sha256: hex; the approved policy, and the model received.
        purpose: training, metrics, query or audit.
        side: which records it uses.
        split: digest of the rule that divides the records (:func:`split_digest`); required for
            the sides train and validation.
        split_unit: no unit of this kind has records on both sides.
        unit, relation: what ``mechanism`` bounds the presence of, and under which relation.
        most_records: the most of ``unit`` that one unit of the data set's budget may have; None
            if nothing bounds it. It counts only where the budget's unit is the coarser one.
        public: what everybody may know beside the output (steps, normaliser, categories, ...).
        seen_by: who sees what (the final model, every iterate, the noised sum).
        mechanism: what it costs one ``unit``; sampling and steps are in it.
        clip: L2 bound of one unit's contribution.
        noise_deviation: standard deviation of the noise per coordinate; None for discrete noise,
            whose ``integer_scale`` and ``ring_bits`` say it.
        sample_known_to: who learns which records a step used.
        delta: the data set's.
        noise_source: the generator of the noise.
        selection: how hyperparameters were chosen: "none", "k runs composed", or the mechanism.
    """

    data_set: str
    run: str
    round: int
    message: str
    attempt: int
    specification_sha256: str
    model_sha256: str = ""
    purpose: Purpose
    side: Side
    split: str = ""
    split_unit: Unit = Unit.RECORD
    unit: Unit
    relation: Relation
    most_records: int | None = None
    public: tuple[str, ...] = ()
    seen_by: tuple[str, ...] = ()
    mechanism: Mechanism
    clip: float
    noise_deviation: float | None = None
    integer_scale: float | None = None
    ring_bits: int | None = None
    sample_known_to: str = "nobody"
    delta: float
    noise_source: str
    selection: str = "none"

    @property
    def key(self) -> ChargeKey:
        """What the charge is idempotent by."""
        return ChargeKey(self.run, self.message, self.attempt)

    def problems(self) -> Iterator[tuple[str, str]]:
        needed = ["data_set", "run", "message", "specification_sha256", "noise_source"]
        if isinstance(self.mechanism, ZeroConcentrated):
            needed += ["integer_scale", "ring_bits"]
        for name in needed:
            if not getattr(self, name):
                yield name, "expected a value"
        if not (math.isfinite(self.clip) and self.clip > 0):
            yield "clip", f"expected a positive number, got {self.clip}"
        if self.side is not Side.WHOLE and not self.split:
            yield "split", "expected the digest of the rule that divides the records"
        if self.most_records is not None and self.most_records < 1:
            yield "most_records", f"expected at least 1, got {self.most_records}"
        sampled = isinstance(self.mechanism, SampledGaussian) and self.mechanism.sample_rate < 1.0
        if sampled and self.relation is not Relation.ADD_REMOVE:
            yield "relation", "Poisson samples have an account under add/remove only"
        if self.mechanism.steps < 1:
            yield "mechanism", f"expected at least 1 step, got {self.mechanism.steps}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an entry adds up to, for one unit of the data set's budget.

    Attributes:
        alone: epsilon of this entry by itself.
        total: epsilon of everything on the data set so far, this entry included.
        held: what is held against the budget: ``total``, or the larger bound that allows for
            later runs having been chosen after seeing earlier ones.
        accountant: name and version.
        error: by how much ``total`` may lie above the exact value.
    """

    alone: float
    total: float
    held: float
    accountant: str
    error: float


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """A charge, written before anything leaves."""

    charge: Charge
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Settle:
    """What a reserved charge turned out to be; it may only lower.

    Attributes:
        data_set, run, message, attempt: of the reserve.
        reserve: number of the entry that it settles.
        mechanism: what really ran.
        realised_noise: standard deviation of the noise that was really added, if known.
        evidence: hex of what proves it, such as the survivors' signatures.
        evidence_sha256: its hash, hex.
        cost: with the lower amount.
    """

    data_set: str
    run: str
    message: str
    attempt: int
    reserve: int
    mechanism: Mechanism
    realised_noise: float | None
    evidence: str
    evidence_sha256: str
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Abort:
    """An attempt that came to nothing; its reserve stays charged."""

    data_set: str
    run: str
    message: str
    attempt: int
    reserve: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Restore:
    """The state directory came back from a copy; the copy held all of the head that was known."""

    count: int
    hash: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Expose:
    """A release without noise, which the owner's policy allowed: no epsilon bounds it."""

    data_set: str
    run: str
    message: str
    attempt: int
    specification_sha256: str
    reason: str

    @property
    def key(self) -> ChargeKey:
        """What it is idempotent by."""
        return ChargeKey(self.run, self.message, self.attempt)


Body = Begin | Terms | Budget | Reserve | Settle | Abort | Restore | Expose

_KINDS: Mapping[str, type[Body]] = {
    "begin": Begin,
    "open": Terms,
    "budget": Budget,
    "reserve": Reserve,
    "settle": Settle,
    "abort": Abort,
    "restore": Restore,
    "expose": Expose,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class Row(NamedTuple):
    """One stored entry before anybody has looked at it."""

    sequence: object
    previous: object
    content: object
    hash: object


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry whose link in the chain holds.

    Attributes:
        sequence: 1, 2, 3, ...
        at_s: when, in seconds since 1970 (UTC), by the owner's clock.
        body: what it says.
        hash: of its place and content; the next one's ``previous``.
    """

    sequence: int
    at_s: float
    body: Body
    hash: bytes

    @property
    def kind(self) -> str:
        """The entry's kind, as it is stored."""
        return _NAMES[type(self.body)]


def content_of(body: Body, *, at_s: float) -> bytes:
    """Return an entry's content: canonical JSON (sorted keys, UTF-8, no NaN)."""
    tree = {"kind": _NAMES[type(body)], "at_s": at_s, "body": plain(body)}
    return canonical(tree)


def canonical(tree: object) -> bytes:
    """Return JSON with sorted keys and no spaces, in UTF-8; infinity and NaN are refused."""
    return json.dumps(
        tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def row_after(known: Sequence[Entry], body: Body, *, at_s: float) -> Row:
    """Return the row of the entry that follows those that are known."""
    sequence = len(known) + 1
    previous = known[-1].hash if known else FIRST_PREVIOUS
    content = content_of(body, at_s=at_s)
    return Row(sequence, previous, content, link_hash(sequence, previous, content))


def link_hash(sequence: int, previous: bytes, content: bytes) -> bytes:
    """Return the hash that binds an entry to its place (SHA-256)."""
    place = sequence.to_bytes(8, "big")
    return hashlib.sha256(_ENTRY_CONTEXT + place + previous + content).digest()


def parse_row(row: Row, *, after: int, previous: bytes) -> Entry:
    """Check one stored entry's link to the one before it, and read it.

    Raises:
        TrustError: ``E-LEDGER-CORRUPT``, naming the entry.
    """
    sequence = after + 1
    if row.sequence != sequence:
        raise damaged(sequence, f"it is missing: the next one that is there says {row.sequence!r}")
    if not (isinstance(row.content, bytes) and row.hash == link_hash_of(row, previous)):
        raise damaged(sequence, "its content, its place or its hash was changed")
    if row.previous != previous:
        raise damaged(sequence, "it does not follow the entry before it")
    try:
        tree = json.loads(row.content)
        body: Body = from_plain(tree["body"], _KINDS[tree["kind"]], source="entry")
        at_s = float(tree["at_s"])
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise damaged(sequence, "this version cannot read it") from error
    return Entry(
        sequence=sequence,
        at_s=at_s,
        body=body,
        hash=link_hash(sequence, previous, row.content),
    )


def verify_same(row: Row, known: Entry) -> None:
    """Check that a stored entry is still the one that was read before; it covers all before it.

    Raises:
        TrustError: ``E-LEDGER-CORRUPT``, naming the entry.
    """
    previous = row.previous if isinstance(row.previous, bytes) else b""
    same = row.sequence == known.sequence and row.hash == known.hash
    if not (same and link_hash_of(row, previous) == known.hash):
        raise damaged(known.sequence, "it has changed or gone since it was read")


def link_hash_of(row: Row, previous: bytes) -> bytes:
    """Return the hash that a stored row must carry after ``previous``."""
    if not (isinstance(row.sequence, int) and isinstance(row.content, bytes)):
        return b""
    return link_hash(row.sequence, previous, row.content)


def damaged(sequence: int, why: str) -> TrustError:
    """Return the error for a ledger that cannot be trusted from an entry on."""
    return TrustError(
        "E-LEDGER-CORRUPT",
        f"expected an unbroken ledger, got damage at entry {sequence}: {why}",
        hint="Nothing more leaves under this ledger. `tacit ledger show` shows what can be read. "
        + RESTORE_HINT,
    )


def split_digest(*, rule: str, seed: int, fraction: float, depends_on: str) -> str:
    """Return the digest of a rule that divides records into train and validation.

    Equal digests must mean that no record can ever be on different sides. So all that a side
    depends on belongs in here.

    Args:
        rule: the rule's name and version.
        seed: of the run.
        fraction: expected share of validation records.
        depends_on: hex digest of what turns a record into what the rule hashes: the data contract,
            the cleaning, or the name of the subject column.
    """
    tree = {"rule": rule, "seed": seed, "fraction": fraction, "depends_on": depends_on}
    return hashlib.sha256(b"tacit split digest v1\0" + canonical(tree)).hexdigest()
