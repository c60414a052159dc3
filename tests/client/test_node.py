"""The node: verdicts, replies, and what is never done twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest

from tacit.client.approvals import Verdict
from tacit.client.configuration import Approval
from tacit.core.errors import (
    AppError,
    DataError,
    ProtocolError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from tacit.core.specification import (
    AppSpec,
    EvaluationSpec,
    ParticipationSpec,
    PrivacyMode,
    ReplySpec,
    canonical_json,
    specification_sha256,
)
from tacit.privacy.spec import BUILT_MODES
from tacit.protos import fleet_pb2
from tests.client.fakes import (
    MODEL,
    RUN,
    instruction,
    make_config,
    make_node,
    make_spec,
    manifest_of,
    offer,
    open_mode,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.node import Node
    from tacit.client.preparation import PrepareJob
    from tacit.client.store import OutboxEntry
    from tacit.protos import pipe_pb2


def reply_of(entry: OutboxEntry) -> fleet_pb2.ReplyHead:
    return fleet_pb2.ReplyHead.FromString(entry.head)


def test_a_run_that_waits_names_the_commands_with_their_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner can copy them; a node in its usual place needs no --home."""
    node, _ = make_node(tmp_path, make_config(tmp_path, approve=Approval.ASK))
    reason = offer(node, make_spec()).reason
    assert f"tacit client approve {RUN} --home {tmp_path}" in reason
    monkeypatch.setenv("TACIT_CLIENT_HOME", str(tmp_path))
    assert "--home" not in offer(node, make_spec()).reason


def test_run_within_the_policy_is_approved_by_rule_and_answered(tmp_path: Path) -> None:
    """A run that fits is approved, its app started, and its reply leaves under our own head."""
    node, runner = make_node(tmp_path, make_config(tmp_path))
    assert offer(node, make_spec()).verdict is Verdict.APPROVED
    assert runner.begun == [RUN]
    head, payload = instruction(make_spec())
    entry = node.answer(head, payload)
    reply = reply_of(entry)
    assert reply.message_id == head.message_id
    assert reply.created_at_s == 1000.0
    assert bytes(node.open_reply(entry)) == b"".join(a.tobytes() for a in MODEL.values())


def test_stored_answer_is_given_again_never_made_again(tmp_path: Path) -> None:
    """The same attempt asked twice, also after a restart, calls the app once."""
    node, runner = make_node(tmp_path, make_config(tmp_path))
    offer(node, make_spec())
    head, payload = instruction(make_spec())
    first = node.answer(head, payload)
    assert node.answer(head, payload) == first
    again, runner_again = make_node(tmp_path, make_config(tmp_path))
    assert again.answer(head, payload) == first
    assert len(runner.calls) == 1
    assert runner_again.calls == []


def test_noise_key_belongs_to_one_attempt_and_is_wiped_when_closed(tmp_path: Path) -> None:
    """A repeated attempt gets its key again, a new one another; closing forgets them."""
    failing = iter(["E-APP-RAISED"])
    node, runner = make_node(
        tmp_path,
        make_config(tmp_path),
        lambda _: next(failing, None) or manifest_of(MODEL, {"num-examples": 1}),
    )
    offer(node, make_spec())
    head, payload = instruction(make_spec())
    node.answer(head, payload)
    second, payload = instruction(make_spec(), attempt=1)
    node.answer(second, payload)
    keys = [call.noise_key for call in runner.calls]
    assert len(set(keys)) == 2
    assert node.store.noise_key(head.message_id, 0, fresh=lambda: b"x" * 32) == keys[0]
    node.close_message(head.message_id)
    assert node.store.noise_key(head.message_id, 0, fresh=lambda: b"x" * 32) == b"x" * 32
    assert keys[0] not in (tmp_path / "client.sqlite").read_bytes()


