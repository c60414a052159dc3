"""Canaries at a node: only where the owner allows them, drawn once, opened at the end."""

from __future__ import annotations

import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.attacks.inclusion import draw_opening, owner_design
from tacit.client.approvals import Verdict
from tacit.client.canaries import CANARIES_NAME, COMMITTED, drawn_opening, held_opening
from tacit.client.configuration import Approval, DataSet
from tacit.client.preparation import PREPARED_NAME, PrepareJob
from tacit.client.prepare import prepare_data
from tacit.core.errors import DataError, UnavailableError
from tacit.core.specification import CanarySpec, RunSpec, canonical_json
from tacit.learning.prepared import load_prepared
from tacit.protos import fleet_pb2, pipe_pb2
from tests.client.fakes import (
    MODEL,
    RUN,
    Reply,
    instruction,
    make_config,
    make_node,
    make_spec,
    manifest_of,
    offer,
)

if TYPE_CHECKING:
    from pathlib import Path

ROOM = 200  # of the 300 declared records, kept for canaries
CANARIES = CanarySpec(directions=40, mislabelled=20)


def opening_reply(call: pipe_pb2.WorkerCall) -> Reply:
    """Train as asked, and open 60 bits as the built-in app would."""
    if call.instruction.message_type != "query":
        return manifest_of(MODEL, {"num-examples": 1})
    manifest, payload = manifest_of(
        None, {"canary-squared-norm": 1.0, "canary-steps": 4, "canary-parameters": 8}
    )
    items = manifest.records[0].items
    items.add(key="canary-bits").integers.values.extend([0, 1] * 30)
    items.add(key="canary-salt").integers.values.extend(range(32))
    items.add(key="canary-products").reals.values.extend([0.5] * 40)
    return manifest, payload


def test_canaries_are_off_by_default(tmp_path: Path) -> None:
    """A denial with a code and the key that would allow them."""
    node, _ = make_node(tmp_path, make_config(tmp_path))
    judgement = offer(node, make_spec(canaries=CANARIES))
    assert (judgement.verdict, judgement.code) == (Verdict.DENIED, "E-POLICY-CANARIES")
    assert "max_canaries under [data_sets.default]" in judgement.reason


@pytest.mark.parametrize(
    ("canaries", "code"),
    [
        (CanarySpec(directions=40, twin=False), "E-CANARIES-RELEASED"),
        (CanarySpec(directions=ROOM + 1), "E-CANARIES-NO-ROOM"),
        (CanarySpec(directions=ROOM), ""),
    ],
)
def test_a_released_model_holds_one_percent(
    tmp_path: Path, canaries: CanarySpec, code: str
) -> None:
    """Of 300 declared records a released run may have 3 canaries, a twin all that are kept."""
    node, _ = make_node(tmp_path, make_config(tmp_path, max_canaries=ROOM))
    assert offer(node, make_spec(canaries=canaries)).code == code


def test_bits_are_drawn_once_and_kept_in_private(tmp_path: Path) -> None:
    """A restart finds the same bits; the file is the owner's alone; a damaged one is said."""
    spec = make_spec(canaries=CANARIES)
    first = drawn_opening(tmp_path, spec, 7)
    again = drawn_opening(tmp_path, spec, 7)
    assert first is not None
    assert again is not None
    assert first.commitment() == again.commitment()
    path = tmp_path / CANARIES_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnavailableError) as caught:
        held_opening(tmp_path)
    assert caught.value.code == "E-CANARY-OPENING"
    assert drawn_opening(tmp_path / "other", make_spec(), 7) is None


def test_two_owners_have_other_directions_and_rows() -> None:
    """The seed depends on the node; all else is the run's."""
    one, other = owner_design(CANARIES, 1), owner_design(CANARIES, 2)
    assert one.seed != other.seed
    assert replace(one, seed_hex=other.seed_hex) == other
    assert owner_design(CANARIES, 1) == one


def test_no_room_names_numbers_key_and_file(tmp_path: Path) -> None:
    """What is kept, what is declared, what is asked, and where to change it."""
    node, _ = make_node(tmp_path, make_config(tmp_path, max_canaries=ROOM))
    reason = offer(node, make_spec(canaries=CanarySpec(directions=250))).reason
    assert "data_sets.default.max_canaries of client.toml keeps room for 200 canaries" in reason
    assert "within the 300 declared records, the run asks for 250" in reason


def test_the_yes_carries_the_commitment(tmp_path: Path) -> None:
    """Drawn when the owner says yes, before any message; the same after a no and another yes."""
    config = make_config(tmp_path, max_canaries=ROOM, approve=Approval.ASK)
    node, _ = make_node(tmp_path, config, opening_reply)
    assert offer(node, make_spec(canaries=CANARIES)).verdict is Verdict.PENDING
    assert node.canary_commitment(RUN) == b""
    node.approve(RUN)
    opening = held_opening(tmp_path / "runs" / RUN)
    assert opening is not None
    assert node.canary_commitment(RUN).hex() == opening.commitment()
    node.deny(RUN)
    assert node.canary_commitment(RUN) == b""
    node.approve(RUN)
    assert node.canary_commitment(RUN).hex() == opening.commitment()
    (line,) = [each for each in node.store.list_decisions(limit=50) if each.outcome == COMMITTED]
    assert line.reason == opening.commitment()


def test_a_run_without_canaries_commits_to_nothing(tmp_path: Path) -> None:
    """Its yes is as it was."""
    node, _ = make_node(tmp_path, make_config(tmp_path, max_canaries=ROOM))
    assert offer(node, make_spec()).verdict is Verdict.APPROVED
    assert node.canary_commitment(RUN) == b""


