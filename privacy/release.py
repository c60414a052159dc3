"""Output hardening: a wrapper that lets a served or shared model say less, and less often.

Trusts: the caller's name, which whoever serves the model must have authenticated; the clock; and
that the model can be asked through the wrapper alone. Who holds the weights holds everything.

What it buys: an attacker sees coarser answers and fewer of them, so that attacks which compare
confidences (membership by loss) or climb them (inversion) have less to work with.
What it does not buy: any epsilon. Every answer is still a function of the training records, and
nothing here is random. Rounding leaves which side of a step a confidence lies on. Label-only
answers leave the membership attacks that ask for the labels of many perturbed copies of a record
and so measure how far the decision boundary is: in Choquette-Choo, Tramer, Carlini and Papernot,
"Label-Only Membership Inference Attacks" (2021, arXiv 2007.14321), they do about as well as attacks
on confidences, and the defences that helped were differential privacy and strong L2 regularisation
in training. A rate limit makes those many questions slow for one name; an attacker with many names
has as many limits. So measure what a setting buys: the audit can put :class:`Hardened` before the
model.

Order: the rate limit (before the model is asked), then top-k, then rounding; label-only stands for
both of the latter.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tacit.core.errors import RefusedError

Float64Array = npt.NDArray[np.float64]
Predict = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

_SUM_TOLERANCE = 1e-3  # a float16 softmax over a thousand classes is this far from one
_MAX_DECIMALS = 15
_ROUNDING_S = 1e-6  # of a float64 clock that counts from 1970, twice over
_FEW_CALLERS = 1024  # so many buckets are kept without a look at which are full


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """How many records one caller may ask about (a token bucket, one token for each record).

    Attributes:
        records_per_hour: what flows back into the bucket.
        burst: the bucket's size: most records at once, and after a long pause.
    """

    records_per_hour: float
    burst: int

    def problems(self) -> Iterator[tuple[str, str]]:
        if not (math.isfinite(self.records_per_hour) and self.records_per_hour > 0):
            yield "records_per_hour", f"expected a positive number, got {self.records_per_hour}"
        if self.burst < 1:
            yield "burst", f"expected at least 1 record, got {self.burst}"


@dataclass(frozen=True, kw_only=True)
class Hardening:
    """What answers leave out. The default leaves out nothing.

    Attributes:
        decimals: probabilities are rounded to so many decimals.
        top_k: all but the k most likely classes are answered with 0; what is left is not scaled.
        label_only: 1 for the most likely class, 0 for the others, in place of the two above.
        rate: of questions, for each caller.
    """

    decimals: int | None = None
    top_k: int | None = None
    label_only: bool = False
    rate: RateLimit | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.decimals is not None and not 0 <= self.decimals <= _MAX_DECIMALS:
            yield "decimals", f"expected 0 to {_MAX_DECIMALS}, got {self.decimals}"
        if self.top_k is not None and self.top_k < 1:
            yield "top_k", f"expected at least 1, got {self.top_k}"
        if self.label_only and (self.decimals is not None or self.top_k is not None):
            yield "label_only", "expected without decimals and top_k: a label has neither"
        if self.rate is not None:
            yield from ((f"rate.{key}", text) for key, text in self.rate.problems())


class Hardened:
    """A predict function that answers as a :class:`Hardening` says; safe for several threads."""

    def __init__(self, predict: Predict, hardening: Hardening, clock: Callable[[], float]) -> None:
        """Put a hardening before a model.

        Args:
            predict: features, records first, to probabilities ``(n, classes)``.
            hardening: what to leave out.
            clock: seconds that never go back, such as ``time.monotonic``.

        Raises:
            ValueError: the hardening contradicts itself.
        """
        problems = [f"{key}: {text}" for key, text in hardening.problems()]
        if problems:
            raise ValueError("; ".join(problems))
        self.hardening = hardening
        self._predict = predict
        self._buckets = None if hardening.rate is None else _Buckets(hardening.rate, clock)

    def __call__(self, features: npt.NDArray[Any], *, caller: str = "") -> Float64Array:
        """Return hardened probabilities, float64 ``(n, classes)``.

        Args:
            features: records first; each one costs a token, whatever becomes of the answer.
            caller: an authenticated name; callers without one share a bucket.

        Raises:
            RefusedError: the caller has asked too much (``E-RELEASE-RATE``), or the model's answer
                is no distribution over classes and cannot be hardened (``E-RELEASE-OUTPUT``).
        """
        if self._buckets is not None:
            self._buckets.take(caller, len(features))
        return harden(self._predict(features), self.hardening, records=len(features))


def harden(probabilities: npt.NDArray[Any], hardening: Hardening, *, records: int) -> Float64Array:
    """Return what of a model's probabilities is answered, row by row; ties go to the first class.

    Args:
        probabilities: ``(records, classes)``; each row at least 0 and with sum 1.
        hardening: its rate is not looked at.
        records: how many rows were asked for.

    Raises:
        RefusedError: they are something else (``E-RELEASE-OUTPUT``).
    """
    given = np.array(probabilities, dtype=np.float64)
    _verify_distributions(given, records)
    answered = given
    if hardening.label_only:
        answered = _largest(given, 1).astype(np.float64)
    elif hardening.top_k is not None:
        answered = np.where(_largest(given, hardening.top_k), given, 0.0)
    return answered if hardening.decimals is None else np.round(answered, hardening.decimals)


def _largest(values: Float64Array, count: int) -> npt.NDArray[np.bool_]:
    """Mark the ``count`` largest of each row."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    marked = np.zeros(values.shape, dtype=np.bool_)
    np.put_along_axis(marked, order, values=True, axis=1)
    return marked


def _verify_distributions(given: Float64Array, records: int) -> None:
    right = given.ndim == 2 and len(given) == records and given.shape[1] >= 1
    if right:
        sums = given.sum(axis=1)
        right = bool(np.all(given >= 0) and np.all(np.abs(sums - 1.0) <= _SUM_TOLERANCE))
    if not right:
        raise RefusedError(
            "E-RELEASE-OUTPUT",
            f"expected probabilities of {records} records over classes, got something else of "
            f"shape {given.shape}",
            hint="wrap a function that ends in a softmax",
        )


class _Buckets:
    """One token bucket per caller; a full one is forgotten, for a new one is full as well."""

    def __init__(self, rate: RateLimit, clock: Callable[[], float]) -> None:
        self._per_second = rate.records_per_hour / 3600.0
        self._burst = rate.burst
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._look_at = _FEW_CALLERS
        self._guard = threading.Lock()

    def take(self, caller: str, records: int) -> None:
        """Take a token for each record, or none at all.

        Raises:
            RefusedError: there are not enough.
        """
        with self._guard:
            now = self._clock()
            self._forget(now)
            # a bucket is told by when it will be full; taking a token moves that moment away
            full_at = max(self._full_at.get(caller, now), now) + records / self._per_second
            wait_s = full_at - now - self._burst / self._per_second
            if wait_s > _ROUNDING_S:
                raise RefusedError(
                    "E-RELEASE-RATE",
                    f"expected at most {self._burst} records at once and "
                    f"{self._per_second * 3600:g} an hour from one caller, got more",
                    hint="ask about fewer at once"
                    if records > self._burst
                    else f"ask again in {math.ceil(wait_s)} s",
                )
            self._full_at[caller] = full_at

    def _forget(self, now: float) -> None:
        if len(self._full_at) >= self._look_at:
            self._full_at = {name: at for name, at in self._full_at.items() if at > now}
            self._look_at = max(_FEW_CALLERS, 2 * len(self._full_at))
