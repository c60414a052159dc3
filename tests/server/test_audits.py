"""Audits at the server: who may ask, about which run, and what a worker makes of the answers."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict

from tacit.audit.report import parse_report
from tacit.core.artifacts import RunFolder, save_arrays, weights_sha256
from tacit.core.configuration import from_plain
from tacit.core.errors import AppError, RefusedError, TacitError, TrustError, UsageError
from tacit.core.identity import MemberIdentity, Role
from tacit.core.results import histogram_name
from tacit.core.specification import (
    AuditSpec,
    RunSpec,
    audit_of,
    audited_run,
    canonical_json,
    specification_sha256,
)
from tacit.protos.codec import encode_records
from tacit.protos.fleet_pb2 import Claim, InstructionHead, LedgerHead, ReplyHead
from tacit.protos.flower import SERVER_NODE_ID, flower_run_id, set_task_identity
from tacit.protos.records_pb2 import AppFailure
from tacit.server.app import run_task
from tacit.server.audits import verify_audit, verify_may_stop, verify_may_submit
from tacit.server.catalogue import NodeVerdict, RunRecord, RunStatus, Verdict, plain_decisions
from tacit.server.manifest import write_decisions, write_members
from tacit.server.services.access import Caller
from tacit.server.strategy_run import RunTask
from tacit.simulation.port import LocalPort

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RUN, AUDIT = "r-00000001", "r-00000002"
MODEL = {"weight": np.ones((2, 1), np.float32), "bias": np.zeros(2, np.float32)}
NAMES = {1: "ada", 2: "bob", 3: "cay"}
TRAINED = from_plain(
    {
        "name": "test",
        "data": {"classes": ["a", "b"], "columns": {"x": {"type": "number", "range": [0.0, 1.0]}}},
        "model": {"kind": "logistic"},
        "training": {"learning_rate": 1.0},
        "privacy": {"mode": "record-local", "clip": 1.0, "epsilon": 1.0, "delta": 1e-4},
        "participation": {"rounds": 5},
    },
    RunSpec,
)


def audit_spec(**terms: Any) -> RunSpec:
    values: dict[str, Any] = {
        "run": RUN,
        "model_sha256": weights_sha256(MODEL),
        "rounds": 5,
        "owners": 3,
        "probes": ("loss",),
        "bins": 4,
        "epsilon": 1.0,
        "delta": 1e-4,
    }
    return audit_of(TRAINED, AuditSpec(**(values | terms)), min_clients=2, round_deadline_s=60.0)


@dataclasses.dataclass
class Owner:
    """A node that answers an audit with the same counts, or a code."""

    counts: list[float] | None = None
    code: str = ""
    asked: int = 0

    def answer(self, head: InstructionHead, payload: memoryview) -> tuple[ReplyHead, memoryview]:
        assert (head.message_type, len(payload)) == ("query", 16)
        self.asked += 1
        reply = ReplyHead(run_id=head.run_id, message_id=head.message_id)
        if self.counts is None:
            reply.failure.CopyFrom(AppFailure(code=2, reason=self.code))
            return reply, memoryview(b"")
        metrics = MetricRecord({histogram_name("loss"): self.counts})
        reply.manifest.CopyFrom(encode_records(RecordDict({"metrics": metrics})).manifest)
        ledger = LedgerHead(ledger_id=bytes(32), entries=7, sha256=bytes(32))
        claim = Claim(
            unit="record",
            relation="add/remove",
            side="whole",
            epsilon=1.0,
            delta=1e-4,
            ledger=ledger,
        )
        reply.claim.CopyFrom(claim)
        return reply, memoryview(b"")


class Dying(LocalPort):
    """A port whose daemon dies the first time that the audit says it is done."""

    def checkpoint(self, *, round_number: int, next_sequence: int, name: str) -> None:
        if round_number and not self.resume_from.startswith("!"):
            self.resume_from = "!"
            raise ConnectionError
        super().checkpoint(round_number=round_number, next_sequence=next_sequence, name=name)


def leaking(scale: float = 1.0) -> list[float]:
    """Two hundred members of the highest scores, a hundred others of the lowest."""
    return [scale * n for n in (0.0, 0.0, 0.0, 200.0, 100.0, 0.0, 0.0, 0.0)]


def task_in(folder: Path, spec: RunSpec) -> RunTask:
    made = RunFolder(folder).create()
    save_arrays(made.initial, MODEL)
    write_members(made, NAMES, {})
    write_decisions(
        made,
        plain_decisions(
            {3: NodeVerdict(node_id=3, verdict=Verdict.DENIED, code="E-POLICY-AUDIT")}, NAMES
        ),
    )
    set_task_identity(run_id=flower_run_id(AUDIT), node_id=SERVER_NODE_ID)
    return RunTask(
        run_id=AUDIT,
        specification=spec,
        specification_sha256=specification_sha256(canonical_json(spec)),
        folder=made,
        durable=False,
    )


def play(folder: Path, owners: Mapping[int, Owner], spec: RunSpec | None = None) -> dict[str, Any]:
    task = task_in(folder, spec or audit_spec())
    run_task(task, LocalPort(owners, lambda *_: None))
    return parse_report(task.folder.report.read_bytes())


def test_answers_are_added_and_listed(tmp_path: Path) -> None:
    """Two owners' counts are one histogram; the report says who sent what, and who did not."""
    report = play(tmp_path / "run", {1: Owner(leaking()), 2: Owner(leaking(0.5))})
    (probe,) = report["probes"]
    assert (probe["members"], probe["non_members"]) == (300, 150)
    assert report["outcome"] == "evidence"
    told = report["federation"]
    assert [(each["member"], each["bytes"], each["epsilon"]) for each in told["sent"]] == [
        ("ada", 64, 1.0),
        ("bob", 64, 1.0),
    ]
    assert told["sent"][0]["lists"] == [{"name": "histogram-loss", "length": 8}]
    assert told["not_merged"] == [{"member": "cay", "why": "denied", "code": "E-POLICY-AUDIT"}]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_bytes())
    assert (manifest["status"], manifest["model_sha256"]) == ("finished", None)


