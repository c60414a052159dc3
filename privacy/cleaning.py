"""Data cleaning: fixed rules that an owner declares, applied to each record by itself.

Trusts: the rules, which are the owner's own (``[data_sets.NAME.clean]`` in client.toml), and the
cells as texts in their canonical form (``core/data_contract.py``).
Promises:

1. Each step is a function of one record, the declared rules and the owner's key: never a mean,
   rank, quantile, vocabulary or count of the other records. So one record more or less in the file
   is at most one record more or less after cleaning, and a bound on what a run tells about a
   cleaned record (or subject) is one about the record in the file.
2. The steps run in one order: records are left out (``exclude``, ``require``), then cells change
   (``known``, ``clip``, ``bin``, ``hash``), then columns go (``drop``). A forbidden column is gone
   before any of it (``learning/loaders.py``).
3. What cannot be applied refuses: an unknown column, a cell that is no number where one is needed,
   a category that is not declared. All are named at once, by column and row number, never by value.
4. A hash is HMAC-SHA-256 under a key of its column's own, drawn from a key that stays at the owner:
   whoever lacks the key can neither compute a hash nor look a value up in a list of candidates.
   Equal values keep equal hashes, so a hashed column still tells which records belong together.

What holds across runs. The rules are no part of the specification that an approval covers: they
are the owner's, and a run keeps the records that were prepared when it began. Rules that change
between two runs change which records take part, and may move a record from one side of the split
to the other; each run's ``split.json`` carries :meth:`Cleaning.digest` and names its own members.
The ledger's sum over runs stays a bound for each record of the file, as long as the rules come from
public knowledge. A bin edge or bound that was read off the records is a release that nobody
charged.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence  # noqa: TC003 - read when the file is
from dataclasses import asdict, dataclass, field

from tacit.core.data_contract import MISSING_WORDS, canonical_text, parse_number
from tacit.core.errors import DataError
from tacit.core.wording import Places, nearest_key, rows_line

_HASH_BYTES = 16  # 2^64 values before two of them are expected to share a hash


@dataclass(frozen=True, kw_only=True)
class KnownValues:
    """The categories of a column that are public knowledge.

    Attributes:
        values: the known ones.
        other: what takes the place of an unknown one: a word, or ``""`` for an empty cell. Without
            it an unknown category is refused.
    """

    values: tuple[str, ...]
    other: str | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.values:
            yield "values", "expected at least one value, from public knowledge"
        if len({canonical_text(value) for value in self.values}) != len(self.values):
            yield "values", "expected each value once"


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What happens to each record of a data set before any run sees it; columns by name.

    Attributes:
        exclude: a record with one of these values in the column takes no part.
        require: a record without a value in one of these columns takes no part.
        known: categories; what is not among them becomes ``other``, or is refused.
        clip: ``[low, high]``; a number outside becomes the nearer bound.
        bin: rising edges; a number becomes how many edges it reaches, from 0.
        hash: the cell becomes a keyed hash (32 hexadecimal digits).
        drop: the column goes; records may have been left out by it before.
        missing: words that mean "no value", which ``known``, ``clip``, ``bin`` and ``hash`` leave
            as they are.
    """

    exclude: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    require: tuple[str, ...] = ()
    known: Mapping[str, KnownValues] = field(default_factory=dict)
    clip: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    bin: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    hash: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    missing: tuple[str, ...] = MISSING_WORDS

    def problems(self) -> Iterator[tuple[str, str]]:
        for name, values in self.exclude.items():
            if not values:
                yield f"exclude.{name}", "expected at least one value"
        for name, (low, high) in self.clip.items():
            if not low < high:
                yield f"clip.{name}", f"expected low < high, got {[low, high]}"
        for name, edges in self.bin.items():
            if not edges or any(a >= b for a, b in itertools.pairwise(edges)):
                yield f"bin.{name}", f"expected at least one edge, rising, got {list(edges)}"
        changed = {**self.known, **self.clip, **self.bin, **dict.fromkeys(self.hash)}
        for name in self.drop:
            if name in changed:
                yield "drop", f"the column {name} is changed, and then dropped: keep one of the two"

    @property
    def columns(self) -> dict[str, str]:
        """The columns that a rule names, each with the first key that names it."""
        keys = ("exclude", "require", "known", "clip", "bin", "hash", "drop")
        return {name: key for key in reversed(keys) for name in getattr(self, key)}

    def digest(self) -> str:
        """Return the SHA-256 of the rules, in hex."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A table after cleaning; the counts are for its owner's eyes.

    Attributes:
        kept: positions (from 0) of the records that take part, rising.
        cells: cells of the kept records, for each column that a step changed or may have.
        left_out: how many records each rule left out, by the words for it.
        changed: how many cells of the kept records each rule changed, by the words for it.
    """

    kept: tuple[int, ...]
    cells: Mapping[str, list[str]]
    left_out: Mapping[str, int]
    changed: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One cell after its column's steps, and what to count or refuse it as."""

    text: str
    changed: str = ""
    wrong: str = ""


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """What one column's cells go through, in order; None skips a step."""

    absent: frozenset[str]
    known: frozenset[str] | None
    other: str | None
    bounds: tuple[float, float] | None
    edges: tuple[float, ...] | None
    hash_key: bytes | None = field(repr=False)

    def clean(self, text: str) -> _Cell:
        """Take one cell through the steps; one without a value stays as it is."""
        if text in self.absent:
            return _Cell(text=text)
        changed = ""
        if self.known is not None and text not in self.known:
            if self.other is None:
                return _Cell(text=text, wrong="not one of the known values")
            text, changed = self.other, "replaced, for they are not known"
            if text in self.absent:
                return _Cell(text=text, changed=changed)
        if self.bounds is not None or self.edges is not None:
            number = parse_number(text)
            if not math.isfinite(number):
                return _Cell(text=text, wrong="not a number")
            text, clipped = self._clip_and_bin(text, number)
            changed = "clipped" if clipped else changed
        if self.hash_key is not None:
            text = keyed_hash(text, column_key=self.hash_key)
        return _Cell(text=text, changed=changed)

    def _clip_and_bin(self, text: str, number: float) -> tuple[str, bool]:
        low, high = (-math.inf, math.inf) if self.bounds is None else self.bounds
        inside = low <= number <= high
        if not inside:
            number = min(max(number, low), high)
            text = canonical_text(number)
        if self.edges is not None:
            text = str(bisect_right(self.edges, number))
        return text, not inside


