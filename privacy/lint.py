"""What a configuration really costs: the findings, and the rules of a run.toml.

Trusts nothing that is claimed: what can be computed is computed, by ``privacy/accounting.py``.
Promises no proof: a configuration without findings breaks none of the rules in :data:`RULES`, and
that is all. docs/pitfalls.md explains each rule; a test holds the two together.

Three kinds of input have a linter each: our ``run.toml`` (here), a declared description of other
people's training (``lint_description.py``), and Python source (``lint_source.py``).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.core.privacy_spec import PrivacyMode
from tacit.privacy.distributed.plan import plan_of_run
from tacit.privacy.profiles import SOURCE, WEAK, tier_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tacit.core.specification import RunSpec
    from tacit.privacy.distributed.plan import RunPlan


class Severity(enum.Enum):
    """How much of the claim is left."""

    BROKEN = "broken"  # the claimed epsilon does not hold
    WEAKER = "weaker"  # it holds under conditions that are not those of the claim
    NOTE = "note"  # it holds; something better exists, or something is worth knowing


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that must be so for an epsilon to be true.

    Attributes:
        title: the rule, as a sentence.
        advice: what to do where it is broken.
        source: the paper or issue that shows what goes wrong.
    """

    title: str
    advice: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule that a configuration breaks.

    Attributes:
        rule: its key in RULES.
        severity: how much of the claim is left.
        place: ``file:line``.
        claimed: what the configuration, or whoever reads it, says.
        actual: what is so, with numbers where they can be computed.
    """

    rule: str
    severity: Severity
    place: str
    claimed: str
    actual: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found in one file.

    Attributes:
        claimed_epsilon: what the file says or implies; None if it gives no number.
        epsilon: what can be shown for what it describes; None where nothing can be computed, and
            infinite where no epsilon can be shown.
        findings: the broken rules, worst first.
    """

    claimed_epsilon: float | None
    epsilon: float | None
    findings: tuple[Finding, ...]

    @property
    def is_broken(self) -> bool:
        """Whether a claim does not hold."""
        return any(finding.severity is Severity.BROKEN for finding in self.findings)


RULES: Mapping[str, Rule] = {
    "sampling": Rule(
        title="Amplification by sampling is claimed for independent coins per record only.",
        advice="draw each record independently with probability q in every step, or account "
        "every epoch as a full release",
        source="Annamalai et al. 2024, arXiv 2411.10614",
    ),
    "engine-per-round": Rule(
        title="One account runs over all rounds of a run.",
        advice="keep one accountant per run and store its state; report epsilon after all rounds",
        source="composition: Dwork & Roth 2014, section 3.5",
    ),
    "batch-norm": Rule(
        title="No layer mixes records, and no un-noised buffer leaves.",
        advice="replace it by GroupNorm or LayerNorm, and do not aggregate running statistics",
        source="Opacus, ModuleValidator (BatchNorm is refused)",
    ),
    "normaliser": Rule(
        title="Sampling rate and divisor are public constants, never the size of the data.",
        advice="fix q and the expected batch by policy, from a public bound on the records",
        source="opacus issue 819",
    ),
    "weights": Rule(
        title="The weight of an update in a mean is public, not a count of records.",
        advice="send a public constant as num_examples, or noise the weight and charge it",
        source="McMahan et al. 2018, arXiv 1710.06963, section 2",
    ),
    "metrics": Rule(
        title="A number computed from the records is noised and charged, or does not leave.",
        advice="leave it at home, or send it through a noised sum of its own",
        source="Papernot & Steinke 2022, arXiv 2110.03620",
    ),
    "noise-generator": Rule(
        title="Noise comes from a cryptographic generator under a secret key.",
        advice="take keyed AES-CTR or ChaCha20, with a fresh key from the operating system",
        source="Garfinkel & Leclerc 2020, arXiv 2009.03777",
    ),
    "noise-seed": Rule(
        title="Nobody who sees the result knows the seed of the noise.",
        advice="never seed the generator that noise is drawn from",
        source="Garfinkel & Leclerc 2020, arXiv 2009.03777",
    ),
    "accountant": Rule(
        title="The account is an upper bound, and a tight one.",
        advice="use a PLD or PRV accountant",
        source="Gopi, Lee & Wutschitz 2021, arXiv 2106.02848",
    ),
    "claim": Rule(
        title="The claimed epsilon is at least what the mechanism costs.",
        advice="report the computed epsilon, or add noise",
        source="Doroshenko et al. 2022, arXiv 2207.04380",
    ),
    "delta": Rule(
        title="Delta is below one in the number of records.",
        advice="choose a smaller delta",
        source="Dwork & Roth 2014, section 2.3",
    ),
    "no-noise": Rule(
        title="A mode that promises privacy to nobody is named.",
        advice="choose a mode with noise, or say in the open that there is none",
        source="docs/architecture.md",
    ),
    "weak-epsilon": Rule(
        title="An epsilon is one that people would still call private.",
        advice="add noise, take fewer rounds, or say what an attack measures instead",
        source=SOURCE,
    ),
    "retries": Rule(
        title="A round that is tried again is charged again.",
        advice="leave room for it in the owners' max_epsilon_per_run, or lower max_attempts",
        source="docs/architecture.md",
    ),
}

