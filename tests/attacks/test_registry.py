"""What every probe promises: it catches a model that leaks and no other, record by record."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from tacit.attacks.probe import Evidence, Need, References
from tacit.attacks.registry import MEMBERSHIP
from tacit.attacks.target import Float64Array, ModelTarget, Outputs
from tacit.learning.prepared import Examples
from tests.attacks.worlds import World, auc, auc_error, with_target

if TYPE_CHECKING:
    from tacit.attacks.probe import Probe
    from tacit.attacks.target import Int64Array

every_probe = pytest.mark.parametrize("probe", MEMBERSHIP.values(), ids=list(MEMBERSHIP))


def scores_of(probe: Probe, evidence: Evidence) -> Float64Array:
    return probe.scores(evidence, rng=np.random.default_rng(0))


def in_order(evidence: Evidence, order: Int64Array) -> Evidence:
    assert evidence.examples is not None
    assert evidence.references is not None
    examples, references = evidence.examples, evidence.references
    return replace(
        evidence,
        outputs=evidence.outputs.take(order),
        examples=Examples(features=examples.features[order], labels=examples.labels[order]),
        references=References(
            logits=references.logits[:, order],
            is_in=references.is_in[:, order],
            population_logits=references.population_logits,
        ),
    )


def test_names_are_those_of_the_table() -> None:
    """A name in a plan finds the probe that reports it, and each says where it comes from."""
    assert {name: probe.name for name, probe in MEMBERSHIP.items()} == {n: n for n in MEMBERSHIP}
    assert all("arXiv" in probe.source for probe in MEMBERSHIP.values())


@every_probe
def test_an_overfit_model_is_caught(
    probe: Probe, overfit: World, overfit_scores: dict[str, Float64Array]
) -> None:
    """The 95 % lower bound of the AUC is above 0.55 where a model learnt its records by heart."""
    found = auc(overfit_scores[probe.name], overfit.is_in)
    assert found - 1.96 * auc_error(overfit.is_in) > 0.55


@every_probe
@pytest.mark.parametrize("kind", ["fresh", "stranger"])
def test_a_model_that_knows_no_record_is_not_caught(
    probe: Probe, kind: str, request: pytest.FixtureRequest
) -> None:
    """The AUC of an untrained model, and of one trained on others, is 0.5 within 3 errors."""
    world: World = request.getfixturevalue(kind)
    found = auc(scores_of(probe, world.evidence), world.is_in)
    assert abs(found - 0.5) <= 3 * auc_error(world.is_in)


@every_probe
def test_the_order_of_records_does_not_matter(
    probe: Probe, overfit: World, overfit_scores: dict[str, Float64Array]
) -> None:
    """Records in another order have the same scores, in that order."""
    order = np.random.default_rng(2).permutation(len(overfit.is_in))
    moved = scores_of(probe, in_order(overfit.evidence, order))
    np.testing.assert_allclose(moved, overfit_scores[probe.name][order], rtol=1e-5, atol=1e-9)


@every_probe
def test_a_constant_added_to_logits_does_not_matter(
    probe: Probe, overfit: World, overfit_scores: dict[str, Float64Array]
) -> None:
    """Logits are known up to a constant per record, so a score does not depend on it."""
    evidence = overfit.evidence
    assert isinstance(evidence.target, ModelTarget)
    assert evidence.population is not None
    model = deepcopy(evidence.target.model)
    assert isinstance(model, nn.Sequential)
    with torch.no_grad():
        model[-1].bias += 4.0
    constants = np.random.default_rng(4).integers(-64, 64, size=(len(overfit.is_in), 1))
    outputs = Outputs(
        logits=evidence.outputs.logits + constants.astype(np.float64),
        labels=evidence.outputs.labels,
    )
    population = Outputs(
        logits=evidence.population.logits - 32.0, labels=evidence.population.labels
    )
    shifted = replace(
        evidence, outputs=outputs, population=population, target=ModelTarget(model=model)
    )
    np.testing.assert_allclose(
        scores_of(probe, shifted), overfit_scores[probe.name], rtol=1e-4, atol=1e-9
    )


@every_probe
def test_the_batch_size_does_not_matter(
    probe: Probe,
    overfit: World,
    overfit_scores: dict[str, Float64Array],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A record's score does not depend on the records that went through the model with it."""
    assert isinstance(overfit.evidence.target, ModelTarget)
    monkeypatch.setattr("tacit.attacks.target._BATCH", 37)
    monkeypatch.setattr("tacit.attacks.membership.gradient_norm._MOST_RECORDS", 41)
    again = with_target(overfit, overfit.evidence.target.model)
    np.testing.assert_allclose(
        scores_of(probe, again.evidence), overfit_scores[probe.name], rtol=1e-3, atol=1e-5
    )


