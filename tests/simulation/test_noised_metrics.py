"""Evaluation under differential privacy, from run.toml to the manifest, on the four hospitals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.cli.main import run
from tacit.core.artifacts import RunFolder, load_arrays
from tacit.core.configuration import load_config
from tacit.core.specification import RunSpec
from tacit.learning.evaluation import evaluate_model
from tacit.learning.models import build_model, load_model_arrays
from tacit.learning.prepared import Examples
from tacit.privacy.evaluation_plan import evaluation_plan
from tacit.simulation.owners import heart_folder, owner_sets, owners_in

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.slow

HEART = heart_folder() / "run.toml"
DECLARED = "every = 20 "


def simulated(folder: Path, *changes: tuple[str, str]) -> tuple[RunSpec, RunFolder]:
    """Run `tacit simulate` on the hospitals with a changed run.toml."""
    text = HEART.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    file = folder / "run.toml"
    file.write_text(text)
    arguments = ["simulate", str(file), "--clients", "4", "--data", str(heart_folder())]
    assert run([*arguments, "--out", str(folder / "out"), "--json"]) == 0
    return load_config(file, RunSpec).value, RunFolder(folder / "out")


def evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    rounds = json.loads(folder.manifest.read_bytes())["rounds"]
    return [entry["evaluation"] for entry in rounds if entry["evaluation"] is not None]


def held_out(spec: RunSpec) -> list[Examples]:
    owners = owners_in(heart_folder(), spec, clients=4, scratch=Path("unused"))
    return [owner_sets(spec, owner).validation for owner in owners]


def exact(spec: RunSpec, folder: RunFolder, parts: Sequence[Examples]) -> dict[str, float]:
    """Evaluate the run's model on everybody's records, as nobody in a federation can."""
    assert spec.model is not None
    assert spec.data is not None
    model = build_model(spec.model, spec.data, private=True)
    load_model_arrays(model, load_arrays(folder.model))
    together = Examples(
        features=np.concatenate([part.features for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )
    return evaluate_model(model, together)


def test_noised_metrics_are_near_the_exact_ones_and_none_of_them(tmp_path: Path) -> None:
    """Accuracy and loss lie within their intervals' reach; no owner's exact count is written down.

    A 95 % interval misses one time in twenty, and two and a half of them never.
    """
    spec, folder = simulated(tmp_path)
    (shown,) = evaluations(folder)
    truth = exact(spec, folder, held_out(spec))
    for name in ("accuracy", "loss"):
        low, high = shown[f"{name}-interval"]
        assert low < shown[name] < high
        assert abs(shown[name] - truth[name]) < 2.5 * (high - low) / 2
        assert shown[name] != truth[name]
    low, high = shown["accuracy-interval"]
    assert 0.01 < (high - low) / 2 < 0.15
    written = folder.manifest.read_text() + folder.events.read_text()
    assert "sum-correct" not in written
    assert all(str(truth[name]) not in written for name in ("accuracy", "loss"))


def test_a_tiny_epsilon_gives_an_interval_that_says_nothing(tmp_path: Path) -> None:
    """Positive control: with noise far above the number of records, hardly ever a value is shown.

    It is by chance, once in forty; of ten evaluations never five.
    """
    changes = ((DECLARED, "every = 2 "), ("epsilon = 1.0  ", "epsilon = 0.001  "))
    _, folder = simulated(tmp_path, *changes)
    shown = evaluations(folder)
    assert len(shown) == 10
    hidden = [each for each in shown if each["accuracy"] is None]
    assert len(hidden) > 5
    assert all(each["accuracy-interval"] == [0.0, 1.0] for each in hidden)


def test_more_evaluations_share_the_epsilon(tmp_path: Path) -> None:
    """Four evaluations instead of one: the same epsilon, twice the noise."""
    spec, folder = simulated(tmp_path, (DECLARED, "every = 5 "))
    assert len(evaluations(folder)) == 4
    once = evaluation_plan(load_config(HEART, RunSpec).value)
    often = evaluation_plan(spec)
    assert often.noise_multiplier == pytest.approx(2 * once.noise_multiplier)
    assert often.epsilon == pytest.approx(once.epsilon)
