"""What one secure sum of a run is: the vector, its integers, its terms; the same at both sides.

Trusts: nobody. Each side derives all of it from the approved specification and the public form of
the model, and compares: terms that differ in one number are refused by the node.
Promises: what is summed unseen has either the noise of a distributed mode inside, or it is what the
run's mode lets leave anyway (mode ``none``, or an update that its owner has noised).

Without noise a coordinate c becomes rint(s c): s = (2^31 - 1 - n) / (n R) leaves room for n
vectors within R, so that no sum wraps. What is beyond R refuses; nothing is cut without a word.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.results import result_schema
from tacit.privacy.distributed.account import LARGEST, Rounding
from tacit.privacy.distributed.encoding import decode, encode_total, encode_update
from tacit.privacy.distributed.plan import distributed_plan
from tacit.privacy.layout import Form, Layout
from tacit.privacy.secagg.graph import graph_parameters
from tacit.privacy.secagg.terms import Member, Terms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from tacit.core.secagg_spec import SecureAggregationSpec
    from tacit.core.specification import MetricSpec, RunSpec
    from tacit.privacy.distributed.account import DistributedNoise
    from tacit.privacy.layout import Float64Array, Words

_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class SecurePlan:
    """One member's vector and what all members agree on about it.

    Attributes:
        layout: where each number stands.
        secure: the run's table.
        scale: integers per unit.
        bound: largest size of a coordinate before scaling (R).
        floor: fewest members whose sum is opened: with fewer a round would count as failed, and
            be tried again, after its sum is known.
        clip: L2 bound of what is protected; 0 where nothing is noised here.
        noise: what each member adds; None where nothing is noised here.
    """

    layout: Layout
    secure: SecureAggregationSpec
    scale: float
    bound: float
    floor: int
    clip: float = 0.0
    noise: DistributedNoise | None = None

    def encode(self, changes: Float64Array, limbs: Words) -> Words:
        """Return a vector without noise as integers of the ring (uint32, shape ``(d,)``).

        Args:
            changes: the layout's changes, float64.
            limbs: what stands behind them.

        Raises:
            RefusedError: a change is not finite, or beyond R (``E-SECAGG-RANGE``).
            ValueError: this plan has noise.
        """
        if self.noise is not None:
            raise ValueError("expected a plan without noise: this one is encoded with its noise")
        ring = np.empty(self.layout.length, dtype=np.uint32)
        for start in range(0, len(changes), _BLOCK):
            part = changes[start : start + _BLOCK]
            largest = float(np.abs(part).max(initial=0.0))
            if not largest <= self.bound:
                raise RefusedError(
                    "E-SECAGG-RANGE",
                    f"expected changes of at most {self.bound:g}, weight included, got one of "
                    f"{largest:g}",
                    hint="The run's secure_aggregation.bound is too small for this training, or "
                    "its learning rate too large.",
                )
            ring[start : start + len(part)] = (
                np.rint(part * self.scale).astype(np.int64).astype(np.uint32)
            )
        ring[len(changes) :] = limbs
        return ring

    def encode_noised(self, values: Float64Array, *, key: bytes, purpose: str) -> Words:
        """Return a sum over records, or a whole update, with this member's share of the noise.

        Args:
            values: float64, shape ``(d,)``.
            key: 32 fresh bytes, for this vector alone.
            purpose: tells this vector from others.

        Raises:
            RefusedError: a number is not finite (``E-VECTOR-NOT-FINITE``).
            ValueError: this plan has no noise.
        """
        if self.noise is None:
            raise ValueError("expected a plan with noise")
        by_record = self.noise.rounding is Rounding.NEAREST
        encode = encode_total if by_record else encode_update
        return encode(values, self.noise, key=key, purpose=purpose)

    def decode(self, total: Words) -> Float64Array:
        """Return the summed changes (float64) of a ring's sum."""
        if self.noise is not None:
            return decode(total, self.noise)
        changes = total[: self.layout.changes].view(np.int32).astype(np.float64)
        changes /= self.scale
        return changes


def secure_plan(spec: RunSpec, arrays: Sequence[Form]) -> SecurePlan:
    """Return what all members of a run agree on about one vector.

    Args:
        spec: of a run with a table of secure aggregation.
        arrays: of the model, in the order of the instruction.

    Raises:
        ConfigError: the replies have no weight, or a metric that is no number
            (``E-SECAGG-METRIC``); or the run sums nothing unseen (``E-SECAGG-NONE``).
        RefusedError: the model has another number of coordinates than was approved
            (``E-SECAGG-DIMENSION``), or there is no noise as asked (``privacy/distributed``).
    """
    if spec.secure_aggregation is None:
        raise ConfigError("E-SECAGG-NONE", "expected a run with [secure_aggregation]")
    if spec.privacy.mode.is_distributed:
        return _noised_plan(spec, spec.secure_aggregation, arrays)
    return _plain_plan(spec, spec.secure_aggregation, arrays)


