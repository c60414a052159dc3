"""A twin over real nodes by an auditor without data: submitted, interrupted, opened, reported."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.audit.report import read_report
from tacit.core.artifacts import save_arrays
from tacit.core.configuration import from_plain
from tacit.core.specification import RunSpec
from tacit.learning.models import initial_arrays
from tests.end_to_end.federation import Federation, eventually, federation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.end_to_end.federation import Done

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OWNERS, UNWILLING = ("north", "south"), "west"
ROUNDS, STEPS = 16, 2
ROOM = "max_canaries = 500\n"
RUN = {
    "name": "small",
    "data": {
        "classes": ["a", "b"],
        "columns": {f"x{i}": {"type": "number", "range": [0.0, 1.0]} for i in range(8)},
        "label": "y",
    },
    "model": {"kind": "mlp", "hidden": [16]},
    "training": {"learning_rate": 0.5, "local_steps": STEPS},
    "privacy": {"mode": "record-local", "clip": 0.5, "epsilon": 2.0, "delta": 1e-4},
    "participation": {"rounds": ROUNDS, "min_clients": 2},
}


def write_rows(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.random((80, 8)).round(3)
    lines = [",".join(map(str, row)) + (",a" if row[0] < 0.5 else ",b") for row in rows]
    path.write_text("\n".join([",".join(f"x{i}" for i in range(8)) + ",y", *lines]) + "\n")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, str]]:
    """Three owners, of whom one allows no canaries, and their finished run."""
    with federation(tmp_path_factory.mktemp("twin")) as made:
        for number, owner in enumerate((*OWNERS, UNWILLING)):
            write_rows(made.root / f"{owner}.csv", number)
            declared = (
                f'[data_sets.default]\npath = "{made.root / owner}.csv"\nrecords = 600\n'
                "budget = 50\n"
            )
            made.add_clients(owner, data=declared + (ROOM if owner in OWNERS else ""))
        run = from_plain(RUN, RunSpec)
        initial = made.root / "initial.safetensors"
        save_arrays(initial, initial_arrays(run))
        run_id = made.submit(run, initial)
        made.finish(run_id)
        token = made.token("ann", "auditor")
        assert auditor(made, "login", token, "--profile", "ann").code == 0
        yield made, run_id


def auditor(made: Federation, *arguments: str) -> Done:
    """Run a command as the auditor, whose folder holds a certificate and nothing else."""
    home = made.root / "auditor"
    home.mkdir(mode=0o700, exist_ok=True)
    return made.tacit(*arguments, environment={"TACIT_OPERATOR_HOME": str(home)}, timeout_s=300.0)


def test_a_twin_survives_a_killed_node_and_ends_in_a_report(
    played: tuple[Federation, str],
) -> None:
    """One owner's node is killed after round 1: every step is scored, by the bits of before."""
    made, run_id = played
    asked = auditor(
        made, "audit", "canaries", run_id, "--directions", "300", "--mislabelled", "100",
        "--detach", "--json",
    )  # fmt: skip
    assert asked.code == 0, asked.err
    twin_id = asked.json["run_id"]
    made.wait_for_event(
        twin_id, "node_decided", member=UNWILLING, verdict="denied", code="E-POLICY-CANARIES"
    )
    committed = {
        owner: made.wait_for_event(twin_id, "canaries_committed", member=owner)["commitment"]
        for owner in OWNERS
    }
    made.wait_for_event(twin_id, "round_finished", round=1)
    made.daemons["north"].kill()
    made.start_client("north")
    made.wait_for_event(twin_id, "run_finished")
    events = made.events(twin_id)
    left = events.index(
        next(e for e in events if e[0] == "node_left" and e[1]["member"] == "north")
    )
    rounds = [fields["round"] for kind, fields in events[left:] if kind == "round_finished"]
    assert rounds[-1] == ROUNDS, "the node was killed before the last round"

    kinds = [kind for kind, _ in events]
    assert kinds.index("run_started") > max(
        place for place, kind in enumerate(kinds) if kind == "canaries_committed"
    )
    shown = auditor(made, "audit", "show", twin_id, "--json", "--verify")
    assert shown.code == 0, shown.err
    assert "the commitments of 2 owners" in shown.err
    report = shown.json
    assert (report["run"], report["canary_run"], report["twin"]) == (run_id, twin_id, True)
    assert {owner["member"]: owner["commitment"] for owner in report["owners"]} == committed
    for owner in report["owners"]:
        assert owner["steps"] == ROUNDS * STEPS
        assert [kind["canaries"] for kind in owner["kinds"]] == [300, 100]
        assert owner["kinds"][0]["bounds"][-1]["method"] == "fl-canaries"
        assert owner["claim"]["unit"] == "record"
    assert report["verdict"] in ("inconclusive", "no violation found at this power")
    assert report["unopened"] == []

    pulled = made.pull(twin_id)
    assert json.loads(pulled.canaries.read_bytes()) == report
    assert {path.name for path in pulled.path.rglob("*.safetensors")} == {"initial.safetensors"}
    files = (made.home / "runs" / twin_id).rglob("*")
    assert {path.name for path in files if path.suffix in (".safetensors", ".bin")} == {
        "initial.safetensors",
        f"{ROUNDS:06d}.safetensors",  # the last checkpoint, which holds no weights
    }
    for owner in OWNERS:
        ledger = made.tacit("ledger", "show", "--home", made.root / owner, "--json").json
        kinds = {e["kind"] for e in ledger["entries"] if twin_id in json.dumps(e["body"])}
        assert kinds == {"reserve"}
        assert ledger["twins"][twin_id] == run_id
        status = made.tacit("client", "status", twin_id, "--home", made.root / owner, "--json").json
        assert status["ended_reason"] == report["line"]
        assert status["canaries"]["commitment"] == committed[owner]
        left = next(each["left"] for each in report["owners"] if each["member"] == owner)
        assert status["canaries"]["opened"] == left
        assert left["bytes"] > 300 * 8
        folder = made.root / owner / "runs" / twin_id
        assert not {"canaries.json", "prepared.safetensors", "received.safetensors"} & {
            path.name for path in folder.iterdir()
        }


