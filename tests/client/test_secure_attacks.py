"""A hostile server at the node's door: what it asks of secure aggregation, and what it is told."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.client.configuration import AppRule
from tacit.core.errors import TacitError
from tacit.core.specification import (
    AppSpec,
    MetricSpec,
    PrivacyMode,
    ReplySpec,
    canonical_json,
    specification_sha256,
)
from tacit.privacy.secagg import messages
from tacit.protos.secure import CONSISTENCY, KEYS, MASKED, SHARES, STEPS, UNMASK
from tests.client.fakes import MODEL, RUN, make_spec, open_mode
from tests.client.secure_cohort import (
    NODE,
    PINNED,
    Cohort,
    Sitting,
    doctored,
    moved_alone,
    secure_spec,
)

if TYPE_CHECKING:
    from pathlib import Path

OTHER_RUN = "r-00000002"
OTHER_MODEL = {name: array * np.float32(2) for name, array in MODEL.items()}
NOISED = (PrivacyMode.RECORD_DISTRIBUTED, PrivacyMode.CLIENT_DISTRIBUTED)


def test_an_attempt_is_begun_once(tmp_path: Path) -> None:
    """A second session for the same round and attempt is refused, with the same terms or others."""
    cohort = Cohort(tmp_path)
    cohort.session().keys()
    again = cohort.session()
    assert cohort.code(KEYS, content=b"", secure=again.secure()) == "E-SECAGG-BEGUN"
    others = doctored(again.terms, scale=1.0)
    secure = again.secure(session=others.digest, terms=others.encode())
    assert cohort.code(KEYS, content=b"", secure=secure) == "E-SECAGG-BEGUN"
    cohort.session(attempt=2).keys()


@pytest.mark.parametrize("kind", STEPS[1:])
def test_a_step_of_an_unknown_session_is_refused(kind: str, tmp_path: Path) -> None:
    """None was begun; the bytes are not even read."""
    cohort = Cohort(tmp_path)
    assert cohort.code(kind, content=b"x", secure={"session": bytes(32)}) == "E-SECAGG-LOST"
    assert cohort.code(kind, content=b"x") == "E-SECAGG-LOST"


@pytest.mark.parametrize("length", [0, 1, 31, 33])
def test_a_model_has_a_whole_hash(length: int, tmp_path: Path) -> None:
    """A head whose hash of the model is no hash is a refusal, and no crash of the node."""
    cohort = Cohort(tmp_path)
    secure = cohort.session().secure(model_sha256=bytes(length))
    assert cohort.code(KEYS, content=b"", secure=secure) == "E-SECAGG-MODEL"


def test_another_model_than_the_session_is_for_is_not_trained(tmp_path: Path) -> None:
    """The instruction to train names the hash of what it brings, or no app is called."""
    cohort = Cohort(tmp_path)
    sitting = cohort.session()
    code = cohort.code("train", content=OTHER_MODEL, secure=sitting.secure())
    assert code == "E-SECAGG-MODEL"
    assert cohort.runner.calls == []


def test_a_session_for_another_model_than_was_trained_gets_no_vector(tmp_path: Path) -> None:
    """Its keys were asked for under one model, the update was made from another."""
    cohort = Cohort(tmp_path)
    sitting = cohort.session()
    sitting.train()
    sitting.model = hashlib.sha256(b"another model").digest()
    deliveries = sitting.shares(sitting.keys())
    code = cohort.code(MASKED, content=deliveries[NODE], secure=sitting.secure())
    assert code == "E-SECAGG-MODEL"


def test_without_a_held_update_there_is_no_vector(tmp_path: Path) -> None:
    """Nothing was trained in this session; the session is over then."""
    cohort = Cohort(tmp_path)
    sitting = cohort.session()
    deliveries = sitting.shares(sitting.keys())
    ask = {"content": deliveries[NODE], "secure": sitting.secure()}
    assert cohort.code(MASKED, **ask) == "E-SECAGG-NOTHING-HELD"
    sitting.train()
    assert cohort.code(MASKED, **ask) == "E-SECAGG-LOST"


@pytest.mark.parametrize("mode", [PrivacyMode.NONE, *NOISED])
def test_no_update_leaves_outside_a_session(mode: PrivacyMode, tmp_path: Path) -> None:
    """An instruction to train that is in none is refused before an app is called."""
    cohort = Cohort(tmp_path, mode=mode)
    assert cohort.code("train") == "E-SECAGG-REQUIRED"
    assert cohort.runner.calls == []


def test_no_update_leaves_under_another_name_of_training(tmp_path: Path) -> None:
    """An app of somebody's own may have several kinds of training; none leaves in parts."""
    cohort = Cohort(tmp_path)
    assert cohort.code("train.other") == "E-SECAGG-REQUIRED"
    assert cohort.runner.calls == []


