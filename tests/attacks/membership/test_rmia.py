"""RMIA equals its matrix of pairs, BASE its formula, and neither is tuned on the target."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from tacit.attacks.membership.base import Base
from tacit.attacks.membership.calibrated import Calibrated
from tacit.attacks.membership.rmia import Rmia, Setting, population_share
from tacit.attacks.membership.signals import Mode
from tests.attacks.worlds import auc

if TYPE_CHECKING:
    from tacit.attacks.probe import Evidence, References
    from tacit.attacks.target import Float64Array, Int64Array
    from tests.attacks.worlds import World

RNG = np.random.default_rng(0)


def probabilities(logits: Float64Array, labels: Int64Array) -> Float64Array:
    """Return p_y, plainly."""
    table = softmax(np.asarray(logits, dtype=np.float64), axis=-1)
    return np.take_along_axis(table, np.broadcast_to(labels, table.shape[:-1])[..., None], -1)[
        ..., 0
    ]


def parts_of(evidence: Evidence) -> References:
    assert evidence.references is not None
    return evidence.references


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_offline_is_the_share_of_pairs(overfit: World, gamma: float) -> None:
    """The n x |Z| matrix of ratio(x) / ratio(z) >= gamma, with p(x) as in the paper."""
    evidence = overfit.evidence
    references, population = parts_of(evidence), evidence.population
    assert population is not None
    a, labels = 0.3, evidence.outputs.labels
    out = np.where(references.is_in, np.nan, probabilities(references.logits, labels))
    marginal = ((1 + a) * np.nanmean(out, axis=0) + (1 - a)) / 2
    ratio = probabilities(evidence.outputs.logits, labels) / marginal
    usual = probabilities(references.population_logits, population.labels).mean(axis=0)
    ratio_z = probabilities(population.logits, population.labels) / (
        ((1 + a) * usual + (1 - a)) / 2
    )
    expected = (ratio[:, None] / ratio_z[None, :] >= gamma).mean(axis=1)
    found = population_share(np.log(ratio), np.log(ratio_z), gamma)
    np.testing.assert_allclose(np.floor(found * (len(ratio_z) + 1)) / len(ratio_z), expected)
    if gamma == 1.0:  # the probe's own
        probe = Rmia(mode=Mode.OFFLINE, temperatures=(1.0,), offline_a=(a,))
        whole = probe.scores(evidence, rng=RNG)
        np.testing.assert_allclose(whole, found, rtol=1e-6)


def test_shares_that_tie_are_ordered_by_the_ratio() -> None:
    """Above all of the population the share is one for all; the ratio still orders them."""
    ratios = np.array([5.0, 1e-200, 2e-200, 9.0, -1e-200, 0.0])
    scores = population_share(ratios, np.array([-7.0, -8.0]), 1.0)
    np.testing.assert_array_equal(np.argsort(scores), np.argsort(ratios))
    assert len(np.unique(scores)) == len(ratios)


@pytest.mark.parametrize("mode", Mode)
def test_base_is_its_formula(overfit: World, mode: Mode) -> None:
    """log p_y - [logsumexp over references of log p_y - log of their number]."""
    references, labels = parts_of(overfit.evidence), overfit.evidence.outputs.labels
    rows = np.arange(len(labels))
    own = log_softmax(overfit.evidence.outputs.logits, axis=1)[rows, labels]
    usual = log_softmax(references.logits.astype(np.float64), axis=2)[:, rows, labels]
    chosen = np.ones_like(references.is_in) if mode is Mode.ONLINE else ~references.is_in
    expected = own - [logsumexp(usual[chosen[:, i], i]) - np.log(chosen[:, i].sum()) for i in rows]
    found = Base(mode=mode).scores(overfit.evidence, rng=RNG)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_base_and_rmia_have_one_order(overfit: World) -> None:
    """The population moves all records alike: with a = 1 and temperature 1 the order is BASE's."""
    probe = Rmia(mode=Mode.OFFLINE, temperatures=(1.0,), offline_a=(1.0,))
    np.testing.assert_array_equal(
        probe.scores(overfit.evidence, rng=RNG).argsort(),
        Base(mode=Mode.OFFLINE).scores(overfit.evidence, rng=RNG).argsort(),
    )


@pytest.mark.parametrize("mode", Mode)
def test_calibration_takes_off_the_mean_loss(overfit: World, mode: Mode) -> None:
    """log p_y minus its mean over OUT references, or over all."""
    references, labels = parts_of(overfit.evidence), overfit.evidence.outputs.labels
    rows = np.arange(len(labels))
    own = log_softmax(overfit.evidence.outputs.logits, axis=1)[rows, labels]
    usual = log_softmax(references.logits.astype(np.float64), axis=2)[:, rows, labels]
    chosen = np.ones_like(references.is_in) if mode is Mode.ONLINE else ~references.is_in
    expected = own - np.nanmean(np.where(chosen, usual, np.nan), axis=0)
    found = Calibrated(mode=mode).scores(overfit.evidence, rng=RNG)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_tuning_does_not_look_at_the_target(overfit: World, fresh: World) -> None:
    """Another target, with the same references, gets the same temperature and a."""
    assert Rmia().tuned(overfit.evidence) == Rmia().tuned(fresh.evidence)


def test_tuning_chooses_what_attacks_references_best(overfit: World) -> None:
    """On this world a small a is right; tuning finds it, and it pays on the target."""
    wrong = Rmia(temperatures=(1.0,), offline_a=(1.0,))
    tuned = Rmia(temperatures=(1.0,), offline_a=(0.0, 1.0))
    assert tuned.tuned(overfit.evidence) == Setting(temperature=1.0, a=0.0)
    gain = [auc(p.scores(overfit.evidence, rng=RNG), overfit.is_in) for p in (wrong, tuned)]
    assert gain[1] > gain[0] + 0.03


@pytest.mark.parametrize("mode", Mode)
def test_one_pair_is_enough(overfit: World, mode: Mode) -> None:
    """With one OUT reference per record, the default setting serves, and catches the model."""
    evidence = replace(overfit.evidence, references=parts_of(overfit.evidence).take([0, 1]))
    assert Rmia(mode=mode).tuned(evidence) == Setting(temperature=1.0, a=0.3)
    scores = Rmia(mode=mode).scores(evidence, rng=RNG)
    assert auc(scores, overfit.is_in) > 0.7
