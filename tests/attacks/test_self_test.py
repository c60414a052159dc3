"""The null self-test passes sound methods and fails those that choose on what they score."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from tacit.attacks.bounds.bound import Bound, guess
from tacit.attacks.bounds.one_run import f_dp_bound, one_run_bound
from tacit.attacks.bounds.two_sided import clopper_pearson_bound
from tacit.attacks.self_test import SelfTest, null_self_test
from tacit.attacks.statistics import realised, roc_of

DELTA = 1e-5


def leaking(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores that do tell members: permuted, they must tell nothing."""
    rng = np.random.default_rng(4)
    is_member = rng.random(n) < 0.5
    return rng.standard_normal(n) + 2.0 * is_member, is_member


def one_run(scores: np.ndarray, bits: np.ndarray, *, guesses: int = 100) -> Bound:
    rng = np.random.default_rng(0)
    return one_run_bound(guess(scores, bits, guesses=guesses, rng=rng), delta=DELTA)


def f_dp(scores: np.ndarray, bits: np.ndarray) -> Bound:
    rng = np.random.default_rng(0)
    return f_dp_bound(guess(scores, bits, guesses=100, rng=rng), delta=DELTA)


def two_sided(scores: np.ndarray, bits: np.ndarray) -> Bound:
    point = realised(scores, bits, 2.0)
    return clopper_pearson_bound(point, delta=DELTA, independent_runs=False)


SOUND = {"one-run": one_run, "f-dp": f_dp, "clopper-pearson": two_sided}


def best_of_many(scores: np.ndarray, bits: np.ndarray) -> Bound:
    """Choose the number of guesses that gives the best bound: the common mistake."""
    tried = (one_run(scores, bits, guesses=r) for r in range(10, len(scores), 10))
    return max(tried, key=lambda bound: bound.value)


def best_threshold(scores: np.ndarray, bits: np.ndarray) -> Bound:
    """Choose the threshold on the scored records, and hide it."""
    roc = roc_of(scores, bits)
    points = [replace(roc.tpr_at(fpr), is_optimistic=False) for fpr in np.linspace(0.02, 0.6, 30)]
    whole = [replace(p, true_positives=float(round(p.true_positives))) for p in points]
    tried = (
        clopper_pearson_bound(p, delta=DELTA, independent_runs=False, alpha=0.5) for p in whole
    )
    return replace(max(tried, key=lambda bound: bound.value), alpha=0.05)


def test_sound_methods_pass_within_two_seconds() -> None:
    """Ten thousand leaking scores, permuted, show nothing; and the test is quick."""
    scores, bits = leaking(10_000)
    before = time.process_time()
    found = null_self_test(scores, bits, SOUND, rng=np.random.default_rng(1))
    assert time.process_time() - before < 2.0
    assert found.passed
    assert [check.name for check in found.bounds] == list(SOUND)
    assert all(0 <= check.positive <= 0.08 * 200 for check in found.bounds)
    assert 0 < abs(found.mean_auc - 0.5) < 3 * found.standard_error


def test_choosing_the_number_of_guesses_fails() -> None:
    """A method that tries many numbers of guesses finds epsilon where there is none."""
    scores, bits = leaking(400)
    found = null_self_test(
        scores, bits, {"best": best_of_many}, rng=np.random.default_rng(1), permutations=50
    )
    assert not found.passed
    assert found.bounds[0].positive > found.bounds[0].allowed * 50


def test_a_wrong_alpha_fails() -> None:
    """A method that claims less error than it makes is found out."""
    scores, bits = leaking(400)
    found = null_self_test(
        scores, bits, {"best": best_threshold}, rng=np.random.default_rng(1), permutations=50
    )
    assert not found.passed


def test_an_area_off_one_half_fails() -> None:
    """Three standard errors from one half are allowed, and no more."""
    near = SelfTest(permutations=200, mean_auc=0.5029, standard_error=0.001, bounds=())
    assert (near.passed, replace(near, mean_auc=0.4969).passed) == (True, False)


def test_deviation_is_that_of_permutations() -> None:
    """The standard error of the mean matches the spread of permuted areas, ties included."""
    rng = np.random.default_rng(8)
    scores, bits = rng.integers(0, 4, 60).astype(float), np.arange(60) < 20
    found = null_self_test(scores, bits, {}, rng=rng, permutations=400)
    areas = [roc_of(scores, rng.permutation(bits)).auc for _ in range(400)]
    assert np.isclose(found.standard_error * 20.0, np.std(areas), rtol=0.12)


def test_constant_scores_pass() -> None:
    """Scores that say nothing have an area of one half in every permutation."""
    found = null_self_test(
        np.ones(50), np.arange(50) < 9, {}, rng=np.random.default_rng(0), permutations=5
    )
    assert (found.mean_auc, found.standard_error, found.passed) == (0.5, 0.0, True)