@pytest.mark.parametrize("kind", ["evaluate", "query"])
def test_no_other_message_is_in_a_session(kind: str, tmp_path: Path) -> None:
    """What is not summed cannot be told to be."""
    cohort = Cohort(tmp_path)
    code = cohort.code(kind, secure=cohort.session().secure())
    assert code in {"E-SECAGG-NONE", "E-REPLY-UNDECLARED"}
    assert cohort.runner.calls == []


def test_a_run_that_sums_nothing_trains_in_no_session(tmp_path: Path) -> None:
    """Its update would wait for a sum that nobody approved."""
    cohort = Cohort(tmp_path)
    secure = cohort.session().secure()
    cohort.spec = make_spec(privacy=open_mode())
    cohort.offer(OTHER_RUN)
    numbers = {"run_id": OTHER_RUN, "message_id": f"{OTHER_RUN}.000001"}
    assert cohort.code("train", secure=secure, **numbers) == "E-SECAGG-NONE"
    assert cohort.runner.calls == []


@pytest.mark.parametrize("kind", STEPS)
def test_a_run_without_secure_aggregation_takes_no_step(kind: str, tmp_path: Path) -> None:
    """Neither keys nor anything later."""
    cohort = Cohort(tmp_path)
    sitting = cohort.session()
    cohort.spec = make_spec(privacy=open_mode())
    cohort.offer(OTHER_RUN)
    numbers = {"run_id": OTHER_RUN, "message_id": f"{OTHER_RUN}.000001"}
    code = cohort.code(kind, content=b"", secure=sitting.secure(), **numbers)
    assert code == ("E-SECAGG-NONE" if kind == KEYS else "E-SECAGG-LOST")


def test_a_session_is_of_one_run(tmp_path: Path) -> None:
    """Another approved run can neither begin nor go on with it."""
    cohort = Cohort(tmp_path)
    cohort.offer(OTHER_RUN)
    sitting = cohort.session()
    numbers = {"run_id": OTHER_RUN, "message_id": f"{OTHER_RUN}.000001"}
    secure = sitting.secure()
    assert cohort.code(KEYS, content=b"", secure=secure, **numbers) == "E-SECAGG-SESSION"
    key_list = sitting.keys()
    numbers["message_id"] = f"{OTHER_RUN}.000002"
    assert cohort.code(SHARES, content=key_list, secure=secure, **numbers) == "E-SECAGG-LOST"
    sitting.shares(key_list)


def test_an_update_of_one_run_does_not_leave_in_the_sum_of_another(tmp_path: Path) -> None:
    """One that was to be noised would leave bare: the other run sums without noise."""
    cohort = Cohort(tmp_path)
    noised = secure_spec(PrivacyMode.CLIENT_DISTRIBUTED, name="noised")
    sha256 = specification_sha256(canonical_json(noised))
    purpose = hashlib.sha256(b"tacit train|" + sha256).digest()
    sitting = Sitting(cohort, cohort.terms(purpose=purpose))
    cohort.offer(OTHER_RUN, noised)
    cohort.runner.make = moved_alone
    message = f"{OTHER_RUN}.000050"
    numbers = {"run_id": OTHER_RUN, "message_id": message, "specification_sha256": sha256}
    assert sitting.train(**numbers).WhichOneof("outcome") == "manifest"
    deliveries = sitting.shares(sitting.keys())
    code = cohort.code(MASKED, content=deliveries[NODE], secure=sitting.secure())
    assert code in {"E-SECAGG-SESSION", "E-SECAGG-NOTHING-HELD"}
    assert cohort.charges() == 0