@pytest.mark.parametrize(("epsilon", "keys"), [(0.5, 1), (0.0, 0)], ids=["noised", "exact"])
def test_an_evaluation_gets_a_key_where_it_is_noised(
    tmp_path: Path, epsilon: float, keys: int
) -> None:
    """The node hands a key over where the run adds noise, and nowhere else."""
    spec = make_spec(evaluation=EvaluationSpec(every=1, epsilon=epsilon))
    node, runner = make_node(tmp_path, make_config(tmp_path, allow_exact_metrics=True))
    offer(node, spec)
    node.answer(*instruction(spec, message_type="evaluate"))
    assert len(runner.calls) == 1
    assert sum(len(call.noise_key) == 32 for call in runner.calls) == keys


def test_closed_message_leaves_no_file(tmp_path: Path) -> None:
    """After the round is committed, the outbox is empty on disk and in the store."""
    node, _ = make_node(tmp_path, make_config(tmp_path))
    offer(node, make_spec())
    head, payload = instruction(make_spec())
    node.answer(head, payload)
    node.close_message(head.message_id)
    assert node.find_reply(head) is None
    assert list((tmp_path / "outbox").iterdir()) == []


def test_pending_run_waits_for_a_person_and_keeps_the_word(tmp_path: Path) -> None:
    """Approval by hand survives a second offer and a restart."""
    config = make_config(tmp_path, approve=Approval.ASK)
    node, runner = make_node(tmp_path, config)
    pending = offer(node, make_spec())
    assert pending.verdict is Verdict.PENDING
    assert pending.reason.index(f"status {RUN}") < pending.reason.index(f"approve {RUN}")
    assert runner.begun == []
    assert node.approve(RUN).by == "hand"
    assert runner.begun == [RUN]
    node, _ = make_node(tmp_path, config)
    judgement = offer(node, make_spec())
    assert (judgement.verdict, judgement.by) == (Verdict.APPROVED, "hand")


def test_approval_by_hand_covers_one_specification(tmp_path: Path) -> None:
    """The same run id with another specification is denied, not approved."""
    node, _ = make_node(tmp_path, make_config(tmp_path, approve=Approval.ASK))
    offer(node, make_spec())
    node.approve(RUN)
    judgement = offer(node, make_spec(participation=ParticipationSpec(rounds=3)))
    assert judgement.verdict is Verdict.DENIED
    assert judgement.code == "E-OFFER-CHANGED"


def test_person_cannot_approve_what_the_policy_denies(tmp_path: Path) -> None:
    """Approval by hand never widens the policy."""
    node, _ = make_node(tmp_path, make_config(tmp_path, approve=Approval.ASK))
    offer(node, make_spec(privacy=open_mode()))
    with pytest.raises(RefusedError) as caught:
        node.approve(RUN)
    assert caught.value.code == "E-POLICY-MODE"


def test_denied_run_stops_at_once(tmp_path: Path) -> None:
    """After a denial the worker is killed and nothing of the run leaves."""
    node, runner = make_node(tmp_path, make_config(tmp_path))
    offer(node, make_spec())
    node.deny(RUN)
    assert runner.ended == [RUN]
    head, payload = instruction(make_spec())
    assert reply_of(node.answer(head, payload)).failure.reason == "E-APPROVAL-MISSING"
    assert runner.calls == []
    assert offer(node, make_spec()).code == "E-APPROVAL-DENIED"


def test_denial_during_training_keeps_the_reply_back(tmp_path: Path) -> None:
    """What an app finished after the owner said no does not leave."""
    nodes: list[Node] = []

    def answer(_: pipe_pb2.WorkerCall) -> Any:
        nodes[0].deny(RUN)
        return manifest_of(MODEL, {"num-examples": 1})

    node, _ = make_node(tmp_path, make_config(tmp_path), answer)
    nodes.append(node)
    offer(node, make_spec())
    head, payload = instruction(make_spec())
    assert reply_of(node.answer(head, payload)).failure.reason == "E-APPROVAL-MISSING"
    assert list((tmp_path / "outbox").iterdir()) == []