_ORDER = list(Severity)


def report_of(
    findings: Iterator[Finding], *, claimed: float | None, epsilon: float | None
) -> Report:
    """Collect findings, worst first, in the order of the file otherwise."""
    ordered = sorted(findings, key=lambda finding: _ORDER.index(finding.severity))
    return Report(claimed_epsilon=claimed, epsilon=epsilon, findings=tuple(ordered))


def lint_run(spec: RunSpec, *, places: Mapping[str, str], records: int | None = None) -> Report:
    """Hold a run.toml against the rules.

    Its mechanism is ours, so its epsilon is derived, not claimed; what can still go wrong is what
    leaves beside the update, and how much is asked for.

    Args:
        spec: the run.
        places: ``file:line`` by dotted key, as the reader gives it.
        records: the public bound on one owner's records; without it, the most that delta allows.

    Raises:
        RefusedError: the run asks for what nobody built.
    """
    privacy = spec.privacy
    assumed = records or (int(0.5 / privacy.delta) if privacy.delta else 1)
    plan = plan_of_run(spec, records=max(1, assumed))
    found = _findings_of_run(spec, plan, places)
    epsilon = math.inf if plan.is_private and _leaves_exactly(spec) else plan.epsilon
    return report_of(found, claimed=plan.epsilon if plan.is_private else None, epsilon=epsilon)


def _findings_of_run(spec: RunSpec, plan: RunPlan, places: Mapping[str, str]) -> Iterator[Finding]:
    if plan.mode is PrivacyMode.NONE:
        yield Finding(
            rule="no-noise",
            severity=Severity.WEAKER if not spec.strategy.wrapper else Severity.BROKEN,
            place=places["privacy.mode"],
            claimed=f"{spec.strategy.wrapper} at the server" if spec.strategy.wrapper else "none",
            actual="the server sees every update as it is: epsilon is infinite towards it",
        )
        return
    name = f"epsilon {plan.epsilon:.4g} per {plan.unit.value} under {plan.relation.value}"
    if _leaves_exactly(spec):
        yield Finding(
            rule="metrics",
            severity=Severity.BROKEN,
            place=places["evaluation.every"],
            claimed=name,
            actual="exact metrics on validation records leave every "
            f"{spec.evaluation.every} rounds: no epsilon can be shown for those",
        )
    if tier_of(plan.epsilon) == WEAK:
        yield Finding(
            rule="weak-epsilon",
            severity=Severity.NOTE,
            place=_place(places, "privacy.epsilon", "privacy.noise_multiplier", "privacy.preset"),
            claimed=name,
            actual=f"the odds that a {plan.unit.value} took part may change by a factor of "
            f"e^{plan.epsilon:.1f}",
        )
    attempts = spec.participation.max_attempts
    if attempts > 1:
        worst = plan.epsilon_after(plan.releases * attempts)
        yield Finding(
            rule="retries",
            severity=Severity.NOTE,
            place=places["participation.max_attempts"],
            claimed=f"{name}, over {plan.releases} rounds",
            actual=f"if every round is tried {attempts} times, epsilon {worst:.4g}",
        )


def _leaves_exactly(spec: RunSpec) -> bool:
    return spec.evaluation.every > 0 and spec.evaluation.epsilon == 0


def _place(places: Mapping[str, str], *keys: str) -> str:
    """Return where the first of some keys that the file gives stands."""
    return next((places[key] for key in keys if places[key] != "default"), "default")