def masked(sitting: Sitting, **how: Any) -> str:
    """Bring a session to its vector; return the code of the refusal, or nothing if it left."""
    cohort, deliveries = sitting.cohort, sitting.shares(sitting.keys())
    reply = cohort.tell(MASKED, content=deliveries[NODE], secure=sitting.secure(), **how)
    return reply.failure.reason


@pytest.mark.parametrize("mode", NOISED)
def test_two_vectors_are_never_one_charge(mode: PrivacyMode, tmp_path: Path) -> None:
    """The server may give the request for a second vector the name of the first one's."""
    cohort = Cohort(tmp_path, mode=mode)
    codes = []
    for attempt in (1, 2):
        sitting = cohort.session(attempt=attempt)
        sitting.train()
        codes.append(masked(sitting, message_id=f"{RUN}.000099"))
    assert codes == ["", "E-RELEASE-REPEATED"]
    assert cohort.charges() == 1


@pytest.mark.parametrize("mode", NOISED)
def test_updates_that_wait_do_not_pass_the_limit_of_a_run(
    mode: PrivacyMode, tmp_path: Path
) -> None:
    """Each asks again what has left meanwhile: max_epsilon_per_run has room for two here."""
    cohort = Cohort(tmp_path, mode=mode, policy={"max_epsilon_per_run": 1.0})
    sittings = [cohort.session(attempt=attempt) for attempt in range(1, 5)]
    for sitting in sittings:
        sitting.train()
    left = [not masked(sitting) for sitting in sittings]
    assert sum(left) <= 2
    assert cohort.charges() == sum(left)


@pytest.mark.parametrize("mode", NOISED)
def test_every_attempt_has_a_charge_of_its_own(mode: PrivacyMode, tmp_path: Path) -> None:
    """A vector that left stays charged, though its attempt came to nothing; then it is enough."""
    cohort = Cohort(tmp_path, mode=mode, policy={"max_epsilon_per_run": 1.0})
    codes = []
    for attempt in (1, 2, 3):
        sitting = cohort.session(attempt=attempt)
        if sitting.train().WhichOneof("outcome") == "manifest":
            codes.append(masked(sitting))
    assert codes == ["", ""]
    assert cohort.charges() == 2


def test_a_round_that_the_run_has_not_is_refused(tmp_path: Path) -> None:
    """Without noise only the number of rounds bounds how often the same records are summed."""
    cohort = Cohort(tmp_path)
    for number in (0, 3):
        secure = cohort.session(number=number).secure()
        code = cohort.code(KEYS, content=b"", secure=secure, group_id=str(number))
        assert code == "E-SECAGG-TERMS"


def test_the_number_of_a_round_is_short(tmp_path: Path) -> None:
    """Thousands of digits are refused before anything is computed from them."""
    cohort = Cohort(tmp_path, mode=PrivacyMode.RECORD_DISTRIBUTED)
    head, payload = cohort.head("train", secure=cohort.session().secure(), group_id="9" * 5000)
    with pytest.raises(TacitError, match="E-MESSAGE-GROUP"):
        cohort.node.answer(head, payload)


def at(cohort: Cohort, step: str) -> tuple[Sitting, bytes]:
    """Bring a session to a step; return what the step is asked with."""
    sitting = cohort.session()
    sitting.train()
    if step == KEYS:
        return sitting, b""
    body: Any = sitting.keys()
    for kind, play in (
        (SHARES, sitting.shares),
        (MASKED, sitting.masked),
        (CONSISTENCY, sitting.signed),
    ):
        if step == kind:
            break
        body = play(body)
    return sitting, body[NODE] if step == MASKED else body


@pytest.mark.parametrize("step", STEPS)
def test_after_a_denial_no_step_is_answered(step: str, tmp_path: Path) -> None:
    """At any step."""
    cohort = Cohort(tmp_path)
    sitting, body = at(cohort, step)
    cohort.node.deny(RUN)
    ask = {"content": body, "secure": sitting.secure()}
    assert cohort.code(step, **ask) == "E-APPROVAL-MISSING"


