"""One noised gradient per step: per-example gradients, clipped, summed, noised, publicly scaled.

Trusts: the model to treat each record by itself; it is tried on made-up records before the first
real one (``validation.py``).
Promises, for one call and one key:

1. The step's sample is every unit (a record, or a subject with its records), or those of an
   independent coin per unit from the secret key.
2. Each unit's gradient, over all parameters together, is scaled to L2 norm at most ``clip``; one
   that is not finite counts as zero. Sums are accumulated in float64.
3. Gaussian noise of deviation ``noise_multiplier x clip`` is added to every coordinate, also where
   the sample is empty, and the whole is divided by the public normaliser.
4. Step k's randomness is used once: the engine counts its own steps.
5. An included canary (``canaries.py``) is one unit more: sampled, clipped, summed as a record is.
   The normaliser stays; without canaries nothing is different.

How many records there are changes nothing but the sum.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import PrivacyUnit
from tacit.privacy.dpsgd.book_keeping import BookKeeping, unsupported_layers
from tacit.privacy.dpsgd.canaries import Canaries, CanaryScores, CanaryUnits
from tacit.privacy.dpsgd.mechanism import GaussianMechanism, Mechanism
from tacit.privacy.dpsgd.units import Grouping, Records, Subjects, one_row_each
from tacit.privacy.dpsgd.validation import batch_norms, verify_model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tacit.privacy.dpsgd.contributions import Contribution
    from tacit.privacy.plan import PrivacyPlan

    Int64Array = npt.NDArray[np.int64]


class GradientSource(Protocol):
    """Where per-example gradients come from.

    Attributes:
        model: what they are gradients of.
        parameters: the trained ones, in order.
        chunk_records: how many records to hand over at once; a public number.
        note: which layers it serves and how.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def parameters(self) -> list[nn.Parameter]: ...

    @property
    def chunk_records(self) -> int: ...

    @property
    def note(self) -> str: ...

    def contributions(
        self, features: torch.Tensor, labels: torch.Tensor, grouping: Grouping
    ) -> list[Contribution]:
        """Return what each unit of a chunk adds to each parameter."""