def test_bad_reply_leaves_only_a_code_and_the_reason_stays(tmp_path: Path) -> None:
    """A reply with a NaN is refused; server sees the code, the log the reason, the disk nothing."""
    bad = {**MODEL, "bias": np.array([np.nan, 0], np.float32)}
    node, _ = make_node(
        tmp_path, make_config(tmp_path), lambda _: manifest_of(bad, {"num-examples": 1})
    )
    offer(node, make_spec())
    head, payload = instruction(make_spec())
    reply = reply_of(node.answer(head, payload))
    assert reply.failure.reason == "E-REPLY-NOT-FINITE"
    assert list((tmp_path / "outbox").iterdir()) == []
    line = node.store.list_decisions(limit=1)[0]
    assert (line.outcome, line.message_id) == ("refused", head.message_id)
    assert "bias" in line.reason


def test_updates_beyond_the_declared_rounds_are_charged_to_the_owners_limit(tmp_path: Path) -> None:
    """Retried rounds cost epsilon, and stop at max_epsilon_per_run."""
    node, _ = make_node(tmp_path, make_config(tmp_path, max_epsilon_per_run=1.5))
    spec = make_spec()
    offer(node, spec)
    outcomes = []
    for number in range(1, 5):
        head, payload = instruction(spec, number)
        outcomes.append(reply_of(node.answer(head, payload)).failure.reason)
    assert outcomes == ["", "", "", "E-PRIVACY-SPENT"]


def test_foreign_code_of_a_failure_cannot_carry_anything(tmp_path: Path) -> None:
    """The built-in app may name its code; text that is no code becomes E-APP-FAILED."""
    answers = iter(["E-DATA-CONTRACT", "the age is 63"])
    node, _ = make_node(tmp_path, make_config(tmp_path), lambda _: next(answers))
    offer(node, make_spec())
    codes = []
    for number in (1, 2):
        head, payload = instruction(make_spec(), number)
        codes.append(reply_of(node.answer(head, payload)).failure.reason)
    assert codes == ["E-DATA-CONTRACT", "E-APP-FAILED"]


def test_failure_names_the_log_to_the_owner_only(tmp_path: Path) -> None:
    """The decision log has the absolute path of the app's log; the server gets the code alone."""

    def answer(_: pipe_pb2.WorkerCall) -> Any:
        if len(runner.calls) > 1:
            raise AppError("E-APP-DIED", "the app's process ended with status 1")
        return "E-APP-FAILED"

    node, runner = make_node(tmp_path, make_config(tmp_path), answer)
    offer(node, make_spec())
    log = tmp_path / "logs" / f"{RUN}.log"
    log.parent.mkdir()
    log.write_text("it broke")
    for number in (1, 2):
        head, payload = instruction(make_spec(), number)
        entry = node.answer(head, payload)
        assert str(log) in node.store.list_decisions(limit=1)[0].reason
        assert str(tmp_path).encode() not in entry.head


def test_unknown_fields_of_a_manifest_do_not_leave(tmp_path: Path) -> None:
    """Bytes that an app hides in fields nobody knows are dropped."""

    def answer(_: pipe_pb2.WorkerCall) -> Any:
        manifest, payload = manifest_of(MODEL, {"num-examples": 1})
        hidden = manifest.SerializeToString() + b"\xfa\x3f\x06secret"
        return type(manifest).FromString(hidden), payload

    node, _ = make_node(tmp_path, make_config(tmp_path), answer)
    offer(node, make_spec())
    head, payload = instruction(make_spec())
    entry = node.answer(head, payload)
    assert reply_of(entry).HasField("manifest")
    assert b"secret" not in entry.head


