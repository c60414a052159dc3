"""A server that sends anything, in any order, again and across sessions: what never happens.

Whatever was sent: of each session at most one vector a step, one signature and one set of shares
have left; no vector is one that an app has made, or its encoding; every vector that has left in a
noised mode was charged by itself.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tacit.core.errors import TacitError
from tacit.core.specification import PrivacyMode
from tacit.privacy.layout import Form
from tacit.privacy.secagg.messages import Kind
from tacit.privacy.secure_sum import secure_plan
from tacit.protos.secure import CONSISTENCY, KEYS, MASKED, SHARES, STEPS, UNMASK
from tests.client.fakes import MODEL
from tests.client.secure_cohort import MOVED, NODE, Cohort, Sitting

if TYPE_CHECKING:
    from collections.abc import Generator

    from tacit.client.payload import BufferPayload
    from tacit.protos.fleet_pb2 import InstructionHead

    Asked = tuple[str, Any, dict[str, Any]]
    Said = tuple[bytes, np.ndarray | None]
    Play = Generator[Asked, Said, None]

LENGTHS = st.sampled_from((1, 4, 8))
REUSED = st.booleans()
KINDS = ("train", *STEPS)


def honest(sitting: Sitting) -> Play:
    """Ask what an honest server asks the node, step after step, playing the other members."""
    server, peers = sitting.server, sitting.peers
    yield "train", None, sitting.secure()
    body, _ = yield KEYS, b"", sitting.secure()
    server.take_keys(NODE, body)
    for one, peer in peers.items():
        server.take_keys(one, peer.keys())
    key_list = server.end_keys(model=sitting.model)
    body, _ = yield SHARES, key_list, sitting.secure()
    server.take_shares(NODE, body)
    for one, peer in peers.items():
        server.take_shares(one, peer.share(key_list, model=sitting.model))
    deliveries = server.end_shares()
    body, vector = yield MASKED, deliveries[NODE], sitting.secure()
    assert vector is not None
    server.fold(NODE, body, np.array(vector))
    for one, peer in peers.items():
        zeros = np.zeros(sitting.terms.dimension, dtype=np.uint32)
        server.fold(one, peer.mask(deliveries[one], zeros), zeros)
    survivors = server.end_masked()
    body, _ = yield CONSISTENCY, survivors, sitting.secure()
    server.take_signature(NODE, body)
    for one, peer in peers.items():
        server.take_signature(one, peer.sign(survivors))
    yield UNMASK, server.end_signatures(), sitting.secure()
    for step in range(2, sitting.terms.steps + 1):
        yield "train", None, sitting.secure(step=step)


class HostileServer(RuleBasedStateMachine):
    """The server; the node is the one under test."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.cohort: Cohort
        self.plays: list[tuple[Sitting, Play]] = []
        self.due: dict[int, Asked] = {}
        self.sent: list[tuple[InstructionHead, BufferPayload]] = []
        self.left: dict[tuple[str, bytes], set[bytes]] = defaultdict(set)
        self.bare: set[bytes] = set()
        self.honest_vectors = 0

    @initialize(mode=st.sampled_from((PrivacyMode.NONE, PrivacyMode.RECORD_DISTRIBUTED)))
    def open(self, mode: PrivacyMode) -> None:
        noised = mode is PrivacyMode.RECORD_DISTRIBUTED
        policy = {"max_epsilon_per_run": 100.0}
        self.cohort = Cohort(
            Path(self.folder.name), mode=mode, steps=3 if noised else 1, policy=policy
        )
        make = self.cohort.runner.make

        def watched(call: Any) -> Any:
            reply = make(call)
            self.bare.add(reply[1])
            return reply

        self.cohort.runner.make = watched
        if not noised:
            self.bare.add(encoding_of(self.cohort))

    def teardown(self) -> None:
        self.folder.cleanup()

    def send(self, head: InstructionHead, payload: BufferPayload) -> Said | None:
        """Send a message, and note what leaves."""
        self.sent.append((head, payload))
        try:
            entry = self.cohort.node.answer(head, payload)
            body, vector = self.cohort.read(entry)
        except (TacitError, AssertionError):
            return None
        if body:
            kind, digest = Kind(body[5]).name, body[6:38]
            step = body[38:42] if vector is not None else b""
            content = body if vector is None else np.asarray(vector).tobytes()
            self.left[kind, digest + step].add(content)
        if vector is not None:
            self.left["vectors", b""].add(np.asarray(vector).tobytes())
        return body, vector

    @precondition(lambda self: len(self.plays) < 4)
    @rule(number=st.integers(1, 2), attempt=st.integers(1, 3), length=LENGTHS, reused=REUSED)
    def begin(self, number: int, attempt: int, length: int, reused: bool) -> None:  # noqa: FBT001
        """Another session, or the same one again, and some of its steps."""
        sitting = self.cohort.session(number=number, attempt=attempt)
        play = honest(sitting)
        self.due[len(self.plays)] = next(play)
        self.plays.append((sitting, play))
        self.play(len(self.plays) - 1, length, reused=reused)

    @precondition(lambda self: bool(self.due))
    @rule(data=st.data(), length=LENGTHS, reused=REUSED)
    def go_on(self, data: st.DataObject, length: int, reused: bool) -> None:  # noqa: FBT001
        """What is due in a session."""
        self.play(data.draw(st.sampled_from(sorted(self.due))), length, reused=reused)

    def play(self, number: int, length: int, *, reused: bool) -> None:
        """Play some steps of a session, also under the names that such steps had before."""
        sitting, play = self.plays[number]
        for _ in range(length):
            kind, body, secure = self.due[number]
            group = {"group_id": str(sitting.terms.round)}
            names = [head.message_id for head, _ in self.sent if head.message_type == kind]
            if reused and names and kind in STEPS[1:]:
                group["message_id"] = names[-1]
            said = self.send(*self.cohort.head(kind, content=body, secure=secure, **group))
            if said is None:
                del self.due[number]
                return
            self.honest_vectors += said[1] is not None
            try:
                self.due[number] = play.send(said)
            except (StopIteration, TacitError):  # the answer of another session, sent again
                del self.due[number]
                return

    @precondition(lambda self: bool(self.sent))
    @rule(data=st.data(), renamed=st.booleans())
    def replay(self, data: st.DataObject, renamed: bool) -> None:  # noqa: FBT001 - hypothesis' own
        """A message again, as it was or as another one."""
        head, payload = data.draw(st.sampled_from(self.sent))
        again = type(head)()
        again.CopyFrom(head)
        if renamed:
            again.message_id = self.cohort.head("train")[0].message_id
        self.send(again, payload)

    @precondition(lambda self: bool(self.sent) and bool(self.plays))
    @rule(data=st.data(), kind=st.sampled_from(KINDS), step=st.integers(0, 4))
    def cross(self, data: st.DataObject, kind: str, step: int) -> None:
        """The content of one message, as any step of any session."""
        head, payload = data.draw(st.sampled_from(self.sent))
        sitting, _ = data.draw(st.sampled_from(self.plays))
        other = type(head)()
        other.CopyFrom(head)
        fresh, _ = self.cohort.head(kind, secure=sitting.secure(step=step))
        other.message_id, other.message_type = fresh.message_id, kind
        other.secure.CopyFrom(fresh.secure)
        self.send(other, payload)

    @precondition(lambda self: bool(self.sent))
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """The server closes a message: the node forgets its answer, never what it charged."""
        head, _ = data.draw(st.sampled_from(self.sent))
        self.cohort.node.close_message(head.message_id)

    @invariant()
    def each_thing_left_once(self) -> None:
        for (kind, _), contents in self.left.items():
            assert kind == "vectors" or len(contents) <= 1, kind

    @invariant()
    def nothing_left_bare(self) -> None:
        assert not self.left["vectors", b""] & self.bare

    @invariant()
    def every_vector_was_charged(self) -> None:
        vectors = self.left["vectors", b""]
        if vectors and self.cohort.mode is not PrivacyMode.NONE:
            assert self.cohort.charges() == len(vectors)


