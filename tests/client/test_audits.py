"""An audit at the node: who is asked, of which records, at what price, and what must not leave."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from tacit.attacks import app as audit_app
from tacit.client.approvals import AUDIT_APP, Verdict
from tacit.client.audits import REPORT_FOLDER, REPORT_NAMES, keep_report
from tacit.client.configuration import AuditPolicy
from tacit.client.preparation import PREPARED_NAME, SPLIT_NAME
from tacit.core.artifacts import sha256_app_files, weights_sha256
from tacit.core.results import histogram_name
from tacit.core.specification import (
    AuditSpec,
    PrivacyMode,
    RunSpec,
    audit_of,
    canonical_json,
    specification_sha256,
)
from tacit.privacy.audit_plan import audit_release
from tacit.privacy.ledger_entries import Expose, Purpose, Side, Unit
from tacit.protos import fleet_pb2, records_pb2
from tests.client.fakes import (
    MODEL,
    RUN,
    instruction,
    make_config,
    make_node,
    make_spec,
    offer,
    open_ledger,
    open_mode,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.configuration import ClientConfig
    from tacit.client.node import Node
    from tacit.client.preparation import PrepareJob
    from tacit.protos import pipe_pb2
    from tests.client.fakes import FakeRunner, Reply

AUDIT = "r-00000002"
SPLIT = {"rule": "r", "seed": 0, "fraction": 0.2, "train": ["a", "b"], "validation": ["c"]}
ALLOWED = AuditPolicy(allow=True)


def audit_spec(audited: RunSpec, **terms: Any) -> RunSpec:
    """An audit of a run, noised unless it says otherwise."""
    values: dict[str, Any] = {
        "run": RUN,
        "model_sha256": weights_sha256(MODEL),
        "rounds": audited.participation.rounds,
        "owners": 2,
        "bins": 4,
        "epsilon": 1.0,
        "delta": 1e-3,
    }
    audit = AuditSpec(**(values | terms))
    return audit_of(audited, audit, min_clients=2, round_deadline_s=60.0)


def config_of(folder: Path, audit: AuditPolicy = ALLOWED, *, budget: float = 10.0) -> ClientConfig:
    config = make_config(folder, modes=(PrivacyMode.NONE, PrivacyMode.RECORD_LOCAL), audit=audit)
    data_set = dataclasses.replace(config.data_sets["default"], budget=budget)
    return dataclasses.replace(config, data_sets={"default": data_set})


def reply_of(call: pipe_pb2.WorkerCall) -> Reply:
    """A model for a training, four bins a side for each probe of an audit."""
    manifest = records_pb2.Manifest()
    if call.instruction.message_type == "train":
        from tests.client.fakes import manifest_of  # noqa: PLC0415 - reads better beside its use

        return manifest_of(MODEL, {"num-examples": 1})
    record = manifest.records.add(key="metrics", kind=records_pb2.Record.METRICS)
    for probe in ("loss", "modified-entropy", "gradient-norm-all"):
        item = record.items.add(key=histogram_name(probe))
        item.reals.values.extend([1.5] * 8)
    return manifest, b""


def trained_node(
    folder: Path, run: RunSpec, config: ClientConfig, *, split: dict[str, Any] | None = None
) -> tuple[Node, FakeRunner]:
    """A node that has answered a training message of the run."""

    def prepare(job: PrepareJob) -> None:
        (job.folder / PREPARED_NAME).write_bytes(b"")
        note = SPLIT if split is None or job.folder.name == RUN else split
        (job.folder / SPLIT_NAME).write_text(json.dumps(note))

    node, runner = make_node(folder, config, reply_of, prepare=prepare)
    assert offer(node, run).verdict is Verdict.APPROVED
    node.answer(*instruction(run))
    return node, runner


def offer_audit(node: Node, spec: RunSpec) -> Any:
    canonical = canonical_json(spec)
    return node.offer(AUDIT, canonical, specification_sha256(canonical))


def ask(
    node: Node, spec: RunSpec, number: int = 1, **changes: Any
) -> tuple[fleet_pb2.ReplyHead, Any]:
    head, payload = instruction(spec, number, **({"message_type": "query"} | changes))
    head.run_id, head.message_id = AUDIT, f"{AUDIT}.{number:06d}"
    entry = node.answer(head, payload)
    return fleet_pb2.ReplyHead.FromString(entry.head), entry


def test_the_audit_app_is_covered_by_its_own_files() -> None:
    """An approval of an audit covers the attacks as well, and the names agree on both sides."""
    assert sha256_app_files("tacit.attacks.app") != sha256_app_files("tacit.learning.app")
    assert f"{audit_app.__name__}:app" == AUDIT_APP
    assert audit_app.REPORT_FOLDER == REPORT_FOLDER
    assert (audit_app.REPORT_NAME, audit_app.TEXT_NAME) == REPORT_NAMES


def test_audits_are_denied_unless_the_owner_allows_them(tmp_path: Path) -> None:
    """The default policy answers nobody, and says which key would."""
    run = make_spec()
    node, _ = trained_node(tmp_path, run, config_of(tmp_path, AuditPolicy()))
    said = offer_audit(node, audit_spec(run))
    assert (said.verdict, said.code) == (Verdict.DENIED, "E-POLICY-AUDIT")
    assert "[policy.audit]" in said.reason


@pytest.mark.parametrize(
    ("policy", "terms", "code"),
    [
        (AuditPolicy(allow=True, min_members=3), {}, "E-POLICY-COHORT"),
        (AuditPolicy(allow=True, epsilon_for_results=0.5), {}, "E-POLICY-AUDIT-EPSILON"),
        (ALLOWED, {"epsilon": 0.0, "delta": None}, "E-POLICY-AUDIT-EXACT"),
        (ALLOWED, {"delta": 1e-2}, "E-LEDGER-DELTA"),
        (ALLOWED, {"rounds": 5}, "E-AUDIT-NOT-A-MEMBER"),
        (ALLOWED, {"run": "r-00000009"}, "E-AUDIT-NOT-A-MEMBER"),
    ],
)
def test_terms_that_the_owner_did_not_allow(
    tmp_path: Path, policy: AuditPolicy, terms: dict[str, Any], code: str
) -> None:
    """Too few owners, too much epsilon, no noise, another delta, a run that was another."""
    run = make_spec()
    node, _ = trained_node(tmp_path, run, config_of(tmp_path, policy))
    said = offer_audit(node, audit_spec(run, **terms))
    assert (said.verdict, said.code) == (Verdict.DENIED, code)


def test_a_node_that_sent_no_update_has_no_members(tmp_path: Path) -> None:
    """An approved run of which nothing left this node says nothing of its records."""
    run = make_spec()
    node, _ = make_node(tmp_path, config_of(tmp_path))
    offer(node, run)
    assert offer_audit(node, audit_spec(run)).code == "E-AUDIT-NOT-A-MEMBER"


def test_records_that_changed_since_are_refused(tmp_path: Path) -> None:
    """A split that comes out otherwise would call members what never were."""
    run = make_spec()
    changed = SPLIT | {"train": ["a", "x"]}
    node, _ = trained_node(tmp_path, run, config_of(tmp_path), split=changed)
    said = offer_audit(node, audit_spec(run))
    assert (said.verdict, said.code) == (Verdict.DENIED, "E-AUDIT-RECORDS-CHANGED")
    assert not (tmp_path / "runs" / AUDIT / PREPARED_NAME).exists()


def test_an_audit_is_one_charge_for_every_record(tmp_path: Path) -> None:
    """Its histograms are one release of the whole data set, whose epsilon is that of the audit."""
    run = make_spec()
    node, runner = trained_node(tmp_path, run, config_of(tmp_path))
    spec = audit_spec(run)
    assert offer_audit(node, spec).verdict is Verdict.APPROVED
    reply, _ = ask(node, spec)
    assert runner.calls[-1].noise_key
    assert (reply.claim.side, reply.claim.epsilon) == ("whole", pytest.approx(1.0, rel=1e-3))
    charge = open_ledger(tmp_path).account("default").charges[-1].charge
    assert spec.audit is not None
    release = audit_release(spec.audit)
    assert (charge.purpose, charge.side, charge.unit) == (Purpose.AUDIT, Side.WHOLE, Unit.RECORD)
    assert (charge.clip, charge.noise_deviation) == (release.query.clip, release.noise_deviation)
    by_side = open_ledger(tmp_path).account("default").epsilon_by_side
    assert set(by_side) == {"train", "validation"}
    assert by_side["validation"] == pytest.approx(1.0, rel=1e-3)
    assert by_side["train"] > by_side["validation"]


def test_a_budget_without_room_says_no_before_anything_is_asked(tmp_path: Path) -> None:
    """What training has left is what an audit may cost."""
    run = make_spec()
    node, runner = trained_node(tmp_path, run, config_of(tmp_path, budget=1.2))
    asked = len(runner.calls)
    assert offer_audit(node, audit_spec(run)).code == "E-LEDGER-BUDGET"
    assert len(runner.calls) == asked


def test_exact_counts_of_an_open_run_are_entered_as_such(tmp_path: Path) -> None:
    """Where the owner allows them, they cost no epsilon and are in the ledger by name."""
    run = make_spec(privacy=open_mode())
    allowed = AuditPolicy(allow=True, allow_exact=True)
    node, _ = trained_node(tmp_path, run, config_of(tmp_path, allowed))
    spec = audit_spec(run, epsilon=0.0, delta=None)
    assert offer_audit(node, spec).verdict is Verdict.APPROVED
    reply, _ = ask(node, spec)
    assert reply.HasField("manifest")
    assert not reply.HasField("claim")
    exposed = [e.body for e in open_ledger(tmp_path).entries() if isinstance(e.body, Expose)]
    assert [(each.run, each.reason) for each in exposed][-1] == (AUDIT, "exact audit")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": {name: array + 1 for name, array in MODEL.items()}}, "E-AUDIT-MODEL"),
        ({"message_type": "train"}, "E-REPLY-UNDECLARED"),
        ({"message_type": "query.again"}, "E-REPLY-UNDECLARED"),
        ({"message_type": "evaluate"}, "E-REPLY-UNDECLARED"),
    ],
)
def test_only_what_was_approved_is_answered(
    tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    """Other weights than the audit names could ask anything; and an audit trains nothing."""
    run = make_spec()
    node, runner = trained_node(tmp_path, run, config_of(tmp_path))
    spec = audit_spec(run)
    offer_audit(node, spec)
    asked = len(runner.calls)
    reply, _ = ask(node, spec, **changes)
    assert (reply.failure.reason, len(runner.calls)) == (code, asked)


def test_an_audit_is_answered_once(tmp_path: Path) -> None:
    """A second message of the same audit would be a second look at the same records."""
    run = make_spec()
    node, _ = trained_node(tmp_path, run, config_of(tmp_path))
    spec = audit_spec(run)
    offer_audit(node, spec)
    ask(node, spec)
    reply, _ = ask(node, spec, 2)
    assert reply.failure.reason == "E-PRIVACY-SPENT"


def test_the_owners_report_stays(tmp_path: Path) -> None:
    """It is taken from the worker's folder into the run's; a link there is not followed."""
    scratch, kept, secret = tmp_path / "scratch", tmp_path / "kept", tmp_path / "secret"
    scratch.mkdir()
    kept.mkdir()
    secret.write_text("other")
    (scratch / "report.txt").write_text("mine")
    (scratch / "report.json").symlink_to(secret)
    keep_report(scratch, kept)
    assert [(path.name, path.read_text()) for path in kept.iterdir()] == [("report.txt", "mine")]