def test_an_opening_costs_nothing_and_ends_the_training(tmp_path: Path) -> None:
    """It has bytes, which the log counts; the bits stay until the run is known to be over."""
    node, _ = make_node(tmp_path, make_config(tmp_path, max_canaries=ROOM), opening_reply)
    spec = make_spec(canaries=CANARIES)
    assert offer(node, spec).verdict is Verdict.APPROVED
    early = head_of(node, spec, 1, message_type="query")
    assert early.failure.reason == "E-CANARIES-UNTRAINED"
    assert not head_of(node, spec, 2).HasField("failure")
    before = node.charges.head()
    opened = head_of(node, spec, 3, message_type="query")
    assert opened.WhichOneof("outcome") == "manifest"
    assert not opened.HasField("claim")
    assert node.charges.head() == before
    line = next(each for each in node.store.list_decisions(limit=9) if each.message_type == "query")
    assert (line.outcome, line.payload_bytes) == ("released", opened.manifest.ByteSize())
    assert line.payload_bytes > 60
    assert head_of(node, spec, 4).failure.reason == "E-CANARIES-OPENED"
    assert held_opening(tmp_path / "runs" / RUN) is not None
    assert node.end_run(RUN, "finished")
    assert not (tmp_path / "runs" / RUN / CANARIES_NAME).exists()


def test_an_opening_with_more_in_it_stays(tmp_path: Path) -> None:
    """The envelope knows what an opening may hold: not a bit more."""

    def greedy(call: pipe_pb2.WorkerCall) -> Reply:
        manifest, payload = opening_reply(call)  # type: ignore[misc]
        if call.instruction.message_type == "query":
            manifest.records[0].items.add(key="loss", real=0.5)
        return manifest, payload

    node, _ = make_node(tmp_path, make_config(tmp_path, max_canaries=ROOM), greedy)
    spec = make_spec(canaries=CANARIES)
    offer(node, spec)
    assert not head_of(node, spec, 1).HasField("failure")
    opened = head_of(node, spec, 2, message_type="query")
    assert opened.failure.reason == "E-REPLY-METRIC"


def head_of(node: Any, spec: RunSpec, number: int, **asked: Any) -> fleet_pb2.ReplyHead:
    entry = node.answer(*instruction(spec, number, **asked))
    return fleet_pb2.ReplyHead.FromString(entry.head)


def job_of(
    folder: Path, *, records: int, declared: int, canaries: CanarySpec | None, room: int = 60
) -> PrepareJob:
    rng = np.random.default_rng(0)
    rows = [f"{rng.uniform(1, 99):.1f},{number % 2}" for number in range(records)]
    (folder / "data.csv").write_text("\n".join(["age,target", *rows]) + "\n")
    spec = make_spec(canaries=canaries)
    assert spec.data is not None
    spec = replace(spec, data=replace(spec.data, label="target"))
    return PrepareJob(
        specification=canonical_json(spec),
        data_set=DataSet(path=folder / "data.csv", records=declared, max_canaries=room),
        folder=folder,
        split_key=bytes(32),
        opening=canaries and draw_opening(owner_design(canaries, 7)),
    )


def test_mislabelled_records_are_trained_on_and_never_held_out(tmp_path: Path) -> None:
    """The included ones stand behind the owner's on the training side; the job keeps the bits."""
    job = job_of(tmp_path, records=100, declared=160, canaries=CANARIES)
    assert job.opening is not None
    parsed = PrepareJob.parse(job.encode())
    assert parsed.opening is not None
    assert parsed.opening.commitment() == job.opening.commitment()
    prepare_data(parsed)
    sets = load_prepared(tmp_path / PREPARED_NAME)
    included = int(job.opening.mislabelled.sum())
    assert len(sets.train) + len(sets.validation) == 100 + included
    assert sets.records == 160
    own = len(sets.train) - included
    assert set(np.unique(sets.train.features[own:])) <= {0.0, 1.0}
    assert not set(np.unique(sets.train.features[:own])) & {0.0, 1.0}
    assert not set(np.unique(sets.validation.features)) & {0.0, 1.0}
    assert sets.canaries is not None
    assert sets.canaries.included.tolist() == job.opening.included.tolist()


@pytest.mark.parametrize("canaries", [None, CanarySpec(directions=20), CANARIES])
def test_how_many_records_there_are_has_no_part_in_the_room(
    tmp_path: Path, canaries: CanarySpec | None
) -> None:
    """Room is kept in every run: whatever is asked, the same 100 records fit, and 101 never do."""
    prepare_data(job_of(tmp_path, records=100, declared=160, canaries=canaries))
    with pytest.raises(DataError, match="60 of 160 kept for canaries") as caught:
        prepare_data(job_of(tmp_path, records=101, declared=160, canaries=canaries))
    assert caught.value.code == "E-DATA-MORE-THAN-DECLARED"


def test_the_room_in_force_is_held_against_every_message(tmp_path: Path) -> None:
    """A node that starts again without room answers nothing in a run that was approved with it."""
    spec = make_spec(canaries=CANARIES)
    with_room, _ = make_node(tmp_path, make_config(tmp_path, max_canaries=ROOM), opening_reply)
    offer(with_room, spec)
    with_room.config = make_config(tmp_path)
    assert head_of(with_room, spec, 1).failure.reason == "E-POLICY-CANARIES"
