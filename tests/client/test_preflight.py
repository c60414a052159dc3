"""`tacit client`: the check, the preparation of data, and the verbs with and without a daemon."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tacit.cli.main import run
from tacit.client.configuration import (
    CHANGED,
    SAMPLE,
    Approval,
    DataSet,
    Policy,
    load_client_config,
)
from tacit.client.isolation import probe
from tacit.client.local import ask_daemon
from tacit.client.preflight import Finding, Grade, check_client
from tacit.client.preparation import PREPARED_NAME, SPLIT_NAME, Preparation, PrepareJob, Report
from tacit.client.renewal import is_due
from tacit.core.errors import DataError, UnavailableError
from tacit.core.fingerprint import fingerprint_of
from tacit.core.members import format_members
from tacit.core.specification import canonical_json
from tacit.core.state import open_state
from tacit.privacy.accounting import SampledGaussian
from tacit.privacy.ledger import LEDGER_NAME, Ledger
from tacit.privacy.ledger_entries import Terms, Unit
from tacit.protos import fleet_pb2
from tests.client.fake_fleet import Domain, FakeFleet, eventually
from tests.client.fakes import RUN, Editable, make_node, make_spec, offer
from tests.privacy.ledgers import charge

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

ROWS = "age,label\n" + "".join(f"{20 + n},{n % 2}\n" for n in range(40))
CONFIG = '[data_sets.default]\npath = "data.csv"\nrecords = 100\n'
RUN_TOML = """
name = "heart"
[data]
classes = ["0", "1"]
[data.columns.age]
type = "number"
range = [0, 100]
[model]
kind = "logistic"
[training]
learning_rate = 0.5
[privacy]
mode = "record-local"
clip = 1.0
epsilon = 1.0
delta = 1e-3
[participation]
rounds = 2
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A client's home with data and configuration, not enrolled."""
    folder = tmp_path / "client"
    folder.mkdir(mode=0o700)
    (folder / "client.toml").write_text(CONFIG)
    (folder / "data.csv").write_text(ROWS)
    return folder


def check(home: Path, **arguments: Any) -> dict[str, Finding]:
    async def collect() -> list[Finding]:
        state = open_state(home, create=False)
        return [finding async for finding in check_client(state, **arguments)]

    return {finding.subject: finding for finding in asyncio.run(collect())}


def job_of(home: Path, **changes: Any) -> PrepareJob:
    data_set = DataSet(path=home / "data.csv", records=100, **changes)
    folder = home / "prepared"
    folder.mkdir(exist_ok=True)
    return PrepareJob(
        specification=canonical_json(make_spec()),
        data_set=data_set,
        folder=folder,
        split_key=bytes(32),
    )


def test_preparation_leaves_data_and_split(home: Path) -> None:
    """A process of its own leaves the two files that a run needs."""
    job = job_of(home)
    assert PrepareJob.parse(job.encode()) == job
    Preparation().prepare(job)
    assert (job.folder / PREPARED_NAME).stat().st_size > 0
    split = json.loads((job.folder / SPLIT_NAME).read_text())
    assert len(split["train"]) + len(split["validation"]) == 40


def test_broken_data_are_named_by_row_never_by_value(home: Path) -> None:
    """A violation comes back from the process with column and row number."""
    (home / "data.csv").write_text(ROWS.replace("27,", "4711,"))
    with pytest.raises(DataError) as caught:
        Preparation().prepare(job_of(home))
    text = " ".join((caught.value.message, *caught.value.problems))
    assert "age" in text
    assert "4711" not in text


def test_subject_column_must_exist(home: Path) -> None:
    """A subject column that the file lacks is said, not ignored."""
    with pytest.raises(DataError) as caught:
        Preparation().prepare(job_of(home, subject="patient"))
    assert caught.value.code == "E-CLEAN-COLUMNS"
    assert any("subject" in problem and "patient" in problem for problem in caught.value.problems)


def test_closed_preparation_starts_nothing(home: Path) -> None:
    """A daemon that is about to stop prepares no more."""
    preparation = Preparation()
    preparation.close()
    with pytest.raises(UnavailableError):
        preparation.prepare(job_of(home))


