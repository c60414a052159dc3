"""What an audit may say, and what its specification leaves no room for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tacit.core.audit_spec import AuditSpec
from tacit.core.configuration import from_plain
from tacit.core.errors import ConfigError
from tacit.core.results import result_schema
from tacit.core.specification import (
    EvaluationSpec,
    RunSpec,
    audit_of,
    audited_run,
    canonical_json,
    specification_sha256,
    to_plain,
)

AUDIT = AuditSpec(
    run="r-00000001", model_sha256="0" * 64, rounds=3, owners=2, epsilon=1.0, delta=1e-4
)
RUN = from_plain(
    {
        "name": "test",
        "data": {"classes": ["a", "b"], "columns": {"x": {"type": "number", "range": [0.0, 1.0]}}},
        "model": {"kind": "logistic"},
        "training": {"learning_rate": 1.0},
        "privacy": {"mode": "none"},
        "participation": {"rounds": 3},
        "evaluation": {"every": 1},
    },
    RunSpec,
)
SPEC = audit_of(RUN, AUDIT, min_clients=2, round_deadline_s=60.0)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"run": "../r"}, "run"),
        ({"model_sha256": "ab"}, "model_sha256"),
        ({"rounds": 0}, "rounds"),
        ({"owners": 0}, "owners"),
        ({"plan": "huge"}, "plan"),
        ({"probes": ()}, "probes"),
        ({"probes": ("loss", "loss")}, "probes"),
        ({"probes": ("lira-online",)}, "probes"),
        ({"bins": 3}, "bins"),
        ({"bins": 257}, "bins"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"delta": None}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"epsilon": 0.0}, "delta"),
        ({"seed": -1}, "seed"),
    ],
)
def test_every_wrong_value_is_named(changed: dict[str, Any], key: str) -> None:
    """Nothing that references, records of others, or no noise would be needed for, passes."""
    assert list(AUDIT.problems()) == []
    assert key in [name for name, _ in replace(AUDIT, **changed).problems()]


def test_an_audit_asks_once_and_trains_nothing() -> None:
    """Rounds, evaluations and apps have no place in it."""
    assert list(SPEC.problems()) == []
    assert set(result_schema(SPEC)) == {"query"}
    assert SPEC.noises("query")
    assert not SPEC.noises("train")
    for changed in (
        replace(SPEC, evaluation=EvaluationSpec(every=1)),
        replace(SPEC, participation=replace(SPEC.participation, rounds=2)),
    ):
        with pytest.raises(ConfigError):
            from_plain(to_plain(changed), RunSpec)


def test_what_leaves_is_declared_to_the_last_count() -> None:
    """One list for each probe, of twice the bins, and nothing beside it."""
    reply = result_schema(SPEC)["query"]
    assert reply.arrays == "none"
    assert {name: metric.length for name, metric in reply.metrics.items()} == {
        f"histogram-{probe}": 32 for probe in AUDIT.probes
    }


def test_an_audit_describes_the_run_that_it_is_of() -> None:
    """Its recipe comes back whole; its own hash is another for any other term."""
    described = audited_run(SPEC)
    for name in ("data_set", "data", "model", "training", "privacy", "strategy"):
        assert getattr(described, name) == getattr(RUN, name)
    assert (described.audit, described.participation.rounds) == (None, 3)
    other = replace(SPEC, audit=replace(AUDIT, epsilon=2.0))
    assert specification_sha256(canonical_json(SPEC)) != specification_sha256(canonical_json(other))
    with pytest.raises(ValueError, match="expected the specification of an audit"):
        audited_run(RUN)
