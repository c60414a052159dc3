"""What the attacks read off a target's outputs, exact where a model is sure of itself.

A probability rounds to one long before two records stop differing, and a score that saturates
ties exactly the records that matter. So everything starts from the log odds ``phi = log p_y -
log(1 - p_y) = z_y - logsumexp_{i != y} z_i`` (Carlini et al. 2022, arXiv 2112.03570, section IV),
from which ``log p_y = -softplus(-phi)`` and ``log(1 - p_y) = -softplus(phi)`` keep all their
digits. A constant added to a row of logits cancels.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tacit.core.errors import DataError

if TYPE_CHECKING:
    from tacit.attacks.probe import References
    from tacit.attacks.target import BoolArray, Float32Array, Float64Array, Int64Array

T = TypeVar("T")

# How much of a ratio the log odds may move: more than rounding, less than anything that is meant.
_TIE = 1e-12


class Mode(enum.Enum):
    """Which references a record is compared with."""

    ONLINE = "online"  # those trained on it and those not: an attacker who trains per record
    OFFLINE = "offline"  # those not trained on it: they may be trained before the record is known


def needed(value: T | None, what: str) -> T:
    """Return what the probe's needs promised.

    Raises:
        ValueError: the runner did not ask :meth:`Evidence.has` first.
    """
    if value is None:
        raise ValueError(f"expected {what}")
    return value


def softplus(values: Float64Array) -> Float64Array:
    """Return log(1 + e^x)."""
    return np.logaddexp(0.0, values)


def log_softplus(values: Float64Array) -> Float64Array:
    """Return log(log(1 + e^x)), which is x where e^x is below the rounding of one."""
    return np.where(values < -37.0, values, np.log(softplus(np.maximum(values, -37.0))))


def true_log_odds(
    logits: Float64Array | Float32Array, labels: Int64Array, *, temperature: float = 1.0
) -> Float64Array:
    """Return phi of each record's own class, ``(n,)``.

    Args:
        logits: ``(n, classes)``.
        labels: int64 ``(n,)``.
        temperature: the logits are divided by it.
    """
    others = logits.astype(np.float64) / temperature
    column = labels[:, None]
    own = np.take_along_axis(others, column, axis=1)[:, 0]
    np.put_along_axis(others, column, -np.inf, axis=1)
    largest = others.max(axis=1)
    spread = np.log(np.exp(others - largest[:, None]).sum(axis=1))
    odds: Float64Array = (own - largest) - spread
    return odds


def log_odds(logits: Float64Array | Float32Array) -> Float64Array:
    """Return log p_i - log(1 - p_i) of every class, ``(n, classes)``."""
    table = logits.astype(np.float64)
    table -= table.max(axis=1, keepdims=True)
    top = table.argmax(axis=1)
    total = np.log(np.exp(table).sum(axis=1, keepdims=True))
    log_p = table - total
    np.put_along_axis(log_p, top[:, None], math.log(0.5), axis=1)  # a place holder, for now
    # Every other class has at most half of the probability, so one minus it loses nothing.
    odds: Float64Array = log_p - np.log1p(-np.exp(np.minimum(log_p, math.log(0.5))))
    np.put_along_axis(odds, top[:, None], true_log_odds(table, top)[:, None], axis=1)
    return odds


def reference_log_odds(
    logits: Float32Array, labels: Int64Array, *, temperature: float = 1.0
) -> Float64Array:
    """Return phi under each reference, ``(models, n)``, one model at a time to bound memory."""
    tables = [true_log_odds(table, labels, temperature=temperature) for table in logits]
    return np.stack(tables) if tables else np.zeros((0, len(labels)))


def compared_with(references: References, mode: Mode) -> BoolArray:
    """Return which references each record is compared with, ``(models, n)``.

    Raises:
        DataError: some record has none to be compared with (``E-AUDIT-REFERENCES``).
    """
    outside = ~references.is_in
    sides = (outside,) if mode is Mode.OFFLINE else (outside, references.is_in)
    for side, what in zip(sides, ("without", "with"), strict=False):
        bare = int((~side.any(axis=0)).sum())
        if bare:
            raise DataError(
                "E-AUDIT-REFERENCES",
                f"expected every audited record in at least one reference {what} it, "
                f"got {bare} records without one",
                hint="train references in pairs: one on each half",
            )
    return outside if mode is Mode.OFFLINE else np.ones_like(outside)


def log_mean_probability(
    phi: Float64Array, chosen: BoolArray, *, slope: float = 1.0
) -> Float64Array:
    """Return log(1 - s (1 - mean p)) for slope s, with all its digits where p is near one.

    Slope 1 is the logarithm of the mean probability. Slope (1 + a)/2 is RMIA's offline marginal
    ((1 + a) mean + (1 - a))/2 (Zarifzadeh et al. 2024, arXiv 2312.03262, appendix B).

    Args:
        phi: ``(models, n)``.
        chosen: bool ``(models, n)``, at least one model per record.
        slope: above 0, at most 1.
    """
    log_slope = math.log(slope)
    log_count = np.log(chosen.sum(axis=0))
    log_mean = np.logaddexp.reduce(np.where(chosen, -softplus(-phi), -np.inf), axis=0) - log_count
    log_rest = np.logaddexp.reduce(np.where(chosen, -softplus(phi), -np.inf), axis=0) - log_count
    log_rest = log_rest + log_slope
    floor = math.log1p(-slope) if slope < 1.0 else -math.inf
    near_one = log_rest < math.log(0.5)
    log_p: Float64Array = np.where(
        near_one,
        np.log1p(-np.exp(np.minimum(log_rest, math.log(0.5)))),
        np.logaddexp(log_mean + log_slope, floor),
    )
    return log_p


def log_ratio(
    phi: Float64Array, usual: Float64Array, chosen: BoolArray, *, slope: float = 1.0
) -> Float64Array:
    """Return log p(x|theta) - log p(x), ``(n,)``: how much likelier a model makes a record.

    No ratio is above two where half of the references are sure of the record, and each record that
    reaches it would tie: those are ordered by phi.

    Args:
        phi: of the target, ``(n,)``.
        usual: of the references, ``(models, n)``.
        chosen: which of them count, as for :func:`log_mean_probability`.
        slope: of p(x), likewise.
    """
    ratio = -softplus(-phi) - log_mean_probability(usual, chosen, slope=slope)
    broken: Float64Array = ratio + _TIE * np.abs(ratio) * np.arcsinh(phi)
    return broken
