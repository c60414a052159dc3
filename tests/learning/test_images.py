"""A small convolutional network learns real images, in the open and under DP-SGD with Poisson."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.core.configuration import from_plain
from tacit.core.specification import DataSpec, RunSpec
from tacit.learning.contract import encode
from tacit.learning.evaluation import evaluate_model
from tacit.learning.loaders import Source, load_raw
from tacit.learning.models import build_model
from tacit.learning.prepared import PreparedSets, divide
from tacit.learning.splits import split_records
from tacit.learning.training import Recipe, train_model
from tacit.privacy.plan import privacy_plan

if TYPE_CHECKING:
    from pathlib import Path

RECORDS = 4000
DATA: dict[str, Any] = {
    "kind": "image",
    "classes": [str(kind) for kind in range(10)],
    "shape": [1, 28, 28],
}


@pytest.fixture
def clothing(fashion: Path, tmp_path: Path) -> PreparedSets:
    """Four thousand images of clothing, read through the NPZ loader and the contract."""
    with gzip.open(fashion / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + RECORDS * 784), dtype=np.uint8)[16:]
    with gzip.open(fashion / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + RECORDS), dtype=np.uint8)[8:]
    path = tmp_path / "clothing.npz"
    np.savez(path, x=pixels.reshape(-1, 28, 28), y=labels)
    spec = from_plain(DATA, DataSpec)
    prepared = encode(spec, load_raw(Source(path=path, format="npz"), spec))
    return divide(prepared, split_records(prepared, fraction=0.2, seed=1), records=RECORDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("privacy", "training", "floor"),
    [
        (
            {"mode": "none"},
            {"learning_rate": 0.002, "optimizer": "adam", "batch_size": 64, "local_steps": 200},
            0.75,
        ),
        (
            {
                "mode": "record-local",
                "clip": 0.5,
                "epsilon": 8.0,
                "delta": 1e-5,
                "sampling": "poisson",
                "sample_rate": 0.08,
            },
            {"learning_rate": 2.0, "local_steps": 100},
            0.62,
        ),
    ],
    ids=["open", "private"],
)
def test_a_small_network_learns_clothing(
    privacy: dict[str, Any], training: dict[str, Any], floor: float, clothing: PreparedSets
) -> None:
    """Ten classes, chance 0.1: well above it after a few steps, also under (8, 1e-5) per record."""
    plain = {
        "name": "clothing",
        "data": DATA,
        "model": {"kind": "cnn"},
        "training": training,
        "privacy": privacy,
        "participation": {"rounds": 1},
    }
    run = from_plain(plain, RunSpec)
    assert run.model is not None
    assert run.data is not None
    assert run.training is not None
    model = build_model(run.model, run.data)
    plan = privacy_plan(run, records=RECORDS)
    recipe = Recipe(training=run.training, plan=plan)
    train_model(model, clothing.train, recipe, noise_key=bytes(range(32)))
    assert evaluate_model(model, clothing.validation)["accuracy"] > floor
