"""Other people's DP training, as declared answers: what it shows, and what it really costs.

A description is a small TOML or JSON file that says what some code does; no answer is assumed, so
every question must be answered. Batches of ``batch_size`` out of ``dataset_len`` records, noise of
``noise_multiplier`` times the clip on each sum, ``epochs`` in each of ``rounds``.

Trusts the answers. Promises: every epsilon in a finding is computed from them.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dp_accounting
from dp_accounting import rdp

from tacit.privacy.accounting import epsilon_of, gaussian_epsilon
from tacit.privacy.lint import Finding, Report, Severity, report_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MIN_NOISE = 0.3  # below, the accountant needs gigabytes, and epsilon is in the hundreds
_MAX_STEPS = 1_000_000


class Accountant(enum.Enum):
    """Which account the training shows."""

    PLD = "pld"
    PRV = "prv"
    RDP = "rdp"
    GDP = "gdp"  # the central limit approximation of Gaussian differential privacy


class Normaliser(enum.Enum):
    """What the noised sum is divided by, and the sampling rate derived from."""

    PUBLIC = "public"
    LENGTH = "len(dataset)"
    BATCH = "len(batch)"


class Generator(enum.Enum):
    """Where the noise comes from."""

    CRYPTOGRAPHIC = "cryptographic"
    TORCH = "torch"
    NUMPY = "numpy"


@dataclass(frozen=True, kw_only=True)
class TrainingDescription:
    """What some training does; each field is a question to its author.

    Attributes:
        dataset_len, batch_size, epochs: of one round at one owner.
        rounds: of federated training; training in one place has 1, and says so.
        noise_multiplier: sigma / clip.
        delta: at which epsilon is claimed.
        claimed_epsilon: what is told to people; without it, what the accountant shows.
        poisson_sampling: each record by an independent coin, or shuffled batches of fixed size?
        engine_per_round: is the accountant made anew in each round?
        accountant: which one?
        normaliser: what is a noised sum divided by?
        batch_norm: has the model BatchNorm layers?
        weighted_average: are updates weighted by their numbers of records?
        metrics_released: do losses, accuracies or plots of the records leave without noise?
        noise_generator: where does noise come from?
        noise_seeded: is that generator seeded from something that others may know?
    """

    dataset_len: int
    batch_size: int
    epochs: int
    rounds: int
    noise_multiplier: float
    delta: float
    claimed_epsilon: float | None = None
    poisson_sampling: bool
    engine_per_round: bool
    accountant: Accountant
    normaliser: Normaliser
    batch_norm: bool
    weighted_average: bool
    metrics_released: bool
    noise_generator: Generator
    noise_seeded: bool

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("dataset_len", "epochs", "rounds"):
            if getattr(self, key) < 1:
                yield key, f"expected at least 1, got {getattr(self, key)}"
        if not 1 <= self.batch_size <= max(1, self.dataset_len):
            yield "batch_size", f"expected 1 to {self.dataset_len}, got {self.batch_size}"
        elif self.steps > _MAX_STEPS:
            yield "epochs", f"expected at most {_MAX_STEPS} steps over all rounds"
        if not self.noise_multiplier >= _MIN_NOISE:
            text = "below it nothing is private"
            yield "noise_multiplier", f"expected at least {_MIN_NOISE}: {text}"
        if not 0 < self.delta < 1:
            yield "delta", f"expected 0 < delta < 1, got {self.delta}"

    @property
    def sample_rate(self) -> float:
        """Poisson's q, if batches were Poisson samples of ``batch_size`` on average."""
        return self.batch_size / self.dataset_len

    @property
    def steps_per_round(self) -> int:
        """Noised steps of one round."""
        return self.epochs * math.ceil(self.dataset_len / self.batch_size)

    @property
    def steps(self) -> int:
        """Noised steps over all rounds."""
        return self.rounds * self.steps_per_round


_UNNOISED = {
    "batch_norm": (
        "batch-norm",
        "records of a batch mix, and running statistics leave un-noised: no epsilon can be shown",
    ),
    "weighted_average": (
        "weights",
        "the number of records leaves exactly: no epsilon can be shown under add/remove",
    ),
    "metrics_released": (
        "metrics",
        "exact functions of the records leave beside the update: no epsilon can be shown for them",
    ),
}


def lint_description(what: TrainingDescription, *, places: Mapping[str, str]) -> Report:
    """Compute what a training shows and what it costs, and name each rule that it breaks."""
    shown = _shown_epsilon(what)
    claimed = shown if what.claimed_epsilon is None else what.claimed_epsilon
    spent = _mechanism_epsilon(what)
    findings = [
        *_account_findings(what, places),
        *_release_findings(what, places),
        *_noise_findings(what, places),
    ]
    if what.claimed_epsilon is not None and spent > 1.005 * claimed:  # a claim has three digits
        findings.append(
            Finding(
                rule="claim",
                severity=Severity.BROKEN,
                place=places["claimed_epsilon"],
                claimed=f"epsilon {claimed:.4g}",
                actual=f"the noised sums alone cost epsilon {spent:.4g}",
            )
        )
    unbounded = {"normaliser", "batch-norm", "weights", "metrics", "noise-seed"}
    holds = not unbounded & {finding.rule for finding in findings}
    epsilon = spent if holds else math.inf
    return report_of(iter(findings), claimed=claimed, epsilon=epsilon)


