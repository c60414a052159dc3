"""A charge of which nothing came is entered as aborted, with the reason; it stays a charge."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tacit.client.charges import Charges
from tacit.client.configuration import AppRule
from tacit.client.dispatch import Dispatcher
from tacit.core.errors import TacitError
from tacit.core.specification import MetricSpec, ParticipationSpec, ReplySpec, RunSpec
from tacit.privacy.ledger_entries import Abort, ChargeKey, Expose
from tacit.protos import fleet_pb2, records_pb2
from tests.client.fakes import (
    KEY,
    MODEL,
    RUN,
    instruction,
    make_node,
    make_spec,
    manifest_of,
    offer,
    open_ledger,
    open_mode,
)
from tests.client.test_charges import APP, CLIENT, account_of, config_of

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.node import Node

UNUSED = "time was up"
MESSAGE = f"{RUN}.000001"


def answered(folder: Path, *, attempt: int = 0) -> Node:
    """A node that has answered one message; its reply waits for the server."""
    node, _ = make_node(folder, config_of(folder))
    offer(node, make_spec())
    node.answer(*instruction(make_spec(), attempt=attempt))
    return node


def aborts(folder: Path) -> list[tuple[str, int, str]]:
    """Return message, attempt and reason of every abort."""
    bodies = [entry.body for entry in open_ledger(folder).entries()]
    return [(b.message, b.attempt, b.reason) for b in bodies if isinstance(b, Abort)]


def test_a_message_that_is_closed_without_a_receipt_is_aborted_once(tmp_path: Path) -> None:
    """The reason is kept, the charge stays, and a second close adds nothing."""
    node = answered(tmp_path)
    before = account_of(tmp_path)
    node.close_message(MESSAGE, UNUSED)
    node.close_message(MESSAGE, UNUSED)
    assert aborts(tmp_path) == [(MESSAGE, 0, UNUSED)]
    after = account_of(tmp_path)
    assert (after.epsilon, after.held) == (before.epsilon, before.held)
    assert [held.state for held in after.charges] == ["abort"]


def test_what_the_server_has_is_never_aborted(tmp_path: Path) -> None:
    """A receipt, or the word that the reply is committed, leaves the charge as it is."""
    node = answered(tmp_path)
    node.answer(*instruction(make_spec(), 2))
    node.mark_received(MESSAGE)
    node.close_message(MESSAGE, UNUSED)
    node.close_message(f"{RUN}.000002")
    node.end_run(RUN, "stopped")
    assert aborts(tmp_path) == []
    assert len(account_of(tmp_path).charges) == 2


def test_a_run_that_ends_aborts_what_has_no_receipt(tmp_path: Path) -> None:
    """Of two replies that are stored, the one with a receipt counts as used."""
    node = answered(tmp_path)
    node.answer(*instruction(make_spec(), 2))
    node.mark_received(MESSAGE)
    node.end_run(RUN, "stopped", "enough")
    reason = "no receipt had come when the run ended (stopped)"
    assert aborts(tmp_path) == [(f"{RUN}.000002", 0, reason)]


def test_an_attempt_that_is_replaced_is_aborted(tmp_path: Path) -> None:
    """The new attempt has its own charge; the old one can no longer be sent."""
    node = answered(tmp_path)
    node.answer(*instruction(make_spec(), attempt=1))
    reason = "another attempt took its place without a receipt"
    assert aborts(tmp_path) == [(MESSAGE, 0, reason)]
    node.close_message(MESSAGE, UNUSED)
    assert aborts(tmp_path) == [(MESSAGE, 0, reason), (MESSAGE, 1, UNUSED)]


def test_an_attempt_that_was_received_and_then_replaced_is_not_aborted(tmp_path: Path) -> None:
    """Its receipt is still true when only its noise key is left of it."""
    node = answered(tmp_path)
    node.mark_received(MESSAGE)
    node.answer(*instruction(make_spec(), attempt=1))
    node.close_message(MESSAGE, UNUSED)
    assert aborts(tmp_path) == [(MESSAGE, 1, UNUSED)]


@pytest.mark.parametrize("by_run", [False, True], ids=["closed", "ended"])
def test_a_crash_between_charge_and_answer_is_aborted(tmp_path: Path, *, by_run: bool) -> None:
    """The noise key tells of an attempt that was charged and never answered."""
    answered(tmp_path)
    with sqlite3.connect(tmp_path / "client.sqlite") as connection:
        for table in ("outbox", "releases", "ledger_heads"):
            connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names from above
    again, _ = make_node(tmp_path, config_of(tmp_path))
    again.end_run(RUN, "failed") if by_run else again.close_message(MESSAGE, UNUSED)
    assert [(message, attempt) for message, attempt, _ in aborts(tmp_path)] == [(MESSAGE, 0)]


def test_an_attempt_that_was_not_charged_is_not_aborted(tmp_path: Path) -> None:
    """A refused answer has a noise key, and no entry."""
    node, _ = make_node(tmp_path, config_of(tmp_path), lambda _: "E-APP-RAISED")
    offer(node, make_spec())
    node.answer(*instruction(make_spec()))
    node.close_message(MESSAGE, UNUSED)
    assert len(open_ledger(tmp_path).entries()) == 1  # its beginning


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_closed_while_it_is_answered_costs_nothing(tmp_path: Path, *, fails: bool) -> None:
    """An app that is too late for its round spends no budget, and leaves nothing in the outbox."""

    def late(_: object) -> tuple[records_pb2.Manifest, bytes] | str:
        node.close_message(MESSAGE, UNUSED)
        return "E-APP-RAISED" if fails else manifest_of(MODEL, {"num-examples": 1})

    node, _ = make_node(tmp_path, config_of(tmp_path), late)
    offer(node, make_spec())
    with pytest.raises(TacitError):
        node.answer(*instruction(make_spec()))
    assert node.store.list_replies() == []
    assert len(open_ledger(tmp_path).entries()) == 1  # its beginning
    assert list((tmp_path / "outbox").iterdir()) == []


def test_a_charged_failure_is_not_aborted(tmp_path: Path) -> None:
    """The server closes a message as it takes a failure: whether it was heard is not known here."""
    results = {"train": ReplySpec(metrics={"num-examples": MetricSpec(range=(1.0, 1e6))})}
    people = ParticipationSpec(rounds=1)
    spec = RunSpec(name="own", app=APP, privacy=CLIENT, participation=people, results=results)
    config = config_of(tmp_path, budget=100.0, apps={APP.client: AppRule()})
    node, _ = make_node(tmp_path, config, lambda _: "E-APP-RAISED")
    offer(node, spec)
    node.answer(*instruction(spec))
    assert len(account_of(tmp_path).charges) == 1
    node.close_message(MESSAGE, UNUSED)
    assert aborts(tmp_path) == []


def test_a_release_without_noise_has_nothing_to_abort(tmp_path: Path) -> None:
    """In mode none the run is entered by name, once."""
    spec = make_spec(privacy=open_mode())
    node, _ = make_node(tmp_path, config_of(tmp_path))
    offer(node, spec)
    node.answer(*instruction(spec))
    node.close_message(MESSAGE, UNUSED)
    node.end_run(RUN, "stopped")
    kinds = [type(entry.body) for entry in open_ledger(tmp_path).entries()]
    assert (kinds.count(Expose), aborts(tmp_path)) == (1, [])


def test_a_ledger_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk the message is forgotten all the same, and the log says what is not noted."""
    node = answered(tmp_path)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    node.close_message(MESSAGE, UNUSED)
    assert node.store.load_reply(MESSAGE) is None
    assert "an aborted attempt is not noted" in caplog.text
    assert [held.state for held in account_of(tmp_path).charges] == ["reserve"]