def test_check_says_what_is_missing_and_what_to_do(home: Path) -> None:
    """Not enrolled, wrong path and a wrong column each have a line and a hint."""
    (home / "run.toml").write_text(RUN_TOML.replace("columns.age", "columns.weight"))
    found = check(home, run=home / "run.toml")
    assert found["certificate"].grade is Grade.WRONG
    assert "tacit client join" in found["certificate"].hint
    assert "weight: missing" in found["contract of run.toml"].text
    (home / "data.csv").unlink()
    assert check(home)["data set default"].grade is Grade.WRONG


def test_check_of_a_good_client_finds_nothing_wrong(home: Path) -> None:
    """Everything that a run needs is looked at, the server included."""
    (home / "run.toml").write_text(RUN_TOML)

    async def scenario() -> list[Finding]:
        async with Domain.create() as domain:
            fleet = FakeFleet(make_spec())
            _, port = await domain.serve(fleet)
            domain.member(home / "identity", port)
            state = open_state(home, create=False)
            findings = check_client(state, run=home / "run.toml", now=time.time)
            return [finding async for finding in findings]

    findings = asyncio.run(scenario())
    assert [f for f in findings if f.grade is Grade.WRONG] == []
    clock = next(f for f in findings if f.subject == "clock")
    assert clock.grade is Grade.WARNING  # the fake server lives in 1970
    assert clock.hint


def test_check_reads_the_pinned_members(home: Path) -> None:
    """How many are pinned, or what is wrong with members.toml and in which line."""
    Domain.create().member(home / "identity", 1)
    assert check(home)["members"].text == "0 pinned beside this node"
    (home / "members.toml").write_text(format_members({"bo": bytes(32)}))
    assert check(home)["members"].text == "1 pinned beside this node"
    (home / "members.toml").write_text('[members.bo]\nkey = "short"\n')
    wrong = check(home)["members"]
    assert wrong.grade is Grade.WRONG
    assert "members.toml:2: members.bo.key" in wrong.text


def test_check_knows_an_ended_certificate(home: Path) -> None:
    """A certificate is judged by the clock that is given."""

    async def scenario() -> None:
        Domain.create().member(home / "identity", 1)

    asyncio.run(scenario())
    later = (dt.datetime.now(dt.UTC) + dt.timedelta(days=30)).timestamp()
    assert "ended" in check(home, now=lambda: later)["certificate"].text
    assert "clock is behind" in check(home, now=lambda: 0.0)["certificate"].hint


def test_certificate_is_renewed_in_its_last_third(home: Path) -> None:
    """Renewal begins early enough for a server that is away for days."""
    identity = Domain.create().member(home / "identity", 1).identity
    life = identity.not_after - identity.not_before
    assert not is_due(identity, identity.not_before + life / 2)
    assert is_due(identity, identity.not_after - life / 4)


