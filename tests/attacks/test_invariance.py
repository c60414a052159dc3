"""An audit says the same of a record whatever order, batch or constant its records came with.

Each probe of the registry, from files to scores: references are trained anew for every case. Some
records stand in the files several times, and members beyond the non-members' number are in every
reference. Scores are compared by the record's key.
"""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from tacit.attacks.arrangement import arranged, rng_for, take_examples
from tacit.attacks.files import load_records
from tacit.attacks.findings import to_json
from tacit.attacks.reference_cache import ReferenceCache
from tacit.attacks.reference_models import ReferencePlan, train, why_no_references
from tacit.attacks.registry import MEMBERSHIP
from tacit.attacks.runner import run_audit
from tacit.attacks.subject import (
    Group,
    Records,
    Subject,
    record_keys,
    subject_of_model,
    subject_of_outputs,
)
from tacit.learning.prepared import Examples
from tests.attacks.desk import (
    MEMBERS,
    NON_MEMBERS,
    POPULATION,
    SPEC,
    TINY,
    csv_of,
    trained,
)
from tests.attacks.desk import subject as desk_subject

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.attacks.target import Float64Array

pytestmark = pytest.mark.slow

SIDES = {"members": MEMBERS, "nonmembers": NON_MEMBERS, "population": POPULATION}
ROWS = {  # of each side's records, with copies of the first ones
    "members": [*range(80), *range(5), *range(5), *range(5)],
    "nonmembers": [*range(60), *range(4), *range(4)],
    "population": [*range(100), *range(3)],
}
FORMS = ("npz", "csv")
PLAN = dataclasses.replace(TINY, probes=tuple(MEMBERSHIP))


def write(folder: Path, form: str, *, seed: int | None) -> None:
    """Write the three files, with their lines in another order for each seed."""
    for name, examples in SIDES.items():
        rows = np.array(ROWS[name])
        if seed is not None:
            rows = np.random.default_rng([seed, len(rows)]).permutation(rows)
        some = Examples(features=examples.features[rows], labels=examples.labels[rows])
        if form == "csv":
            (folder / f"{name}.csv").write_text(csv_of(some))
        else:
            np.savez(folder / f"{name}.npz", features=some.features, labels=some.labels)


def read(folder: Path, form: str, model: nn.Module) -> Subject:
    sides: dict[str, Records] = {
        name: load_records(folder / f"{name}.{form}", SPEC) for name in SIDES
    }
    return subject_of_model(
        model,
        members=sides["members"],
        non_members=sides["nonmembers"],
        population=sides["population"],
        recipe=SPEC,
    )


def scores_by_key(subject: Subject) -> dict[str, dict[int, float]]:
    """Return each probe's score of each audited record, as the runner makes them."""
    references = why_no_references(subject, PLAN, list(MEMBERSHIP))
    assert isinstance(references, ReferencePlan)
    arrangement = arranged(subject, with_references=True, seed=1)
    said, _ = train(
        references, arrangement, seed=1, cache=None, workers=1, progress=lambda _done, _of: None
    )
    evidence = dataclasses.replace(arrangement.evidence, references=said)
    assert evidence.examples is not None
    keys = record_keys(evidence.examples)
    found = {}
    for name, probe in MEMBERSHIP.items():
        scores = probe.scores(evidence, rng=rng_for(1, f"probe {name}"))
        found[name] = dict(zip(keys.tolist(), scores.tolist(), strict=True))
        assert_copies_agree(keys, scores, found[name])
    return found


def assert_copies_agree(keys: np.ndarray, scores: Float64Array, found: dict[int, float]) -> None:
    own = [found[key] for key in keys.tolist()]
    np.testing.assert_allclose(scores, own, rtol=1e-4, atol=1e-6)


def assert_same(
    found: dict[int, float], expected: dict[int, float], *, rtol: float, atol: float
) -> None:
    assert found.keys() == expected.keys()
    order = list(expected)
    np.testing.assert_allclose(
        [found[key] for key in order], [expected[key] for key in order], rtol=rtol, atol=atol
    )


