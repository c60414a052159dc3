"""The pure exchange: its rules one by one, and what holds after any sequence of events."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import ProtocolError
from tacit.server.rounds import (
    Entry,
    Exchange,
    Failed,
    Forgotten,
    Instruction,
    NodesAnswered,
    Opened,
    Outcome,
    PullAnswered,
)

if TYPE_CHECKING:
    from tacit.server.rounds import Effect

RUN = "r-00000001"


def instruction(sequence: int, node: int, *, content: bytes = b"a", ttl: float = 60) -> Instruction:
    return Instruction(
        message_id=f"{RUN}.{sequence:06d}", node_id=node, content_sha256=content, ttl_s=ttl
    )


def exchange(*nodes: int, quorum: int = 2) -> Exchange:
    made = Exchange(RUN, quorum=quorum, grace_s=30)
    for node in nodes:
        made.observe_node(node, approved=True, connected=True, now=0)
    return made


def pushed(*nodes: int, quorum: int = 2) -> Exchange:
    made = exchange(*nodes, quorum=quorum)
    made.push([instruction(number, node) for number, node in enumerate(nodes, 1)], now=0)
    return made


def ids(*sequences: int) -> list[str]:
    return [f"{RUN}.{sequence:06d}" for sequence in sequences]


def answered(effects: list[Effect]) -> list[tuple[str, str]] | None:
    """Return outcomes and codes of the pull that was answered, if one was."""
    for effect in effects:
        if isinstance(effect, PullAnswered):
            return [(entry.outcome.value, entry.code) for entry in effect.entries]
    return None


def test_a_push_opens_each_message_once() -> None:
    """A repeated push is without effect, so a worker may replay."""
    made = pushed(1, 2)
    assert made.push([instruction(1, 1), instruction(2, 2)], now=5) == []


def test_other_content_is_a_new_attempt_under_an_id_of_its_own() -> None:
    """The old id is closed first, and no reply to it is accepted any more."""
    made = pushed(1, 2)
    effects = made.push([instruction(1, 1, content=b"b")], now=1)
    assert isinstance(effects[0], Forgotten)
    assert isinstance(effects[1], Opened)
    assert effects[1].entry.wire_id == f"{RUN}.000001.2"
    assert effects[1].entry.attempt == 2
    assert made.find(f"{RUN}.000001", 1) is None


def test_a_push_to_a_node_that_has_not_approved_fails_at_once() -> None:
    """It would never be answered."""
    made = exchange(1)
    effects = made.push([instruction(1, 9)], now=0)
    assert [e.entry.code for e in effects if isinstance(e, Failed)] == ["E-NODE-UNKNOWN"]


@pytest.mark.parametrize("message_id", ["r-00000002.000001", f"{RUN}.x", "000001", f"{RUN}."])
def test_ids_of_others_are_refused(message_id: str) -> None:
    """An id that is not the run's own opens nothing."""
    strange = Instruction(message_id=message_id, node_id=1, content_sha256=b"", ttl_s=1)
    with pytest.raises(ProtocolError):
        exchange(1).push([strange], now=0)


def test_the_first_answer_stands() -> None:
    """A second reply, or a failure after a reply, is refused."""
    made = pushed(1, 2)
    made.accept_reply(ids(1)[0], 1, now=1)
    with pytest.raises(ProtocolError):
        made.accept_reply(ids(1)[0], 1, now=1)
    with pytest.raises(ProtocolError):
        made.fail(ids(1)[0], 1, "E-X", now=1)


def test_a_message_is_its_nodes_alone() -> None:
    """Another node's answer finds nothing open."""
    with pytest.raises(ProtocolError):
        pushed(1, 2).accept_reply(ids(1)[0], 2, now=1)


def test_a_waiting_pull_is_answered_when_all_are() -> None:
    """The answer names every message in the order asked."""
    made = pushed(1, 2)
    assert answered(made.pull(1, ids(2, 1), timeout_s=0, wait=True, now=0)) is None
    assert answered(made.accept_reply(ids(1)[0], 1, now=1)) is None
    effects = made.fail(ids(2)[0], 2, "E-APP-FAILED", now=2)
    assert answered(effects) == [("failed", "E-APP-FAILED"), ("replied", "")]


