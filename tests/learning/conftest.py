"""A small table that keeps a small contract, runs over it, and the shipped hospitals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch

from tacit.core.configuration import from_plain, parse_toml
from tacit.core.specification import DataSpec, RunSpec
from tacit.learning.contract import Prepared, encode
from tacit.learning.loaders import Source, load_raw
from tacit.learning.prepared import PreparedSets, divide
from tacit.learning.splits import split_records

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
HEART = ROOT / "simulation" / "data" / "heart"
SHARED_DATA = ROOT.parent / "shared" / "data"
HOSPITALS = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}

TABLE: dict[str, Any] = {
    "label": "sick",
    "classes": ["no", "yes"],
    "label_map": {"2": "yes"},
    "columns": {
        "age": {"type": "number", "range": [0.0, 100.0], "missing": 50.0, "flag_missing": True},
        "blood": {"type": "category", "values": ["A", "B", "0"]},
        "male": {"type": "boolean"},
    },
}
IMAGES: dict[str, Any] = {"kind": "image", "classes": ["cat", "dog"], "shape": [1, 8, 8]}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Train as the app does; more threads than cores make tiny models slow."""
    torch.set_num_threads(1)


@pytest.fixture
def table_spec() -> DataSpec:
    return from_plain(TABLE, DataSpec)


@pytest.fixture
def image_spec() -> DataSpec:
    return from_plain(IMAGES, DataSpec)


@pytest.fixture
def frame() -> pd.DataFrame:
    """Four records as a CSV reader gives them: texts."""
    return pd.DataFrame(
        {
            "age": ["25", " 75.0", "?", "100"],
            "blood": ["A", "B", "0.0", "A"],
            "male": ["1", "0", "true", "False"],
            "sick": ["no", "yes", "2", "no"],
            "note": ["w", "x", "y", "z"],
        }
    )


@pytest.fixture
def make_run() -> Callable[..., RunSpec]:
    """Return a maker of built-in runs over the small table; keywords replace whole sections."""

    def make(**sections: Any) -> RunSpec:
        plain: dict[str, Any] = {
            "name": "test",
            "data": TABLE,
            "model": {"kind": "logistic"},
            "training": {"learning_rate": 0.5},
            "privacy": {"mode": "none"},
            "participation": {"rounds": 3},
        }
        return from_plain({**plain, **sections}, RunSpec)

    return make


@pytest.fixture
def prepared() -> Prepared:
    """Two hundred made-up records of six features that a line nearly separates."""
    generator = np.random.default_rng(5)
    features = generator.uniform(size=(200, 6)).astype(np.float32)
    labels = (features[:, 0] + features[:, 1] > 1.0).astype(np.int64)
    rows = np.arange(1, 201, dtype=np.int64)
    return Prepared(features=features, labels=labels, feature_names=(), row_numbers=rows)


@pytest.fixture
def sets(prepared: Prepared) -> PreparedSets:
    return divide(prepared, split_records(prepared, fraction=0.2, seed=1), records=250)


@pytest.fixture
def heart_run() -> RunSpec:
    """The demo's run."""
    path = HEART / "run.toml"
    return parse_toml(path.read_text(), RunSpec, source=path.name).value


@pytest.fixture
def hospitals(heart_run: RunSpec) -> Callable[[int], list[PreparedSets]]:
    """Return a maker of the four hospitals' sets for a seed of the split."""
    data = heart_run.data
    assert data is not None
    encoded = {
        name: encode(data, load_raw(Source(path=HEART / f"{name}.csv"), data)) for name in HOSPITALS
    }

    def make(seed: int) -> list[PreparedSets]:
        return [
            divide(
                records, split_records(records, fraction=0.2, seed=seed), records=HOSPITALS[name]
            )
            for name, records in encoded.items()
        ]

    return make


@pytest.fixture
def fashion() -> Path:
    """Return the folder of Fashion-MNIST, which lies beside some checkouts."""
    folder = SHARED_DATA / "fashion_mnist"
    if not folder.is_dir():
        pytest.skip("Fashion-MNIST lies in ../shared/data only on the machines of developers")
    return folder