def test_a_data_set_that_is_no_longer_declared_is_aborted_too(tmp_path: Path) -> None:
    """The ledger knows the charge by its key, whatever client.toml says today."""
    answered(tmp_path)
    ledger = open_ledger(tmp_path)
    config = config_of(tmp_path)
    config.data_sets.pop("default")
    charges = Charges(ledger, config=config, public_key=KEY.public_key().public_bytes_raw())
    charges.abort([ChargeKey(RUN, MESSAGE, 0), ChargeKey(RUN, "unknown", 0)], UNUSED)
    assert aborts(tmp_path) == [(MESSAGE, 0, UNUSED)]


@pytest.mark.parametrize("committed", [False, True])
def test_what_the_server_says_of_a_closed_message_decides(
    tmp_path: Path, *, committed: bool
) -> None:
    """Committed is used, also where the receipt was lost and the run's end follows at once."""

    async def told() -> None:
        node = answered(tmp_path)
        with ThreadPoolExecutor(4) as executor:
            dispatcher = Dispatcher(node, executor, rng=random.Random(1))  # noqa: S311
            closed = fleet_pb2.MessageClosed(run_id=RUN, message_id=MESSAGE, committed=committed)
            dispatcher.handle(fleet_pb2.Task(closed=closed))
            ended = fleet_pb2.RunEnded(run_id=RUN, status="finished")
            dispatcher.handle(fleet_pb2.Task(ended=ended))
            async with asyncio.timeout(30):
                while not node.store.load_run(RUN).ended:  # noqa: ASYNC110 - no event of its own
                    await asyncio.sleep(0.01)
            await dispatcher.close()

    asyncio.run(told())
    assert len(aborts(tmp_path)) == (0 if committed else 1)
    assert all("closed the message" in reason for _, _, reason in aborts(tmp_path))
