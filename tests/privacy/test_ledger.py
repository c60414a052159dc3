"""The ledger charges before anything leaves, never twice, never less, and never over budget."""

from __future__ import annotations

import dataclasses
import multiprocessing
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tacit.core.errors import BudgetError, RefusedError, UnavailableError
from tacit.privacy.accounting import SampledGaussian, ZeroConcentrated, epsilon_of
from tacit.privacy.ledger import LEDGER_NAME, Ledger
from tacit.privacy.ledger_entries import Expose, Reserve, Terms, Unit
from tests.privacy.ledgers import KEY, TERMS, charge, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.synchronize import Barrier
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / LEDGER_NAME


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with opened(path) as ledger:
        yield ledger


def test_a_reserve_is_there_after_reopening(path: Path, ledger: Ledger) -> None:
    """What a reserve returned is in the file, field by field, with what it adds up to."""
    entry = ledger.reserve(charge())
    ledger.close()
    with opened(path) as again:
        assert again.entries()[-1] == entry
        body = entry.body
        assert isinstance(body, Reserve)
        assert body.charge == charge()
        assert body.cost.alone == pytest.approx(epsilon_of(10.0, 1.0, 1, 1e-5))
        assert "dp-accounting" in body.cost.accountant
        assert again.verify().problem is None


def test_the_file_is_the_owners_alone(path: Path, ledger: Ledger) -> None:
    """The ledger and its log have mode 0600."""
    ledger.reserve(charge())
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_runs_on_one_data_set_compose_in_one_accountant(ledger: Ledger) -> None:
    """Two runs cost what their events cost together, which is less than their sum."""
    ledger.reserve(charge(1))
    ledger.reserve(charge(2, run="r-2", message="r-2.1"))
    account = ledger.account("heart")
    assert account.epsilon == pytest.approx(epsilon_of(10.0, 1.0, 2, 1e-5))
    assert account.epsilon < 2 * epsilon_of(10.0, 1.0, 1, 1e-5)
    assert (account.budget, account.delta, len(account.charges)) == (8.0, 1e-5, 2)


def test_the_same_charge_is_charged_once(ledger: Ledger) -> None:
    """A daemon that asks again after a crash gets the entry that is there."""
    first = ledger.reserve(charge())
    assert ledger.reserve(charge()) == first
    assert len(ledger.entries()) == 3


def test_another_charge_under_the_same_key_refuses(ledger: Ledger) -> None:
    """One attempt has one charge."""
    ledger.reserve(charge())
    with pytest.raises(RefusedError) as caught:
        ledger.reserve(charge(clip=2.0))
    assert caught.value.code == "E-LEDGER-CONFLICT"
    assert "entry 3" in caught.value.message


def test_a_charge_beyond_the_budget_refuses_and_says_what_is_left(ledger: Ledger) -> None:
    """The owner's budget holds over all runs, and a refusal leaves no entry."""
    ledger.reserve(charge(1, mechanism=SampledGaussian(noise_multiplier=1.0)))
    with pytest.raises(BudgetError) as caught:
        ledger.reserve(charge(2, mechanism=SampledGaussian(noise_multiplier=0.6), run="r-2"))
    assert caught.value.code == "E-LEDGER-BUDGET"
    for words in ("at most epsilon 8", "by itself", "used", "left"):
        assert words in caught.value.message
    assert len(ledger.entries()) == 3
    with pytest.raises(BudgetError):
        ledger.preview(charge(2, mechanism=SampledGaussian(noise_multiplier=0.6), run="r-2"), TERMS)


def test_a_budget_can_be_met_exactly(path: Path) -> None:
    """A plan that was calibrated to the budget fits into it."""
    epsilon = epsilon_of(10.0, 1.0, 5, 1e-5)
    with opened(path, terms=_terms(budget=epsilon)) as ledger:
        for number in range(1, 6):
            ledger.reserve(charge(number))
        with pytest.raises(BudgetError):
            ledger.reserve(charge(6))


def test_an_aborted_attempt_stays_charged(ledger: Ledger) -> None:
    """Another attempt adds its own charge to the one that came to nothing."""
    ledger.reserve(charge())
    entry = ledger.abort(charge().key, reason="a member left")
    assert ledger.abort(charge().key, reason="a member left") == entry
    ledger.reserve(charge(attempt=2))
    assert ledger.account("heart").epsilon == pytest.approx(epsilon_of(10.0, 1.0, 2, 1e-5))
    assert ledger.held(charge().key).state == "abort"


