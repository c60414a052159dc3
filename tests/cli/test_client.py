"""`tacit client` for an owner whose daemon is stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from tacit.cli.main import run
from tacit.client.approvals import Verdict
from tacit.client.store import STORE_NAME, Repeat, RunRecord, open_store
from tacit.core.members import MEMBERS_FILE, save_members
from tacit.core.specification import ParticipationSpec, SecureAggregationSpec, canonical_json
from tacit.privacy.ledger import LEDGER_NAME
from tests.client.fake_fleet import Domain
from tests.client.fakes import make_spec, open_mode
from tests.privacy.ledgers import charge, opened, tampering

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "owner"
    folder.mkdir(mode=0o700)
    store = open_store(folder / STORE_NAME)
    for run_id in ("r-0000000a", "r-0000000b"):
        store.save_run(
            RunRecord(
                run_id=run_id,
                name="heart",
                specification=b'{"privacy":{"clip":0.5,"mode":"record-local"},"results":{},'
                b'"evaluation":{"every":5,"epsilon":0.5}}',
                specification_sha256=bytes(32),
                app_sha256=bytes(32),
                verdict=Verdict.PENDING,
                code="E-APPROVAL-PENDING",
                reason="a person must say yes",
                decided_by="policy",
                epsilon=1.0,
                offered_at_s=0.0,
                decided_at_s=0.0,
            )
        )
    store.close()
    return folder


def test_an_owner_reads_what_a_run_asks_before_approving(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole specification is shown, as JSON with every key and as text with what says much."""
    assert run(["client", "status", "r-0000000a", "--home", str(home), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["asks"]["privacy"] == {"clip": 0.5, "mode": "record-local"}
    assert run(["client", "status", "r-0000000a", "--home", str(home)]) == 0
    text = capsys.readouterr().out
    assert "mode: record-local" in text
    assert "evaluation_epsilon: 0.5" in text
    assert "results" not in text


def test_an_owner_reads_what_the_worker_noted(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each note on the model once, out of the worker's log; what else stands there is left out."""
    (home / "logs").mkdir()
    line = "2026-01-01T00:00:00.000+00:00 info    worker note: {}\n"
    notes = ["1: BatchNorm replaced by GroupNorm", "per-example gradients by \x1b[31mhand"]
    text = "".join(line.format(note) for note in [*notes, *notes]) + "the app prints\n"
    (home / "logs" / "r-0000000a.log").write_text(text)
    assert run(["client", "status", "r-0000000a", "--home", str(home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model_notes"] == notes
    assert run(["client", "status", "r-0000000a", "--home", str(home)]) == 0
    shown = capsys.readouterr().out
    assert (
        "model_notes: 1: BatchNorm replaced by GroupNorm, per-example gradients by \\x1b" in shown
    )
    assert run(["client", "status", "r-0000000b", "--home", str(home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model_notes"] == []


def test_an_owner_sees_and_withdraws_what_repeats(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table names the run, status of a run its model, and a denial ends it."""
    Domain.create().member(home / "identity", 1)
    (home / "client.toml").write_text("")
    store = open_store(home / STORE_NAME)
    repeat = Repeat(
        specification_sha256=bytes(32),
        app_sha256=bytes(32),
        run_id="r-0000000b",
        name="heart",
        approved_at_s=0.0,
    )
    store.save_repeat(repeat)
    store.end_run("r-0000000b", "finished")
    store.close()
    assert run(["client", "status", "--home", str(home)]) == 0
    assert "Approved also for later runs" in capsys.readouterr().out
    assert run(["client", "status", "r-0000000a", "--home", str(home)]) == 0
    assert "repeat_of: r-0000000b" in capsys.readouterr().out
    assert run(["client", "deny", "r-0000000b", "--home", str(home)]) == 0
    assert "wait for a person again" in capsys.readouterr().out
    assert run(["client", "status", "--home", str(home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["repeats"] == []


def test_an_owner_sees_why_the_operator_stopped_a_run(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The operator's words stand below the run, as text and as JSON, safe for a terminal."""
    Domain.create().member(home / "identity", 1)
    store = open_store(home / STORE_NAME)
    store.end_run("r-0000000b", "stopped", "wrong \x1b[31mdata")
    store.close()
    assert run(["client", "status", "--home", str(home)]) == 0
    assert "r-0000000b: stopped: wrong \\x1b[31mdata" in capsys.readouterr().out
    assert run(["client", "status", "r-0000000b", "--home", str(home)]) == 0
    assert "ended: stopped\nended_reason: wrong" in capsys.readouterr().out
    assert run(["client", "status", "--home", str(home), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert {each["run_id"]: each["ended_reason"] for each in runs} == {
        "r-0000000a": "",
        "r-0000000b": "wrong \x1b[31mdata",
    }


def test_the_status_of_a_node_with_many_runs_stays_readable(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs that go on are all shown, however old; of the ended ones the latest ten, and a count."""
    Domain.create().member(home / "identity", 1)
    store = open_store(home / STORE_NAME)
    pending = store.list_runs()[0]
    for number in range(70):
        run_id = f"r-{number + 256:08x}"
        fields = {"run_id": run_id, "offered_at_s": 1.0 + number, "reason": ""}
        store.save_run(dataclasses.replace(pending, **fields))
        store.end_run(run_id, "finished")
    store.close()
    assert run(["client", "status", "--home", str(home)]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 30
    assert [run_id in text for run_id in ("r-0000000a", "r-0000000b")] == [True, True]
    shown = [number for number in range(70) if f"r-{number + 256:08x}" in text]
    assert shown == list(range(60, 70))
    assert "  and 40 that ended before" in text


def test_an_owner_sees_what_each_data_set_has_spent(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epsilon, budget, left, entries and head, with the daemon stopped; damage is named."""
    Domain.create().member(home / "identity", 1)
    with opened(home / LEDGER_NAME) as ledger:
        for number in (1, 2):
            ledger.reserve(charge(number))
        epsilon, head = ledger.account("heart").epsilon, ledger.head().head
    assert run(["client", "status", "--home", str(home), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["ledger"]
    assert (shown["entries"], shown["head"], shown["problem"]) == (4, head.hash, "")
    (heart,) = shown["data_sets"]
    assert heart["epsilon"] == pytest.approx(epsilon)
    assert (heart["budget"], heart["entries"]) == (8.0, 3)
    assert heart["left"] == pytest.approx(8.0 - epsilon)
    assert "client.toml" in heart["note"]
    with tampering(home / LEDGER_NAME) as connection:
        connection.execute("UPDATE entries SET hash = x'00' WHERE sequence = 3")
    assert run(["client", "status", "--home", str(home)]) == 5
    text = capsys.readouterr().out
    assert "WRONG: expected an unbroken ledger, got damage at entry 3" in text
    assert "restore the newest undamaged copy" in text


def test_an_owner_reads_among_whom_a_run_sums(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each member with how it stands here, the threshold and the colluders; a plain run has none.

    Pins that cannot be read are said to be so, and the rest is shown.
    """
    Domain.create().member(home / "identity", 1)
    save_members(home / MEMBERS_FILE, {"bo": bytes(32)})
    spec = make_spec(
        privacy=open_mode(),
        participation=ParticipationSpec(rounds=2, min_clients=3),
        secure_aggregation=SecureAggregationSpec(members=("cy", "a", "bo", "di")),
    )
    with contextlib.closing(open_store(home / STORE_NAME)) as store:
        first = store.load_run("r-0000000a")
        assert first is not None
        store.save_run(dataclasses.replace(first, specification=canonical_json(spec)))
    assert run(["client", "status", "r-0000000a", "--home", str(home), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["members"] == {
        "a": "this node",
        "bo": "pinned",
        "cy": "not pinned",
        "di": "not pinned",
    }
    assert (shown["threshold"], shown["colluders"]) == (3, 1)
    (home / MEMBERS_FILE).write_text("damaged")
    assert run(["client", "status", "r-0000000a", "--home", str(home)]) == 0
    assert "bo: unknown: members.toml cannot be read" in capsys.readouterr().out
    assert run(["client", "status", "r-0000000b", "--home", str(home), "--json"]) == 0
    assert "members" not in json.loads(capsys.readouterr().out)


def test_an_ambiguous_beginning_names_no_run(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs that begin alike are not confused."""
    assert run(["client", "status", "r-0000000", "--home", str(home)]) == 2
    assert "fits 2" in capsys.readouterr().err


def test_an_owner_decides_by_a_unique_beginning(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Approve and deny take the ids that status takes, and say nothing that is empty."""
    Domain.create().member(home / "identity", 1)
    (home / "client.toml").write_text("")
    assert run(["client", "deny", "r-0000000", "--home", str(home)]) == 2
    assert "fits 2" in capsys.readouterr().err
    assert run(["client", "deny", "r-0000000a", "--home", str(home)]) == 0
    assert "verdict: denied" in capsys.readouterr().out
    store = open_store(home / STORE_NAME)
    first = store.load_run("r-0000000a")
    assert first is not None
    store.save_run(dataclasses.replace(first, run_id="r-11111111", ended=""))
    store.close()
    assert run(["client", "deny", "r-1", "--home", str(home)]) == 0
    assert run(["client", "status", "r-1", "--home", str(home), "--json"]) == 0
    out = capsys.readouterr().out
    assert "denied" in out
    assert run(["client", "approve", "r-7", "--home", str(home)]) == 2


def test_check_lists_the_problems_of_a_file_one_per_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several mistakes of client.toml are several lines, each with its place."""
    (home / "client.toml").write_text("[policy]\nmin_clients = 0\nmax_epsilon = 1\n")
    assert run(["client", "check", "--home", str(home)]) == 3
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "wrong    configuration: client.toml has 2 problems [E-CONFIG]" in lines
    assert [line.partition(": ")[0] for line in lines if line.startswith("client.toml:")] == [
        "client.toml:3",
        "client.toml:2",
    ]
