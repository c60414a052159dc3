"""An audit over four real nodes by an auditor who has no data: asked, merged, charged, listed."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tacit.audit.report import read_report
from tacit.core.artifacts import save_arrays
from tacit.core.configuration import load_config
from tacit.core.specification import RunSpec
from tacit.learning.models import initial_arrays
from tacit.simulation.demo import HOSPITALS
from tacit.simulation.owners import heart_folder
from tests.end_to_end.federation import Federation, federation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.end_to_end.federation import Done

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UNWILLING = "switzerland"
ALLOWED = "[policy.audit]\nallow = true\nepsilon_for_results = 20\n"
PROBES = ("loss", "modified-entropy", "gradient-norm-all")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, str]]:
    """Four hospitals, of which one answers no audits, and their finished run."""
    with federation(tmp_path_factory.mktemp("audit")) as made:
        for owner, records in HOSPITALS.items():
            path = made.root / f"{owner}.csv"
            shutil.copy(heart_folder() / path.name, path)
            declared = f'[data_sets.heart]\npath = "{path}"\nrecords = {records}\n'
            policy = "[policy.audit]\nallow = false\n" if owner == UNWILLING else ALLOWED
            made.add_clients(owner, data=declared, policy=policy)
        run = load_config(heart_folder() / "run.toml", RunSpec).value
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


def charges(made: Federation, owner: str, run_id: str) -> list[dict[str, Any]]:
    shown = made.tacit("ledger", "show", "--home", made.root / owner, "--json").json
    reserved = [e["body"]["charge"] for e in shown["entries"] if e["kind"] == "reserve"]
    return [charge for charge in reserved if charge["run"] == run_id]


def test_an_audit_ends_in_one_merged_report(played: tuple[Federation, str]) -> None:
    """It names what left each owner and who said no; each owner's own report stays there."""
    made, run_id = played
    willing = sorted(set(HOSPITALS) - {UNWILLING})
    done = auditor(made, "audit", "run", run_id, "--min-owners", "3", "--out", "merged", "--json")
    assert done.code == 0, done.err
    assert f"{UNWILLING}: denied E-POLICY-AUDIT" in done.err
    report = read_report(made.root / "merged")
    assert report == done.json
    told = report["federation"]
    assert told["run"] == run_id
    assert told["not_merged"] == [{"member": UNWILLING, "why": "denied", "code": "E-POLICY-AUDIT"}]
    lists = [{"name": f"histogram-{probe}", "length": 16} for probe in PROBES]
    sent = {each["member"]: each for each in told["sent"]}
    assert sorted(sent) == willing
    for owner, each in sent.items():
        assert (each["lists"], each["bytes"], each["unit"]) == (lists, 3 * 16 * 8, "record")
        assert each["epsilon"] == pytest.approx(1.0, rel=1e-3)
        (charge,) = charges(made, owner, told["audit_run"])
        assert (charge["purpose"], charge["side"]) == ("audit", "whole")
        assert charge["clip"] == pytest.approx(3**0.5)
        folder = made.root / owner / "runs" / told["audit_run"]
        own = read_report(folder)
        assert own["scope"]["records"] == "one owner's, at their node"
        assert {probe["probe"] for probe in own["probes"]} > {"loss", "lira-online"}
        assert (folder / "report.txt").read_text().startswith(own["line"][:20])
    assert report["scope"]["is_merged"] is True
    assert report["outcome"] != "evidence"
    assert charges(made, UNWILLING, told["audit_run"]) == []

    shown = auditor(made, "audit", "show", run_id)
    assert shown.code == 0, shown.err
    assert f"not merged: {UNWILLING}: denied E-POLICY-AUDIT" in shown.out
    assert "What left each owner:" in shown.out
    pulled = auditor(made, "run", "pull", told["audit_run"], "--out", "pulled-audit")
    assert pulled.code == 0, pulled.err
    assert json.loads((made.root / "pulled-audit" / "report.json").read_bytes()) == report


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
    """Who was trained on can be told only of the data set as it was."""
    made, run_id = played
    path = made.root / "cleveland.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    asked = auditor(made, "audit", "run", run_id, "--epsilon", "0.5", "--detach", "--json")
    audit_id = asked.json["run_id"]
    code = "E-AUDIT-RECORDS-CHANGED"
    made.wait_for_event(audit_id, "node_decided", member="cleveland", verdict="denied", code=code)
    made.wait_for_event(audit_id, "run_finished")


def test_an_auditor_submits_audits_alone(played: tuple[Federation, str]) -> None:
    """A training run of theirs is refused, and so is stopping what others began."""
    made, run_id = played
    refused = auditor(made, "run", "submit", str(heart_folder() / "run.toml"))
    refused.refuses(5, "E-ROLE-REFUSED")
    auditor(made, "run", "stop", run_id).refuses(5, "E-ROLE-REFUSED")
