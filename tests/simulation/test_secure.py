"""Updates summed unseen, through the real node and the real server loop in one process."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tacit.core.artifacts import load_arrays, save_arrays
from tacit.core.configuration import from_plain
from tacit.core.errors import AppError, ConfigError, UsageError
from tacit.core.specification import RunSpec, SecureAggregationSpec, to_plain
from tacit.protos.fleet_pb2 import InstructionHead, ReplyHead
from tacit.protos.records_pb2 import AppFailure
from tacit.protos.secure import CONSISTENCY, KEYS, MASKED, SHARES, UNMASK, has_vector
from tacit.server.strategies import STRATEGIES
from tacit.simulation import federation
from tacit.simulation.federation import Simulated, simulate
from tacit.simulation.owners import owners_in
from tests.conformance import CASES, NODES, Case, initial_arrays, run_spec
from tests.simulation.test_federation import tiny, write_data

if TYPE_CHECKING:
    from pathlib import Path

MEAN_ONLY = [case for case in CASES if not case.wrapper and STRATEGIES[case.name].needs_mean]


def secured(run: RunSpec, clients: int, **table: Any) -> RunSpec:
    """Return the run with its updates summed unseen."""
    members = tuple(f"owner-{number}" for number in range(1, clients + 1))
    secure = SecureAggregationSpec(members=members, **table)
    people = replace(run.participation, min_clients=secure.threshold)
    changed = replace(run, secure_aggregation=secure, participation=people)
    return from_plain(json.loads(json.dumps(to_plain(changed))), RunSpec)  # with all its checks


def played(run: RunSpec, folder: Path, *, clients: int, initial: bool = False) -> Simulated:
    folder.mkdir()
    owners = owners_in(
        write_data(folder / "data.csv"), run, clients=clients, scratch=folder / "shares"
    )
    start = folder / "initial.safetensors"
    if initial:
        save_arrays(start, initial_arrays())
    return simulate(run, owners, folder / "run", initial=start if initial else None)


def test_owners_of_a_trial_are_the_members_whom_the_run_names(tmp_path: Path) -> None:
    """One file is dealt out to them by name; other owners than those are refused at once."""
    run = secured(tiny(), 4, max_weight=100)
    assert run.secure_aggregation is not None
    named = replace(run.secure_aggregation, members=("ada", "bo", "cy", "di"))
    run = replace(run, secure_aggregation=named)
    data = write_data(tmp_path / "data.csv")
    owners = owners_in(data, run, clients=4, scratch=tmp_path / "shares")
    assert [owner.name for owner in owners] == ["ada", "bo", "cy", "di"]
    others = owners_in(data, tiny(), clients=4, scratch=tmp_path / "others")
    for wrong in (others, owners[:3], [*owners, others[0]]):
        with pytest.raises(UsageError, match="members whom the run names"):
            simulate(run, wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def rounds_of(done: Simulated) -> list[dict[str, Any]]:
    rounds: list[dict[str, Any]] = json.loads(done.folder.manifest.read_text())["rounds"]
    return rounds


@pytest.mark.slow
@pytest.mark.parametrize("case", MEAN_ONLY, ids=lambda case: case.label)
def test_strategies_of_the_mean_run_unmodified_over_a_sum(case: Case, tmp_path: Path) -> None:
    """Six of Flower's strategies, with an app of somebody's own, give over one reply with the
    weighted mean what they give over all replies, as closely as the integers are fine."""
    run = run_spec(case)
    plain = played(run, tmp_path / "plain", clients=len(NODES), initial=True)
    sums = played(
        secured(run, len(NODES), max_weight=100), tmp_path / "secure", clients=7, initial=True
    )
    expected = load_arrays(plain.folder.model)
    for name, array in load_arrays(sums.folder.model).items():
        np.testing.assert_allclose(array, expected[name], rtol=2e-5, atol=2e-6)
    for one, other in zip(rounds_of(sums), rounds_of(plain), strict=True):
        assert one["metrics"]["loss"] == pytest.approx(other["metrics"]["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_built_in_run_in_mode_none_is_summed_unseen(tmp_path: Path) -> None:
    """Weights and metrics of owners with different numbers of records give the same model."""
    plain = played(tiny(), tmp_path / "plain", clients=4)
    sums = played(secured(tiny(), 4, max_weight=100), tmp_path / "secure", clients=4)
    expected = load_arrays(plain.folder.model)
    for name, array in load_arrays(sums.folder.model).items():
        np.testing.assert_allclose(array, expected[name], atol=2e-7)
    assert rounds_of(sums)[-1]["metrics"]["loss"] == pytest.approx(
        rounds_of(plain)[-1]["metrics"]["loss"], rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, entry in STRATEGIES.items() if not entry.needs_mean]
)
def test_strategies_that_look_at_single_updates_are_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    """Krum, median, trimmed mean, Bulyan and q-FedAvg are refused before anything runs."""
    case = next(case for case in CASES if case.name == name and not case.wrapper)
    run = secured(run_spec(case), 7)
    with pytest.raises(ConfigError) as refused:
        played(run, tmp_path / "run", clients=7, initial=True)
    assert any(f"{name} looks at single updates" in text for text in refused.value.problems)


class Losing:
    """Loses some members, as if their connections had ended, from one step of a round on.

    Attributes:
        vectors: the masked vectors that were sent.
    """

    def __init__(
        self, step: str, members: tuple[int, ...], *, round_number: int, asked: int = 1
    ) -> None:
        """Lose these members when they are asked for this step so often."""
        self._step, self._members, self._round = step, members, str(round_number)
        self._asked = dict.fromkeys(members, asked)
        self._numbers: dict[int, int] = {}
        self._gone: set[int] = set()
        self.vectors: list[bytes] = []

    def lost(self, node: object, head: InstructionHead) -> bool:
        number = self._numbers.setdefault(id(node), len(self._numbers) + 1)
        if head.group_id != self._round or head.message_type == "evaluate":
            return False
        if head.message_type == self._step and number in self._members:
            self._asked[number] -= 1
            if self._asked[number] <= 0:
                self._gone.add(number)
        return number in self._gone

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        losing, answer = self, federation._NodeAnswers.answer

        def maybe(
            answers: federation._NodeAnswers, head: InstructionHead, payload: memoryview
        ) -> tuple[ReplyHead, memoryview]:
            if losing.lost(answers, head):
                failure = AppFailure(code=2, reason="E-NODE-GONE")
                return ReplyHead(failure=failure), memoryview(b"")
            reply, body = answer(answers, head, payload)
            if head.message_type == MASKED and has_vector(reply.manifest):
                losing.vectors.append(bytes(body))
            return reply, body

        monkeypatch.setattr(federation._NodeAnswers, "answer", maybe)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["train", KEYS, SHARES, MASKED, CONSISTENCY, UNMASK])
def test_a_member_that_is_lost_at_any_step_does_not_stop_the_round(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four members one is lost in round 2: the mean is that of the others where its vector had
    not come, and that of all where it had; the round needs no second attempt."""
    losing = Losing(step, (2,), round_number=2)
    losing.install(monkeypatch)
    done = played(secured(tiny(), 4, max_weight=100), tmp_path / "run", clients=4)
    entry = rounds_of(done)[1]
    assert entry["attempt"] == 1
    assert list(entry["failed"].values()) == ["E-NODE-GONE"]
    (gone,) = (int(node) for node in entry["failed"])
    came = step in (CONSISTENCY, UNMASK)
    assert sorted(entry["survivors"]) == [n for n in entry["cohort"] if came or n != gone]
    assert len(losing.vectors) == 4 * 3 - (step in ("train", KEYS, SHARES, MASKED))


@pytest.mark.slow
def test_below_the_threshold_no_sum_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four members are lost when vectors are due, and stay away: the run fails, and what
    the other two sent is never asked for again."""
    losing = Losing(MASKED, (2, 3), round_number=1)
    losing.install(monkeypatch)
    with pytest.raises(AppError, match="E-ROUND-FAILED"):
        played(secured(tiny(), 4, max_weight=100), tmp_path / "run", clients=4)
    assert len(losing.vectors) == 2
