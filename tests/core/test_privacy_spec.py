"""The [privacy] table: what is filled in, and what does not go together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tacit.core.configuration import from_plain
from tacit.core.errors import ConfigError
from tacit.core.privacy_spec import PRESETS, PrivacySpec, PrivacyUnit, Relation
from tacit.core.specification import to_plain

LOCAL: dict[str, Any] = {"mode": "record-local", "clip": 1.0, "epsilon": 1.0, "delta": 1e-4}
CLIENT = LOCAL | {"mode": "client-local"}


def read(table: dict[str, Any]) -> PrivacySpec:
    return from_plain(table, PrivacySpec)


def keys_of_problems(table: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(table)
    return [problem.split(": ")[1] for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("table", "unit", "relation"),
    [
        (LOCAL, PrivacyUnit.RECORD, Relation.ADD_REMOVE),
        (LOCAL | {"relation": "replace-one"}, PrivacyUnit.RECORD, Relation.REPLACE_ONE),
        (LOCAL | {"unit": "subject", "most_records": 3}, PrivacyUnit.SUBJECT, Relation.ADD_REMOVE),
        (CLIENT, PrivacyUnit.CLIENT, Relation.REPLACE_ONE),
        ({"mode": "none"}, PrivacyUnit.RECORD, Relation.ADD_REMOVE),
    ],
)
def test_unit_and_relation_follow_from_the_mode(
    table: dict[str, Any], unit: PrivacyUnit, relation: Relation
) -> None:
    """What is approved names them, whether the file did or not."""
    spec = read(table)
    assert (spec.unit, spec.relation) == (unit, relation)
    plain = json.loads(json.dumps(to_plain(spec)))
    assert (plain["unit"], plain["relation"]) == (unit.value, relation.value)
    assert read(plain) == spec


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_resolved_into_its_epsilon(name: str) -> None:
    """The canonical form names the number, and says the same when it is read again."""
    table = {key: value for key, value in LOCAL.items() if key != "epsilon"} | {"preset": name}
    spec = read(table)
    assert spec.epsilon == PRESETS[name]
    assert read(to_plain(spec)) == spec


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        (LOCAL | {"preset": "strong", "epsilon": 2.0}, ["preset"]),
        (LOCAL | {"preset": "strong", "noise_multiplier": 2.0}, ["preset", "epsilon"]),
        (LOCAL | {"preset": "stronger"}, ["preset"]),
        ({"mode": "none", "preset": "strong"}, ["epsilon"]),
        (LOCAL | {"unit": "client"}, ["unit"]),
        (CLIENT | {"unit": "record"}, ["unit"]),
        (LOCAL | {"unit": "subject"}, ["most_records"]),
        (LOCAL | {"most_records": 3}, ["most_records"]),
        (LOCAL | {"relation": "replace-one", "sampling": "poisson"}, ["relation"]),
        (CLIENT | {"relation": "add/remove"}, ["relation"]),
        (CLIENT | {"sampling": "poisson", "sample_rate": 0.5}, ["relation", "sampling"]),
        (CLIENT | {"normaliser": 10.0}, ["normaliser"]),
    ],
)
def test_what_does_not_go_together_is_named(table: dict[str, Any], keys: list[str]) -> None:
    """Each contradiction is a problem of the file, at its key."""
    assert keys_of_problems(table) == keys