def test_a_denial_wipes_the_sessions_of_a_run(tmp_path: Path) -> None:
    """Secrets and what was held are gone, also where the owner approves the run anew."""
    cohort = Cohort(tmp_path)
    sitting, body = at(cohort, SHARES)
    cohort.node.deny(RUN)
    assert not cohort.node._secure._live
    assert not cohort.node._secure._held
    cohort.node.approve(RUN)
    assert cohort.code(SHARES, content=body, secure=sitting.secure()) == "E-SECAGG-LOST"


def test_a_step_of_a_session_that_is_over_is_answered(tmp_path: Path) -> None:
    """With a refusal that is stored: to try again later would not make it better."""
    cohort = Cohort(tmp_path)
    sitting, signatures = at(cohort, UNMASK)
    sitting.opened(signatures)
    reply = cohort.tell(UNMASK, content=signatures, secure=sitting.secure())
    assert reply.failure.reason == "E-SECAGG-CLOSED"


@pytest.mark.parametrize("step", STEPS)
def test_after_the_end_of_a_run_no_step_is_answered(step: str, tmp_path: Path) -> None:
    """It is over: the node knows no such run, and holds nothing of it."""
    cohort = Cohort(tmp_path)
    sitting, body = at(cohort, step)
    cohort.node.end_run(RUN, "completed")
    with pytest.raises(TacitError, match="E-RUN-UNKNOWN"):
        cohort.tell(step, content=body, secure=sitting.secure())
    assert not cohort.node._secure._live
    assert not cohort.node._secure._held


def test_what_an_app_answers_after_the_end_of_its_run_is_not_kept(tmp_path: Path) -> None:
    """The run ends while it trains: the update would wait in memory for nobody."""
    cohort = Cohort(tmp_path)
    sitting, answer = cohort.session(), cohort.runner.make

    def ended(call: Any) -> Any:
        cohort.node.end_run(RUN, "stopped")  # the lock is this thread's own, as it may be
        return answer(call)

    cohort.runner.make = ended
    with pytest.raises(TacitError, match="E-RUN-UNKNOWN"):
        sitting.train()
    assert not cohort.node._secure._held


@pytest.mark.parametrize("step", STEPS[1:])
@pytest.mark.parametrize("body", [b"", b"\0", bytes(1 << 20), b"tsa\x01" + bytes(64)])
def test_malformed_bodies_end_the_session(step: str, body: bytes, tmp_path: Path) -> None:
    """Empty, short, huge or of zeros: a refusal with a code of the protocol, and no crash."""
    cohort = Cohort(tmp_path)
    sitting, good = at(cohort, step)
    code = cohort.code(step, content=body, secure=sitting.secure())
    assert code in {"E-SECAGG-MESSAGE", "E-SECAGG-ORDER"}
    assert cohort.code(step, content=good, secure=sitting.secure()) == "E-SECAGG-LOST"


def test_a_body_has_a_limit(tmp_path: Path) -> None:
    """More than any step needs is refused before it is parsed."""
    cohort = Cohort(tmp_path)
    sitting, _ = at(cohort, SHARES)
    body = bytes((4 << 20) + 1)
    assert cohort.code(SHARES, content=body, secure=sitting.secure()) == "E-SECAGG-FORM"


@pytest.mark.parametrize(("step", "kind"), list(itertools.permutations(STEPS[1:], 2)))
def test_steps_come_in_order(step: str, kind: str, tmp_path: Path) -> None:
    """Any other step than the one that is due ends the session, whatever it brings."""
    cohort = Cohort(tmp_path)
    sitting, body = at(cohort, step)
    code = cohort.code(kind, content=body, secure=sitting.secure())
    assert code in {"E-SECAGG-ORDER", "E-SECAGG-NOTHING-HELD"}
    assert cohort.code(step, content=body, secure=sitting.secure()) == "E-SECAGG-LOST"


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_step_is_not_answered_twice(step: str, tmp_path: Path) -> None:
    """The very same message gets the stored bytes; the same words in another one end it all."""
    cohort = Cohort(tmp_path)
    sitting, body = at(cohort, step)
    head, payload = cohort.head(step, content=body, secure=sitting.secure())
    one, two = cohort.node.answer(head, payload), cohort.node.answer(head, payload)
    assert one == two
    code = cohort.code(step, content=body, secure=sitting.secure())
    assert code in {"E-SECAGG-ORDER", "E-SECAGG-NOTHING-HELD", "E-SECAGG-CLOSED"}