@every_probe
def test_records_do_not_tie(probe: Probe, overfit_scores: dict[str, Float64Array]) -> None:
    """Scores are finite, and nearly all differ: a tie of the surest decides TPR at a low FPR."""
    scores = overfit_scores[probe.name]
    least = 0.75 if probe.name == "label-only-noise" else 0.99  # which counts what noise changes
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) >= least * len(scores)


@pytest.mark.parametrize(
    "name", [n for n, p in MEMBERSHIP.items() if not p.needs & {Need.QUERIES, Need.WEIGHTS}]
)
def test_records_that_a_model_is_sure_of_do_not_tie(name: str, overfit: World) -> None:
    """Where probabilities round to one, scores still differ: phi goes up to some hundreds here."""
    evidence = overfit.evidence
    assert evidence.references is not None
    assert evidence.population is not None
    sure = replace(
        evidence,
        outputs=replace(evidence.outputs, logits=20.0 * evidence.outputs.logits),
        references=replace(
            evidence.references, logits=np.float32(20.0) * evidence.references.logits
        ),
        population=replace(evidence.population, logits=20.0 * evidence.population.logits),
    )
    scores = scores_of(MEMBERSHIP[name], sure)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) >= 0.99 * len(scores)


@every_probe
def test_what_a_probe_is_shown_stays_as_it_was(probe: Probe, overfit: World) -> None:
    """Records, outputs and references are read, never edited in place."""
    evidence = replace(overfit.evidence, target=None)
    model = deepcopy(overfit.evidence.target)
    before = deepcopy(evidence)
    scores_of(probe, replace(evidence, target=model))
    assert evidence.references is not None
    assert before.references is not None
    assert evidence.examples is not None
    assert before.examples is not None
    np.testing.assert_array_equal(evidence.outputs.logits, before.outputs.logits)
    np.testing.assert_array_equal(evidence.examples.features, before.examples.features)
    np.testing.assert_array_equal(evidence.references.logits, before.references.logits)


@every_probe
def test_needs_are_declared(probe: Probe, overfit: World) -> None:
    """A probe runs on what it declares and nothing else."""
    evidence = overfit.evidence
    records = bool(probe.needs - {Need.REFERENCES, Need.POPULATION})
    least = Evidence(
        outputs=evidence.outputs,
        examples=evidence.examples if records else None,
        target=evidence.target if probe.needs & {Need.QUERIES, Need.WEIGHTS} else None,
        references=evidence.references if Need.REFERENCES in probe.needs else None,
        population=evidence.population if Need.POPULATION in probe.needs else None,
        population_examples=(
            evidence.population_examples if Need.POPULATION_RECORDS in probe.needs else None
        ),
    )
    assert all(least.has(need) for need in probe.needs)
    assert len(scores_of(probe, least)) == len(overfit.is_in)


@pytest.mark.parametrize("need", Need)
def test_predictions_alone_serve_no_need(need: Need, overfit: World) -> None:
    """What was not handed in is not there: a report then says what was missing."""
    assert overfit.evidence.has(need)
    assert not Evidence(outputs=overfit.evidence.outputs).has(need)
