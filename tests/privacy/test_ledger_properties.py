"""Whatever happens in whatever order, the ledger never counts less than was charged."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tacit.core.errors import BudgetError, RefusedError
from tacit.privacy.accounting import SampledGaussian, epsilon_of_events
from tacit.privacy.ledger import LEDGER_NAME, Ledger
from tests.privacy.ledgers import TERMS, charge, opened

if TYPE_CHECKING:
    from tacit.privacy.ledger_entries import Charge, ChargeKey

NUMBERS = st.integers(min_value=1, max_value=4)
ATTEMPTS = st.integers(min_value=1, max_value=2)
NOISE = st.sampled_from([2.0, 5.0, 10.0])


class LedgerMachine(RuleBasedStateMachine):
    """Reserves, settles, aborts and crashes, against a dict of what must count."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / LEDGER_NAME
        self.counts: dict[ChargeKey, float] = {}
        self.closed: set[ChargeKey] = set()
        self.longest = 0

    @initialize()
    def begin(self) -> None:
        self.ledger: Ledger = opened(self.path)

    def charge_of(self, number: int, attempt: int, noise: float) -> Charge:
        mechanism = SampledGaussian(noise_multiplier=noise)
        return charge(number, attempt=attempt, mechanism=mechanism)

    @rule(number=NUMBERS, attempt=ATTEMPTS, noise=NOISE)
    def reserve(self, number: int, attempt: int, noise: float) -> None:
        item = self.charge_of(number, attempt, noise)
        before = len(self.ledger.entries())
        try:
            first = self.ledger.reserve(item)
        except BudgetError:
            assert item.key not in self.counts
            events = [SampledGaussian(noise_multiplier=z) for z in (*self.counts.values(), noise)]
            assert epsilon_of_events(events, TERMS.delta) > TERMS.budget
            return
        except RefusedError:
            assert item.key in self.counts  # with other content
            return
        assert self.ledger.reserve(item) == first
        assert len(self.ledger.entries()) == before + (item.key not in self.counts)
        self.counts.setdefault(item.key, noise)

    @rule(number=NUMBERS, attempt=ATTEMPTS, noise=NOISE)
    def settle(self, number: int, attempt: int, noise: float) -> None:
        key = self.charge_of(number, attempt, noise).key
        lower = SampledGaussian(noise_multiplier=noise)
        try:
            self.ledger.settle(key, mechanism=lower, evidence=b"signatures")
        except RefusedError:
            assert key not in self.counts or key in self.closed or noise < self.counts[key]
            return
        assert noise >= self.counts[key]
        self.counts[key] = noise
        self.closed.add(key)

    @rule(number=NUMBERS, attempt=ATTEMPTS)
    def abort(self, number: int, attempt: int) -> None:
        key = self.charge_of(number, attempt, 2.0).key
        try:
            self.ledger.abort(key, reason="a member left")
        except RefusedError:
            assert key not in self.counts or key in self.closed
            return
        self.closed.add(key)

    @rule()
    def crash(self) -> None:
        """The process dies: what a method returned from is all that there is."""
        left_behind = self.ledger
        self.ledger = opened(self.path)
        left_behind.close()

    @invariant()
    def nothing_is_counted_for_less(self) -> None:
        events = [SampledGaussian(noise_multiplier=noise) for noise in self.counts.values()]
        account = self.ledger.account("heart")
        assert account.epsilon >= epsilon_of_events(events, TERMS.delta) * (1 - 1e-9)
        assert account.held <= TERMS.budget * (1 + 1e-9)
        assert {held.charge.key for held in account.charges} == set(self.counts)

    @invariant()
    def the_chain_holds_and_only_grows(self) -> None:
        verification = self.ledger.verify()
        assert verification.problem is None
        assert verification.head is not None
        assert verification.head.count >= self.longest
        self.longest = verification.head.count

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)

CHARGING = """
import sys
from pathlib import Path
from tests.privacy.ledgers import charge, opened
ledger = opened(Path(sys.argv[1]), terms=None)
for number in range(int(sys.argv[2]), 10**6):
    ledger.reserve(charge(number))
    print(number, flush=True)
"""


@pytest.mark.slow
def test_every_acknowledged_reserve_survives_a_kill(tmp_path: Path) -> None:
    """A process that charges in a loop is killed, 5 times: all that it acknowledged is there."""
    path = tmp_path / LEDGER_NAME
    opened(path, terms=dataclasses.replace(TERMS, budget=1e6)).close()
    acknowledged: list[int] = []
    for kill in range(5):
        command = [sys.executable, "-c", CHARGING, str(path), str(1000 * kill)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                acknowledged.append(int(line))
                if len(acknowledged) == 7 * (kill + 1):
                    process.kill()
                    break
            acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
        assert process.returncode == -9
    with opened(path, terms=None) as ledger:
        rounds = {held.charge.round for held in ledger.account("heart").charges}
        assert set(acknowledged) <= rounds
        assert len(rounds) <= len(acknowledged) + 5
        assert ledger.verify().problem is None
