"""A statement is parsed once, and what has no mechanism cannot be stated."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import PrivacyMode, Relation, RunSpec
from tacit.privacy.spec import (
    BUILT_MODES,
    Calibration,
    ClientLocal,
    FullBatch,
    GivenNoise,
    NonPrivate,
    Poisson,
    Record,
    RecordLocal,
    SamplingScheme,
    Statement,
    Subject,
    TargetEpsilon,
    Unit,
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


POSITIVE = st.floats(1e-6, 1e6)
COUNT = st.integers(1, 10**6)
NO_POSITIVE = st.floats(max_value=0.0) | st.sampled_from([math.inf, math.nan])
NO_COUNT = st.integers(max_value=0) | st.just(1.5) | st.just(True)  # noqa: FBT003
NO_RATE = st.floats(max_value=0.0) | st.floats(1.0, exclude_min=True) | st.just(math.nan)
NO_DELTA = st.floats(max_value=0.0) | st.floats(min_value=1.0) | st.just(math.nan)
DELTA = st.floats(1e-12, 9e-7)
CALIBRATION = st.builds(TargetEpsilon, epsilon=POSITIVE) | st.builds(
    GivenNoise, noise_multiplier=POSITIVE
)
UNIT = st.just(Record()) | st.builds(Subject, most_records=st.integers(2, 1000))
SAMPLING = st.builds(FullBatch, relation=st.sampled_from(Relation)) | st.builds(
    Poisson, rate=st.floats(1e-6, 1.0)
)
OF_ANOTHER_TYPE = st.none() | st.just("record") | st.floats()

# By variant and field: what a mechanism can use, and what it cannot.
FIELDS: dict[type[Any], dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]]] = {
    Subject: {"most_records": (st.integers(2, 10**6), NO_COUNT | st.just(1))},
    TargetEpsilon: {"epsilon": (POSITIVE, NO_POSITIVE)},
    GivenNoise: {"noise_multiplier": (POSITIVE, NO_POSITIVE)},
    FullBatch: {"relation": (st.sampled_from(Relation), OF_ANOTHER_TYPE)},
    Poisson: {"rate": (st.floats(1e-6, 1.0), NO_RATE)},
    NonPrivate: {"releases": (COUNT, NO_COUNT), "local_steps": (COUNT, NO_COUNT)},
    RecordLocal: {
        "unit": (UNIT, OF_ANOTHER_TYPE),
        "clip": (POSITIVE, NO_POSITIVE),
        "calibration": (CALIBRATION, OF_ANOTHER_TYPE),
        "delta": (DELTA, NO_DELTA),
        "sampling": (SAMPLING, OF_ANOTHER_TYPE),
        "releases": (COUNT, NO_COUNT),
        "local_steps": (COUNT, NO_COUNT),
        "most_owner_records": (COUNT, NO_COUNT),
        "normaliser": (POSITIVE, NO_POSITIVE),
    },
    ClientLocal: {
        "clip": (POSITIVE, NO_POSITIVE),
        "calibration": (CALIBRATION, OF_ANOTHER_TYPE),
        "delta": (DELTA, NO_DELTA),
        "releases": (COUNT, NO_COUNT),
        "most_owner_records": (COUNT, NO_COUNT),
    },
}


def test_the_table_of_fields_is_complete() -> None:
    """Every variant of a statement, and every field of each, has its good and bad values."""
    variants = {
        *typing.get_args(Statement),
        *typing.get_args(Unit),
        *typing.get_args(Calibration),
        *typing.get_args(SamplingScheme),
    }
    assert variants - {Record} == FIELDS.keys()
    for variant, table in FIELDS.items():
        assert {field.name for field in dataclasses.fields(variant)} == table.keys()


@pytest.mark.parametrize("variant", FIELDS, ids=lambda variant: variant.__name__)
@given(data=st.data())
def test_values_in_their_domain_can_be_stated(variant: type[Any], data: st.DataObject) -> None:
    """What a mechanism can use is accepted as it is."""
    values = {name: data.draw(good, name) for name, (good, _) in FIELDS[variant].items()}
    made = variant(**values)
    assert values == {name: getattr(made, name) for name in values}


@pytest.mark.parametrize(
    ("variant", "name"),
    [(variant, name) for variant, table in FIELDS.items() for name in table],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@given(data=st.data())
def test_impossible_states_cannot_be_written(
    variant: type[Any], name: str, data: st.DataObject
) -> None:
    """One value outside its domain, all else in order: there is no such statement."""
    values = {key: data.draw(good, key) for key, (good, _) in FIELDS[variant].items()}
    values[name] = data.draw(FIELDS[variant][name][1], f"bad {name}")
    with pytest.raises(ValueError, match="expected"):
        variant(**values)


@given(records=COUNT, above=st.floats(1.0, 1e3))
def test_a_delta_that_publishes_a_record_cannot_be_stated(records: int, above: float) -> None:
    """Delta stays below 1 / records in the type, not only where a file is parsed."""
    values: dict[str, Any] = {
        "clip": 1.0,
        "calibration": GivenNoise(noise_multiplier=1.0),
        "delta": above / records,
        "releases": 1,
        "most_owner_records": records,
    }
    with pytest.raises(ValueError, match="expected"):
        ClientLocal(**values)