def _mechanism_epsilon(what: TrainingDescription) -> float:
    """Return what the noised sums cost, over all rounds, by the best account that holds."""
    if what.poisson_sampling:
        return epsilon_of(what.noise_multiplier, what.sample_rate, what.steps, what.delta)
    # A shuffled epoch uses each record in one sum: one Gaussian release an epoch, no amplification.
    return epsilon_of(what.noise_multiplier, 1.0, what.rounds * what.epochs, what.delta)


def _shown_epsilon(what: TrainingDescription) -> float:
    """Return what the training's own accountant shows: always as if batches were Poisson."""
    steps = what.steps_per_round if what.engine_per_round else what.steps
    return _by_accountant(what, steps)


def _by_accountant(what: TrainingDescription, steps: int) -> float:
    sigma, rate = what.noise_multiplier, what.sample_rate
    if what.accountant is Accountant.RDP:
        accountant = rdp.RdpAccountant()
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
        accountant.compose(event, steps)
        return float(accountant.get_epsilon(what.delta))
    if what.accountant is Accountant.GDP:
        # Deep Learning with Gaussian Differential Privacy (arXiv 1911.11607): a limit, no bound.
        mu = rate * math.sqrt(steps * math.expm1(sigma**-2))
        return gaussian_epsilon(mu, what.delta)
    return epsilon_of(sigma, rate, steps, what.delta)


def _account_findings(what: TrainingDescription, places: Mapping[str, str]) -> Iterator[Finding]:
    shown, spent = _shown_epsilon(what), _mechanism_epsilon(what)
    if not what.poisson_sampling:
        yield Finding(
            rule="sampling",
            severity=Severity.BROKEN if spent > shown else Severity.WEAKER,
            place=places["poisson_sampling"],
            claimed=f"epsilon {shown:.4g}, as if each step drew records with q = "
            f"{what.sample_rate:.3g}",
            actual=f"shuffled batches have no such amplification: epsilon {spent:.4g} can be "
            "shown, with each record in one sum an epoch",
        )
    if what.engine_per_round and what.rounds > 1:
        whole = _by_accountant(what, what.steps)
        yield Finding(
            rule="engine-per-round",
            severity=Severity.BROKEN,
            place=places["engine_per_round"],
            claimed=f"epsilon {shown:.4g}, shown in every round",
            actual=f"epsilon {whole:.4g} after {what.rounds} rounds by the same accountant",
        )
    if what.accountant in (Accountant.GDP, Accountant.RDP):
        approximate = what.accountant is Accountant.GDP
        mine = _by_accountant(what, what.steps)
        bound = epsilon_of(what.noise_multiplier, what.sample_rate, what.steps, what.delta)
        text = "the central limit is no bound" if approximate else "RDP is a loose bound"
        yield Finding(
            rule="accountant",
            severity=Severity.BROKEN if mine < bound else Severity.NOTE,
            place=places["accountant"],
            claimed=f"epsilon {mine:.4g} by {what.accountant.value.upper()}",
            actual=f"epsilon {bound:.4g} by PLD for the same sums: {text}",
        )
    if what.delta >= 1.0 / what.dataset_len:
        yield Finding(
            rule="delta",
            severity=Severity.BROKEN,
            place=places["delta"],
            claimed=f"delta {what.delta:.3g}",
            actual=f"1 / records is {1.0 / what.dataset_len:.3g}: publishing one record whole "
            "would pass",
        )


def _release_findings(what: TrainingDescription, places: Mapping[str, str]) -> Iterator[Finding]:
    claimed = "epsilon bounds what leaves"
    if what.normaliser is not Normaliser.PUBLIC:
        if what.normaliser is Normaliser.LENGTH:
            batches = math.ceil(what.dataset_len / what.batch_size)
            length = batches * what.batch_size
            actual = (
                f"between {length} and {length + 1} records q, as 1 / len(loader), falls from "
                f"{1 / batches:.4g} to {1 / (batches + 1):.4g}, and the divisor moves with it: "
                "no epsilon can be shown under add/remove"
            )
        else:
            actual = "the divisor moves with each record that is drawn: no epsilon can be shown"
        yield Finding(
            rule="normaliser",
            severity=Severity.BROKEN,
            place=places["normaliser"],
            claimed=claimed,
            actual=actual,
        )
    for key, (rule, actual) in _UNNOISED.items():
        if getattr(what, key):
            yield Finding(
                rule=rule,
                severity=Severity.BROKEN,
                place=places[key],
                claimed=claimed,
                actual=actual,
            )


def _noise_findings(what: TrainingDescription, places: Mapping[str, str]) -> Iterator[Finding]:
    if what.noise_generator is not Generator.CRYPTOGRAPHIC:
        yield Finding(
            rule="noise-generator",
            severity=Severity.WEAKER,
            place=places["noise_generator"],
            claimed="Gaussian noise that nobody can predict",
            actual=f"{what.noise_generator.value}'s generator was made for simulation: who sees "
            "enough of its numbers can compute the rest",
        )
    if what.noise_seeded:
        yield Finding(
            rule="noise-seed",
            severity=Severity.BROKEN,
            place=places["noise_seeded"],
            claimed="Gaussian noise that nobody knows",
            actual="who knows the seed draws the same noise and takes it off, and two owners with "
            "one seed add the same noise: no epsilon can be shown",
        )