def test_check_exits_with_the_code_of_configuration(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Something wrong is exit code 3, for scripts, and JSON has every finding."""
    assert run(["client", "check", "--home", str(home), "--json"]) == 3
    findings = json.loads(capsys.readouterr().out)
    assert {"certificate", "isolation"} <= {finding["subject"] for finding in findings}


def test_status_and_decisions_need_no_daemon(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stopped node shows its status, and says clearly that it knows no such run."""
    membership = Domain.create().member(home / "identity", 1)
    words = fingerprint_of(membership.keys.enrolment_public_key)
    assert run(["client", "status", "--home", str(home), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["connection"]["state"], shown["fingerprint"]) == ("stopped", words)
    assert run(["client", "status", "--home", str(home)]) == 0
    assert f"fingerprint: {words}" in capsys.readouterr().out
    assert run(["client", "approve", RUN, "--home", str(home)]) == 2
    assert "E-RUN-UNKNOWN" in capsys.readouterr().err


def test_join_refuses_what_is_no_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mangled token is said to be one, and nothing is made."""
    home = tmp_path / "new"
    assert run(["client", "join", "tacit1_nonsense", "--home", str(home)]) != 0
    assert "E-TOKEN" in capsys.readouterr().err
    assert not home.exists()


def start_daemon(home: Path, log: Path) -> subprocess.Popen[bytes]:
    code = "from tacit.cli.main import main; main()"
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", code, "client", "start", "--home", str(home)], stderr=output
        )


def test_daemon_decides_answers_its_verbs_and_stops_cleanly(home: Path) -> None:
    """The real process: offers judged with real data, status over the socket, SIGTERM is exit 0."""
    (home / "client.toml").write_text(CONFIG)
    log = home / "daemon.log"

    async def scenario() -> int:
        async with Domain.create() as domain:
            fleet = FakeFleet(make_spec())
            _, port = await domain.serve(fleet)
            domain.member(home / "identity", port)
            state = open_state(home, create=False)
            process = start_daemon(home, log)
            try:
                await fleet.until(lambda: fleet.joins)
                fleet.offer()
                await fleet.until(lambda: fleet.decisions)
                assert fleet.decisions[0].code == "E-APPROVAL-PENDING"
                status = await asyncio.to_thread(ask_daemon, state, "status")
                assert status["connection"]["state"] == "connected"
                assert status["runs"][0]["verdict"] == "pending"
                answer = await asyncio.to_thread(ask_daemon, state, "approve", run_id=RUN)
                assert answer["verdict"] == "approved"
                await fleet.until(lambda: len(fleet.decisions) == 2)
                assert (home / "runs" / RUN / SPLIT_NAME).exists()
                denied = await asyncio.to_thread(ask_daemon, state, "deny", run_id=RUN)
                assert denied["verdict"] == "denied"
                process.send_signal(signal.SIGTERM)
                await eventually(lambda: process.poll() is not None)
            finally:
                process.kill()
                process.wait()
            return process.returncode

    code = asyncio.run(scenario())
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (home / "control.sock").exists()


def test_running_node_says_that_its_configuration_has_changed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status, check and a refused approval all say that client.toml waits for a restart."""
    spec = make_spec(data_set="elsewhere")

    async def scenario() -> None:
        async with Domain.create() as domain:
            fleet = FakeFleet(spec)
            _, port = await domain.serve(fleet)
            domain.member(home / "identity", port)
            process = start_daemon(home, home / "daemon.log")
            try:
                await fleet.until(lambda: fleet.joins)
                fleet.offer()
                await fleet.until(lambda: fleet.decisions)
                arguments = ["client", "status", "--home", str(home)]
                assert await asyncio.to_thread(run, arguments) == 0
                assert CHANGED not in capsys.readouterr().out
                with (home / "client.toml").open("a") as file:
                    file.write("# another word\n")
                for arguments in (["status"], ["check"], ["approve", RUN]):
                    await asyncio.to_thread(run, ["client", *arguments, "--home", str(home)])
                    said = capsys.readouterr()
                    assert CHANGED in said.out + said.err, arguments
            finally:
                process.kill()
                process.wait()

    asyncio.run(scenario())


def test_status_of_a_revoked_node_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A node that stopped because it was revoked is told from one that was stopped."""

    async def scenario() -> None:
        async with Domain.create() as domain:
            fleet = FakeFleet(make_spec())
            _, port = await domain.serve(fleet)
            domain.member(home / "identity", port)
            process = start_daemon(home, home / "daemon.log")
            try:
                await fleet.until(lambda: fleet.joins)
                fleet.send(fleet_pb2.Task(revoked=fleet_pb2.Revoked()))
                await eventually(lambda: process.poll() is not None)
            finally:
                process.kill()
                process.wait()

    asyncio.run(scenario())
    assert run(["client", "status", "--home", str(home)]) == 0
    assert ": revoked" in capsys.readouterr().out
    (home / "identity").rename(home / "old")
    Domain.create().member(home / "identity", 1)
    assert run(["client", "status", "--home", str(home)]) == 0
    assert ": stopped" in capsys.readouterr().out.splitlines()[0]


def test_check_remarks_on_modes_that_are_not_built(home: Path) -> None:
    """A mode that the owner wrote and this version lacks is named; the template has none such."""
    (home / "client.toml").write_text(SAMPLE)
    assert "policy" not in check(home)
    (home / "client.toml").write_text(CONFIG + '[policy]\nmodes = ["central"]\n')
    found = check(home)["policy"]
    assert found.grade is Grade.WARNING
    assert "central" in found.text


@pytest.mark.parametrize(
    ("rows", "config", "grade", "said"),
    [
        (ROWS, CONFIG, Grade.OK, "40 records, 2 columns (age, label)"),
        (ROWS, CONFIG.replace("100", "39"), Grade.WRONG, "40 records"),
        (ROWS, CONFIG + "max_canaries = 60\n", Grade.OK, "at most 40 records, 60 more declared"),
        (ROWS, CONFIG + "max_canaries = 61\n", Grade.WRONG, "at most 39 records, 61 more"),
        ("age,label\n", CONFIG, Grade.WRONG, "0 records"),
        (ROWS + "1,2,3\n", CONFIG, Grade.WRONG, "cannot be read as csv"),
        (ROWS, CONFIG + 'format = "parquet"\n', Grade.WRONG, "cannot be read as parquet"),
        (ROWS, CONFIG + 'subject = "who"\n', Grade.WRONG, "subject"),
        (ROWS, CONFIG + 'format = "npz"\n', Grade.OK, "not read: use --run"),
    ],
)
def test_check_reads_the_data_sets(
    home: Path, rows: str, config: str, grade: Grade, said: str
) -> None:
    """A data set is well only if it was read, and then its columns and records are named."""
    (home / "data.csv").write_text(rows)
    (home / "client.toml").write_text(config)
    found = check(home)["data set default"]
    assert found.grade is grade
    assert said in found.text
    assert found.hint or grade is Grade.OK


def test_check_finds_a_run_whose_unit_is_not_the_owners(home: Path) -> None:
    """A data set with a subject column is told before anybody submits a run per record."""
    (home / "data.csv").write_text(
        "patient,age,label\n" + "".join(f"p{n // 2},{n},{n % 2}\n" for n in range(40))
    )
    (home / "client.toml").write_text(CONFIG + 'subject = "patient"\n')
    (home / "run.toml").write_text(RUN_TOML)
    found = check(home, run=home / "run.toml")
    assert found["verdict on run.toml"].grade is Grade.WRONG
    assert "E-POLICY-SUBJECT" in found["verdict on run.toml"].text
    assert found["contract of run.toml"].grade is Grade.OK


CANARIES = """
[canaries]
twin = false
directions = 20
"""


def test_check_judges_a_run_as_the_node_will(home: Path) -> None:
    """By the policy's rules, not by the contract alone: canaries, and what they need."""
    (home / "run.toml").write_text(RUN_TOML + CANARIES)
    found = check(home, run=home / "run.toml")
    assert found["canaries"].text == "none go into a run (max_canaries = 0)"
    assert "E-POLICY-CANARIES" in found["verdict on run.toml"].text
    (home / "client.toml").write_text(CONFIG + "max_canaries = 20\n")
    found = check(home, run=home / "run.toml")
    assert "20 in default" in found["canaries"].text
    assert "E-CANARIES-RELEASED" in found["verdict on run.toml"].text
    (home / "run.toml").write_text(RUN_TOML)
    assert check(home, run=home / "run.toml")["verdict on run.toml"].grade is Grade.OK


SECURE = """
[secure_aggregation]
members = ["north", "bo", "cy"]
steps_per_round = 3
"""


def test_check_judges_a_secure_run_by_the_pinned_members(home: Path) -> None:
    """Of a run.toml that has not counted its numbers yet: who is not pinned, and what it costs."""
    membership = Domain.create().member(home / "identity", 1)
    name = membership.identity.name
    text = RUN_TOML.replace("record-local", "record-distributed").replace(
        "delta = 1e-3", "delta = 1e-3\nnormaliser = 90"
    )
    text = text.replace("rounds = 2", "rounds = 2\nmin_clients = 3")
    (home / "run.toml").write_text(text + SECURE.replace("north", name))
    policy = '[policy]\nmodes = ["record-distributed"]\nmin_clients = 3\nmax_epsilon_per_run = 1\n'
    (home / "client.toml").write_text(CONFIG + policy)
    keys = {"bo": bytes(32)}
    (home / "members.toml").write_text(format_members(keys))
    found = check(home, run=home / "run.toml")["verdict on run.toml"]
    assert (found.grade, "not pinned here are: cy" in found.text) == (Grade.WRONG, True)
    (home / "members.toml").write_text(format_members(keys | {"cy": bytes(31) + b"\1"}))
    assert check(home, run=home / "run.toml")["verdict on run.toml"].grade is Grade.OK
    (home / "client.toml").write_text(CONFIG + policy.replace("per_run = 1", "per_run = 0.9"))
    assert "E-POLICY-EPSILON" in check(home, run=home / "run.toml")["verdict on run.toml"].text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CONFIG.replace("records = 100", "records = 90"), "E-LEDGER-TERMS"),
        (CONFIG + "budget = 0.5\n", "E-LEDGER-BUDGET"),
    ],
)
def test_check_finds_terms_that_the_ledger_refuses(home: Path, config: str, said: str) -> None:
    """Changed after the account was opened: the ledger's line and the verdict both say so."""
    terms = Terms(data_set="default", delta=1e-3, records=100, unit=Unit.RECORD, budget=3.0)
    with Ledger.open(home / LEDGER_NAME, signer=lambda _: bytes(64), clock=time.time) as ledger:
        ledger.open_data_set(terms)
        spent = SampledGaussian(noise_multiplier=3.0, steps=1)
        ledger.reserve(charge(data_set="default", delta=1e-3, mechanism=spent))
    (home / "run.toml").write_text(RUN_TOML)
    (home / "client.toml").write_text(config)
    found = check(home, run=home / "run.toml")
    assert found["ledger"].grade is Grade.WRONG
    assert "the next charge is refused" in found["ledger"].text
    assert said in found["verdict on run.toml"].text


