"""Label-only (Choquette-Choo et al. 2021, arXiv 2007.14321): only the predicted class is seen.

Training pushes the decision boundary away from members. Its distance is found by HopSkipJump
(Chen et al. 2020, arXiv 1904.02144, algorithm 2), or, with few queries, guessed from how much noise
a prediction survives (section 3 of the attack's paper). All records advance together, and noise is
shared between them: a record's score depends neither on its place nor on the batch.

The paper gives every misclassified record the distance 0. Here it gets minus its distance to the
true class, so that these records are below all others as there, yet do not tie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tacit.attacks.membership.signals import needed
from tacit.attacks.probe import Need

if TYPE_CHECKING:
    from numpy.random import Generator

    from tacit.attacks.probe import Evidence
    from tacit.attacks.target import BoolArray, Float64Array, Int64Array, Target
    from tacit.learning.prepared import Examples

_BISECTIONS = 10  # the boundary is met to 1/1024 of the way
_HALVINGS = 6  # of a step that does not cross
_TABLE_NUMBERS = 1 << 23  # distances between records held at a time: 64 MB


@dataclass(frozen=True)
class _Oracle:
    """Says of points whether each is on the other side of its record's boundary."""

    target: Target
    examples: Examples
    is_right: BoolArray

    @classmethod
    def asked(cls, target: Target, examples: Examples) -> tuple[_Oracle, Int64Array]:
        """Ask for the records themselves; return the predicted classes as well."""
        predicted = target.logits(examples.features).argmax(axis=1)
        return cls(target, examples, predicted == examples.labels), predicted

    def has_crossed(self, points: Float64Array, rows: Int64Array) -> BoolArray:
        """Return, for a point per row, whether the answer is right where it was wrong, or reverse.

        Args:
            points: float64 ``(k, d)``.
            rows: int64 ``(k,)``: whose points they are.
        """
        shape = self.examples.features.shape[1:]
        features = points.astype(np.float32).reshape(len(points), *shape)
        is_right = self.target.logits(features).argmax(axis=1) == self.examples.labels[rows]
        crossed: BoolArray = is_right != self.is_right[rows]
        return crossed


@dataclass(frozen=True, kw_only=True)
class BoundaryDistance:
    """Score: L2 distance to the decision boundary, negative where misclassified.

    Attributes:
        queries: per record, at most.
        directions: of the first estimate of the boundary's normal; the t-th takes sqrt(t) times
            as many.
    """

    queries: int = 400
    directions: int = 24
    name: ClassVar[str] = "label-only-boundary"
    source: ClassVar[str] = "Choquette-Choo et al. 2021, arXiv 2007.14321"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES})

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:
        """Return the score per record; twice the data's diameter where no way across is known."""
        examples = needed(evidence.examples, "the audited records")
        oracle, predicted = _Oracle.asked(needed(evidence.target, "a target to ask"), examples)
        records = examples.features.reshape(len(examples), -1).astype(np.float64)
        box = records.min(axis=0), records.max(axis=0)
        start = _nearest_across(records, predicted, examples.labels, oracle.is_right)
        rows = np.flatnonzero(start >= 0)
        distances = np.full(len(records), 2.0 * float(np.linalg.norm(box[1] - box[0])))
        origin, points = records[rows], records[start[rows]]
        points = _bisected(oracle, origin, points, rows)
        best = np.linalg.norm(points - origin, axis=1)
        spent, step = 1 + _BISECTIONS, 1
        while spent + self._cost(step) <= self.queries and len(rows):
            spent += self._cost(step)
            directions = rng.normal(size=(self._directions(step), records.shape[1]))
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            normal = _normals(oracle, points, best, directions, rows)
            steps = normal * (best / math.sqrt(step))[:, None]
            moved = _bisected(oracle, origin, _moved(oracle, points, steps, box, rows), rows)
            found = np.linalg.norm(moved - origin, axis=1)
            closer = found < best
            points, best = np.where(closer[:, None], moved, points), np.minimum(best, found)
            step += 1
        distances[rows] = best
        return np.where(oracle.is_right, distances, -distances)

    def _directions(self, step: int) -> int:
        return round(self.directions * math.sqrt(step))

    def _cost(self, step: int) -> int:
        return self._directions(step) + _HALVINGS + _BISECTIONS


