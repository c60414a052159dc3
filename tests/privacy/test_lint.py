"""Every rule of the linter fires on what breaks it, and not on a training that keeps them all."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tacit.core.configuration import from_plain
from tacit.core.errors import ConfigError
from tacit.core.specification import RunSpec
from tacit.privacy.accounting import epsilon_of
from tacit.privacy.lint import RULES, Finding, Report, Severity, lint_run
from tacit.privacy.lint_description import TrainingDescription, lint_description

MakeRun = Callable[..., RunSpec]
PITFALLS = Path(__file__).parents[2] / "docs" / "pitfalls.md"
CLEAN: dict[str, Any] = {
    "dataset_len": 60000,
    "batch_size": 256,
    "epochs": 1,
    "rounds": 20,
    "noise_multiplier": 1.1,
    "delta": 1e-5,
    "poisson_sampling": True,
    "engine_per_round": False,
    "accountant": "pld",
    "normaliser": "public",
    "batch_norm": False,
    "weighted_average": False,
    "metrics_released": False,
    "noise_generator": "cryptographic",
    "noise_seeded": False,
}
STEPS = 20 * 235


def described(**changes: Any) -> Report:
    what = from_plain(CLEAN | changes, TrainingDescription)
    places = {field.name: f"it.toml:{field.name}" for field in dataclasses.fields(what)}
    return lint_description(what, places=places)


def only(report: Report) -> Finding:
    (finding,) = report.findings
    return finding


def test_a_clean_training_has_no_finding() -> None:
    """Where every rule is kept, what is shown is what it costs."""
    report = described()
    assert report.findings == ()
    assert not report.is_broken
    assert report.epsilon == report.claimed_epsilon == epsilon_of(1.1, 256 / 60000, STEPS, 1e-5)


@pytest.mark.parametrize(
    ("key", "value", "rule", "severity"),
    [
        ("poisson_sampling", False, "sampling", Severity.BROKEN),
        ("engine_per_round", True, "engine-per-round", Severity.BROKEN),
        ("accountant", "gdp", "accountant", Severity.BROKEN),
        ("accountant", "rdp", "accountant", Severity.NOTE),
        ("normaliser", "len(dataset)", "normaliser", Severity.BROKEN),
        ("normaliser", "len(batch)", "normaliser", Severity.BROKEN),
        ("batch_norm", True, "batch-norm", Severity.BROKEN),
        ("weighted_average", True, "weights", Severity.BROKEN),
        ("metrics_released", True, "metrics", Severity.BROKEN),
        ("noise_generator", "torch", "noise-generator", Severity.WEAKER),
        ("noise_generator", "numpy", "noise-generator", Severity.WEAKER),
        ("noise_seeded", True, "noise-seed", Severity.BROKEN),
        ("delta", 1e-4, "delta", Severity.BROKEN),
        ("claimed_epsilon", 0.5, "claim", Severity.BROKEN),
    ],
)
def test_one_wrong_answer_is_one_finding(
    key: str, value: object, rule: str, severity: Severity
) -> None:
    """The finding names its rule and the place of the answer."""
    report = described(**{key: value})
    finding = only(report)
    assert (finding.rule, finding.severity) == (rule, severity)
    assert finding.place == f"it.toml:{key}"
    assert report.is_broken is (severity is Severity.BROKEN)


@pytest.mark.parametrize(
    "answer",
    [
        {"batch_norm": True},
        {"weighted_average": True},
        {"metrics_released": True},
        {"noise_seeded": True},
        {"normaliser": "len(dataset)"},
    ],
)
def test_what_leaves_without_noise_has_no_epsilon(answer: dict[str, Any]) -> None:
    """No number stands beside what nothing bounds."""
    assert described(**answer).epsilon == math.inf


def test_a_fresh_engine_shows_the_last_round_only() -> None:
    """What one round costs is claimed; what all rounds cost is so."""
    report = described(engine_per_round=True)
    assert report.claimed_epsilon == epsilon_of(1.1, 256 / 60000, 235, 1e-5)
    assert report.epsilon == epsilon_of(1.1, 256 / 60000, STEPS, 1e-5)
    assert f"{report.claimed_epsilon:.4g}" in only(report).claimed
    assert f"{report.epsilon:.4g}" in only(report).actual
    assert described(engine_per_round=True, rounds=1).findings == ()


def test_shuffled_batches_cost_a_release_an_epoch() -> None:
    """Without amplification each record is in one noised sum an epoch."""
    report = described(poisson_sampling=False)
    assert report.epsilon == epsilon_of(1.1, 1.0, 20, 1e-5)
    assert report.claimed_epsilon is not None
    assert report.epsilon > report.claimed_epsilon


def test_the_central_limit_shows_too_little() -> None:
    """The reference case: 1.75 by the limit of GDP, 2.81 in fact."""
    answers = {"dataset_len": 48842, "batch_size": 64, "epochs": 10, "rounds": 1}
    report = described(**answers, noise_multiplier=0.6, accountant="gdp")
    assert report.claimed_epsilon == pytest.approx(1.75, abs=0.01)
    assert report.epsilon == pytest.approx(2.81, abs=0.01)
    assert only(report).severity is Severity.BROKEN


def test_a_true_claim_is_left_alone() -> None:
    """A claim above what is spent breaks nothing."""
    assert described(claimed_epsilon=3.0).findings == ()


def test_no_answer_is_assumed() -> None:
    """A question that is left open is a problem of the file, not a clean bill."""
    for key in CLEAN:
        with pytest.raises(ConfigError) as caught:
            from_plain({k: v for k, v in CLEAN.items() if k != key}, TrainingDescription)
        assert f"{key}: missing" in caught.value.problems[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 60001), ("epochs", 0), ("noise_multiplier", 0.1), ("delta", 1.0)],
)
def test_impossible_answers_are_named(key: str, value: object) -> None:
    """Numbers without a meaning are problems at their key."""
    with pytest.raises(ConfigError) as caught:
        from_plain(CLEAN | {key: value}, TrainingDescription)
    assert f": {key}: " in caught.value.problems[0]


class _Places(Mapping[str, str]):
    """Every key stands in a line of its own name."""

    def __getitem__(self, key: str) -> str:
        return f"run.toml:{key}"

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


ONE_ATTEMPT = {"rounds": 10, "max_attempts": 1}
PRIVATE = {"mode": "record-local", "clip": 1.0, "delta": 1e-4, "epsilon": 1.0}


def test_a_clean_run_has_no_finding(make_run: MakeRun) -> None:
    """Ours derives its epsilon, so that there is nothing to correct."""
    report = lint_run(make_run(participation=ONE_ATTEMPT), places=_Places(), records=100)
    assert report.findings == ()
    assert report.epsilon == report.claimed_epsilon == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sections", "rule", "key"),
    [
        ({"evaluation": {"every": 2}}, "metrics", "evaluation.every"),
        ({"privacy": PRIVATE | {"epsilon": 11.0}}, "weak-epsilon", "privacy.epsilon"),
        ({"participation": {"rounds": 10}}, "retries", "participation.max_attempts"),
        ({"privacy": {"mode": "none"}}, "no-noise", "privacy.mode"),
    ],
)
def test_a_run_breaks_the_rules_that_it_can(
    make_run: MakeRun, sections: dict[str, Any], rule: str, key: str
) -> None:
    """What leaves beside the update, what is asked for, and what retries add."""
    run = make_run(**({"participation": ONE_ATTEMPT} | sections))
    report = lint_run(run, places=_Places(), records=100)
    finding = only(report)
    assert (finding.rule, finding.place) == (rule, f"run.toml:{key}")
    assert report.is_broken is (rule == "metrics")


def test_noise_at_the_server_is_no_noise_towards_it(make_run: MakeRun) -> None:
    """A wrapper of the strategy adds noise after the server has seen the updates."""
    wrapper = "DifferentialPrivacyServerSideFixedClipping"
    run = make_run(privacy={"mode": "none"}, strategy={"wrapper": wrapper})
    report = lint_run(run, places=_Places())
    assert only(report).severity is Severity.BROKEN
    assert report.epsilon == math.inf


def test_every_rule_is_explained() -> None:
    """docs/pitfalls.md has a section for each rule, and for nothing else."""
    explained = re.findall(r"^### `([a-z-]+)`", PITFALLS.read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(RULES)
