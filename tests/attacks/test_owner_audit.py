"""What one owner's node counts: scores that depend on one record, in bins that depend on none."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from tacit.attacks.owner_audit import public_edges, score_counts, subjects_of
from tacit.attacks.plans import PLANS
from tacit.attacks.probe import Need
from tacit.attacks.registry import MEMBERSHIP
from tacit.attacks.score_bins import SCALES
from tacit.core.audit_spec import LOCAL_PLANS, SENT_PROBES, AuditSpec
from tacit.core.data_contract import ColumnKind, ColumnSpec, DataSpec
from tacit.learning.prepared import Examples, PreparedSets
from tacit.privacy.audit_plan import audit_release
from tacit.privacy.sums import noised_sums

if TYPE_CHECKING:
    from tacit.attacks.points import Float64Array

CONTRACT = DataSpec(
    label="y",
    classes=("a", "b", "c"),
    columns={f"x{n}": ColumnSpec(type=ColumnKind.NUMBER, range=(0.0, 1.0)) for n in range(5)},
)
AUDIT = AuditSpec(run="r-00000001", model_sha256="0" * 64, rounds=1, owners=2, bins=8)


def sets_of(members: int, others: int, *, seed: int = 0) -> PreparedSets:
    rng = np.random.default_rng(seed)

    def side(count: int) -> Examples:
        features = rng.uniform(size=(count, 5)).astype(np.float32)
        return Examples(features=features, labels=rng.integers(0, 3, size=count))

    return PreparedSets(train=side(members), validation=side(others), records=1000)


def model(*, scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        made[2].weight.mul_(scale)
    return made


def test_the_probes_that_leave_need_nothing_but_the_model() -> None:
    """None of them needs references or a population; names and papers are the registry's."""
    assert tuple(SCALES) == SENT_PROBES
    for name, scale in SCALES.items():
        assert MEMBERSHIP[name].source == scale.source
        assert MEMBERSHIP[name].needs <= {Need.WEIGHTS}
    assert tuple(PLANS) == LOCAL_PLANS


@pytest.mark.parametrize("bins", [4, 8, 33])
@pytest.mark.parametrize("odd", [np.zeros(3), np.array([np.nan, -1.0, -np.inf]), np.zeros(0)])
def test_edges_rise_whatever_the_made_up_records_score(bins: int, odd: Float64Array) -> None:
    """Equal scores, none, and such as are no number: every probe has all of its bins."""
    spread = -np.geomspace(1e-6, 10.0, 200)
    for scale in SCALES.values():
        for scores in (odd, spread):
            edges = scale.edges(scores, bins=bins)
            assert edges.shape == (bins - 1,)
            assert np.isfinite(edges).all()
            assert (np.diff(edges) > 0).all()


def test_no_record_moves_an_edge() -> None:
    """Edges follow from weights and contract: the same twice, others for another model."""
    first, again = (public_edges(model(), AUDIT, CONTRACT) for _ in range(2))
    other = public_edges(model(scale=3.0), AUDIT, CONTRACT)
    for probe in AUDIT.probes:
        assert np.array_equal(first[probe], again[probe])
        assert not np.array_equal(first[probe], other[probe])


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_bins_suit_a_model_that_is_unsure_and_one_that_is_sure(scale: float) -> None:
    """No bin of sixteen holds most records, whatever range the model's scores have."""
    audit = dataclasses.replace(AUDIT, bins=16)
    counts = score_counts(model(scale=scale), sets_of(400, 400), audit, data=CONTRACT).sum(axis=0)
    shares = counts.reshape(3, 2, 16).sum(axis=1) / 800
    assert (shares.max(axis=1) < 0.5).all()


def test_a_record_counts_once_in_each_histogram() -> None:
    """One 1 per probe, on the record's own side: a norm of sqrt(probes), which is the clip."""
    counts = score_counts(model(), sets_of(30, 20), AUDIT, data=CONTRACT)
    assert counts.shape == (50, 3 * 16)
    blocks = counts.reshape(50, 3, 2, 8)
    assert (blocks.sum(axis=(2, 3)) == 1.0).all()
    assert blocks[:30, :, 1].sum() == blocks[30:, :, 0].sum() == 0.0
    noised = AuditSpec(
        run="r-00000001", model_sha256="0" * 64, rounds=1, owners=2, epsilon=1.0, delta=1e-3
    )
    assert audit_release(noised).query.clip == pytest.approx(3**0.5)


def test_no_record_moves_anothers_count() -> None:
    """Without one of them, what every other record contributes is the same to the bit."""
    sets = sets_of(30, 20)
    fewer = PreparedSets(
        train=Examples(features=sets.train.features[1:], labels=sets.train.labels[1:]),
        validation=sets.validation,
        records=1000,
    )
    whole, rest = (score_counts(model(), each, AUDIT, data=CONTRACT) for each in (sets, fewer))
    assert np.array_equal(whole[1:], rest)


def test_a_record_that_breaks_the_model_tells_nobody() -> None:
    """Weights that overflow on one record raise nothing: it counts as zero, the others count."""
    broken = model()
    first = broken[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight[0] = 3e38
    sets = sets_of(30, 20)
    sets.train.features[0] = 100.0
    sets.train.features[1:] = 0.0
    sets.validation.features[:] = 0.0
    counts = score_counts(broken, sets, AUDIT, data=CONTRACT)
    assert counts.sum(axis=1).tolist() == [0.0, *[3.0] * 49]


def test_bins_are_used() -> None:
    """Scores of an ordinary model spread over several bins: otherwise nothing could be told."""
    counts = (
        score_counts(model(), sets_of(200, 200), AUDIT, data=CONTRACT).sum(axis=0).reshape(3, 16)
    )
    assert ((counts > 0).sum(axis=1) >= 4).all()


def test_a_subject_with_many_records_is_cut_as_one() -> None:
    """Its records are added before the clip: it moves the sums by no more than the clip."""
    sets = sets_of(40, 1)
    one = PreparedSets(
        train=Examples(
            features=sets.train.features,
            labels=sets.train.labels,
            subjects=np.zeros(40, dtype=np.int64),
        ),
        validation=Examples(
            features=sets.validation.features,
            labels=sets.validation.labels,
            subjects=np.zeros(1, dtype=np.int64),
        ),
        records=1000,
    )
    subjects = subjects_of(one)
    assert subjects is not None
    assert len(set(subjects.tolist())) == 2
    audit = AuditSpec(
        run="r-00000001", model_sha256="0" * 64, rounds=1, owners=2, epsilon=50.0, delta=1e-3
    )
    query = audit_release(audit).query
    counts = score_counts(model(), one, audit, data=CONTRACT)
    sums = noised_sums(query, counts, key=bytes(32), purpose="test", subjects=subjects)
    noise = noised_sums(query, counts[:0], key=bytes(32), purpose="test")
    total = np.concatenate([sums.values[b.name] - noise.values[b.name] for b in query.blocks])
    assert np.linalg.norm(total) < 2 * query.clip + 0.01
    assert subjects_of(sets) is None
