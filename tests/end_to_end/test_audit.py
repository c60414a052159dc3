"""An audit over four real nodes by an auditor who has no data: asked, merged, charged, listed."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tacit.audit.report import read_report
from tacit.core.artifacts import save_arrays
from tacit.core.configuration import load_config
from tacit.core.specification import RunSpec
from tacit.learning.models import initial_arrays
from tacit.simulation.demo import HOSPITALS
from tacit.simulation.owners import heart_folder
from tests.end_to_end.federation import TACIT, Federation, federation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.end_to_end.federation import Done

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UNWILLING, SLOW = "switzerland", "va"
ALLOWED = "[policy.audit]\nallow = true\nepsilon_for_results = 20\n"
PROBES = ("loss", "modified-entropy", "gradient-norm-all")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, str]]:
    """Four hospitals, of which one answers no audits and one asks a person, and their run."""
    with federation(tmp_path_factory.mktemp("audit")) as made:
        for owner, records in HOSPITALS.items():
            path = made.root / f"{owner}.csv"
            shutil.copy(heart_folder() / path.name, path)
            declared = f'[data_sets.heart]\npath = "{path}"\nrecords = {records}\n'
            policy = "[policy.audit]\nallow = false\n" if owner == UNWILLING else ALLOWED
            home = made.join(owner, data=declared, policy=policy)
            if owner == SLOW:
                config = home / "client.toml"
                config.write_text(config.read_text().replace('"rule"', '"ask"'))
            made.start_client(owner)
        run = load_config(heart_folder() / "run.toml", RunSpec).value
        initial = made.root / "initial.safetensors"
        save_arrays(initial, initial_arrays(run))
        run_id = made.submit(run, initial)
        approve(made, run_id)
        made.finish(run_id)
        token = made.token("ann", "auditor")
        (made.root / "auditor").mkdir(mode=0o700)
        assert auditor(made, "login", token, "--profile", "ann").code == 0
        yield made, run_id


def environment(made: Federation) -> dict[str, str]:
    """The auditor's: their folder holds a certificate and nothing else."""
    return {"TACIT_OPERATOR_HOME": str(made.root / "auditor")}


def auditor(made: Federation, *arguments: str) -> Done:
    """Run a command as the auditor, to its end."""
    return made.tacit(*arguments, environment=environment(made), timeout_s=300.0)


