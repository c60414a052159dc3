"""Under differential privacy a stored update is sent again, never made again, and charged once."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.client.ledger_view import open_to_read
from tacit.core.artifacts import load_arrays, save_arrays
from tacit.core.configuration import load_config
from tacit.core.specification import EvaluationSpec, RunSpec
from tacit.learning.models import initial_arrays
from tacit.privacy.plan import privacy_plan
from tacit.simulation.demo import HOSPITALS
from tacit.simulation.owners import heart_folder
from tests.end_to_end.federation import Federation, eventually, federation

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OWNERS = ("va", "switzerland")
ROUNDS = 2


def specification() -> RunSpec:
    run = load_config(heart_folder() / "run.toml", RunSpec).value
    people = replace(run.participation, rounds=ROUNDS, min_clients=len(OWNERS))
    return replace(run, participation=people, evaluation=EvaluationSpec())


def data_set(name: str) -> str:
    path = (heart_folder() / f"{name}.csv").as_posix()
    return f'[data_sets.heart]\npath = "{path}"\nrecords = {HOSPITALS[name]}\n'


def noise_keys(home: Path) -> list[tuple[str, int, bytes]]:
    uri = f"{(home / 'client.sqlite').as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True)
    try:
        return connection.execute("SELECT message_id, attempt, key FROM noise_keys").fetchall()
    finally:
        connection.close()


def stored_update(played: Federation, name: str) -> tuple[str, bytes]:
    (entry,) = eventually(f"an update in {name}'s outbox", lambda: played.outbox(name))
    return entry.message_id, (played.root / name / "outbox" / entry.payload_file).read_bytes()


def start_and_stop_before_sending(played: Federation, run: RunSpec, initial: Path) -> str:
    """Submit a run; when this returns, va has stored its first update and the server sleeps."""
    run_id = played.submit(run, initial)
    (worker,) = eventually("a worker of va", lambda: worker_of(played))
    os.kill(worker, signal.SIGSTOP)  # it cannot answer before the server sleeps
    played.wait_for_event(run_id, "round_started", round=1)
    eventually("va to have the message", lambda: noise_keys(played.root / "va"))
    stored_update(played, "switzerland")
    played.daemons["server"].send(signal.SIGSTOP)
    os.kill(worker, signal.SIGCONT)
    return run_id


def kill_in_the_next_round(played: Federation, message_id: str) -> None:
    """Kill va once it works on a later message, and start it again."""
    eventually(
        "a key for the next round",
        lambda: any(key[0] != message_id for key in noise_keys(played.root / "va")),
        tick_s=0.001,
    )
    played.daemons["va"].kill()
    played.start_client("va")


def worker_of(played: Federation) -> list[int]:
    found = played.processes("tacit.client.worker")
    return [pid for pid, line in found.items() if f"{played.root}/va/scratch" in line]


def test_a_noised_update_is_sent_again_and_not_drawn_again(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """After kill -9 the very bytes that were stored are aggregated, released and charged once.

    The owner who was killed twice has spent what an uninterrupted run costs.
    """
    with federation(tmp_path_factory.mktemp("resent")) as played:
        for name in OWNERS:
            played.join(name, data=data_set(name))
            played.start_client(name)
        run = specification()
        initial = played.root / "initial.safetensors"
        save_arrays(initial, initial_arrays(run))
        run_id = start_and_stop_before_sending(played, run, initial)
        updates = dict(stored_update(played, name) for name in OWNERS)
        message_id, stored = stored_update(played, "va")
        before = noise_keys(played.root / "va")
        played.daemons["va"].kill()
        played.daemons["server"].send(signal.SIGCONT)
        played.start_client("va")
        kill_in_the_next_round(played, message_id)

        played.finish(run_id)
        first = load_arrays(played.pull(run_id).round(1))
        assert_mean(first, list(updates.values()))
        log = [line for line in played.decisions("va", run_id) if line.message_id]
        assert [line.outcome for line in log] == ["released"] * ROUNDS
        assert len({line.message_id for line in log}) == ROUNDS
        (released,) = [line for line in log if line.message_id == message_id]
        assert released.payload_sha256 == hashlib.sha256(stored).digest()
        assert [key[0] for key in before] == [message_id]
        assert noise_keys(played.root / "va") == []  # wiped when their rounds were committed
        plan = privacy_plan(run, records=HOSPITALS["va"])
        assert spent(played, "va") == (ROUNDS, pytest.approx(plan.epsilon, rel=1e-9))
        assert spent(played, "switzerland")[0] == ROUNDS
        claims = played.tacit("run", "show", run_id, "--json").json["manifest"]["claims"]
        assert claims["va"]["train"]["epsilon"] == pytest.approx(plan.epsilon, rel=1e-9)


def spent(played: Federation, name: str) -> tuple[int, float]:
    """Return how many reserves an owner's ledger holds, and what they cost together."""
    with open_to_read(played.root / name) as ledger:
        account = ledger.account("heart")
    return len(account.charges), account.epsilon


def assert_mean(weights: dict[str, np.ndarray], updates: list[bytes]) -> None:
    """The weights of a round are the mean of these payloads, array after array."""
    assert len({hashlib.sha256(update).digest() for update in updates}) == len(updates)
    mean = np.mean([np.frombuffer(update, dtype="<f4") for update in updates], axis=0)
    flat = np.concatenate([array.ravel() for array in weights.values()])
    np.testing.assert_allclose(flat, mean, rtol=0, atol=3e-7)