def test_settling_lowers_and_keeps_the_evidence(ledger: Ledger) -> None:
    """What survivors prove counts instead of the worst case, once."""
    key = charge().key
    ledger.reserve(charge())
    lower = SampledGaussian(noise_multiplier=20.0)
    entry = ledger.settle(key, mechanism=lower, evidence=b"signatures", realised_noise=20.0)
    assert ledger.account("heart").epsilon == pytest.approx(epsilon_of(20.0, 1.0, 1, 1e-5))
    same = ledger.settle(key, mechanism=lower, evidence=b"signatures", realised_noise=20.0)
    assert same == entry
    with pytest.raises(RefusedError, match="E-LEDGER-CONFLICT"):
        ledger.settle(key, mechanism=lower, evidence=b"others")
    with pytest.raises(RefusedError, match="E-LEDGER-CONFLICT"):
        ledger.abort(key, reason="too late")


@pytest.mark.parametrize(
    "raised",
    [
        SampledGaussian(noise_multiplier=9.0),
        SampledGaussian(noise_multiplier=20.0, steps=2),
        SampledGaussian(noise_multiplier=20.0, steps=0),
        ZeroConcentrated(rho=1e-9),
    ],
)
def test_settling_never_raises(ledger: Ledger, raised: SampledGaussian | ZeroConcentrated) -> None:
    """Less noise, more steps, no step at all or another mechanism is no settlement."""
    ledger.reserve(charge())
    with pytest.raises(RefusedError, match="E-LEDGER-SETTLE"):
        ledger.settle(charge().key, mechanism=raised, evidence=b"signatures")


def test_nothing_is_settled_without_evidence_or_reserve(ledger: Ledger) -> None:
    """A settlement refers to a charge and to bytes that prove it."""
    lower = SampledGaussian(noise_multiplier=20.0)
    with pytest.raises(RefusedError, match="E-LEDGER-UNKNOWN"):
        ledger.settle(charge().key, mechanism=lower, evidence=b"signatures")
    ledger.reserve(charge())
    with pytest.raises(RefusedError, match="E-LEDGER-SETTLE"):
        ledger.settle(charge().key, mechanism=lower, evidence=b"")


def test_delta_is_one_constant_for_life(path: Path, ledger: Ledger) -> None:
    """Neither a charge nor a new client.toml changes a data set's delta."""
    with pytest.raises(RefusedError, match="E-LEDGER-DELTA"):
        ledger.reserve(charge(delta=1e-6))
    with pytest.raises(RefusedError, match="E-LEDGER-DELTA"):
        ledger.open_data_set(_terms(delta=1e-6))
    ledger.close()
    with pytest.raises(RefusedError, match="E-LEDGER-DELTA"):
        opened(path, terms=_terms(delta=1e-6))


def _terms(**changes: Any) -> Terms:
    return dataclasses.replace(TERMS, **changes)


@pytest.mark.parametrize("changes", [{"records": 2000}, {"unit": Unit.SUBJECT}])
def test_bound_and_unit_are_for_life(ledger: Ledger, changes: dict[str, Any]) -> None:
    """What earlier charges were derived from cannot be redefined."""
    with pytest.raises(RefusedError, match="E-LEDGER-TERMS"):
        ledger.open_data_set(_terms(**changes))


@pytest.mark.parametrize("changes", [{"delta": 0.01}, {"budget": 0.0}, {"records": 0}])
def test_terms_without_meaning_refuse(path: Path, changes: dict[str, Any]) -> None:
    """Delta lies below 1 / records, and no budget is unlimited or empty."""
    with opened(path, terms=None) as ledger, pytest.raises(RefusedError, match="E-LEDGER-TERMS"):
        ledger.open_data_set(_terms(**changes))