def encoding_of(cohort: Cohort) -> bytes:
    """Return what the moved model is in the ring, without a mask, in mode none."""
    forms = tuple(Form(name=k, shape=v.shape, dtype=v.dtype) for k, v in MODEL.items())
    plan = secure_plan(cohort.spec, forms)
    changes = np.empty(plan.layout.changes, dtype=np.float64)
    plan.layout.write_changes(changes, MODEL, MOVED, weight=10)
    return plan.encode(changes, plan.layout.limbs({"loss": 0.5}, weight=10)).tobytes()


HostileServer.TestCase.settings = settings(
    max_examples=12,
    phases=(Phase.explicit, Phase.generate),  # a failing sequence is short as it is
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestHostileServer = pytest.mark.slow(HostileServer.TestCase)


def test_the_machine_sees_vectors() -> None:
    """A positive control: an honest session leaves a vector a step; each invariant can fail."""
    machine = HostileServer()
    machine.open(PrivacyMode.RECORD_DISTRIBUTED)
    sitting = machine.cohort.session()
    play = honest(sitting)
    due: Asked | None = next(play)
    while due is not None:
        kind, body, secure = due
        said = machine.send(*machine.cohort.head(kind, content=body, secure=secure))
        assert said is not None
        due = next_of(play, said)
    assert len(machine.left["vectors", b""]) == 3
    machine.each_thing_left_once()
    machine.nothing_left_bare()
    machine.every_vector_was_charged()
    assert {kind for kind, _ in machine.left} == {
        "KEYS",
        "SHARES",
        "MASKED",
        "SIGNATURE",
        "UNMASK",
        "vectors",
    }
    for key in list(machine.left):
        machine.left[key].add(b"another")
    with pytest.raises(AssertionError):
        machine.each_thing_left_once()
    with pytest.raises(AssertionError):
        machine.every_vector_was_charged()
    machine.left["vectors", b""] |= machine.bare
    with pytest.raises(AssertionError):
        machine.nothing_left_bare()
    machine.teardown()


def next_of(play: Play, said: Said) -> Asked | None:
    """Return what an honest server asks next, if anything."""
    try:
        return play.send(said)
    except StopIteration:
        return None
