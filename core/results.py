"""What the replies of a built-in run may contain: derived from the specification, never declared.

The owner's node holds every outgoing reply against this, so it must not need torch or flwr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tacit.core.specification import MetricSpec, PrivacyMode, ReplySpec, RunSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.core.audit_spec import AuditSpec

# A loss above this is reported as this: a diverged model stays visible, and replies stay bounded.
MAX_LOSS = 1e6

# Integers up to here survive as the float64 weights of a mean.
MAX_EXAMPLES = 2.0**53

# Noised sums over an owner's validation records; the server adds them up and divides last.
SUM_CORRECT = "sum-correct"
SUM_WRONG = "sum-wrong"
SUM_LOSS = "sum-loss"  # each record's less half of the public bound, which halves the noise
SUMS = (SUM_CORRECT, SUM_WRONG, SUM_LOSS)

_ONE = MetricSpec(range=(1.0, 1.0))
_COUNT = MetricSpec(range=(1.0, MAX_EXAMPLES))
_LOSS = MetricSpec(range=(0.0, MAX_LOSS))
_SHARE = MetricSpec(range=(0.0, 1.0))
_HISTOGRAM = "histogram-"

_NOISED = MetricSpec(range=(-MAX_EXAMPLES, MAX_EXAMPLES))  # noise goes below zero, and is finite


def result_schema(spec: RunSpec) -> Mapping[str, ReplySpec]:
    """Return what each kind of reply may carry, by message type.

    Runs with an app of their own declare it in ``results``. Built-in runs reply to ``train`` with
    the model and a weight. Under differential privacy the weight is 1: the number of an owner's
    records is part of what is protected, and a mean weighted by it would have another sensitivity.
    Evaluation carries noised sums where the run declares ``evaluation.epsilon``, else exact
    metrics; whether those may leave is for the owner's policy to say. An audit is answered with
    one histogram for each of its probes, and trains nothing.
    """
    if spec.audit is not None:
        return {"query": ReplySpec(arrays="none", metrics=_histograms(spec.audit))}
    if spec.app is not None:
        return spec.results
    if spec.privacy.mode is PrivacyMode.NONE:
        train = {"num-examples": _COUNT, "loss": _LOSS}
        weight = _COUNT
    else:
        train = {"num-examples": _ONE}
        weight = _ONE
    evaluate = {"num-examples": weight, "loss": _LOSS, "accuracy": _SHARE}
    if spec.noises("evaluate"):
        evaluate = {"num-examples": _ONE} | dict.fromkeys(SUMS, _NOISED)
    return {
        "train": ReplySpec(arrays="model", metrics=train),
        "evaluate": ReplySpec(arrays="none", metrics=evaluate),
    }


def histogram_name(probe: str) -> str:
    """Return the metric that holds the histogram of a probe's scores."""
    return _HISTOGRAM + probe


def _histograms(audit: AuditSpec) -> Mapping[str, MetricSpec]:
    low = -MAX_EXAMPLES if audit.is_noised else 0.0
    one = MetricSpec(range=(low, MAX_EXAMPLES), length=audit.length)
    return {histogram_name(probe): one for probe in audit.probes}