def test_the_noise_of_every_owner_is_counted(tmp_path: Path) -> None:
    """Two owners' noise is sqrt(2) of one's, and widens the interval beyond exact counts'."""
    noised = play(tmp_path / "noised", {1: Owner(leaking()), 2: Owner(leaking())})
    exact = play(
        tmp_path / "exact",
        {1: Owner(leaking()), 2: Owner(leaking())},
        audit_spec(epsilon=0.0, delta=None),
    )
    deviation = noised["federation"]["noise_per_owner"]
    assert deviation > 1.0
    assert f"{deviation * 2**0.5:.3g}" in noised["probes"][0]["notes"][0]
    assert exact["federation"]["noise_per_owner"] == 0.0
    assert (exact["federation"]["epsilon"], exact["scope"]["is_noised"]) == (None, False)
    lows = [report["probes"][0]["auc"]["area"]["low"] for report in (noised, exact)]
    assert lows[0] < lows[1]


def test_an_owner_who_fails_is_named_and_not_merged(tmp_path: Path) -> None:
    """What the others sent is merged as long as there are enough of them."""
    owners = {1: Owner(leaking()), 2: Owner(leaking()), 3: Owner(code="E-APP-RAISED")}
    report = play(tmp_path / "run", owners)
    assert {"member": "cay", "why": "failed", "code": "E-APP-RAISED"} in (
        report["federation"]["not_merged"]
    )
    assert len(report["federation"]["sent"]) == 2


@pytest.mark.parametrize("second", [Owner(code="E-APP-RAISED"), Owner([1.0])])
def test_too_few_answers_are_merged_into_nothing(tmp_path: Path, second: Owner) -> None:
    """One owner's counts alone are shown to nobody; a list of another length is no answer."""
    task = task_in(tmp_path / "run", audit_spec())
    with pytest.raises(AppError, match="1 of 2 owners answered, 2 are needed"):
        run_task(task, LocalPort({1: Owner(leaking()), 2: second}, lambda *_: None))
    assert not task.folder.report.exists()


def test_a_worker_that_dies_asks_nobody_twice(tmp_path: Path) -> None:
    """Started again from its first checkpoint, it is answered by the journal: the same bytes."""
    owners = {1: Owner(leaking()), 2: Owner(leaking())}
    task = task_in(tmp_path / "run", audit_spec())
    port = Dying(owners, lambda *_: None)
    with pytest.raises(ConnectionError):
        run_task(task, port)
    first = task.folder.report.read_bytes()
    task.folder.report.unlink()
    run_task(dataclasses.replace(task, checkpoint="000000.safetensors"), port)
    assert task.folder.report.read_bytes() == first
    assert [owner.asked for owner in owners.values()] == [1, 1]


