"""What leaves is charged first, once, and never beyond the owner's budget."""

from __future__ import annotations

import dataclasses
import math
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.client.approvals import Verdict
from tacit.client.charges import Charges
from tacit.client.configuration import AppRule
from tacit.core.errors import TrustError
from tacit.core.specification import (
    AppSpec,
    EvaluationSpec,
    MetricSpec,
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    ReplySpec,
    RunSpec,
    canonical_json,
    specification_sha256,
)
from tacit.privacy.ledger_entries import Purpose, Reserve, Side, Unit
from tacit.privacy.plan import privacy_plan
from tacit.protos import fleet_pb2
from tests.client.fakes import (
    KEY,
    MODEL,
    RUN,
    instruction,
    make_config,
    make_node,
    make_spec,
    manifest_of,
    offer,
    open_ledger,
    open_mode,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tacit.client.configuration import ClientConfig
    from tacit.client.store import OutboxEntry
    from tacit.privacy.ledger_account import Account

APP = AppSpec(client="tests.client.fakes:app")
CLIENT = PrivacySpec(mode=PrivacyMode.CLIENT_LOCAL, clip=1.0, noise_multiplier=2.0, delta=1e-3)


def config_of(folder: Path, *, budget: float = 10.0, **changes: Any) -> ClientConfig:
    """A policy that is generous except for the data set's budget."""
    config = make_config(
        folder,
        modes=tuple(PrivacyMode),
        max_epsilon_per_run=100.0,
        **{"allow_exact_metrics": True} | changes,
    )
    data_set = dataclasses.replace(config.data_sets["default"], budget=budget)
    return dataclasses.replace(config, data_sets={"default": data_set})


def account_of(folder: Path) -> Account:
    return open_ledger(folder).account("default")


def claim_of(entry: OutboxEntry) -> fleet_pb2.Claim:
    return fleet_pb2.ReplyHead.FromString(entry.head).claim


def test_each_release_is_entered_with_all_that_it_promises(tmp_path: Path) -> None:
    """Two rounds are two reserves; together they cost what the plan says, and the claim too."""
    spec = make_spec()
    node, _ = make_node(tmp_path, config_of(tmp_path))
    offer(node, spec)
    claims = [claim_of(node.answer(*instruction(spec, number))) for number in (1, 2)]
    plan = privacy_plan(spec, records=300)
    account = account_of(tmp_path)
    assert account.epsilon == pytest.approx(plan.epsilon, rel=1e-9)
    assert [claim.epsilon for claim in claims] == pytest.approx(
        [plan.epsilon_after(1), plan.epsilon_after(2)]
    )
    assert [claim.ledger.entries for claim in claims] == [3, 4]
    charge = account.charges[0].charge
    assert (charge.run, charge.message, charge.attempt) == (RUN, f"{RUN}.000001", 0)
    assert (charge.side, charge.purpose, charge.unit) == (
        Side.TRAIN,
        Purpose.TRAINING,
        Unit.RECORD,
    )
    assert charge.specification_sha256 == specification_sha256(canonical_json(spec)).hex()


def test_an_answer_that_is_given_again_is_not_charged_again(tmp_path: Path) -> None:
    """Asked again, restarted, or trained again after a crash: one attempt is one charge."""
    spec = make_spec()
    node, _ = make_node(tmp_path, config_of(tmp_path))
    offer(node, spec)
    head, payload = instruction(spec)
    first = node.answer(head, payload)
    node.answer(head, payload)
    again, _ = make_node(tmp_path, config_of(tmp_path))
    assert again.answer(head, payload) == first
    lose_answers(tmp_path)
    assert again.answer(head, payload).message_id == first.message_id
    assert len(account_of(tmp_path).charges) == 1


def lose_answers(folder: Path) -> None:
    """Undo what is stored after the charge, as a crash between the two would have."""
    with sqlite3.connect(folder / "client.sqlite") as connection:
        for table in ("outbox", "releases", "decisions", "ledger_heads"):
            connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names from above


def test_one_charge_pays_for_one_noise(tmp_path: Path) -> None:
    """A server that closes a message and asks again, same id, same attempt, gets nothing."""
    spec = make_spec()
    node, runner = make_node(tmp_path, config_of(tmp_path))
    offer(node, spec)
    head, payload = instruction(spec)
    node.answer(head, payload)
    node.close_message(head.message_id)
    entry = node.answer(head, payload)
    assert fleet_pb2.ReplyHead.FromString(entry.head).failure.reason == "E-RELEASE-REPEATED"
    assert len(runner.calls) == 1
    assert node.store.has_noise_key(head.message_id, head.attempt) is False


def test_a_store_that_was_put_back_frees_no_second_noise(tmp_path: Path) -> None:
    """Without client.sqlite's key, an attempt that the ledger has charged is not made again."""
    spec = make_spec()
    node, _ = make_node(tmp_path, config_of(tmp_path))
    offer(node, spec)
    head, payload = instruction(spec)
    node.answer(head, payload)
    for name in ("client.sqlite", "client.sqlite-wal", "client.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    again, runner = make_node(tmp_path, config_of(tmp_path))
    offer(again, spec)
    entry = again.answer(head, payload)
    assert fleet_pb2.ReplyHead.FromString(entry.head).failure.reason == "E-RELEASE-REPEATED"
    assert runner.calls == []


def test_another_attempt_is_another_charge(tmp_path: Path) -> None:
    """What an aborted attempt has cost stays, and the claim says so."""
    spec = make_spec()
    node, _ = make_node(tmp_path, config_of(tmp_path))
    offer(node, spec)
    entries = [node.answer(*instruction(spec, attempt=attempt)) for attempt in (0, 1)]
    plan = privacy_plan(spec, records=300)
    assert len(account_of(tmp_path).charges) == 2
    assert claim_of(entries[1]).epsilon == pytest.approx(plan.epsilon_after(2))


def test_a_refused_answer_costs_nothing(tmp_path: Path) -> None:
    """What the envelope keeps back was not released."""
    broken = {"weight": np.full((2, 3), np.nan, np.float32), "bias": MODEL["bias"]}
    node, _ = make_node(
        tmp_path, config_of(tmp_path), lambda _: manifest_of(broken, {"num-examples": 1})
    )
    offer(node, make_spec())
    entry = node.answer(*instruction(make_spec()))
    assert not fleet_pb2.ReplyHead.FromString(entry.head).HasField("claim")
    assert not account_exists(tmp_path)


def account_exists(folder: Path) -> bool:
    return "default" in open_ledger(folder).data_sets()


def test_a_run_beyond_the_budget_is_denied_when_it_is_offered(tmp_path: Path) -> None:
    """The first run of a data set too, and the reason names the budget."""
    node, _ = make_node(tmp_path, config_of(tmp_path, budget=0.9))
    judgement = offer(node, make_spec())
    assert (judgement.verdict, judgement.code) == (Verdict.DENIED, "E-LEDGER-BUDGET")
    assert "0.9" in judgement.reason


def test_a_bound_per_record_is_none_on_a_budget_per_subject(tmp_path: Path) -> None:
    """The ledger says so before an app is called, the first run of a data set included."""
    config = config_of(tmp_path)
    data_set = dataclasses.replace(config.data_sets["default"], subject="patient")
    config = dataclasses.replace(config, data_sets={"default": data_set})
    with open_ledger(tmp_path) as ledger:
        charges = Charges(ledger, config=config, public_key=KEY.public_key().public_bytes_raw())
        refusal = charges.refusal(make_spec(), RUN, beside={})
    assert refusal is not None
    assert refusal.code == "E-LEDGER-UNIT"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"records": 200}, "E-LEDGER-TERMS"),
        ({"budget": 0.9}, "E-LEDGER-BUDGET"),
        ({"budget": 2.0}, ""),
    ],
)
def test_what_client_toml_says_now_counts_before_an_app_is_called(
    tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    """Terms for life that changed deny a run; a budget counts as it is now, lowered or raised."""
    config = config_of(tmp_path, budget=1.05)
    node, _ = make_node(tmp_path, config)
    offer(node, make_spec())
    node.answer(*instruction(make_spec()))
    data_set = dataclasses.replace(config.data_sets["default"], **changes)
    again, _ = make_node(tmp_path, dataclasses.replace(config, data_sets={"default": data_set}))
    canonical = canonical_json(make_spec())
    assert again.offer("r-00000002", canonical, specification_sha256(canonical)).code == code


def test_two_runs_share_one_budget(tmp_path: Path) -> None:
    """What another run has spent meanwhile is missing: the app is not even called."""
    spec = make_spec()
    node, runner = make_node(tmp_path, config_of(tmp_path, budget=1.05))
    offer(node, spec)
    node.answer(*instruction(spec, 1))
    with open_ledger(tmp_path) as ledger:
        charge = ledger.account("default").charges[0].charge
        mechanism = dataclasses.replace(charge.mechanism, noise_multiplier=5.0)
        ledger.reserve(dataclasses.replace(charge, run="r-00000002", mechanism=mechanism))
    entry = node.answer(*instruction(spec, 2))
    assert fleet_pb2.ReplyHead.FromString(entry.head).failure.reason == "E-LEDGER-BUDGET"
    assert len(runner.calls) == 1


def test_a_data_set_has_one_delta_for_life(tmp_path: Path) -> None:
    """A run at another delta is denied: its epsilon could not be added."""
    spec = make_spec()
    node, _ = make_node(tmp_path, config_of(tmp_path))
    offer(node, spec)
    node.answer(*instruction(spec))
    other = make_spec(privacy=dataclasses.replace(spec.privacy, delta=1e-4))
    canonical = canonical_json(other)
    judgement = node.offer("r-00000002", canonical, specification_sha256(canonical))
    assert judgement.code == "E-LEDGER-DELTA"


def test_noised_metrics_are_charged_to_the_validation_records(tmp_path: Path) -> None:
    """Training and evaluation cost different records; the data set costs the larger of the two."""
    spec = make_spec(evaluation=EvaluationSpec(every=1, epsilon=0.5))
    sums = dict.fromkeys(("sum-correct", "sum-wrong", "sum-loss"), 1.0)

    def answer(call: Any) -> Any:
        if call.instruction.message_type == "train":
            return manifest_of(MODEL, {"num-examples": 1})
        return manifest_of(None, {"num-examples": 1, **sums})

    node, _ = make_node(tmp_path, config_of(tmp_path), answer)
    offer(node, spec)
    for number, kind in enumerate(("train", "evaluate", "train", "evaluate"), 1):
        entry = node.answer(*instruction(spec, number, message_type=kind))
    account = account_of(tmp_path)
    assert account.epsilon_by_side == pytest.approx({"train": 1.0, "validation": 0.5}, rel=1e-3)
    assert account.epsilon == pytest.approx(1.0, rel=1e-3)
    assert claim_of(entry).side == "validation"
    assert claim_of(entry).epsilon == pytest.approx(0.5, rel=1e-3)


def test_exact_metrics_leave_no_finite_epsilon(tmp_path: Path) -> None:
    """Allowed by the owner, they are entered by name, and the claim says that nothing bounds it."""
    spec = make_spec(evaluation=EvaluationSpec(every=1))
    metrics = {"num-examples": 1, "loss": 0.5, "accuracy": 0.8}
    node, _ = make_node(tmp_path, config_of(tmp_path), lambda _: manifest_of(None, metrics))
    offer(node, spec)
    entry = node.answer(*instruction(spec, message_type="evaluate"))
    assert claim_of(entry).epsilon == math.inf
    assert account_of(tmp_path).true_epsilon == math.inf


def test_mode_none_is_remembered_by_the_data_set(tmp_path: Path) -> None:
    """A later account of the same records does not claim what an open run has given away."""
    node, _ = make_node(tmp_path, config_of(tmp_path))
    spec = make_spec(privacy=open_mode())
    offer(node, spec)
    for number in (1, 2):
        reply = node.answer(*instruction(spec, number))
        assert not fleet_pb2.ReplyHead.FromString(reply.head).HasField("claim")
    private = make_spec()
    canonical = canonical_json(private)
    node.offer("r-00000002", canonical, specification_sha256(canonical))
    head, payload = instruction(private)
    head.run_id, head.message_id = "r-00000002", "r-00000002.000001"
    node.answer(head, payload)
    account = account_of(tmp_path)
    assert account.exposed == (RUN,)
    assert account.true_epsilon == math.inf
    assert account.epsilon < 1


def client_local(
    folder: Path, reply: Any, *, model: Any = MODEL
) -> tuple[fleet_pb2.ReplyHead, bytes]:
    """Play one round of an app of somebody's own under client-local."""
    spec = RunSpec(
        name="own",
        app=APP,
        privacy=CLIENT,
        participation=ParticipationSpec(rounds=1),
        results={"train": ReplySpec(metrics={"num-examples": MetricSpec(range=(1.0, 1e6))})},
    )
    config = config_of(folder, budget=100.0, apps={APP.client: AppRule()})
    node, runner = make_node(folder, config, lambda _: reply)
    judgement = offer(node, spec)
    assert judgement.verdict is Verdict.APPROVED, judgement
    entry = node.answer(*instruction(spec, model=model))
    assert all(not call.noise_key for call in runner.calls)
    return fleet_pb2.ReplyHead.FromString(entry.head), bytes(node.open_reply(entry))


def test_the_node_noises_an_update_that_is_not_our_app_s(tmp_path: Path) -> None:
    """Of a huge update at most C is left under the noise; the weight is 1; 2C is charged."""
    huge = {name: array + np.float32(1e6) for name, array in MODEL.items()}
    reply, payload = client_local(tmp_path, manifest_of(huge, {"num-examples": 77}))
    assert reply.claim.unit == "client"
    assert reply.claim.relation == "replace-one"
    weight = next(r for r in reply.manifest.records if r.key == "metrics").items[0]
    assert weight.integer == 1
    received = np.concatenate([array.ravel() for array in MODEL.values()])
    change = np.frombuffer(payload, np.float32) - received
    assert 0.5 < np.abs(change).max() < 40  # deviation 4 on each of 8 coordinates, and a clip of 1
    entry = open_ledger(tmp_path).entries()[-1].body
    assert isinstance(entry, Reserve)
    assert entry.charge.noise_deviation == pytest.approx(4.0, rel=1e-4)
    assert entry.charge.side is Side.WHOLE


def test_an_update_that_cannot_be_noised_does_not_leave(tmp_path: Path) -> None:
    """A float16 model has no mechanism: refused, and nothing is charged."""
    half = {name: array.astype(np.float16) for name, array in MODEL.items()}
    reply, _ = client_local(tmp_path, manifest_of(half, {"num-examples": 1}), model=half)
    assert reply.failure.reason == "E-UPDATE-DTYPE"
    assert not account_exists(tmp_path)


def test_a_ledger_that_was_put_back_is_found_at_the_start(tmp_path: Path) -> None:
    """The node's own store knows how far the ledger had come."""
    spec = make_spec()
    node, _ = make_node(tmp_path, config_of(tmp_path))
    offer(node, spec)
    node.answer(*instruction(spec, 1))
    copy = tmp_path / "copy.sqlite"
    with open_ledger(tmp_path) as ledger:
        ledger.verify()
    backup(tmp_path / "ledger.sqlite", copy)
    node.answer(*instruction(spec, 2))
    put_back(tmp_path)
    with pytest.raises(TrustError, match="E-LEDGER-ROLLBACK"):
        make_node(tmp_path, config_of(tmp_path))


def test_what_an_open_run_gave_away_is_not_forgotten(tmp_path: Path) -> None:
    """Mode none claims nothing, and yet an older ledger, which does not know of it, is found."""
    node, _ = make_node(tmp_path, config_of(tmp_path))
    backup(tmp_path / "ledger.sqlite", tmp_path / "copy.sqlite")
    spec = make_spec(privacy=open_mode())
    offer(node, spec)
    node.answer(*instruction(spec))
    put_back(tmp_path)
    with pytest.raises(TrustError, match=r"entry 2 .*E-LEDGER-ROLLBACK"):
        make_node(tmp_path, config_of(tmp_path))


def put_back(folder: Path) -> None:
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (folder / name).unlink(missing_ok=True)
    shutil.copy(folder / "copy.sqlite", folder / "ledger.sqlite")


def backup(source: Path, target: Path) -> None:
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)


def test_the_server_s_memory_is_checked_against_the_ledger(tmp_path: Path) -> None:
    """The furthest head that the server saw must be a part of the ledger; it must be ours."""
    spec = make_spec()
    node, _ = make_node(tmp_path, config_of(tmp_path))
    offer(node, spec)
    seen = claim_of(node.answer(*instruction(spec, 1))).ledger
    node.charges.verify_seen(seen)
    forged = fleet_pb2.LedgerHead()
    forged.CopyFrom(seen)
    forged.entries += 1
    with pytest.raises(TrustError, match="E-LEDGER-SIGNATURE"):
        node.charges.verify_seen(forged)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(TrustError, match="E-LEDGER-FORK"):
        make_node(other, config_of(other))[0].charges.verify_seen(seen)