def test_data_that_do_not_fit_deny_the_run(tmp_path: Path) -> None:
    """A broken data set is said at the offer, with its code, not in the first round."""

    def prepare(_: PrepareJob) -> NoReturn:
        raise DataError("E-DATA-COLUMNS", "expected 1 column", problems=("age: missing",))

    node, _ = make_node(tmp_path, make_config(tmp_path), prepare=prepare)
    judgement = offer(node, make_spec())
    assert (judgement.verdict, judgement.code) == (Verdict.DENIED, "E-DATA-COLUMNS")
    assert "age: missing" in judgement.reason


def test_full_disk_is_nobodys_failure(tmp_path: Path) -> None:
    """A full disk raises, so that the instruction stays open and is answered later."""
    node, _ = make_node(tmp_path, make_config(tmp_path))
    offer(node, make_spec())
    head, payload = instruction(make_spec())

    def full(*_: object, **__: object) -> NoReturn:
        raise UnavailableError("E-DISK-FULL", "expected room")

    node._replies.outbox.store = full  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        node.answer(head, payload)
    assert node.find_reply(head) is None


@pytest.mark.parametrize(
    ("run_id", "message_id"),
    [("../etc", "../etc.000001"), (RUN, "../../x"), (RUN, "r-00000002.000001"), (RUN, f"{RUN}.1")],
)
def test_hostile_identifiers_are_refused(tmp_path: Path, run_id: str, message_id: str) -> None:
    """An id that is no id never becomes a file name."""
    node, _ = make_node(tmp_path, make_config(tmp_path))
    head, payload = instruction(make_spec())
    head.run_id, head.message_id = run_id, message_id
    with pytest.raises(ProtocolError):
        node.answer(head, payload)


def test_offer_with_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    """An approval must cover the bytes that were judged."""
    node, _ = make_node(tmp_path, make_config(tmp_path))
    with pytest.raises(ProtocolError):
        node.offer(RUN, canonical_json(make_spec()), bytes(32))


def test_unknown_key_in_a_specification_is_denied(tmp_path: Path) -> None:
    """A specification that this version does not understand wholly is not approved."""
    canonical = canonical_json(make_spec()).replace(b'"name":', b'"colour":1,"name":')
    node, _ = make_node(tmp_path, make_config(tmp_path))
    assert node.offer(RUN, canonical, specification_sha256(canonical)).verdict is Verdict.DENIED


def test_ended_run_is_over(tmp_path: Path) -> None:
    """After the end, the prepared data are gone and nobody can approve the run."""
    node, runner = make_node(tmp_path, make_config(tmp_path))
    offer(node, make_spec())
    node.end_run(RUN, "finished")
    assert runner.ended == [RUN]
    assert not (tmp_path / "runs" / RUN / "prepared.safetensors").exists()
    with pytest.raises(UsageError):
        node.approve(RUN)


def test_every_mode_without_mechanism_is_denied(tmp_path: Path) -> None:
    """Modes that are not built refuse even where the policy accepts them."""
    config = make_config(tmp_path, modes=tuple(PrivacyMode))
    for mode in PrivacyMode:
        privacy = make_spec().privacy
        spec = make_spec(privacy=type(privacy)(mode=mode, clip=1.0, epsilon=1.0, delta=1e-3))
        if mode in BUILT_MODES:
            continue
        folder = tmp_path / mode.value
        folder.mkdir()
        node, _ = make_node(folder, config)
        assert offer(node, spec).code == "E-MODE-NOT-BUILT"


def test_denied_run_whose_app_is_missing_keeps_its_name(tmp_path: Path) -> None:
    """The owner sees which run it was."""
    node, _ = make_node(tmp_path, make_config(tmp_path))
    spec = make_spec(
        model=None,
        training=None,
        privacy=open_mode(),
        app=AppSpec(client="no_such_package.app:app"),
        results={"train": ReplySpec()},
    )
    judgement = offer(node, spec)
    assert judgement.code == "E-APP-MISSING"
    assert node.store.list_runs()[0].name == "heart"
