"""What the replies of a built-in run may contain: derived from the specification, never declared.

The owner's node holds every outgoing reply against this, so it must not need torch or flwr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.core.specification import MetricSpec, PrivacyMode, ReplySpec, RunSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.core.audit_spec import AuditSpec
    from tacit.core.canary_spec import CanarySpec

# A loss above this is reported as this: a diverged model stays visible, and replies stay bounded.
MAX_LOSS = 1e6

# Integers up to here survive as the float64 weights of a mean.
MAX_EXAMPLES = 2.0**53

# Noised sums over an owner's validation records; the server adds them up and divides last.
SUM_CORRECT = "sum-correct"
SUM_WRONG = "sum-wrong"
SUM_LOSS = "sum-loss"  # each record's less half of the public bound, which halves the noise
SUMS = (SUM_CORRECT, SUM_WRONG, SUM_LOSS)

# What a node says of its canaries once the run is over; lists are as long as there are canaries.
CANARY_BITS = "canary-bits"
CANARY_SALT = "canary-salt"
CANARY_PRODUCTS = "canary-products"
CANARY_SQUARED_NORM = "canary-squared-norm"
CANARY_STEPS = "canary-steps"
CANARY_PARAMETERS = "canary-parameters"
CANARY_SALT_BYTES = 32

_ONE = MetricSpec(range=(1.0, 1.0))
_COUNT = MetricSpec(range=(1.0, MAX_EXAMPLES))
_LOSS = MetricSpec(range=(0.0, MAX_LOSS))
_SHARE = MetricSpec(range=(0.0, 1.0))
_HISTOGRAM = "histogram-"

_ANY = 1e300  # of a released gradient: finite, whatever its scale
_NOISED = MetricSpec(range=(-MAX_EXAMPLES, MAX_EXAMPLES))  # noise goes below zero, and is finite


def result_schema(spec: RunSpec) -> Mapping[str, ReplySpec]:
    """Return what each kind of reply may carry, by message type.

    Runs with an app of their own declare it in ``results``. Built-in runs reply to ``train`` with
    the model and a weight. Under differential privacy the weight is 1: the number of an owner's
    records is part of what is protected, and a mean weighted by it would have another sensitivity.
    In mode ``record-distributed`` it is one member's share of a noised sum instead, as integers.
    Evaluation carries noised sums where the run declares ``evaluation.epsilon``, else exact
    metrics; whether those may leave is for the owner's policy to say. An audit is answered with
    one histogram for each of its probes, and trains nothing. A run with canaries has one query
    more, at its end: the bits and their salt, and what the released gradients say of directions.
    """
    if spec.audit is not None:
        return {"query": ReplySpec(arrays="none", metrics=_histograms(spec.audit))}
    if spec.app is not None:
        return spec.results
    if spec.privacy.mode is PrivacyMode.RECORD_DISTRIBUTED:
        return {"train": ReplySpec(arrays="share")} | _evaluation(spec, _ONE)
    if spec.privacy.mode is PrivacyMode.NONE:
        train = {"num-examples": _COUNT, "loss": _LOSS}
        weight = _COUNT
    else:
        train = {"num-examples": _ONE}
        weight = _ONE
    opening: dict[str, ReplySpec] = {}
    if spec.canaries is not None:
        opening = {"query": ReplySpec(arrays="none", metrics=_opening(spec.canaries))}
    return {"train": ReplySpec(arrays="model", metrics=train)} | _evaluation(spec, weight) | opening


def _evaluation(spec: RunSpec, weight: MetricSpec) -> dict[str, ReplySpec]:
    evaluate = {"num-examples": weight, "loss": _LOSS, "accuracy": _SHARE}
    if spec.noises("evaluate"):
        evaluate = {"num-examples": _ONE} | dict.fromkeys(SUMS, _NOISED)
    return {"evaluate": ReplySpec(arrays="none", metrics=evaluate)}


def histogram_name(probe: str) -> str:
    """Return the metric that holds the histogram of a probe's scores."""
    return _HISTOGRAM + probe


def _histograms(audit: AuditSpec) -> Mapping[str, MetricSpec]:
    low = -MAX_EXAMPLES if audit.is_noised else 0.0
    one = MetricSpec(range=(low, MAX_EXAMPLES), length=audit.length)
    return {histogram_name(probe): one for probe in audit.probes}


def _opening(canaries: CanarySpec) -> Mapping[str, MetricSpec]:
    """Return what a node's opening holds, and nothing else: bits, salt, scores of directions."""
    count = canaries.directions + canaries.mislabelled
    metrics = {
        CANARY_BITS: MetricSpec(range=(0.0, 1.0), length=count),
        CANARY_SALT: MetricSpec(range=(0.0, 255.0), length=CANARY_SALT_BYTES),
    }
    if canaries.directions:
        metrics |= {
            CANARY_PRODUCTS: MetricSpec(range=(-_ANY, _ANY), length=canaries.directions),
            CANARY_SQUARED_NORM: MetricSpec(range=(0.0, _ANY)),
            CANARY_STEPS: _COUNT,
            CANARY_PARAMETERS: _COUNT,
        }
    return metrics