@dataclass(frozen=True, kw_only=True)
class NoiseRobustness:
    """Score: the distance that a flat boundary would have, from how often noise crosses it.

    With noise of deviation s, a record at distance d keeps its class with probability Phi(d / s).
    Scales from small to large keep both near and far records from tying.

    Attributes:
        scales: of the noise, in deviations of each feature.
        draws: per scale.
    """

    scales: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    draws: int = 24
    name: ClassVar[str] = "label-only-noise"
    source: ClassVar[str] = "Choquette-Choo et al. 2021, arXiv 2007.14321"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES})

    def scores(self, evidence: Evidence, *, rng: Generator) -> Float64Array:
        """Return the score per record."""
        examples = needed(evidence.examples, "the audited records")
        oracle, _ = _Oracle.asked(needed(evidence.target, "a target to ask"), examples)
        records = examples.features.reshape(len(examples), -1).astype(np.float64)
        deviation = records.std(axis=0)
        rows = np.arange(len(records))
        quantiles = np.array(
            [NormalDist().inv_cdf((k + 0.5) / (self.draws + 1)) for k in range(self.draws + 1)]
        )
        distance = np.zeros(len(records))
        for scale in self.scales:
            kept = np.zeros(len(records), dtype=np.int64)
            for noise in rng.normal(size=(self.draws, records.shape[1])):
                kept += ~oracle.has_crossed(records + scale * deviation * noise, rows)
            distance += scale * quantiles[kept] / len(self.scales)
        least = sum(self.scales) / len(self.scales) * quantiles[0]
        signed: Float64Array = np.where(oracle.is_right, distance - least, least - distance)
        return signed


def _nearest_across(
    records: Float64Array, predicted: Int64Array, labels: Int64Array, is_right: BoolArray
) -> Int64Array:
    """Return the nearest record on the other side of each one's boundary; -1 where none is."""
    nearest = np.full(len(records), -1, dtype=np.int64)
    squares = np.square(records).sum(axis=1)
    step = max(1, _TABLE_NUMBERS // max(1, len(records)))
    for start in range(0, len(records), step):
        part = slice(start, start + step)
        distances = squares - 2.0 * records[part] @ records.T
        across = (predicted[None, :] == labels[part, None]) != is_right[part, None]
        distances[~across] = np.inf
        found = distances.argmin(axis=1)
        nearest[part] = np.where(across.any(axis=1), found, -1)
    return nearest


def _bisected(
    oracle: _Oracle, origin: Float64Array, points: Float64Array, rows: Int64Array
) -> Float64Array:
    """Return where the lines from the records to their points, which crossed, first cross."""
    near, far = np.zeros(len(rows)), np.ones(len(rows))
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2.0
        crossed = oracle.has_crossed(origin + middle[:, None] * (points - origin), rows)
        near, far = np.where(crossed, near, middle), np.where(crossed, middle, far)
    return origin + far[:, None] * (points - origin)


def _normals(
    oracle: _Oracle,
    points: Float64Array,
    distances: Float64Array,
    directions: Float64Array,
    rows: Int64Array,
) -> Float64Array:
    """Return unit vectors towards the other side (HopSkipJump, section III, with its baseline)."""
    radius = (distances / points.shape[1])[:, None]
    signs = np.stack(
        [np.where(oracle.has_crossed(points + radius * u, rows), 1.0, -1.0) for u in directions],
        axis=1,
    )
    mean = signs.mean(axis=1, keepdims=True)
    # Where all answers agree, their mean is the direction; else it is what they have in common.
    weights = np.where(np.abs(mean) == 1.0, signs, signs - mean)
    normals: Float64Array = weights @ directions
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    return normals


def _moved(
    oracle: _Oracle,
    points: Float64Array,
    steps: Float64Array,
    box: tuple[Float64Array, Float64Array],
    rows: Int64Array,
) -> Float64Array:
    """Return the points after the largest halving of each step, clipped to the box, to cross."""
    moved, todo = points.copy(), np.arange(len(rows))
    for halving in range(_HALVINGS):
        tried = np.clip(points[todo] + steps[todo] * 0.5**halving, *box)
        crossed = oracle.has_crossed(tried, rows[todo])
        moved[todo[crossed]] = tried[crossed]
        todo = todo[~crossed]
        if not len(todo):
            break
    return moved
