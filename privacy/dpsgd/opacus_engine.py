"""One noised gradient per step: Opacus' per-example gradients, our clipping, noise and sampling.

Trusts: Opacus' hooks for per-example gradients; the model to treat each record by itself (layers
that mix records, such as BatchNorm, are refused, and :func:`verify_records_do_not_mix` tries it).
Promises, for one call and one key:

1. The step's sample is every record, or an independent coin per record from the secret key.
2. Each record's gradient, over all parameters together, is scaled to L2 norm at most ``clip``;
   one that is not finite counts as zero. The sum is accumulated in float64.
3. Gaussian noise of deviation ``noise_multiplier x clip`` is added to every coordinate, also where
   the sample is empty, and the whole is divided by the public normaliser.
4. Step k's randomness is used once: the engine counts its own steps.

How many records there are changes nothing but the sum.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import PrivacyUnit
from tacit.privacy.noise import GaussianStream, UniformStream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tacit.privacy.plan import PrivacyPlan

# Records per backward pass: at most this many, and fewer for a large model, so that the chunk's
# per-example gradients stay below 128 MB in float64. It depends on public numbers alone.
CHUNK_RECORDS = 256
_CHUNK_NUMBERS = 1 << 24


class OpacusEngine:
    """Gives the noised gradient of one model, step by step, under one noise key."""

    def __init__(self, model: nn.Module, *, plan: PrivacyPlan, noise_key: bytes) -> None:
        """Attach per-example gradients to ``model`` (which is wrapped, not copied).

        Raises:
            RefusedError: the plan noises no gradients, or bounds those of subjects
                (``E-MODE-NOT-BUILT``, ``E-UNIT-NOT-BUILT``).
            ConfigError: the model has layers without per-example gradients (``E-MODEL-NOT-DP``).
        """
        if not plan.trains_with_noise:
            raise RefusedError(
                "E-MODE-NOT-BUILT", f"expected a plan of DP-SGD, got mode {plan.mode.value}"
            )
        if plan.unit is not PrivacyUnit.RECORD:
            raise RefusedError("E-UNIT-NOT-BUILT", f"expected records, got unit {plan.unit.value}")
        self._plan = plan
        self._key = noise_key
        self._step = 0
        self._module = _with_gradient_samples(model)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in the order of the gradients that :meth:`gradient` returns."""
        return [p for p in self._module.parameters() if p.requires_grad]

    def gradient(self, features: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """Return the next step's noised mean gradient, one tensor per parameter.

        Args:
            features: all training records, float32, records first.
            labels: their class indices, int64.

        Raises:
            RefusedError: the plan's steps for this key are used up (``E-STEPS-SPENT``).
            ConfigError: a layer's rows are not records (``E-MODEL-NOT-DP``).
        """
        if self._step >= self._plan.local_steps:
            raise RefusedError(
                "E-STEPS-SPENT",
                f"the plan has {self._plan.local_steps} steps per release, one more was asked for",
            )
        step, self._step = self._step, self._step + 1
        sums = [torch.zeros(p.shape, dtype=torch.float64) for p in self.parameters]
        for chunk in self._chunks(features.shape[0], step):
            self._add_clipped(sums, features[chunk], labels[chunk])
        noise = GaussianStream(self._key, purpose=f"noise of step {step}")
        return [self._release(total, noise) for total in sums]

    def _chunks(self, records: int, step: int) -> Iterator[torch.Tensor]:
        if self._plan.sample_rate < 1.0:
            coins = UniformStream(self._key, purpose=f"sample of step {step}")
            chosen = torch.from_numpy(coins.select(records, probability=self._plan.sample_rate))
        else:
            chosen = torch.arange(records)
        numbers = sum(parameter.numel() for parameter in self.parameters)
        size = max(1, min(CHUNK_RECORDS, _CHUNK_NUMBERS // max(1, numbers)))
        for start in range(0, len(chosen), size):
            yield chosen[start : start + size]

    def _add_clipped(
        self, sums: list[torch.Tensor], features: torch.Tensor, labels: torch.Tensor
    ) -> None:
        parameters = self.parameters
        for parameter in parameters:
            _forget(parameter)
        samples = self._gradient_samples(features, labels)
        squares = torch.stack([g.flatten(1).square().sum(dim=1) for g in samples])
        norms = squares.sum(dim=0).sqrt()
        finite = torch.isfinite(norms)
        factors = (self._plan.clip / norms[finite].clamp(min=1e-300)).clamp(max=1.0)
        for total, sample in zip(sums, samples, strict=True):
            total.add_(torch.tensordot(factors, sample[finite], dims=1))
        for parameter in parameters:
            _forget(parameter)

    def _gradient_samples(self, features: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        records = len(labels)
        if records == 1:
            # torch's GroupNorm refuses a lone record, and how many there are must change nothing:
            # the record goes in twice, and its copy's gradients are dropped.
            features, labels = features.repeat_interleave(2, 0), labels.repeat_interleave(2)
        # Opacus' backward hooks fire reliably only where the input takes a gradient as well.
        logits = self._module(features.requires_grad_())
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        samples = [_gradient_sample(p, records=len(labels)) for p in self.parameters]
        return [sample[:records] for sample in samples]

    def _release(self, total: torch.Tensor, noise: GaussianStream) -> torch.Tensor:
        normals = torch.from_numpy(noise.normals(total.numel())).reshape(total.shape)
        noised = total + self._plan.noise_deviation * normals
        return (noised / self._plan.normaliser).to(torch.float32)


def _forget(parameter: nn.Parameter) -> None:
    parameter.grad = None
    setattr(parameter, "grad_sample", None)  # noqa: B010 - Opacus' attribute, unknown to the type


def _gradient_sample(parameter: nn.Parameter, *, records: int) -> torch.Tensor:
    """Return one parameter's per-example gradients (float64, records first).

    A parameter that the forward pass did not use has a zero gradient for every record.
    """
    sample: object = getattr(parameter, "grad_sample", None)
    if sample is None:
        return torch.zeros((records, *parameter.shape), dtype=torch.float64)
    if not isinstance(sample, torch.Tensor) or sample.shape[0] != records:
        # A list holds several batches; another length means that rows are not records. Either way
        # a clip per row would not be a clip per record.
        raise ConfigError(
            "E-MODEL-NOT-DP",
            "expected one gradient per record and parameter, got another number of them",
            hint="every layer takes and gives one row per record, records first",
        )
    return sample.to(torch.float64)


def _with_gradient_samples(model: nn.Module) -> GradSampleModule:
    problems = ModuleValidator.validate(model, strict=False)
    try:
        wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)
    except NotImplementedError as error:
        problems.append(error)
    if problems:
        raise ConfigError(
            "E-MODEL-NOT-DP",
            "the model has layers without a per-example gradient",
            problems=tuple(str(problem) for problem in problems),
            hint="replace BatchNorm by GroupNorm or LayerNorm, and remove buffers",
        )
    return wrapped


def without_batch_norm(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model without layers that mix records, and notes on what was replaced.

    BatchNorm becomes GroupNorm; what else Opacus knows a replacement for, it replaces.
    """
    notes = tuple(str(problem) for problem in ModuleValidator.validate(model, strict=False))
    if not notes:
        return model, notes
    model = copy.deepcopy(model)
    _replace_batch_norm(model)
    fixed: nn.Module = ModuleValidator.fix(model)
    return fixed, notes


def _replace_batch_norm(model: nn.Module) -> None:
    # Not left to Opacus: it takes one group per channel up to 32 channels, and on records without
    # a spatial extent such a group is one number, which normalises to zero.
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            replacement = nn.GroupNorm(1, child.num_features, eps=child.eps, affine=child.affine)
            setattr(model, name, replacement)
        else:
            _replace_batch_norm(child)


def verify_records_do_not_mix(model: nn.Module, *, shape: tuple[int, ...]) -> None:
    """Refuse a model whose output for one record changes with the other records of a batch.

    Tried on made-up records, in evaluation mode: a demonstration, not a proof.

    Raises:
        ConfigError: records influence one another (``E-MODEL-NOT-DP``).
    """
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand((4, *shape), generator=generator)
    training = model.training
    model.eval()
    with torch.no_grad():
        together = model(batch)
        # Beside one other record each: some layers of torch refuse a lone one.
        pairs = [model(torch.stack([row, batch[0]])) for row in batch]
    apart = torch.stack([pair[0] for pair in pairs])
    model.train(training)
    if not torch.allclose(together, apart, rtol=1e-4, atol=1e-5):
        raise ConfigError(
            "E-MODEL-NOT-DP",
            "expected each record's output to depend on that record alone, "
            "got outputs that change with the rest of the batch",
            hint="remove what reads across the batch dimension",
        )