def test_a_pull_whose_time_is_up_gets_what_is_there() -> None:
    """The open message stays open, so that the worker may wait again."""
    made = pushed(1, 2)
    made.pull(1, ids(1, 2), timeout_s=10, wait=True, now=0)
    made.accept_reply(ids(1)[0], 1, now=1)
    assert made.next_deadline_s(1) == 10
    assert answered(made.tick(10)) == [("replied", "")]
    assert [entry.sequence for entry in made.open_for(2)] == [2]


def test_a_pull_that_does_not_wait_gets_what_is_there() -> None:
    """Open messages are left out."""
    made = pushed(1, 2)
    made.accept_reply(ids(1)[0], 1, now=1)
    effects = made.pull(1, ids(1, 2), timeout_s=0, wait=False, now=1)
    assert answered(effects) == [("replied", "")]


def test_waiting_for_a_message_that_was_never_pushed_is_refused() -> None:
    """It would wait for ever."""
    with pytest.raises(ProtocolError):
        exchange(1).pull(1, ids(7), timeout_s=0, wait=True, now=0)


def test_messages_expire() -> None:
    """After its time to live a message has failed, and a later reply is refused."""
    made = pushed(1, 2)
    made.pull(1, ids(1, 2), timeout_s=0, wait=True, now=0)
    assert answered(made.tick(59.9)) is None
    assert answered(made.tick(60)) == [("failed", "E-MESSAGE-EXPIRED")] * 2
    with pytest.raises(ProtocolError):
        made.accept_reply(ids(1)[0], 1, now=61)


def test_a_gone_node_is_given_up_after_the_grace_time_once_the_quorum_answered() -> None:
    """The round closes early, exactly at the end of the grace time."""
    made = pushed(1, 2, 3)
    made.pull(1, ids(1, 2, 3), timeout_s=0, wait=True, now=0)
    made.observe_node(3, approved=True, connected=False, now=5)
    made.accept_reply(ids(1)[0], 1, now=6)
    made.accept_reply(ids(2)[0], 2, now=7)
    assert made.next_deadline_s(7) == 35
    assert answered(made.tick(34.9)) is None
    assert answered(made.tick(35)) == [("replied", ""), ("replied", ""), ("failed", "E-NODE-GONE")]


def test_who_is_waited_for_alone_has_the_whole_time() -> None:
    """A pull of one message gives nobody up for being gone: not before its time to live."""
    made = pushed(1, 2, 3)
    made.observe_node(3, approved=True, connected=False, now=0)
    made.accept_reply(ids(1)[0], 1, now=1)
    made.accept_reply(ids(2)[0], 2, now=1)
    assert answered(made.pull(1, ids(3), timeout_s=0, wait=True, now=1)) is None
    assert answered(made.tick(59.9)) is None
    made.observe_node(3, approved=True, connected=True, now=59.9)
    assert answered(made.accept_reply(ids(3)[0], 3, now=59.9)) == [("replied", "")]


def test_a_round_below_its_quorum_waits_for_a_gone_node() -> None:
    """Giving up would waste what the others have paid for."""
    made = pushed(1, 2)
    made.pull(1, ids(1, 2), timeout_s=0, wait=True, now=0)
    made.observe_node(2, approved=True, connected=False, now=1)
    made.accept_reply(ids(1)[0], 1, now=2)
    assert answered(made.tick(50)) is None
    assert made.next_deadline_s(50) == 60


def test_a_node_that_comes_back_is_waited_for() -> None:
    """Presence ends the grace time."""
    made = pushed(1, 2, 3)
    made.pull(1, ids(1, 2, 3), timeout_s=0, wait=True, now=0)
    made.observe_node(3, approved=True, connected=False, now=0)
    made.observe_node(3, approved=True, connected=True, now=20)
    made.accept_reply(ids(1)[0], 1, now=21)
    made.accept_reply(ids(2)[0], 2, now=21)
    assert answered(made.tick(40)) is None


def test_a_revoked_node_fails_what_it_owes_at_once() -> None:
    """Nobody waits for a node that will not answer."""
    made = pushed(1, 2)
    made.accept_reply(ids(1)[0], 1, now=0)
    made.pull(1, ids(1, 2), timeout_s=0, wait=True, now=0)
    effects = made.drop_node(2, "E-MEMBER-REVOKED", now=1)
    assert answered(effects) == [("replied", ""), ("failed", "E-MEMBER-REVOKED")]
    assert made.eligible() == (1,)


