"""LiRA equals its definition, computed plainly record by record; offline it has one side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from tacit.attacks.membership.lira import Lira, Variance
from tacit.attacks.membership.signals import Mode
from tacit.attacks.probe import Evidence, References
from tacit.attacks.target import Outputs
from tacit.core.errors import DataError
from tests.attacks.worlds import auc, paired_halves

if TYPE_CHECKING:
    from tacit.attacks.target import BoolArray, Float64Array

RNG = np.random.default_rng(0)
MODELS, RECORDS = 12, 60


def evidence_of(phi: Float64Array, usual: Float64Array, is_in: BoolArray) -> Evidence:
    """Return the evidence of two-class models with these log odds of class 1."""
    labels = np.ones(len(phi), dtype=np.int64)
    logits = np.zeros((*usual.shape, 2), dtype=np.float32)
    logits[..., 1] = usual
    return Evidence(
        outputs=Outputs(logits=np.stack([np.zeros_like(phi), phi], axis=1), labels=labels),
        references=References(
            logits=logits,
            is_in=is_in,
            population_logits=np.zeros((len(usual), 0, 2), dtype=np.float32),
        ),
    )


@pytest.fixture(scope="module")
def drawn() -> tuple[Float64Array, Float64Array, BoolArray]:
    """phi whose deviation is far greater on members: which side it is taken from shows."""
    rng = np.random.default_rng(0)
    is_in = paired_halves(MODELS // 2, RECORDS, rng)
    deviation = np.where(is_in, 3.0, 0.5) * rng.uniform(0.5, 2.0, size=RECORDS)
    usual = 2.0 * is_in + deviation * rng.normal(size=is_in.shape)
    usual = usual.astype(np.float32).astype(np.float64)
    return rng.normal(scale=2.0, size=RECORDS), usual, is_in


def deviations(usual: Float64Array, chosen: BoolArray, kind: Variance) -> list[float]:
    """Return each record's deviation by loops over records."""
    own = [usual[chosen[:, i], i] for i in range(RECORDS)]
    pooled = sum(((x - x.mean()) ** 2).sum() for x in own) / sum(len(x) - 1 for x in own)
    match kind:
        case Variance.POOLED:
            return [pooled**0.5] * RECORDS
        case Variance.PER_EXAMPLE:
            return [x.std(ddof=1) for x in own]
        case Variance.SHRUNK:
            return [
                ((8 * pooled + (len(x) - 1) * x.var(ddof=1)) / (8 + len(x) - 1)) ** 0.5 for x in own
            ]


@pytest.mark.parametrize("kind", Variance)
def test_online_is_the_log_ratio_of_two_normals(
    drawn: tuple[Float64Array, Float64Array, BoolArray], kind: Variance
) -> None:
    """log N(phi; IN) - log N(phi; OUT), each with its own side's mean and deviation."""
    phi, usual, is_in = drawn
    inside, outside = deviations(usual, is_in, kind), deviations(usual, ~is_in, kind)
    expected = [
        stats.norm.logpdf(phi[i], usual[is_in[:, i], i].mean(), inside[i])
        - stats.norm.logpdf(phi[i], usual[~is_in[:, i], i].mean(), outside[i])
        for i in range(RECORDS)
    ]
    found = Lira(mode=Mode.ONLINE, variance=kind).scores(evidence_of(*drawn), rng=RNG)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", Variance)
def test_offline_is_the_one_sided_tail(
    drawn: tuple[Float64Array, Float64Array, BoolArray], kind: Variance
) -> None:
    """The log odds of Pr[N(OUT) <= phi], where scipy's two tails are still told apart."""
    phi, usual, is_in = drawn
    outside = deviations(usual, ~is_in, kind)
    z = [(phi[i] - usual[~is_in[:, i], i].mean()) / outside[i] for i in range(RECORDS)]
    expected = stats.norm.logcdf(z) - stats.norm.logsf(z)
    found = Lira(mode=Mode.OFFLINE, variance=kind).scores(evidence_of(*drawn), rng=RNG)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_offline_has_one_side() -> None:
    """A phi far below what is usual is the least likely member, one far above the likeliest."""
    phi = np.array([-300.0, -30.0, 0.0, 30.0, 300.0, 301.0])
    is_in = paired_halves(2, 6, np.random.default_rng(1))
    usual = np.random.default_rng(2).normal(size=is_in.shape)
    usual -= np.where(is_in, 0.0, usual).sum(axis=0) / (~is_in).sum(axis=0)
    probe = Lira(mode=Mode.OFFLINE, variance=Variance.POOLED)
    scores = probe.scores(evidence_of(phi, usual, is_in), rng=RNG)
    assert (np.diff(scores) > 0).all()


def test_the_two_sided_density_would_lose() -> None:
    """Where non-members fall below as often as members rise above, only the tail tells them."""
    rng = np.random.default_rng(5)
    is_in = paired_halves(8, 400, rng)
    usual = rng.normal(size=is_in.shape)
    member = rng.permutation(400) < 200
    phi = np.where(member, 3.0, -3.0) + rng.normal(size=400)
    scores = Lira(mode=Mode.OFFLINE).scores(evidence_of(phi, usual, is_in), rng=rng)
    assert auc(scores, member) > 0.99
    assert auc(np.abs(scores), member) < 0.6


def test_one_pair_is_enough_unless_each_example_has_its_variance() -> None:
    """One model a side has no variance: the spread over records serves, or the attack refuses."""
    is_in = paired_halves(1, RECORDS, RNG)
    evidence = evidence_of(RNG.normal(size=RECORDS), RNG.normal(size=(2, RECORDS)), is_in)
    assert np.isfinite(Lira(mode=Mode.OFFLINE).scores(evidence, rng=RNG)).all()
    with pytest.raises(DataError, match="at least 2 references on each side") as refused:
        Lira(mode=Mode.OFFLINE, variance=Variance.PER_EXAMPLE).scores(evidence, rng=RNG)
    assert refused.value.code == "E-AUDIT-REFERENCES"