def _noised_plan(
    spec: RunSpec, secure: SecureAggregationSpec, arrays: Sequence[Form]
) -> SecurePlan:
    """Return the plan of sums with shared noise: real arrays alone, each member weighing 1."""
    real = tuple(form for form in arrays if form.dtype.kind == "f")
    layout = Layout(arrays=real, metrics={}, weighted=False)
    if layout.length != secure.dimension:
        raise RefusedError(
            "E-SECAGG-DIMENSION",
            f"expected {secure.dimension} real numbers in the model, as was approved, "
            f"got {layout.length}",
            hint="They are counted in the initial weights when the run is submitted.",
        )
    noise = distributed_plan(spec, records=1, dimension=layout.length).noise
    return SecurePlan(
        layout=layout,
        secure=secure,
        scale=noise.scale,
        bound=noise.bound,
        floor=spec.participation.min_clients,
        clip=noise.clip,
        noise=noise,
    )


def with_dimension(spec: RunSpec, initial: Mapping[str, npt.NDArray[Any]]) -> RunSpec:
    """Return a run with the numbers of one vector counted in its initial weights.

    Raises:
        ConfigError: the file says another number (``E-SECAGG-DIMENSION``).
    """
    secure = spec.secure_aggregation
    if secure is None or not spec.privacy.mode.is_distributed:
        return spec
    counted = sum(array.size for array in initial.values() if array.dtype.kind == "f")
    if secure.dimension not in (0, counted):
        raise ConfigError(
            "E-SECAGG-DIMENSION",
            f"expected secure_aggregation.dimension = {counted}, the real numbers of the initial "
            f"weights, got {secure.dimension}",
            hint="Leave it out: it is counted.",
        )
    return replace(spec, secure_aggregation=replace(secure, dimension=counted))


def weight_key(spec: RunSpec) -> str:
    """Return the metric by which the strategy weighs replies."""
    return str(spec.strategy.parameters.get("weighted_by_key", "num-examples"))


def _plain_plan(spec: RunSpec, secure: SecureAggregationSpec, arrays: Sequence[Form]) -> SecurePlan:
    """Return the plan of sums without noise of their own."""
    metrics, weight = _train_metrics(spec), weight_key(spec)
    if weight not in metrics:
        raise ConfigError(
            "E-SECAGG-METRIC",
            f"expected the weight {weight!r} among the metrics of a reply to train, got "
            f"{sorted(metrics)}",
            hint="A secure sum is a weighted mean: declare the weight, or weights of 1.",
        )
    lists = sorted(name for name, metric in metrics.items() if metric.length)
    if lists:
        raise ConfigError(
            "E-SECAGG-METRIC", f"expected single numbers in a secure sum, got lists: {lists}"
        )
    most_weight = max(1, int(min(metrics[weight].range[1], secure.max_weight)))
    ranges = {
        name: metric.range
        for name, metric in metrics.items()
        if name != weight and metric.range[0] < metric.range[1]
    }
    layout = Layout(arrays=tuple(arrays), metrics=ranges, weighted=True, most_weight=most_weight)
    bound = secure.coordinate_bound * most_weight
    count = len(secure.members)
    return SecurePlan(
        layout=layout,
        secure=secure,
        scale=(LARGEST - count) / (count * bound),
        bound=bound,
        floor=spec.participation.min_clients,
    )


def _train_metrics(spec: RunSpec) -> Mapping[str, MetricSpec]:
    schema = result_schema(spec)
    return schema["train"].metrics if "train" in schema else {}


def terms_of(
    plan: SecurePlan,
    members: Sequence[Member],
    *,
    specification_sha256: bytes,
    run: str,
    round_number: int,
    attempt: int,
    steps: int,
) -> Terms:
    """Return the terms of one attempt at one round's sums.

    Args:
        plan: of the run.
        members: all whom the run names.
        specification_sha256: what the owners have approved.
        run: its id.
        round_number: from 1.
        attempt: of the round, from 1; an attempt that failed is never begun again.
        steps: sums under the same keys.
    """
    secure = plan.secure
    neighbours, shares = graph_parameters(len(members))
    purpose = hashlib.sha256(b"tacit train|" + specification_sha256).digest()
    return Terms(
        purpose=purpose,
        run=run,
        round=round_number,
        attempt=attempt,
        members=tuple(sorted(members, key=lambda member: member.node_id)),
        dimension=plan.layout.length,
        threshold=shares if neighbours else secure.threshold,
        neighbours=neighbours,
        colluders=secure.colluders,
        scale=plan.scale,
        clip=plan.clip,
        local_sigma=0.0 if plan.noise is None else plan.noise.local_deviation,
        coordinate_bound=plan.bound,
        floor=max(plan.floor, secure.threshold),
        steps=steps,
    )


def forms_of(arrays: Mapping[str, npt.NDArray[np.generic]]) -> tuple[Form, ...]:
    """Return the forms of a model's arrays, in their order."""
    return tuple(
        Form(name=name, shape=array.shape, dtype=array.dtype) for name, array in arrays.items()
    )