def test_the_verb_waits_shows_and_writes(played: tuple[Federation, str]) -> None:
    """Without --detach the verb ends in the figures, and leaves them in a folder of its own."""
    made, run_id = played
    done = auditor(
        made, "audit", "canaries", run_id, "--directions", "100", "--mislabelled", "0",
        "--out", "twin",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "of 2 owners who claim epsilon 2.00, the highest one-run bound is" in done.out
    assert "fl-canaries" in done.out
    report = read_report(made.root / "twin")
    assert [len(owner["kinds"]) for owner in report["owners"]] == [1, 1]
    assert "without mislabelled records, missing or wrong clipping was not tested" in done.out
    listed = auditor(made, "audit", "show", run_id, "--json").json
    twins = [each["canary_run"] for each in listed.get("audits", [listed])]
    assert report["canary_run"] in twins
    again = auditor(made, "audit", "canaries", report["canary_run"])
    again.refuses(2, "E-TWIN-OF")
    shown = auditor(made, "audit", "show", "twin")
    assert (shown.code, "one-run*" in shown.out) == (0, True), shown.err


def test_a_stopped_twin_keeps_no_weights(played: tuple[Federation, str]) -> None:
    """However a twin ends, what its rounds had left is removed; its auditor may stop it."""
    made, run_id = played
    asked = auditor(made, "audit", "canaries", run_id, "--directions", "40", "--detach", "--json")
    assert asked.code == 0, asked.err
    twin_id = asked.json["run_id"]
    made.wait_for_event(twin_id, "round_finished", round=2)
    stopped = auditor(made, "run", "stop", twin_id)
    assert stopped.code == 0, stopped.err
    made.wait_for_event(twin_id, "run_stopped")
    rounds = made.home / "runs" / twin_id / "rounds"
    eventually("no weights to be left", lambda: not list(rounds.iterdir()))
    assert not (made.home / "runs" / twin_id / "model.safetensors").exists()


def test_an_auditor_submits_no_other_run_under_the_name_of_a_twin(
    played: tuple[Federation, str],
) -> None:
    """A run.toml with canaries is a training run like any other: not the auditor's to submit."""
    made, _ = played
    text = """
name = "mine"
[data]
label = "y"
classes = ["a", "b"]
columns.x0 = { type = "number", range = [0, 1] }
[model]
kind = "logistic"
[training]
learning_rate = 0.5
[privacy]
mode = "record-local"
clip = 1.0
epsilon = 1.0
delta = 1e-4
[participation]
rounds = 1
[canaries]
directions = 30
"""
    (made.root / "mine.toml").write_text(text)
    auditor(made, "run", "submit", "mine.toml").refuses(5, "E-ROLE-REFUSED")
    (made.root / "other.toml").write_text(text + f'run = "{played[1]}"\n')
    auditor(made, "run", "submit", "other.toml").refuses(4, "E-TWIN-RUN")
