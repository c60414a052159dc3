"""What an owner may compare at home, and what is kept of a run for it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.client.approvals import Verdict
from tacit.client.comparison import Home, compare_at_home
from tacit.client.received import RECEIVED_NAME, find_received
from tacit.core.artifacts import load_arrays
from tacit.core.errors import RefusedError, UnavailableError
from tacit.core.specification import (
    AppSpec,
    EvaluationSpec,
    ReplySpec,
    canonical_json,
)
from tacit.learning.baselines import union
from tacit.learning.prepared import Examples
from tests.client.fakes import MODEL, RUN, instruction, make_config, make_node, make_spec, offer
from tests.client.fakes import open_mode as no_privacy

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.node import Node
    from tacit.client.store import RunRecord

LATER = {name: array + 1 for name, array in MODEL.items()}


def told(node: Node, number: int, round_number: int, **said: Any) -> None:
    """Give the node an instruction of a round."""
    spec = make_spec(evaluation=EvaluationSpec(every=1, epsilon=0.5))
    head, payload = instruction(spec, number, **said)
    head.group_id = str(round_number)
    node.answer(head, payload)


def offered(folder: Path, **changes: Any) -> tuple[RunRecord, Home]:
    """Return a run that a node knows, and what its owner compares with."""
    config = make_config(folder)
    node, _ = make_node(folder, config)
    offer(node, make_spec(**changes))
    run = node.store.load_run(RUN)
    assert run is not None
    home = Home(config=config, folder=folder / "runs" / RUN, split_key=folder / "split-key")
    return run, home


def test_the_last_rounds_model_is_kept_and_named(tmp_path: Path) -> None:
    """Earlier rounds leave nothing; the evaluation's model takes the place of the training's."""
    spec = make_spec(evaluation=EvaluationSpec(every=1, epsilon=0.5))
    node, _ = make_node(tmp_path, make_config(tmp_path))
    offer(node, spec)
    folder = tmp_path / "runs" / RUN
    told(node, 1, 1)
    assert find_received(folder) is None
    told(node, 2, 2)
    received = find_received(folder)
    assert received is not None
    assert (received.round_number, received.trained_rounds) == (2, 1)
    told(node, 3, 2, message_type="evaluate", model=LATER)
    received = find_received(folder)
    assert received is not None
    assert received.trained_rounds == 2
    kept = load_arrays(folder / RECEIVED_NAME)
    assert {name: array.tolist() for name, array in kept.items()} == {
        name: array.tolist() for name, array in LATER.items()
    }


def test_an_own_app_is_refused(tmp_path: Path) -> None:
    """Only the app knows how its model trains and scores."""
    run, home = offered(tmp_path)
    app = make_spec(
        data=None,
        model=None,
        training=None,
        app=AppSpec(client="quick_app:app"),
        privacy=no_privacy(),
        results={"train": ReplySpec()},
        initial="initial.safetensors",
    )
    own = dataclasses.replace(run, specification=canonical_json(app))
    with pytest.raises(RefusedError, match="E-COMPARE-APP"):
        compare_at_home(own, home)


def test_a_run_that_was_not_approved_is_refused(tmp_path: Path) -> None:
    """Nothing of a run that the owner denied is executed for a table."""
    run, home = offered(tmp_path)
    denied = dataclasses.replace(run, verdict=Verdict.DENIED)
    with pytest.raises(RefusedError, match="E-COMPARE-NOT-APPROVED"):
        compare_at_home(denied, home)


def test_a_run_without_a_model_says_where_to_get_one(tmp_path: Path) -> None:
    """A node that was not asked in the last round has none: the operator does."""
    run, home = offered(tmp_path)
    with pytest.raises(UnavailableError, match="E-COMPARE-NO-MODEL") as caught:
        compare_at_home(run, home)
    assert "--model" in caught.value.hint


def test_subjects_of_several_sets_stay_apart() -> None:
    """Pooled, two owners' subjects of one number are two subjects; without numbers none is made."""
    part = Examples(
        features=np.zeros((3, 1), np.float32),
        labels=np.zeros(3, np.int64),
        subjects=np.array([0, 1, 0], np.int64),
    )
    pooled = union([part, part])
    assert pooled.subjects is not None
    assert pooled.subjects.tolist() == [0, 1, 0, 2, 3, 2]
    assert union([part, dataclasses.replace(part, subjects=None)]).subjects is None
