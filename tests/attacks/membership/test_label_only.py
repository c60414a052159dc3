"""Distances to a known boundary are found, within the queries allowed, from labels alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from tacit.attacks.membership.label_only import BoundaryDistance, NoiseRobustness
from tacit.attacks.probe import Evidence
from tacit.attacks.target import Float32Array, Float64Array, Outputs
from tacit.learning.prepared import Examples

NORMAL = np.array([2.0, -1.0, 0.5, 0.0, 1.0, -0.5, 0.0, 0.0, 0.3])
PROBES = pytest.mark.parametrize(
    "probe", [BoundaryDistance(), NoiseRobustness()], ids=lambda p: p.name
)


@dataclass
class Plane:
    """A target whose boundary is a plane, and that counts what it is asked."""

    asked: list[int] = field(default_factory=list)

    def logits(self, features: Float32Array) -> Float64Array:
        self.asked.append(len(features))
        side = features.reshape(len(features), -1).astype(np.float64) @ NORMAL
        return np.stack([-side, side], axis=1)


def evidence_of(plane: Plane, *, wrong: int, shape: tuple[int, ...] = (9,)) -> Evidence:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, *shape)).astype(np.float32)
    labels = plane.logits(features).argmax(axis=1)
    labels[:wrong] = 1 - labels[:wrong]
    plane.asked.clear()
    return Evidence(
        outputs=Outputs(logits=np.zeros((120, 2)), labels=labels),
        examples=Examples(features=features, labels=labels),
        target=plane,
    )


def distances(evidence: Evidence) -> Float64Array:
    assert evidence.examples is not None
    rows = evidence.examples.features.reshape(120, -1).astype(np.float64)
    return np.abs(rows @ NORMAL) / np.linalg.norm(NORMAL)


@pytest.mark.parametrize("shape", [(9,), (1, 3, 3)])
def test_the_distance_to_a_plane_is_found(shape: tuple[int, ...]) -> None:
    """On tables and images: never below the true distance, and within a tenth of it on average."""
    evidence = evidence_of(Plane(), wrong=0, shape=shape)
    found = BoundaryDistance().scores(evidence, rng=np.random.default_rng(1))
    true = distances(evidence)
    assert (found >= true - 1e-4).all()
    assert (found / true).mean() < 1.1


def test_more_queries_come_closer() -> None:
    """The first way across is far too long, and each round shortens it."""
    evidence = evidence_of(Plane(), wrong=0)
    found = [
        BoundaryDistance(queries=q).scores(evidence, rng=np.random.default_rng(1)).mean()
        for q in (12, 100, 400)
    ]
    assert found[0] > 1.5 * found[1]
    assert found[1] > 1.05 * found[2]


@pytest.mark.parametrize("queries", [50, 400])
def test_no_record_costs_more_queries_than_allowed(queries: int) -> None:
    """The budget is per record, and counts the first question too."""
    plane = Plane()
    evidence = evidence_of(plane, wrong=10)
    BoundaryDistance(queries=queries).scores(evidence, rng=np.random.default_rng(1))
    assert sum(plane.asked) <= queries * 120


@PROBES
def test_misclassified_records_come_last(probe: BoundaryDistance | NoiseRobustness) -> None:
    """Below zero and below all others; the farther from their class, the lower."""
    evidence = evidence_of(Plane(), wrong=60)
    found = probe.scores(evidence, rng=np.random.default_rng(1))
    assert found[:60].max() <= 0.0 <= found[60:].min()
    assert np.corrcoef(-found[:60], distances(evidence)[:60])[0, 1] > 0.9


def test_what_noise_changes_tells_the_distance() -> None:
    """The cheap variant orders records nearly as their distances do."""
    evidence = evidence_of(Plane(), wrong=0)
    found = NoiseRobustness().scores(evidence, rng=np.random.default_rng(1))
    ranks = [x.argsort().argsort() for x in (found, distances(evidence))]
    assert np.corrcoef(*ranks)[0, 1] > 0.95


def test_a_target_that_says_one_thing_has_no_boundary() -> None:
    """Where no way across is known, the distance is beyond the data."""

    class Constant:
        def logits(self, features: Float32Array) -> Float64Array:
            return np.tile([1.0, 0.0], (len(features), 1))

    features = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    examples = Examples(features=features, labels=np.zeros(20, dtype=np.int64))
    outputs = Outputs(logits=np.zeros((20, 2)), labels=examples.labels)
    found = BoundaryDistance().scores(
        Evidence(outputs=outputs, examples=examples, target=Constant()),
        rng=np.random.default_rng(1),
    )
    assert (found > np.linalg.norm(np.ptp(features, axis=0))).all()