@contextlib.contextmanager
def asking(made: Federation, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `tacit audit run` as the auditor; give the process and the audit's id."""
    process = subprocess.Popen(
        [str(TACIT), "audit", "run", *arguments],
        cwd=made.root,
        env={**made.environment, **environment(made)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        found = re.search(r"r-[0-9a-f]{8}", first)
        assert found, first
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def shortened(path: Path) -> Iterator[None]:
    """Leave the last record out of a file for a while."""
    whole = path.read_bytes()
    path.write_bytes(b"\n".join(whole.splitlines()[:-1]) + b"\n")
    try:
        yield
    finally:
        path.write_bytes(whole)


def approve(made: Federation, run_id: str) -> None:
    """Say yes where a person is asked."""
    made.wait_for_event(run_id, "node_decided", member=SLOW, verdict="pending")
    assert made.tacit("client", "approve", run_id, "--home", made.root / SLOW).code == 0


def charges(made: Federation, owner: str, run_id: str) -> list[dict[str, Any]]:
    shown = made.tacit("ledger", "show", "--home", made.root / owner, "--json").json
    reserved = [e["body"]["charge"] for e in shown["entries"] if e["kind"] == "reserve"]
    return [charge for charge in reserved if charge["run"] == run_id]


def test_an_audit_ends_in_one_merged_report(played: tuple[Federation, str]) -> None:
    """It waits for who is undecided, outlives Ctrl-C, and names what left whom, and who said no."""
    made, run_id = played
    with asking(made, run_id) as (process, audit_id):
        for owner in ("cleveland", "hungarian"):
            made.wait_for_event(audit_id, "node_decided", member=owner, verdict="approved")
        made.wait_for_event(audit_id, "node_decided", member=SLOW, verdict="pending")
        shown = auditor(made, "run", "show", audit_id, "--json").json
        assert (shown["status"], shown["submitted_by"]) == ("waiting", "ann")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"tacit audit show {audit_id}" in told
    approve(made, audit_id)
    made.wait_for_event(audit_id, "run_finished")
    done = auditor(made, "audit", "show", run_id, "--json")
    assert done.code == 0, done.err
    verify_merged(made, done.json, run_id, audit_id)
    kept = made.root / "audits" / audit_id
    assert read_report(kept) == done.json
    assert (kept / "roc.svg").exists() == bool(done.json["probes"])
    again = auditor(made, "audit", "run", audit_id)
    again.refuses(2, "E-AUDIT-RUN")
    assert f"got {audit_id}, which is an audit of {run_id}" in again.err

    shown = auditor(made, "audit", "show", audit_id)
    assert f"not merged: {UNWILLING}: denied E-POLICY-AUDIT" in shown.out
    assert "What left each owner:" in shown.out
    pulled = auditor(made, "run", "pull", audit_id, "--out", "pulled-audit")
    assert pulled.code == 0, pulled.err
    assert {**read_report(made.root / "pulled-audit"), "claims": done.json["claims"]} == done.json


def verify_merged(made: Federation, report: dict[str, Any], run_id: str, audit_id: str) -> None:
    assert report["scope"]["is_merged"] is True
    assert report["outcome"] != "evidence"
    assert [each["member"] for each in report["claims"]] == sorted(HOSPITALS)
    assert {each["unit"] for each in report["claims"]} == {"record"}
    assert all(each["epsilon"] > 0 for each in report["claims"])
    told = report["federation"]
    assert (told["run"], told["audit_run"]) == (run_id, audit_id)
    assert told["not_merged"] == [{"member": UNWILLING, "why": "denied", "code": "E-POLICY-AUDIT"}]
    assert charges(made, UNWILLING, audit_id) == []
    sent = {each["member"]: each for each in told["sent"]}
    assert sorted(sent) == sorted(set(HOSPITALS) - {UNWILLING})
    lists = [{"name": f"histogram-{probe}", "length": 32} for probe in PROBES]
    for owner, each in sent.items():
        assert (each["lists"], each["bytes"], each["unit"]) == (lists, 3 * 32 * 8, "record")
        assert each["epsilon"] == pytest.approx(1.0, rel=1e-3)
        (charge,) = charges(made, owner, audit_id)
        assert (charge["purpose"], charge["side"]) == ("audit", "whole")
        assert charge["clip"] == pytest.approx(3**0.5)
        folder = made.root / owner / "runs" / audit_id
        own = read_report(folder)
        assert own["scope"]["records"] == "one owner's, at their node"
        assert {probe["probe"] for probe in own["probes"]} > {"loss", "lira-online"}
        home = ("--home", made.root / owner)
        seen = made.tacit("client", "status", audit_id, *home, "--json").json
        assert seen["own_findings"][0] == own["line"]
        assert "\n".join(seen["own_findings"]).count("would have been seen") <= 1
        audited = own["audited"]
        if audited["members"] < audited["given_members"]:
            assert seen["own_findings"][1].startswith(f"Of {audited['given_members']} members and")


def test_an_audit_beyond_the_budget_is_denied(played: tuple[Federation, str]) -> None:
    """Each ledger says no before anything is asked, and the auditor may stop what they asked."""
    made, run_id = played
    asked = auditor(made, "audit", "run", run_id, "--epsilon", "15", "--detach")
    assert asked.code == 0, asked.err
    audit_id = asked.out.strip()
    for owner in set(HOSPITALS) - {UNWILLING}:
        made.wait_for_event(audit_id, "node_decided", member=owner, code="E-LEDGER-BUDGET")
        assert charges(made, owner, audit_id) == []
    stopped = auditor(made, "run", "stop", audit_id)
    assert stopped.code == 0, stopped.err


def test_records_that_changed_are_not_audited(played: tuple[Federation, str]) -> None:
    """Who was trained on can be told only of the data set as it was; the others are merged."""
    made, run_id = played
    options = ("--epsilon", "0.5", "--probe", "loss", "--out", "merged", "--json")
    with shortened(made.root / "cleveland.csv"), asking(made, run_id, *options) as asked:
        process, audit_id = asked
        approve(made, audit_id)
        out, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    report = json.loads(out)
    assert report == read_report(made.root / "merged")
    assert [each["member"] for each in report["federation"]["sent"]] != []
    named = {each["member"]: each["code"] for each in report["federation"]["not_merged"]}
    assert named == {"cleveland": "E-AUDIT-RECORDS-CHANGED", UNWILLING: "E-POLICY-AUDIT"}
    assert "cleveland: denied E-AUDIT-RECORDS-CHANGED" in told
    assert {probe["probe"] for probe in report["probes"]} <= {"loss"}


def test_an_auditor_submits_audits_alone(played: tuple[Federation, str]) -> None:
    """A training run of theirs is refused, and so is stopping what others began."""
    made, run_id = played
    refused = auditor(made, "run", "submit", str(heart_folder() / "run.toml"))
    refused.refuses(5, "E-ROLE-REFUSED")
    auditor(made, "run", "stop", run_id).refuses(5, "E-ROLE-REFUSED")