@pytest.mark.parametrize(
    ("numbers", "codes"),
    [
        ([3], ["E-SECAGG-ORDER"]),
        ([0], ["E-SECAGG-ORDER"]),
        ([2, 2], ["", "E-SECAGG-ORDER"]),
        ([2, 3, 4], ["", "", "E-SECAGG-CLOSED"]),
        ([1, 2], ["", ""]),  # "step 1" again is held, and never asked for
    ],
)
def test_later_steps_come_in_order_and_no_more_than_approved(
    numbers: list[int], codes: list[str], tmp_path: Path
) -> None:
    """Another step than the next ends the session; each vector that leaves is charged."""
    cohort = Cohort(tmp_path, mode=PrivacyMode.RECORD_DISTRIBUTED, steps=3)
    sitting = cohort.session()
    sitting.whole()
    outcomes = [cohort.outcome("train", secure=sitting.secure(step=step)) for step in numbers]
    assert outcomes == codes
    assert cohort.charges() == 1 + outcomes.count("") - (1 in numbers)
    assert cohort.code("train", secure=sitting.secure(step=9)).startswith("E-SECAGG-")


def test_what_an_app_answers_never_leaves_bare(tmp_path: Path) -> None:
    """Train is answered with an empty body; the vector is masked: the very numbers are nowhere."""
    cohort = Cohort(tmp_path)
    sitting = cohort.session()
    head, payload = cohort.head("train", secure=sitting.secure())
    assert bytes(cohort.node.open_reply(cohort.node.answer(head, payload))) == b""
    deliveries = sitting.shares(sitting.keys())
    _, vector = cohort.took(MASKED, content=deliveries[NODE], secure=sitting.secure())
    bare = Cohort.session(cohort, attempt=2).whole()
    assert vector is not None
    assert not np.array_equal(vector, bare)
    assert not np.any(np.asarray(vector) == bare)


def test_an_unpinned_member_is_refused_whoever_approved_the_run(tmp_path: Path) -> None:
    """A pin that its owner has withdrawn since holds at the next session."""
    cohort = Cohort(tmp_path)
    known = dict(PINNED)
    cohort.node._secure._pinned = lambda: known
    cohort.session().keys()
    del known["owner-2"]
    secure = cohort.session(attempt=2).secure()
    assert cohort.code(KEYS, content=b"", secure=secure) == "E-SECAGG-UNPINNED"


def test_unmasking_needs_what_a_quorum_signed(tmp_path: Path) -> None:
    """Two of four signatures, or one on another view: no share leaves the node."""
    for index, kept in enumerate(((1, NODE), (1, 2, 3))):
        folder = tmp_path / str(index)
        folder.mkdir()
        cohort = Cohort(folder)
        sitting, survivors = at(cohort, CONSISTENCY)
        sitting.signed(survivors)
        server = sitting.server
        signatures = {one: server._signatures[one] for one in kept}
        if index:
            signatures[3] = signatures[2]
        body = messages.encode_signatures(signatures, server.digest, among=(1, 2, 3, NODE))
        code = cohort.code(UNMASK, content=body, secure=sitting.secure())
        assert code == ("E-SECAGG-SPLIT-VIEW" if index else "E-SECAGG-QUORUM")


def test_a_failure_of_a_foreign_app_is_told_as_one_code_at_the_price_of_an_update(
    tmp_path: Path,
) -> None:
    """Whether it fails may depend on the records, also where its update would be summed."""
    app = AppSpec(client="tests.client.fakes:app")
    results = {"train": ReplySpec(metrics={"num-examples": MetricSpec(range=(1.0, 1.0))})}
    foreign = {"app": app, "results": results, "data": None, "model": None, "training": None}
    cohort = Cohort(
        tmp_path,
        mode=PrivacyMode.CLIENT_DISTRIBUTED,
        changes=foreign,
        policy={"apps": {app.client: AppRule()}},
    )
    cohort.runner.make = lambda _: "E-RECORD-VALUE"
    assert cohort.code("train", secure=cohort.session().secure()) == "E-APP-FAILED"
    assert cohort.charges() == 1
