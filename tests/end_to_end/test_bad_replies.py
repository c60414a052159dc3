"""An app that misbehaves harms nothing but its own reply: the round goes on with the others.

Each fault strikes one owner of two in rounds 2 and 3, in a run that is content with one reply. The
operator sees a stable code, the owner the reason, and the model is what the other owner made.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.core.artifacts import load_arrays
from tests.end_to_end.federation import Federation, eventually, federation
from tests.end_to_end.runs import ROUNDS, initial_file, quick_spec, with_clients

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FAULTS = {
    "nan": "E-REPLY-NOT-FINITE",
    "shape": "E-REPLY-SHAPE",
    "dtype": "E-REPLY-DTYPE",
    "raise": "E-APP-RAISED",
    "die": "E-APP-DIED",
    "hang": "E-APP-HUNG",
}
OUTCOMES = {"nan": "refused", "shape": "refused", "dtype": "refused"}
CALL_LIMIT_S = 6


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("faults"), start=False) as made:
        made.start_server()
        limit = f"message_timeout_s = {CALL_LIMIT_S}\n"
        made.add_clients("ada", "bad", policy=limit + made.app_policy("quick_app:app"))
        yield made


@pytest.fixture(scope="module")
def runs(played: Federation) -> dict[str, str]:
    """One run per fault, submitted at once; each asks two owners and needs one.

    All are over: another test holds whatever app plays its second round.
    """
    initial = initial_file(played.root)
    node = str(played.node_id("bad"))
    submitted = {
        fault: played.submit(
            with_clients(quick_spec(**{"fault": fault, "fault-node": node}), 1), initial
        )
        for fault in FAULTS
    }
    for run_id in submitted.values():
        played.finish(run_id)
    return submitted


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_reply_is_refused_at_its_owner_and_the_run_goes_on(
    played: Federation, runs: dict[str, str], fault: str
) -> None:
    """The code is the same at both sides; the reason stays with the owner."""
    run_id, code = runs[fault], FAULTS[fault]
    played.finish(run_id)
    failures = [fields for kind, fields in played.events(run_id) if kind == "reply_failed"]
    assert [(each["member"], each["code"]) for each in failures] == [("bad", code)] * 2
    told = [{key: value for key, value in each.items() if key != "message_id"} for each in failures]
    assert "42" not in json.dumps(told)  # of the app's error
    log = [line for line in reversed(played.decisions("bad", run_id)) if line.message_id]
    expected = OUTCOMES.get(fault, "failed")
    assert [(line.outcome, line.code) for line in log] == [
        ("released", ""),
        (expected, code),
        (expected, code),
    ]
    assert all(line.reason for line in log[1:])
    assert [line.outcome for line in played.decisions("ada", run_id) if line.message_id] == [
        "released"
    ] * ROUNDS


@pytest.mark.parametrize("fault", FAULTS)
def test_the_model_is_what_the_other_owner_made(
    played: Federation, runs: dict[str, str], fault: str
) -> None:
    """Rounds 2 and 3 hold exactly the good owner's arrays; nothing of the bad reply is in them."""
    run_id = runs[fault]
    model = played.finish(run_id)
    folder = played.pull(run_id)
    before = load_arrays(folder.round(ROUNDS - 1))
    rng = np.random.default_rng([played.node_id("ada"), ROUNDS])
    for name, array in before.items():
        moved = array * np.float32(0.5) + rng.normal(size=array.shape).astype("<f4")
        np.testing.assert_array_equal(model[name], moved)
    manifest = json.loads(folder.manifest.read_bytes())
    node = str(played.node_id("bad"))
    assert [entry["failed"] for entry in manifest["rounds"]] == [
        {},
        *[{node: FAULTS[fault]}] * (ROUNDS - 1),
    ]


def test_a_run_that_nobody_can_answer_fails_with_a_code_and_says_so_in_its_manifest(
    played: Federation,
) -> None:
    """`run watch` ends with 1, names whose app failed and who can say why; so does the folder."""
    run = quick_spec(**{"fault": "raise", "fault-node": str(played.node_id("bad"))})
    run = with_clients(run, 2, max_attempts=2)
    run_id = played.submit(replace(run, name="doomed"), initial_file(played.root))
    watch = played.tacit("run", "watch", run_id)
    assert watch.code == 1
    assert "[E-ROUND-FAILED]" in watch.err
    assert "1 of 2 replies are good and 2 are needed; E-APP-RAISED from bad" in watch.err
    assert "hint: Ask bad for the reason" in watch.err
    pull = played.tacit("run", "pull", run_id, "--out", played.root / "doomed", "--json")
    assert pull.code == 0
    manifest = json.loads((played.root / "doomed" / "manifest.json").read_bytes())
    assert manifest["status"] == "failed"
    assert manifest["code"] == "E-ROUND-FAILED"
    assert "1 of 2 replies are good" in manifest["reason"]
    assert [entry["round"] for entry in manifest["rounds"]] == [1]
    assert (played.root / "doomed" / "rounds" / "0001.safetensors").is_file()


def test_a_stopped_run_says_so_in_its_manifest(played: Federation) -> None:
    """An operator's stop is not a failure, and neither is it "running"."""
    gates = played.hold(2, "ada", "bad")
    try:
        run_id = played.submit(quick_spec(), initial_file(played.root))
        played.wait_until_held("ada", 2, run_id)
        stopped = played.tacit("run", "stop", run_id, "--reason", "enough")
        assert stopped.code == 0
        manifest = json.loads(played.pull(run_id).manifest.read_bytes())
        assert (manifest["status"], manifest["reason"]) == ("stopped", "enough")
    finally:
        for gate in gates:
            gate.unlink()
    eventually("its workers to end", lambda: not played.processes(f"{run_id} "))
