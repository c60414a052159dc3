from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from tacit.core.configuration import from_plain, parse_toml
from tacit.core.errors import ConfigError
from tacit.core.specification import (
    RunSpec,
    canonical_json,
    specification_sha256,
    to_plain,
)

RUN = """
name = "heart"
[data]
classes = ["0", "1"]
[data.columns.age]
type = "number"
range = [20, 100]
[model]
kind = "logistic"
[training]
learning_rate = 1
[privacy]
mode = "record-local"
epsilon = 1
clip = 1
delta = 1e-3
[participation]
rounds = 20
"""


def parsed(text: str) -> RunSpec:
    return parse_toml(text, RunSpec, source="run.toml").value


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return caught.value.problems


def test_canonical_json_survives_the_wire() -> None:
    """Reading canonical JSON gives the specification back, to the byte."""
    canonical = canonical_json(parsed(RUN))
    again = from_plain(json.loads(canonical), RunSpec)
    assert again == parsed(RUN)
    assert canonical_json(again) == canonical


@pytest.mark.parametrize(("kind", "widths"), [("mlp", [64]), ("cnn", [16, 32])])
def test_default_widths_are_part_of_what_is_approved(kind: str, widths: list[int]) -> None:
    """A model without ``hidden`` is resolved: the canonical form names its widths."""
    canonical = canonical_json(parsed(RUN.replace("logistic", kind)))
    assert json.loads(canonical)["model"]["hidden"] == widths
    assert canonical_json(from_plain(json.loads(canonical), RunSpec)) == canonical


def test_formatting_changes_nothing() -> None:
    """Comments, order, and 1 instead of 1.0 leave the hash that owners approve as it is."""
    tables = RUN.strip().split("\n[")
    shuffled = "# comment\n" + "\n\n[".join([tables[0], *reversed(tables[1:])])
    other = shuffled.replace("epsilon = 1", "epsilon = 1.0").replace("1e-3", "0.001")
    assert canonical_json(parsed(other)) == canonical_json(parsed(RUN))


def test_every_value_counts() -> None:
    """Changing any one resolved value changes the hash."""
    original = parsed(RUN)
    reference = specification_sha256(canonical_json(original))
    changed: list[RunSpec] = [
        dataclasses.replace(original, name="other"),
        dataclasses.replace(original, data_set="other"),
        parsed(RUN.replace("epsilon = 1", "epsilon = 1.0000000000000002")),
        parsed(RUN.replace("[20, 100]", "[20, 101]")),
        parsed(RUN + "min_clients = 3\n"),
        parsed(RUN + '[strategy]\nname = "FedAdam"\n'),
        parsed(RUN + "[retention]\nevery = 2\n"),
    ]
    hashes = {specification_sha256(canonical_json(spec)) for spec in changed}
    assert len(hashes) == len(changed)
    assert reference not in hashes


def test_every_field_is_in_the_canonical_form() -> None:
    """Defaults are written out: a later default cannot change what was approved."""

    def keys(value: Any) -> set[str]:
        names = {f.name for f in dataclasses.fields(value)}
        assert set(to_plain(value)) == names
        return names

    spec = parsed(RUN)
    keys(spec)
    for part in (spec.data, spec.model, spec.training, spec.privacy, spec.participation):
        keys(part)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('name = "heart"', 'name = "a\\u001b[31m"', "name: expected 1 to 80 printable"),
        ('name = "heart"', 'name = ""', "name: expected 1 to 80 printable"),
        ('name = "heart"', 'name = "x"\ndata_set = "../x"', "data_set: expected letters"),
        ('classes = ["0", "1"]', 'classes = ["0"]', "data.classes: expected at least two"),
        ("range = [20, 100]", "range = [100, 20]", "data.columns.age.range: expected low < high"),
        ("range = [20, 100]", "", "data.columns.age.range: missing: a number needs range"),
        ("learning_rate = 1", "learning_rate = 0", "training.learning_rate: expected a positive"),
        ("learning_rate = 1", "learning_rate = 1\nseed = -1", "training.seed: expected 0 or more"),
        ("epsilon = 1\n", "", "privacy.epsilon: missing: expected exactly one"),
        ("clip = 1\n", "", "privacy.clip: missing: expected a positive number"),
        ("delta = 1e-3\n", "", "privacy.delta: missing: expected 0 < delta < 1"),
        ("epsilon = 1", "epsilon = 1\nnoise_multiplier = 1", "privacy.epsilon: expected exactly"),
        ("delta = 1e-3", "delta = 1", "privacy.delta: expected 0 < delta < 1"),
        ("delta = 1e-3", "delta = 1e-3\nsample_rate = 0.5", "privacy.sample_rate"),
        ("rounds = 20", "rounds = 0", "participation.rounds: expected 1 to"),
        ("rounds = 20", "rounds = 20\nfraction = 0", "participation.fraction"),
        ('kind = "logistic"', 'kind = "module"', "model.factory: missing: kind = "),
        ('[model]\nkind = "logistic"\n', "", "model: missing: a run needs [model]"),
    ],
)
def test_rules_are_checked_when_the_file_is_read(old: str, new: str, complaint: str) -> None:
    """Each rule names its key."""
    assert old in RUN
    problems = problems_of(RUN.replace(old, new))
    assert any(f": {complaint}" in problem for problem in problems), problems


def test_mode_none_takes_no_promises() -> None:
    """A run without noise cannot carry an epsilon that it would not keep."""
    text = RUN.replace('mode = "record-local"', 'mode = "none"')
    assert [problem.split(": ")[1] for problem in problems_of(text)] == [
        "privacy.epsilon",
        "privacy.clip",
        "privacy.delta",
    ]


def test_app_runs_declare_their_results() -> None:
    """A run with an app of somebody's own names what its replies may contain."""
    app = """
    name = "mine"
    app = {client = "pkg.mod:client"}
    privacy = {mode = "none"}
    participation = {rounds = 1}
    """
    assert "results: missing: a run with [app] declares" in problems_of(app)[0]
    both = app + 'model = {kind = "logistic"}\nresults.fit = {}\n'
    assert [problem.split(": ")[1] for problem in problems_of(both)] == ["model", "results.fit"]
    assert "results: only runs with [app]" in problems_of(RUN + "[results.train]\n")[0]
    good = app + "results.train = {metrics = {loss = {range = [0, 1]}}}\n"
    assert parsed(good).results["train"].metrics["loss"].range == (0.0, 1.0)


def test_a_specification_crosses_process_borders() -> None:
    """Worker pools of the simulator may copy a specification."""
    spec = parsed(RUN)
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301 - our own bytes