def test_check_shows_what_cleaning_does_and_warns_of_identifiers(home: Path) -> None:
    """Counts and column names for the owner, with a run's contract and without; no value."""
    (home / "data.csv").write_text(
        "patient,age,label\n" + "".join(f"{71234 + n // 2},{n - 5},{n % 2}\n" for n in range(40))
    )
    (home / "client.toml").write_text(CONFIG + "clean.clip.age = [0, 100]\n")
    (home / "run.toml").write_text(RUN_TOML)
    found = check(home, run=home / "run.toml")
    assert found["contract of run.toml"].grade is Grade.OK
    for subject in ("data set default", "contract of run.toml"):
        assert found[f"cleaning of {subject}"].text == "age: clipped: 5 cells"
        warning = found[f"columns of {subject}"]
        assert warning.grade is Grade.WARNING
        assert 'subject = "patient"' in warning.text
        assert "7123" not in warning.text
    config = CONFIG + 'subject = "patient"\nclean.clip.aeg = [0, 100]\n'
    (home / "client.toml").write_text(config)
    wrong = check(home)["data set default"]
    assert wrong.grade is Grade.WRONG
    assert "clean.clip: unknown column aeg (did you mean age?)" in wrong.text
    (home / "client.toml").write_text(config.replace("aeg", "age"))
    found = check(home)
    assert "columns of data set default" not in found
    assert "40 records, 2 columns (age, label)" in found["data set default"].text


