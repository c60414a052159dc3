"""A subject's gradient is the sum over its records, clipped once; chunks never cut a subject."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import PrivacyUnit
from tacit.privacy.dpsgd import layers
from tacit.privacy.dpsgd.engine import Engine, make_engine
from tacit.privacy.dpsgd.units import Subjects
from tests.privacy.dpsgd_models import KEY, QUIET, Lambda, clipped_sum, distance, norm_of

BY_SUBJECT = dataclasses.replace(QUIET, unit=PrivacyUnit.SUBJECT, clip=0.7)
# subject 7 has four records, 3 has two, the others one; their rows lie apart
SUBJECTS = np.array([7, 3, 7, 1, 7, 3, 9, 7, 4], dtype=np.int64)
UNITS = [[0, 2, 4, 7], [1, 5], [3], [6], [8]]


def image_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Conv2d(4, 3, 3, stride=2),
        nn.Flatten(),
        nn.Linear(27, 3),
    )


def text_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        Lambda(torch.Tensor.long),
        nn.Embedding(5, 6),
        nn.Linear(6, 6),
        nn.LayerNorm(6),
        Lambda(lambda x: x.mean(dim=1)),
        nn.Linear(6, 3),
    )


def prelu_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(98, 4), nn.PReLU(), nn.Linear(4, 3))


MODELS = {"images": image_model, "text": text_model, "by opacus": prelu_model}


def data(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn((len(SUBJECTS), 2, 7, 7), generator=generator) * 2.0
    if kind == "text":
        features = torch.randint(0, 5, (len(SUBJECTS), 8), generator=generator).float()
    return features, torch.randint(0, 3, (len(SUBJECTS),), generator=generator)


def engine(kind: str, *, most_records: int = 100) -> Engine:
    plan = dataclasses.replace(BY_SUBJECT, most_records=most_records)
    return make_engine(MODELS[kind](), plan=plan, noise_key=KEY, subjects=SUBJECTS)


@pytest.mark.parametrize("form", ["written", "ghost"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_subjects_gradients_are_summed_and_then_clipped(
    kind: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to autograd over one subject's records at a time."""
    monkeypatch.setattr(layers, "use_written", lambda *_: form == "written")
    features, labels = data(kind)
    expected = clipped_sum(MODELS[kind](), features, labels, BY_SUBJECT.clip, UNITS)
    actual = engine(kind).gradient(features, labels)
    assert distance(actual, expected) <= 1e-5 * norm_of(expected)


def test_of_a_subject_with_too_many_records_the_first_count() -> None:
    """Which ones, depends on that subject's records alone: their order in the data set."""
    features, labels = data("images")
    kept = [unit[:2] for unit in UNITS]
    expected = clipped_sum(image_model(), features, labels, BY_SUBJECT.clip, kept)
    actual = engine("images", most_records=2).gradient(features, labels)
    assert distance(actual, expected) <= 1e-5 * norm_of(expected)


def test_a_subject_is_needed_where_the_unit_is_one() -> None:
    """Records must not stand in for subjects."""
    with pytest.raises(RefusedError, match="E-SUBJECTS-MISSING"):
        make_engine(image_model(), plan=BY_SUBJECT, noise_key=KEY)


def test_subjects_of_other_records_are_refused() -> None:
    """One subject per record, or nothing."""
    features, labels = data("images")
    with pytest.raises(ConfigError, match="E-SUBJECTS"):
        engine("images").gradient(features[:-1], labels[:-1])


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    size=st.integers(1, 12),
    most=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_chunks_hold_each_chosen_record_once_and_cut_no_subject(
    counts: list[int], size: int, most: int, seed: int
) -> None:
    """For any numbers of records, chunk size and cap; joined rows stay within the size."""
    generator = np.random.default_rng(seed)
    subjects = generator.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    chosen = np.flatnonzero(generator.random(len(counts)) < 0.7).astype(np.int64)
    seen: list[int] = []
    for rows, grouping in Subjects(subjects, most_records=most).chunks(chosen, size):
        assert isinstance(rows, torch.Tensor)
        assert grouping.units == 1 or grouping.units * grouping.slots <= size
        pairs = zip(grouping.unit_of_row.tolist(), grouping.slot_of_row.tolist(), strict=True)
        assert len(set(pairs)) == len(rows)
        of_unit = {
            (int(u), int(subjects[r])) for u, r in zip(grouping.unit_of_row, rows, strict=True)
        }
        assert len(of_unit) == grouping.units
        seen += rows.tolist()
    expected = [row for subject in chosen for row in np.flatnonzero(subjects == subject)[:most]]
    assert sorted(seen) == sorted(expected)