class Engine:
    """Gives the noised gradient of one model, step by step, under one noise key.

    Attributes:
        notes: which per-example gradients were chosen, and why.
    """

    def __init__(
        self,
        source: GradientSource,
        mechanism: Mechanism,
        *,
        steps: int,
        subjects: Subjects | None = None,
        canaries: CanaryUnits | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.notes = notes
        self._source = source
        self._mechanism = mechanism
        self._steps = steps
        self._subjects = subjects
        self._canaries = canaries
        self._step = 0
        self._tried = False
        self._sums = [torch.zeros(p.shape, dtype=torch.float64) for p in source.parameters]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in the order of the gradients that :meth:`gradient` returns."""
        return self._source.parameters

    def gradient(self, features: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """Return the next step's noised mean gradient, float32, one tensor per parameter.

        Args:
            features: all training records, records first.
            labels: their class indices, int64.

        Raises:
            RefusedError: the plan's steps for this key are used up (``E-STEPS-SPENT``).
            ConfigError: the model mixes records, or a layer's rows are not records
                (``E-MODEL-NOT-DP``); the subjects are not those of these records
                (``E-SUBJECTS``).
        """
        if self._step >= self._steps:
            raise RefusedError(
                "E-STEPS-SPENT",
                f"the plan has {self._steps} steps per release, one more was asked for",
            )
        self._try_model(features)
        step, self._step = self._step, self._step + 1
        units = self._units(features)
        for total in self._sums:
            total.zero_()
        # Canaries are the first units, in or out: no bit, and no record, moves another one's coin.
        canaries = 0 if self._canaries is None else self._canaries.count
        chosen = self._mechanism.sample(canaries + units.units, step=step)
        of_units = chosen[chosen >= canaries] - canaries
        for rows, grouping in units.chunks(of_units, self._source.chunk_records):
            self._add_records(features[rows], labels[rows], grouping)
        if self._canaries is None:
            return self._mechanism.release(self._sums, step=step)
        for parts in self._canaries.contributions(chosen[chosen < canaries], step=step):
            self._add_clipped(parts)
        released = self._mechanism.release(self._sums, step=step)
        self._canaries.observe(released, step=step)
        return released

    def canary_scores(self) -> CanaryScores:
        """Return what this release's steps so far say of each canary; those of releases add up.

        Raises:
            ValueError: there are no canaries.
        """
        if self._canaries is None:
            raise ValueError("expected an engine with canaries")
        return self._canaries.scores()

    def _units(self, features: torch.Tensor) -> Records | Subjects:
        if self._subjects is None:
            return Records(len(features))
        if self._subjects.records != len(features):
            raise ConfigError(
                "E-SUBJECTS",
                f"expected the subjects of {self._subjects.records} records, got {len(features)}",
            )
        return self._subjects

    def _add_records(
        self, features: torch.Tensor, labels: torch.Tensor, grouping: Grouping
    ) -> None:
        real = grouping.units
        if len(labels) == 1:
            # torch's norms refuse a lone row, and how many there are must change nothing: the
            # record goes in twice, and its copy is a unit that weighs nothing.
            features, labels = features.repeat_interleave(2, 0), labels.repeat_interleave(2)
            grouping = one_row_each(2)
        parts = self._source.contributions(features, labels, grouping)
        if parts:
            self._add_clipped(parts, real=real)

    def _add_clipped(self, parts: list[Contribution], *, real: int | None = None) -> None:
        """Clip each unit over all its parts together, and add it; units from ``real`` on not."""
        norms = torch.stack([part.squared_norms() for part in parts]).sum(dim=0).sqrt()
        factors = torch.zeros_like(norms)
        factors[:real] = self._mechanism.factors(norms[:real])
        for part in parts:
            part.add_to(self._sums[part.parameter], factors)

    def _try_model(self, features: torch.Tensor) -> None:
        if not self._tried:
            verify_model(self._source, like=features, sums=self._sums)
            self._tried = True


def make_engine(
    model: nn.Module,
    *,
    plan: PrivacyPlan,
    noise_key: bytes,
    subjects: Int64Array | None = None,
    canaries: Canaries | None = None,
) -> Engine:
    """Return the engine for a model and a plan: by book-keeping, or by Opacus where that cannot be.

    Args:
        model: trained in place by the caller; the engine only reads it.
        plan: the mechanism.
        noise_key: 32 secret bytes, for this engine alone.
        subjects: int64 ``(n,)``, the subject of each record; needed where the plan's unit is one.
            Of a subject with more than ``plan.most_records``, the first so many count.
        canaries: units to audit by; each counts as one towards the records that the owner declared,
            which is the caller's to hold.

    Raises:
        RefusedError: the plan has no mechanism (``E-MODE-NOT-BUILT``): no epsilon, no engine and
            no canaries; or its unit is a subject and no subjects are given
            (``E-SUBJECTS-MISSING``).
        ConfigError: the model has layers without per-example gradients (``E-MODEL-NOT-DP``).
    """
    if not plan.trains_with_noise:
        raise RefusedError(
            "E-MODE-NOT-BUILT", f"expected a plan that trains with noise, got {plan.mode.value}"
        )
    source, notes = source_for(model)
    return Engine(
        source,
        GaussianMechanism(plan, noise_key),
        steps=plan.local_steps,
        subjects=subjects_of(plan.unit, subjects, most_records=plan.most_records),
        canaries=None
        if canaries is None
        else CanaryUnits(canaries, source.parameters, clip=plan.clip),
        notes=notes,
    )


def subjects_of(
    unit: PrivacyUnit, subjects: Int64Array | None, *, most_records: int
) -> Subjects | None:
    """Return how records are grouped, where a plan's unit is a subject.

    Raises:
        RefusedError: no subjects are given (``E-SUBJECTS-MISSING``).
    """
    if unit is not PrivacyUnit.SUBJECT:
        return None
    if subjects is None:
        raise RefusedError(
            "E-SUBJECTS-MISSING",
            "expected the subject of each record, got none",
            hint="name the subject column of the data set in client.toml",
        )
    return Subjects(subjects, most_records=most_records)


def gradient_notes(model: nn.Module) -> tuple[str, ...]:
    """Say where a model's per-example gradients would come from, and why where it is not our rules.

    Raises:
        ConfigError: as :func:`make_engine`.
    """
    return source_for(model)[1]


def source_for(model: nn.Module) -> tuple[GradientSource, tuple[str, ...]]:
    """Return where a model's per-example gradients come from, and notes on it.

    Raises:
        ConfigError: it has layers without any (``E-MODEL-NOT-DP``).
    """
    mixing = batch_norms(model)
    if mixing:
        raise ConfigError(
            "E-MODEL-NOT-DP",
            "the model has layers that mix records",
            problems=tuple(f"{name}: BatchNorm" for name in mixing),
            hint="replace BatchNorm by GroupNorm or LayerNorm",
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("E-MODEL-NOT-DP", "expected parameters to train, every one is frozen")
    reasons = unsupported_layers(model)
    if not reasons:
        book_keeping = BookKeeping(model)
        return book_keeping, (book_keeping.note,)
    # Opacus takes seconds to import, and most models never need it.
    opacus = importlib.import_module("tacit.privacy.dpsgd.opacus_gradients")
    source: GradientSource = opacus.OpacusGradients(model)
    return source, (source.note, *reasons)
