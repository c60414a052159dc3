"""The ``[privacy]`` table of a run: what the operator asks for, and what an owner approves.

Trusts nothing. Promises: the resolved values are all written out. A preset becomes its epsilon, and
unit and relation follow from the mode, before anybody approves; a preset beside a value that is not
its own is a problem of the file. What the values mean for a mechanism is ``privacy/spec.py``.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Target epsilon by preset: the upper ends of the first two of three tiers, "strong" and
# "reasonable" formal guarantees, in Ponomareva et al. 2023, How to DP-fy ML (arXiv 2303.00654).
PRESETS: Mapping[str, float] = {"strong": 1.0, "reasonable": 10.0}


class PrivacyMode(enum.Enum):
    """Who adds noise to what; docs/architecture.md says what each protects."""

    RECORD_DISTRIBUTED = "record-distributed"
    RECORD_LOCAL = "record-local"
    CLIENT_DISTRIBUTED = "client-distributed"
    CLIENT_LOCAL = "client-local"
    CENTRAL = "central"
    NONE = "none"

    @property
    def is_distributed(self) -> bool:
        """Whether the noise of a sum is shared among those who are in it."""
        return self in (PrivacyMode.RECORD_DISTRIBUTED, PrivacyMode.CLIENT_DISTRIBUTED)


class PrivacyUnit(enum.Enum):
    """Whose presence the guarantee is about."""

    RECORD = "record"
    SUBJECT = "subject"  # all records of one person, by the owner's subject column
    CLIENT = "client"  # an owner's whole data set


class Relation(enum.StrEnum):
    """Which two data sets the guarantee compares."""

    ADD_REMOVE = "add/remove"  # one unit more or less: a clipped sum moves by C
    REPLACE_ONE = "replace-one"  # one unit exchanged for another: it moves by 2C


class Sampling(enum.Enum):
    """How a step chooses its records; only these two have an account."""

    FULL = "full"  # every record at every step
    POISSON = "poisson"  # each unit independently with probability sample_rate


_RECORD_MODES = (PrivacyMode.RECORD_DISTRIBUTED, PrivacyMode.RECORD_LOCAL, PrivacyMode.NONE)


@dataclass(frozen=True, kw_only=True)
class PrivacySpec:
    """What protects the records, from which every mechanism is derived.

    Exactly one of ``epsilon`` and ``noise_multiplier`` is given (none of them in mode ``none``);
    a preset gives epsilon.

    Attributes:
        mode: who adds noise to what.
        preset: a name in PRESETS, in place of epsilon.
        unit: record or subject; client in the client modes, where it is the default.
        most_records: a public bound on the records of one unit; above 1 for subjects, and 1 else.
        relation: add/remove, or replace-one, which is the default in the client modes.
        clip: L2 bound of one unit's contribution (the clipping norm C).
        epsilon: target for the whole run, at ``delta``.
        noise_multiplier: sigma / sensitivity, which is C under add/remove and 2C under replace-one.
        delta: probability that the bound fails; below 1 / records.
        sampling: full or poisson.
        sample_rate: Poisson's q.
        normaliser: public divisor of the noised sum; the expected batch. Never ``len(data)``.
            0 derives it per owner from the ``records`` that client.toml declares for the data set.
    """

    mode: PrivacyMode
    preset: str = ""
    unit: PrivacyUnit | None = None
    most_records: int = 1
    relation: Relation | None = None
    clip: float | None = None
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    sampling: Sampling = Sampling.FULL
    sample_rate: float = 1.0
    normaliser: float = 0.0

    @property
    def trains_with_noise(self) -> bool:
        """Whether the training itself clips and noises gradients, so that layers must allow it."""
        return self.mode in (PrivacyMode.RECORD_LOCAL, PrivacyMode.RECORD_DISTRIBUTED)

    def __post_init__(self) -> None:  # what is approved names the values, not the way to them
        per_record = self.mode in _RECORD_MODES
        if self.unit is None:
            unit = PrivacyUnit.RECORD if per_record else PrivacyUnit.CLIENT
            object.__setattr__(self, "unit", unit)
        if self.relation is None:
            relation = Relation.ADD_REMOVE if per_record else Relation.REPLACE_ONE
            object.__setattr__(self, "relation", relation)
        if self.preset in PRESETS and self.epsilon is None and self.noise_multiplier is None:
            object.__setattr__(self, "epsilon", PRESETS[self.preset])

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from self._problems_of_preset()
        given = [
            name for name in ("epsilon", "noise_multiplier") if getattr(self, name) is not None
        ]
        if self.mode is PrivacyMode.NONE:
            for name in (*given, *(n for n in ("clip", "delta") if getattr(self, n) is not None)):
                yield name, 'mode = "none" adds no noise: remove this key or choose another mode'
            return
        if len(given) != 1:
            got = "both" if given else None
            yield "epsilon", _expected("exactly one of epsilon and noise_multiplier", got)
        for name in (*given, "clip"):
            value = getattr(self, name)
            if value is None or not (math.isfinite(value) and value > 0):
                yield name, _expected("a positive number", value)
        if self.delta is None or not 0 < self.delta < 1:
            yield "delta", _expected("0 < delta < 1", self.delta)
        if not 0 < self.sample_rate <= 1:
            yield "sample_rate", f"expected 0 < rate <= 1, got {self.sample_rate}"
        if self.sampling is Sampling.FULL and self.sample_rate != 1.0:
            yield "sample_rate", 'sampling = "full" takes every record: remove it, or use poisson'
        if self.normaliser < 0 or not math.isfinite(self.normaliser):
            yield "normaliser", f"expected 0 or more, got {self.normaliser}"
        yield from self._problems_of_unit()
        yield from self._problems_of_relation()

    def _problems_of_preset(self) -> Iterator[tuple[str, str]]:
        if not self.preset:
            return
        if self.preset not in PRESETS:
            yield "preset", f"expected one of {', '.join(PRESETS)}, got {self.preset!r}"
        elif self.noise_multiplier is not None or self.epsilon != PRESETS[self.preset]:
            text = f"it stands for epsilon = {PRESETS[self.preset]}: expected no other target"
            yield "preset", text

    def _problems_of_unit(self) -> Iterator[tuple[str, str]]:
        per_record = self.mode in _RECORD_MODES
        if per_record and self.unit is PrivacyUnit.CLIENT:
            yield "unit", f'mode "{self.mode.value}" protects a "record" or a "subject"'
        if not per_record and self.unit in (PrivacyUnit.RECORD, PrivacyUnit.SUBJECT):
            yield "unit", f'mode "{self.mode.value}" makes no claim per record: expected "client"'
        if self.unit is PrivacyUnit.SUBJECT and self.most_records < 2:
            yield "most_records", "expected 2 or more: with one record each, the unit is a record"
        if self.unit is not PrivacyUnit.SUBJECT and self.most_records != 1:
            yield "most_records", 'expected only with unit = "subject"'

    def _problems_of_relation(self) -> Iterator[tuple[str, str]]:
        if self.sampling is Sampling.POISSON and self.relation is Relation.REPLACE_ONE:
            yield "relation", 'Poisson samples have an account under "add/remove" only'
        if self.mode not in (PrivacyMode.CLIENT_LOCAL, PrivacyMode.CLIENT_DISTRIBUTED):
            return
        # Who took part in a sum over members is known: absent is an update of zeros.
        if self.relation is Relation.ADD_REMOVE and self.mode is PrivacyMode.CLIENT_LOCAL:
            text = "an update always comes: its data may be replaced, not absent"
            yield "relation", f'{text}, so expected "replace-one"'
        if self.sampling is not Sampling.FULL:
            yield "sampling", f'mode "{self.mode.value}" noises whole updates: expected "full"'
        if self.normaliser != 0:
            yield "normaliser", f'mode "{self.mode.value}" has no use for it: remove this key'


def _expected(what: str, value: object) -> str:
    """Return the text about a value that is wrong, or that a required key lacks."""
    return f"missing: expected {what}" if value is None else f"expected {what}, got {value}"