Scores = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def in_order(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scores]:
    return from_files(tmp_path_factory, seed=None)


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scores]:
    return from_files(tmp_path_factory, seed=3)


def from_files(tmp_path_factory: pytest.TempPathFactory, *, seed: int | None) -> dict[str, Scores]:
    found = {}
    for form in FORMS:
        folder = tmp_path_factory.mktemp(form)
        write(folder, form, seed=seed)
        found[form] = scores_by_key(read(folder, form, trained()))
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", list(MEMBERSHIP))
def test_the_order_of_the_files_does_not_matter(
    name: str, form: str, in_order: dict[str, Scores], shuffled: dict[str, Scores]
) -> None:
    """Members, non-members and population in another order: the same score for each record."""
    assert_same(shuffled[form][name], in_order[form][name], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def with_constant(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    model = deepcopy(trained())
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.bias += 4.0
    folder = tmp_path_factory.mktemp("constant")
    write(folder, "npz", seed=None)
    return scores_by_key(read(folder, "npz", model))


@pytest.mark.parametrize("name", list(MEMBERSHIP))
def test_a_constant_in_the_targets_logits_does_not_matter(
    name: str, in_order: dict[str, Scores], with_constant: Scores
) -> None:
    """A target whose logits are all higher by the same number answers with the same classes."""
    assert_same(with_constant[name], in_order["npz"][name], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def in_batches(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    folder = tmp_path_factory.mktemp("batches")
    write(folder, "npz", seed=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tacit.attacks.target._BATCH", 37)
        patch.setattr("tacit.attacks.membership.gradient_norm._MOST_RECORDS", 41)
        patch.setattr("tacit.attacks.membership.label_only._TABLE_NUMBERS", 1 << 10)
        patch.setattr("tacit.learning.vectorised._ANSWERED_NUMBERS", 1 << 13)
        return scores_by_key(read(folder, "npz", trained()))


@pytest.mark.parametrize("name", list(MEMBERSHIP))
def test_the_batch_size_does_not_matter(
    name: str, in_order: dict[str, Scores], in_batches: Scores
) -> None:
    """Target and references asked about a few records at a time say the same of each."""
    assert_same(in_batches[name], in_order["npz"][name], rtol=1e-3, atol=1e-4)


def reordered(subject: Subject, *, seed: int) -> Subject:
    """Return a subject with its records, or answers, in another order; rows keep their numbers."""

    def moved(group: Group | None, part: int) -> Group | None:
        if group is None:
            return None
        order = np.random.default_rng([seed, part]).permutation(len(group)).astype(np.int64)
        return Group(
            outputs=group.outputs.take(order),
            examples=take_examples(group.examples, order),
            rows=group.rows[order],
        )

    members, non_members = moved(subject.members, 0), moved(subject.non_members, 1)
    assert members is not None
    assert non_members is not None
    population = moved(subject.population, 2)
    return dataclasses.replace(
        subject, members=members, non_members=non_members, population=population
    )


def test_a_report_does_not_depend_on_the_order(tmp_path: Path) -> None:
    """Every figure, the self-test's and the queried records' too, and no model trained again."""
    plan = dataclasses.replace(PLAN, query_records=60, queries=100)
    cache = ReferenceCache(folder=tmp_path / "cache")
    whole = desk_subject(trained())
    once = run_audit(whole, plan, seed=2, cache=cache)
    again = run_audit(reordered(whole, seed=5), plan, seed=2, cache=cache)
    assert to_json(once) == to_json(again)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_report_on_saved_answers_does_not_depend_on_the_order() -> None:
    """Answers without records have keys of their own."""
    whole = desk_subject(trained())
    assert whole.population is not None
    answers = subject_of_outputs(
        members=whole.members.outputs,
        non_members=whole.non_members.outputs,
        population=whole.population.outputs,
    )
    once = run_audit(answers, PLAN, seed=2)
    assert to_json(once) == to_json(run_audit(reordered(answers, seed=5), PLAN, seed=2))
