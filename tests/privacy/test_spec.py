"""A statement is parsed once, and what has no mechanism cannot be stated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import PrivacyMode, Relation, RunSpec
from tacit.privacy.spec import (
    BUILT_MODES,
    ClientLocal,
    FullBatch,
    GivenNoise,
    NonPrivate,
    Poisson,
    Record,
    RecordLocal,
    Subject,
    TargetEpsilon,
    parse_statement,
)

MakeRun = Callable[..., RunSpec]
LOCAL = {"mode": "record-local", "clip": 0.5, "delta": 1e-4}


def parsed(make_run: MakeRun, privacy: dict[str, Any]) -> object:
    return parse_statement(make_run(privacy=privacy), records=200)


def test_the_flat_table_becomes_one_statement(make_run: MakeRun) -> None:
    """Every key of [privacy], and what the run says of steps, stands at its place."""
    table = LOCAL | {"noise_multiplier": 2.0, "sampling": "poisson", "sample_rate": 0.1}
    assert parsed(make_run, table) == RecordLocal(
        unit=Record(),
        clip=0.5,
        calibration=GivenNoise(noise_multiplier=2.0),
        delta=1e-4,
        sampling=Poisson(rate=0.1),
        releases=10,
        local_steps=2,
        most_owner_records=200,
        normaliser=15.0,
    )
    table = LOCAL | {"epsilon": 1.0, "unit": "subject", "most_records": 20, "normaliser": 64.0}
    assert parsed(make_run, table | {"relation": "replace-one"}) == RecordLocal(
        unit=Subject(most_records=20),
        clip=0.5,
        calibration=TargetEpsilon(epsilon=1.0),
        delta=1e-4,
        sampling=FullBatch(relation=Relation.REPLACE_ONE),
        releases=10,
        local_steps=2,
        most_owner_records=200,
        normaliser=64.0,
    )
    assert parsed(make_run, LOCAL | {"mode": "client-local", "epsilon": 2.0}) == ClientLocal(
        clip=0.5,
        calibration=TargetEpsilon(epsilon=2.0),
        delta=1e-4,
        releases=10,
        most_owner_records=200,
    )
    assert parsed(make_run, {"mode": "none"}) == NonPrivate(releases=10, local_steps=2)


@pytest.mark.parametrize("mode", [mode for mode in PrivacyMode if mode not in BUILT_MODES])
def test_a_mode_without_a_type_is_refused(make_run: MakeRun, mode: PrivacyMode) -> None:
    """What is not built has no statement to be parsed into."""
    table = {"mode": mode.value, "clip": 0.5, "delta": 1e-4, "epsilon": 1.0}
    with pytest.raises(RefusedError, match="E-MODE-NOT-BUILT"):
        parsed(make_run, table)


def test_values_that_no_file_was_checked_for_are_refused(make_run: MakeRun) -> None:
    """A specification that was put together in code is held against the same rules."""
    run = make_run()
    object.__setattr__(run.privacy, "noise_multiplier", 1.0)
    with pytest.raises(ConfigError) as caught:
        parse_statement(run, records=200)
    assert caught.value.code == "E-PRIVACY-INCOMPLETE"
    assert caught.value.problems == (
        "privacy.epsilon: expected exactly one of epsilon and noise_multiplier, got both",
    )


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_numbers_outside_their_domain_cannot_be_stated(value: float) -> None:
    """No target, multiplier, rate or count exists that a mechanism could not use."""
    for make in (
        lambda: TargetEpsilon(epsilon=value),
        lambda: GivenNoise(noise_multiplier=value),
        lambda: Poisson(rate=value),
        lambda: Subject(most_records=min(int(value), 1) if math.isfinite(value) else 1),
    ):
        with pytest.raises(ValueError, match="expected"):
            make()