def verify_columns(named: Mapping[str, str], present: Sequence[str]) -> None:
    """Refuse columns that client.toml names and a data set has not.

    Args:
        named: column to the key that names it.
        present: the data set's columns.

    Raises:
        DataError: ``E-CLEAN-COLUMNS``; all of them, with the nearest one that is there.
    """
    there = dict.fromkeys(present)
    problems = tuple(
        f"{key}: unknown column {name}{nearest_key(name, there)}"
        for name, key in sorted(named.items())
        if name not in there
    )
    if problems:
        raise DataError(
            "E-CLEAN-COLUMNS",
            f"expected the columns that client.toml names, {len(problems)} are not in the data set",
            problems=problems,
            hint="correct the names under [data_sets] in client.toml",
        )


def clean_table(
    table: Mapping[str, Sequence[str]],
    rules: Cleaning,
    *,
    key: bytes,
    places: Places | None = None,
) -> Cleaned:
    """Apply the rules to every record.

    Args:
        table: canonical texts of at least the columns that the rules name, all of one length.
        rules: the owner's.
        key: 32 bytes that stay at the owner; each hashed column has a key of its own from it.
        places: where the records stand in their file, for messages; else rows from 1.

    Raises:
        DataError: a column is missing (``E-CLEAN-COLUMNS``), or cells of records that take part
            cannot be cleaned (``E-CLEAN-CELLS``).
    """
    verify_columns({name: f"clean.{rule}" for name, rule in rules.columns.items()}, list(table))
    kept, left_out = _who_takes_part(table, rules)
    found_at = places or Places(numbers=range(1, len(next(iter(table.values()), ())) + 1))
    cells: dict[str, list[str]] = {}
    changed: Counter[str] = Counter()
    problems: list[str] = []
    for name in sorted({*rules.known, *rules.clip, *rules.bin, *rules.hash}):
        texts = [table[name][position] for position in kept]
        counts = Counter(texts)
        steps = _steps_of(name, rules, key)
        memo = {text: steps.clean(text) for text in counts}
        cells[name] = [memo[text].text for text in texts]
        for text, count in counts.items():
            if memo[text].changed:
                changed[f"{name}: {memo[text].changed}"] += count
        for kind in sorted({cell.wrong for cell in memo.values() if cell.wrong}):
            where = zip(kept, texts, strict=True)
            wrong = [position for position, text in where if memo[text].wrong == kind]
            problems.append(rows_line(name, kind, found_at, wrong))
    if problems:
        raise DataError(
            "E-CLEAN-CELLS",
            f"expected cells that client.toml's rules can clean, got {len(problems)} kinds of "
            "violation",
            problems=tuple(problems),
            hint="correct these records, or the rules under [data_sets.NAME.clean]",
        )
    return Cleaned(kept=kept, cells=cells, left_out=left_out, changed=dict(sorted(changed.items())))


def _who_takes_part(
    table: Mapping[str, Sequence[str]], rules: Cleaning
) -> tuple[tuple[int, ...], dict[str, int]]:
    """Return the positions that no rule leaves out, and how many each rule did (the first one)."""
    absent = {canonical_text(word) for word in rules.missing}
    tests = [
        (f"{name} is excluded", table[name], {canonical_text(value) for value in values})
        for name, values in rules.exclude.items()
    ] + [(f"no value in {name}", table[name], absent) for name in rules.require]
    kept: list[int] = []
    left_out: Counter[str] = Counter()
    for position in range(len(next(iter(table.values()), ()))):
        reason = next((words for words, texts, bad in tests if texts[position] in bad), None)
        if reason is None:
            kept.append(position)
        else:
            left_out[reason] += 1
    return tuple(kept), dict(left_out)


def _steps_of(name: str, rules: Cleaning, key: bytes) -> _Steps:
    known = rules.known.get(name)
    values = () if known is None else known.values
    return _Steps(
        absent=frozenset(map(canonical_text, rules.missing)),
        known=None if known is None else frozenset(map(canonical_text, values)),
        other=None if known is None or known.other is None else canonical_text(known.other),
        bounds=rules.clip.get(name),
        edges=rules.bin.get(name),
        hash_key=derive_column_key(name, key=key) if name in rules.hash else None,
    )


def derive_column_key(column: str, *, key: bytes) -> bytes:
    """Return the key of one hashed column: HMAC-SHA-256 of its name under the owner's key.

    Raises:
        ValueError: the owner's key is shorter than 32 bytes.
    """
    if len(key) < 32:
        raise ValueError(f"expected a key of at least 32 bytes, got {len(key)}")
    return hmac.digest(key, b"tacit cleaning 1\0" + column.encode(), "sha256")


def keyed_hash(text: str, *, column_key: bytes) -> str:
    """Return HMAC-SHA-256 of a cell under its column's key, 16 bytes in hex."""
    return hmac.digest(column_key, text.encode(), "sha256")[:_HASH_BYTES].hex()