def test_the_owner_changes_the_budget(ledger: Ledger) -> None:
    """A new budget in client.toml is an entry of its own, and counts from then on."""
    big = charge(mechanism=SampledGaussian(noise_multiplier=0.5))
    with pytest.raises(BudgetError):
        ledger.reserve(big)
    ledger.open_data_set(_terms(budget=20.0))
    ledger.reserve(big)
    assert [entry.kind for entry in ledger.entries()] == ["begin", "open", "budget", "reserve"]


def test_a_data_set_without_an_account_refuses(ledger: Ledger) -> None:
    """Only what the owner declared is charged, and so may leave."""
    with pytest.raises(RefusedError, match="E-LEDGER-CLOSED"):
        ledger.reserve(charge(data_set="lungs"))


def test_an_incomplete_charge_refuses(ledger: Ledger) -> None:
    """A side without its split, or no policy, is no charge."""
    with pytest.raises(RefusedError, match="split: expected"):
        ledger.reserve(charge(split=""))
    with pytest.raises(RefusedError, match="E-LEDGER-CHARGE"):
        ledger.reserve(charge(specification_sha256=""))


def test_a_release_without_noise_is_never_forgotten(ledger: Ledger) -> None:
    """Once something left without noise, no epsilon is claimed for the data set."""
    body = Expose(
        data_set="heart",
        run="r-0",
        message="r-0.1",
        attempt=1,
        specification_sha256="ab" * 32,
        reason="mode none",
    )
    assert ledger.expose(body) == ledger.expose(body)
    ledger.reserve(charge())
    account = ledger.account("heart")
    assert account.exposed == ("r-0",)
    assert account.true_epsilon == float("inf")
    assert account.epsilon == pytest.approx(epsilon_of(10.0, 1.0, 1, 1e-5))
    with pytest.raises(RefusedError, match="E-LEDGER-CONFLICT"):
        ledger.reserve(charge(run="r-0", message="r-0.1"))


def test_threads_share_one_budget(path: Path) -> None:
    """Of many charges at once, exactly as many pass as the budget holds."""
    budget = epsilon_of(10.0, 1.0, 5, 1e-5)
    outcomes: list[str] = []
    with opened(path, terms=_terms(budget=budget)) as ledger:

        def work(run: int) -> None:
            for number in range(3):
                message = charge(number, run=f"r-{run}", message=f"r-{run}.{number}")
                try:
                    ledger.reserve(message)
                except BudgetError as error:
                    outcomes.append(error.code)
                else:
                    outcomes.append("reserved")

        threads = [threading.Thread(target=work, args=(run,)) for run in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count("reserved") == 5
        assert outcomes.count("E-LEDGER-BUDGET") == 7
        assert ledger.account("heart").epsilon == pytest.approx(budget)
        assert ledger.verify().problem is None


def _reserve_three(path: Path, run: int, barrier: Barrier) -> None:
    ledger = Ledger.open(path, signer=KEY.sign, clock=lambda: 0.0)
    barrier.wait()
    for number in range(3):
        try:
            ledger.reserve(charge(number, run=f"r-{run}", message=f"r-{run}.{number}"))
        except BudgetError:
            continue


@pytest.mark.slow
def test_processes_share_one_budget(path: Path) -> None:
    """Two processes on one file charge as one: no interleaving passes the budget."""
    opened(path, terms=_terms(budget=epsilon_of(10.0, 1.0, 4, 1e-5))).close()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [
        context.Process(target=_reserve_three, args=(path, run, barrier)) for run in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with opened(path, terms=None) as ledger:
        assert len(ledger.account("heart").charges) == 4
        assert ledger.verify().problem is None


def test_two_processes_see_each_others_entries(path: Path, ledger: Ledger) -> None:
    """A second opening of the same file follows the first."""
    with opened(path) as other:
        ledger.reserve(charge(1))
        other.reserve(charge(2))
        assert ledger.account("heart") == other.account("heart")
        assert ledger.head() == other.head()


def test_a_reader_writes_nothing(path: Path, ledger: Ledger) -> None:
    """`show` may look while the daemon works, and never makes a ledger."""
    ledger.reserve(charge())
    with opened(path, read_only=True) as reader:
        assert reader.account("heart") == ledger.account("heart")
        with pytest.raises(UnavailableError):
            reader.reserve(charge(2))
    with pytest.raises(UnavailableError, match="E-LEDGER-MISSING"):
        opened(path.with_name("none.sqlite"), read_only=True)