def test_check_finds_code_that_a_confined_worker_cannot_read(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`client check --run` uses the node's own words, before anybody approves."""
    if not probe().available:
        pytest.skip("this machine cannot confine a process")
    source = tmp_path / "source" / "outside_app"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("app = None\n")
    monkeypatch.setattr(sys, "meta_path", [Editable(source), *sys.meta_path])
    app = '[app]\nclient = "outside_app:app"\n[results.train]\narrays = "model"\n'
    rest = '[privacy]\nmode = "none"\n[participation]\nrounds = 2\n'
    (home / "run.toml").write_text(f'name = "own"\n{app}{rest}')
    found = check(home, run=home / "run.toml")["verdict on run.toml"]
    assert found.grade is Grade.WRONG
    assert f"its files are in {source}" in found.text
    rule = f'[policy.apps."outside_app:app"]\nreadable = ["{source}"]\n'
    (home / "client.toml").write_text(CONFIG + rule)
    found = check(home, run=home / "run.toml")["verdict on run.toml"]
    assert "E-APP-UNREADABLE" not in found.text


def test_status_of_a_run_shows_the_report(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cleaning did to a run's records, and the warnings, stand in `client status RUN`."""
    config = load_client_config(home / "client.toml").value
    node, _ = make_node(home, replace(config, policy=Policy(approve=Approval.RULE)))
    offer(node, make_spec())
    Report(cleaning=("3 of 9 records take no part",), warnings=("a column",)).save(
        home / "runs" / RUN
    )
    assert run(["client", "status", RUN, "--home", str(home), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["cleaning"] == ["3 of 9 records take no part"]
    assert value["warnings"] == ["a column"]