def test_a_worker_that_dies_after_its_last_checkpoint_is_done(tmp_path: Path) -> None:
    """The report stands, and nobody is asked."""
    owners = {1: Owner(leaking()), 2: Owner(leaking())}
    task = task_in(tmp_path / "run", audit_spec())
    port = LocalPort(owners, lambda *_: None)
    run_task(task, port)
    run_task(dataclasses.replace(task, checkpoint=port.resume_from), port)
    assert [owner.asked for owner in owners.values()] == [1, 1]
    assert json.loads(task.folder.manifest.read_bytes())["status"] == "finished"


def caller(role: Role, name: str = "ann") -> Caller:
    identity = MemberIdentity.__new__(MemberIdentity)
    object.__setattr__(identity, "role", role)
    return Caller(name=name, identity=identity)


def record(spec: RunSpec, status: RunStatus = RunStatus.FINISHED, by: str = "ann") -> RunRecord:
    canonical = canonical_json(spec)
    return RunRecord(
        run_id=RUN,
        name=spec.name,
        status=status,
        round=1,
        rounds=1,
        submitted_at_s=0.0,
        started_at_s=0.0,
        ended_at_s=0.0,
        submitted_by=by,
        reason="",
        specification=canonical,
        specification_sha256=specification_sha256(canonical),
    )


def test_an_auditor_submits_and_stops_own_audits_alone() -> None:
    """Operators and the administrator may do both with every run."""
    auditor, operator = caller(Role.AUDITOR), caller(Role.OPERATOR)
    verify_may_submit(auditor, audit_spec())
    verify_may_submit(operator, TRAINED)
    verify_may_stop(auditor, record(audit_spec()))
    verify_may_stop(operator, record(TRAINED, by="someone"))
    verify_may_stop(Caller(name="administrator"), record(TRAINED, by="someone"))
    for refused in (record(TRAINED), record(audit_spec(), by="someone")):
        with pytest.raises(TrustError, match="E-ROLE-REFUSED"):
            verify_may_stop(auditor, refused)
    with pytest.raises(TrustError, match="E-ROLE-REFUSED"):
        verify_may_submit(auditor, TRAINED)


@pytest.mark.parametrize(
    ("changed", "brought", "status", "code"),
    [
        ({}, MODEL, RunStatus.RUNNING, "E-AUDIT-RUN"),
        ({"rounds": 4}, MODEL, RunStatus.FINISHED, "E-AUDIT-RUN"),
        ({}, {"weight": MODEL["weight"] + 1}, RunStatus.FINISHED, "E-AUDIT-MODEL"),
        ({"model_sha256": "0" * 64}, MODEL, RunStatus.FINISHED, "E-AUDIT-MODEL"),
    ],
)
def test_an_audit_of_something_else_is_refused(
    tmp_path: Path,
    changed: dict[str, Any],
    brought: dict[str, np.ndarray],
    status: RunStatus,
    code: str,
) -> None:
    """A run that goes on, another recipe, weights of the auditor's own making, another hash."""
    folder, run_folder = RunFolder(tmp_path / "audit").create(), RunFolder(tmp_path / "r").create()
    save_arrays(folder.initial, brought)
    save_arrays(run_folder.model, MODEL)
    with pytest.raises(TacitError) as caught:
        verify_audit(audit_spec(**changed), folder, record(TRAINED, status), run_folder)
    assert caught.value.code == code
    assert isinstance(caught.value, (RefusedError, UsageError))


def test_an_audit_of_an_audit_names_the_run(tmp_path: Path) -> None:
    """Who named the audit learns which run it is of."""
    folder = RunFolder(tmp_path / "audit").create()
    with pytest.raises(UsageError, match="E-AUDIT-RUN") as caught:
        verify_audit(audit_spec(), folder, record(audit_spec()), folder)
    assert f"an audit of {RUN}" in caught.value.message


def test_the_audit_of_a_run_is_admitted(tmp_path: Path) -> None:
    """What it describes is the run's recipe, to the last value, and its weights are the run's."""
    folder, run_folder = RunFolder(tmp_path / "audit").create(), RunFolder(tmp_path / "r").create()
    save_arrays(folder.initial, MODEL)
    save_arrays(run_folder.model, MODEL)
    verify_audit(audit_spec(), folder, record(TRAINED), run_folder)
    described = audited_run(audit_spec())
    assert (described.training, described.participation.rounds) == (TRAINED.training, 5)
    verify_audit(TRAINED, folder, record(TRAINED), run_folder)
