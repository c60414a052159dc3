"""What merged histograms tell: leaks through noise, nothing where nothing is, and the power."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from tacit.attacks.binned import roc_of_histograms
from tacit.attacks.findings import AuditResult, Outcome
from tacit.attacks.histograms import ScoreHistogram, histogram_of, merge
from tacit.attacks.merged import FPRS, MergedAudit, is_evidence, merged_result
from tacit.core.audit_spec import AuditSpec

AUDIT = AuditSpec(
    run="r-00000001", model_sha256="0" * 64, rounds=1, owners=4, bins=16, epsilon=1.0, delta=1e-3
)
MERGED = MergedAudit(audit=AUDIT, classes=2, owners=4)
EDGES = np.linspace(-3.0, 4.0, 15)


def drawn(
    shift: float, *, noise: float, seed: int, members: int = 800, others: int = 400
) -> ScoreHistogram:
    """Four owners' histograms of normal scores, members' higher by ``shift``, added up."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(4):
        scores = np.concatenate([rng.normal(shift, 1, members // 4), rng.normal(0, 1, others // 4)])
        is_member = np.arange(len(scores)) < members // 4
        part = histogram_of(EDGES, scores, is_member)
        parts.append(
            ScoreHistogram(
                edges=EDGES,
                members=part.members + noise * rng.standard_normal(16),
                non_members=part.non_members + noise * rng.standard_normal(16),
                noise_sd=noise,
            )
        )
    return merge(parts)


def result(shift: float, *, noise: float, seed: int = 0) -> AuditResult:
    histograms = {
        probe: drawn(shift, noise=noise, seed=seed + place)
        for place, probe in enumerate(AUDIT.probes)
    }
    return merged_result(MERGED, histograms)


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_a_leak_is_found_through_the_noise(noise: float) -> None:
    """With its TPR at a low FPR, its interval, and a self-test that held."""
    found = result(2.0, noise=noise)
    assert found.outcome is Outcome.EVIDENCE
    assert found.self_test is not None
    assert found.self_test.passed
    best = next(probe for probe in found.probes if probe.probe == found.strongest).best
    assert best is not None
    assert best.corrected_tpr is not None
    assert best.corrected_fpr is not None
    assert best.corrected_tpr.low > best.corrected_fpr.high


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_the_line_states_the_intervals_that_decided(noise: float) -> None:
    """A TPR is evidence just where both are apart, though that at the very FPR may reach it."""
    reaching = 0
    for seed in range(4):
        audit = result(0.7, noise=noise, seed=10 * seed)
        for probe in audit.probes if audit.is_conclusive else ():
            for point in probe.points:
                tpr, fpr = point.corrected_tpr, point.corrected_fpr
                assert tpr is not None
                assert fpr is not None
                assert point.is_evidence == (tpr.low > fpr.high)
            best = probe.best
            if best is None or best.corrected_tpr is None or best.corrected_fpr is None:
                continue
            ends = [
                (100 * each.low, 100 * each.high)
                for each in (best.corrected_fpr, best.corrected_tpr)
            ]
            said = [f"[{low:.3g}, {high:.3g}]" for low, high in ends]
            assert re.findall(r"\[.*?\]", probe.line) == said
            assert "(corrected for 12 tests)" in probe.line
            reaching += best.tpr.low <= best.asked_fpr
    assert reaching > 0  # else this shows nothing


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_nothing_is_found_where_there_is_nothing(noise: float) -> None:
    """At most two of forty audits say otherwise, where one in twenty would be allowed."""
    outcomes = [result(0.0, noise=noise, seed=10 * n).outcome for n in range(40)]
    assert outcomes.count(Outcome.EVIDENCE) <= 2


def test_the_power_is_what_would_have_been_evidence() -> None:
    """More noise needs more: a larger area, and a larger TPR at every FPR."""
    least = []
    for noise in (0.0, 2.0, 5.0):
        probe = result(0.0, noise=noise).probes[0]
        points = [point.least_evident_tpr for point in probe.points]
        assert None not in points
        least.append([probe.auc.least_evident, *(p for p in points if p is not None)])
    assert (np.diff(least, axis=0) > 0).all()
    assert all(tpr > fpr for row in least for tpr, fpr in zip(row[1:], FPRS, strict=True))


def test_a_tpr_just_above_the_power_would_be_evidence() -> None:
    """The power is that of the very decision: the interval there, and no other."""
    curve = roc_of_histograms(drawn(0.0, noise=3.0, seed=3))
    least = curve.least_tpr_above(0.1, confidence=0.99)
    assert least is not None
    point = curve.tpr_at(0.1, confidence=0.99)
    assert (point.tpr_interval.low > point.fpr_interval.high) == (point.tpr >= least)
    assert 0.1 < least < 1.0


COARSE = np.array([1.0, 2.0])  # an FPR of 1 % lies within a bin from 0.32 % to 12.8 %


def coarse(members: list[float], *, noise: float = 0.0) -> ScoreHistogram:
    others = np.array([8720.0, 1248.0, 32.0])
    return ScoreHistogram(
        edges=COARSE, members=np.array(members), non_members=others, noise_sd=noise
    )


@pytest.mark.parametrize("noise", [0.0, 10.0])
@pytest.mark.parametrize("fpr", FPRS)
def test_what_would_have_been_seen_is_seen_wherever_in_its_bin_it_hides(
    fpr: float, noise: float
) -> None:
    """All that tells of a bin may stand at its upper end, where bins show it at the lower."""
    level = MERGED.correction.level_each
    null = roc_of_histograms(coarse([8720.0, 1248.0, 32.0], noise=noise))
    least = null.least_tpr_seen(fpr, tested=FPRS, confidence=1.0 - level)
    assert least is not None
    assert least > 0.12  # by lot, within the bin, 2 % would seem to be enough
    assert least >= null.tpr_interval_at(fpr).high
    hidden = 10_000 * (least + 1e-3)
    assert is_evidence(
        roc_of_histograms(coarse([10_000 - hidden, hidden, 0.0], noise=noise)), level=level
    )


def test_an_area_that_would_have_been_seen_counts_what_bins_hide() -> None:
    """Half of the pairs that are in one bin may be on the wrong side of the figure."""
    probe = result(0.0, noise=0.0).probes[0]
    curve = roc_of_histograms(drawn(0.0, noise=0.0, seed=0))
    assert probe.auc.least_evident > 0.5 + curve.tied / 2.0
    low, high = curve.auc_bounds
    assert curve.tied == pytest.approx(high - low)


def one_bin(shift: float) -> ScoreHistogram:
    """All but a few scores lie below the first of the edges."""
    whole = drawn(shift, noise=0.0, seed=1)
    return ScoreHistogram(
        edges=EDGES + 6.0,
        members=np.append(whole.members[:13].sum(), np.append(whole.members[13:], np.zeros(12))),
        non_members=np.append(
            whole.non_members[:13].sum(), np.append(whole.non_members[13:], np.zeros(12))
        ),
    )


def test_scores_in_one_bin_are_inconclusive_never_nothing() -> None:
    """Each such probe, and the whole where it is every one; the others keep what they say."""
    blind = merged_result(MERGED, dict.fromkeys(AUDIT.probes, one_bin(0.0)))
    assert blind.outcome is Outcome.INCONCLUSIVE
    assert not blind.is_conclusive
    assert "scores of every probe fall in one bin" in blind.line
    assert all("scores fall in one bin" in probe.line for probe in blind.probes)
    some = {AUDIT.probes[0]: one_bin(0.0)}
    some |= {name: drawn(0.0, noise=0.0, seed=3) for name in AUDIT.probes[1:]}
    mixed = merged_result(MERGED, some)
    assert mixed.outcome is Outcome.NO_EVIDENCE
    assert mixed.probes[0].outcome is Outcome.INCONCLUSIVE
    assert mixed.line.startswith("no evidence by any of 2 probes")
    assert mixed.line.endswith(f"; inconclusive: {AUDIT.probes[0]}")


def test_the_smallest_fpr_is_that_of_a_bin() -> None:
    """No threshold within a bin can be looked at."""
    assert roc_of_histograms(coarse([8720.0, 1248.0, 32.0])).least_fpr == pytest.approx(0.0032)
    noised = roc_of_histograms(coarse([8720.0, 1248.0, 32.0], noise=100.0))
    assert noised.least_fpr == pytest.approx(0.128)


def test_noise_that_hides_the_records_is_said() -> None:
    """No curve is drawn from noise: the audit is inconclusive, and names the probes it lacks."""
    found = result(2.0, noise=500.0)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert {skipped.probe for skipped in found.skipped} == set(AUDIT.probes)
    assert found.reasons == ("noise hides how many records there are",)
    assert found.line.startswith("INCONCLUSIVE: noise hides how many records there are. What would")


def test_one_report_names_one_number_of_records() -> None:
    """The mean over the histograms, with its standard error; exact counts are said as such."""
    found = result(0.0, noise=3.0)
    sides = (found.audited.members, found.audited.non_members)
    assert {(probe.members, probe.non_members) for probe in found.probes} == {sides}
    assert found.audited.standard_error == pytest.approx(3.0 * 2 * 16**0.5 / 3**0.5)
    for line in (found.line, *(probe.line for probe in found.probes)):
        assert (
            f"n = about {sides[0]} members and {sides[1]} non-members (standard error 14 " in line
        )
    exact = result(0.0, noise=0.0)
    assert (exact.audited.members, exact.audited.standard_error) == (800, 0.0)
    assert "n = 800 members and 400 non-members;" in exact.line


@pytest.mark.parametrize(
    ("noise", "said"), [(0.0, "1 non-member"), (3.0, "about 1 non-member at most")]
)
def test_what_rests_on_few_non_members_is_told_by_the_one_number(noise: float, said: str) -> None:
    """Each probe's own sum strays from 100: which FPR is resolved must not follow it."""
    histograms = {
        probe: drawn(0.0, noise=noise, seed=place, others=100)
        for place, probe in enumerate(AUDIT.probes)
    }
    found = merged_result(MERGED, histograms)
    others = found.audited.non_members
    lowest = [next(p for p in each.points if p.asked_fpr == 0.01) for each in found.probes]
    assert {point.is_resolvable for point in lowest} == {others >= 100}
    assert {point.non_members_above for point in lowest} == {others // 100}
    assert all(f"FPR 1 % rests on {said}" in each.notes for each in found.probes)


@pytest.mark.slow
def test_the_standard_error_of_the_number_holds() -> None:
    """Over sixty audits, the numbers stray by as much as is said."""
    found = [result(0.0, noise=3.0, seed=10 * n).audited for n in range(60)]
    strays = [(each.members - 800) / each.standard_error for each in found]
    strays += [(each.non_members - 400) / each.standard_error for each in found]
    assert 0.8 < float(np.std(strays)) < 1.25


def test_no_torch_is_loaded() -> None:
    """A server's worker merges, and holds no data to need it for."""
    code = (
        "import sys, tacit.attacks.merged, tacit.attacks.score_bins, tacit.attacks.report_form;"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