def test_asking_for_nodes_waits_for_the_quorum_and_keeps_its_answer() -> None:
    """The same sequence gets the same nodes, whoever comes or goes later."""
    made = exchange(3)
    assert made.ask_nodes(1, 5, now=0) == []
    effects = made.observe_node(2, approved=True, connected=True, now=1)
    assert effects == [NodesAnswered(1, 5, (2, 3), stored=False)]
    made.observe_node(1, approved=True, connected=True, now=2)
    assert made.ask_nodes(2, 5, now=3) == [NodesAnswered(2, 5, (2, 3), stored=True)]
    assert made.ask_nodes(3, 6, now=3) == [NodesAnswered(3, 6, (1, 2, 3), stored=False)]


def test_a_checkpoint_forgets_what_lies_before_it() -> None:
    """Replied messages are committed, the others are not, and their ids never come back."""
    made = pushed(1, 2)
    made.accept_reply(ids(1)[0], 1, now=1)
    effects = made.checkpoint(3, now=2)
    assert [(e.entry.sequence, e.committed) for e in effects if isinstance(e, Forgotten)] == [
        (1, True),
        (2, False),
    ]
    with pytest.raises(ProtocolError):
        made.push([instruction(2, 2)], now=3)


def test_the_end_closes_everything() -> None:
    """Nothing is open afterwards."""
    made = pushed(1, 2)
    made.pull(1, ids(1, 2), timeout_s=0, wait=True, now=0)
    assert len(made.finish()) == 2
    assert made.open_for(1) == []


def test_restored_messages_get_their_whole_time_again() -> None:
    """Time when nobody could answer is not counted."""
    made = exchange(1, 2)
    entries = [Entry(instruction=instruction(1, 1)), Entry(instruction=instruction(2, 2))]
    made.restore(entries, [(5, (1, 2))], next_sequence=1, now=1000)
    made.pull(1, ids(1, 2), timeout_s=0, wait=True, now=1000)
    assert answered(made.tick(1059)) is None
    assert answered(made.tick(1060)) is not None


steps = st.lists(
    st.tuples(
        st.sampled_from(["push", "reply", "fail", "pull", "leave", "come", "drop", "tick", "mark"]),
        st.integers(0, 6),
        st.integers(1, 3),
    ),
    max_size=40,
)


@given(steps)
def test_whatever_happens_each_message_ends_once(script: list[tuple[str, int, int]]) -> None:
    """No message is answered twice, no final answer changes, and no pull is answered with holes."""
    made, now = exchange(1, 2, 3), 0.0
    final: dict[str, Outcome] = {}
    closed: set[str] = set()
    for step, (kind, number, node) in enumerate(script):
        now += number
        try:
            effects = _do(made, kind, number, node, step, now)
        except ProtocolError:
            continue
        for effect in effects:
            if isinstance(effect, Failed):
                assert effect.entry.wire_id not in final
                final[effect.entry.wire_id] = Outcome.FAILED
            elif isinstance(effect, Forgotten):
                assert effect.entry.wire_id not in closed
                closed.add(effect.entry.wire_id)
            elif isinstance(effect, PullAnswered):
                assert all(entry.outcome is not Outcome.OPEN for entry in effect.entries)
        assert made.next_deadline_s(now) > now
        assert all(entry.deadline_s < math.inf for n in (1, 2, 3) for entry in made.open_for(n))


def _do(  # noqa: PLR0911, PLR0917 - one line per kind of event
    made: Exchange, kind: str, number: int, node: int, step: int, now: float
) -> list[Effect]:
    wire_id = f"{RUN}.{number:06d}"
    match kind:
        case "push":
            return made.push([instruction(number, node, content=bytes([step % 2]))], now=now)
        case "reply":
            return made.accept_reply(wire_id, node, now=now)
        case "fail":
            return made.fail(wire_id, node, "E-X", now=now)
        case "pull":
            return made.pull(step, ids(number), timeout_s=node, wait=True, now=now)
        case "leave" | "come":
            return made.observe_node(node, approved=True, connected=kind == "come", now=now)
        case "drop":
            return made.drop_node(node, "E-GONE", now=now)
        case "mark":
            return made.checkpoint(number, now=now)
        case _:
            return made.tick(now)
