"""Whether a run may happen here: the owner's policy, then the owner's word.

An offered run is first held against the policy, rule by rule in the order of ``RULES``; what breaks
one is denied with its code. What the policy admits is approved by rule, or waits for a person. An
approval covers one run: the SHA-256 of its canonical specification, and the fingerprint of every
app and factory that it names. The node computes both again before each message; if either differs,
nothing leaves. A person may approve later runs of the same two hashes with the first: each is still
held against the policy, and pays for itself.

Pure: no clock, file or socket, except :func:`fingerprint_apps`, which reads the installed packages.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.client.canaries import verify_canaries
from tacit.client.cohort import verify_aggregation
from tacit.client.configuration import Approval, ApprovalRule, ClientConfig, Policy, RunKind
from tacit.core.artifacts import sha256_app_files
from tacit.core.errors import RefusedError
from tacit.core.specification import (
    DataKind,
    ModelKind,
    PrivacyMode,
    PrivacySpec,
    PrivacyUnit,
    RunSpec,
)
from tacit.privacy.spec import BUILT_MODES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from tacit.client.configuration import DataSet

WEIGHT = "num-examples"  # leaves as 1 under client-local; see client/update.py
BUILT_IN_APP = "tacit.learning.app:app"
AUDIT_APP = "tacit.attacks.app:app"


class Verdict(enum.Enum):
    """The owner's word on a run."""

    APPROVED = "approved"
    PENDING = "pending"
    DENIED = "denied"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict and why.

    Attributes:
        verdict: approved, pending or denied.
        code: a stable code, which the server is told; empty when approved.
        reason: a sentence for the owner, which stays here.
        by: ``rule``, ``policy``, ``hand``, or ``repeat`` of what a hand approved before.
    """

    verdict: Verdict
    code: str = ""
    reason: str = ""
    by: str = "policy"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """An offered run as the rules see it.

    Attributes:
        specification: what is asked.
        epsilon: what the run would cost each unit (record, subject or client) that it names, of the
            data set here, at its own delta; None in mode none.
        isolated: whether a worker can be confined on this machine.
        unaffordable: why the ledger has no place for the run; None if it has.
        unreadable: why a confined worker could not read the run's code; None if it could.
        unauditable: why this node has nothing to say in an audit of that run; None if it has.
        pinned: names of the members that the owner has pinned, the node's own included; looked up
            for a run with secure aggregation alone.
        own_name: the node's name among them.
    """

    specification: RunSpec
    epsilon: float | None
    isolated: bool
    unaffordable: RefusedError | None = None
    unreadable: RefusedError | None = None
    unauditable: RefusedError | None = None
    pinned: Collection[str] = ()
    own_name: str = ""


def app_of(specification: RunSpec) -> str:
    """Name the ClientApp that a run calls, as ``package.module:attribute``."""
    if specification.audit is not None:
        return AUDIT_APP
    return BUILT_IN_APP if specification.app is None else specification.app.client


def apps_of(specification: RunSpec) -> tuple[str, ...]:
    """Name every app and factory that a run executes here."""
    model = specification.model
    factory = () if model is None or model.factory is None else (model.factory,)
    return (app_of(specification), *factory)


def fingerprint_apps(specification: RunSpec) -> bytes:
    """Hash the installed files of every app and factory that a run executes here.

    Raises:
        UnavailableError: one of them is not installed.
        RefusedError: one of them cannot be covered by a fingerprint.
    """
    digest = hashlib.sha256(b"tacit approved apps v1\0")
    for name in apps_of(specification):
        digest.update(name.encode() + b"\0" + sha256_app_files(name.partition(":")[0]))
    return digest.digest()


def _audit_is_allowed(offer: Offer, config: ClientConfig) -> None:
    if offer.specification.audit is not None:
        verify_audit(offer.specification, config.policy)
        if offer.unauditable is not None:
            raise offer.unauditable


def _canaries_are_allowed(offer: Offer, config: ClientConfig) -> None:
    verify_canaries(offer.specification, config)


def _data_set_exists(offer: Offer, config: ClientConfig) -> None:
    name = offer.specification.data_set
    if name not in config.data_sets and offer.specification.data is not None:
        raise RefusedError(
            "E-POLICY-DATA-SET",
            f"expected a data set of this node, got {name!r}",
            hint="Declare it under [data_sets] in client.toml, or agree on another name.",
        )


def _columns_are_allowed(offer: Offer, config: ClientConfig) -> None:
    data = offer.specification.data
    data_set = config.data_sets.get(offer.specification.data_set)
    if data is None or data.kind is not DataKind.TABLE or data_set is None:
        return
    kept_back = {*data_set.forbidden, data_set.subject} & {*data.columns, data.label}
    if kept_back:
        raise RefusedError(
            "E-POLICY-COLUMN",
            "expected a data contract without the forbidden columns and the subject column of "
            f"client.toml, got {', '.join(sorted(kept_back))}",
            hint="Ask the operator for a run without them.",
        )


def _unit_is_the_owners(offer: Offer, config: ClientConfig) -> None:
    if offer.specification.audit is None:  # an audit counts by the owner's own unit
        verify_unit(offer.specification, config.data_sets.get(offer.specification.data_set))


def verify_unit(specification: RunSpec, data_set: DataSet | None) -> None:
    """Refuse a run per subject where the owner names no subjects, and one per record where they do.

    A bound per record says nothing of a person with several: the owner's budget is per subject.

    Raises:
        RefusedError: E-POLICY-SUBJECT.
    """
    privacy, column = specification.privacy, "" if data_set is None else data_set.subject
    if privacy.unit is PrivacyUnit.SUBJECT and not column:
        raise RefusedError(
            "E-POLICY-SUBJECT",
            "expected a data set with a subject column: the run's unit is the subject",
            hint="Declare it in client.toml: subject = the column that says whose record it is.",
        )
    if privacy.unit is PrivacyUnit.RECORD and privacy.mode is not PrivacyMode.NONE and column:
        raise RefusedError(
            "E-POLICY-SUBJECT",
            f'expected privacy.unit = "subject", since one subject (column {column} of '
            'client.toml) may have several records, got "record"',
            hint='Ask the operator for a run with unit = "subject" and most_records = the most '
            "records that count of one subject.",
        )


def _mode_is_accepted(offer: Offer, config: ClientConfig) -> None:
    mode = offer.specification.privacy.mode
    if mode not in config.policy.modes:
        accepted = ", ".join(each.value for each in config.policy.modes) or "no mode"
        raise RefusedError(
            "E-POLICY-MODE",
            f"policy.modes of client.toml allows {accepted}, the run asks for mode {mode.value}",
        )


def _mechanism_is_built(offer: Offer, config: ClientConfig) -> None:
    verify_mechanism(offer.specification.privacy, app=offer.specification.app is not None)
    del config


def verify_mechanism(privacy: PrivacySpec, *, app: bool) -> None:
    """Refuse a promise that this version has no mechanism to keep.

    Args:
        privacy: what the run promises.
        app: whether the run brings an app of its own, whose training nobody here vouches for.

    Raises:
        RefusedError: E-MODE-NOT-BUILT, E-UNIT-NOT-BUILT or E-MODE-APP.
    """
    if privacy.mode not in BUILT_MODES:
        raise RefusedError(
            "E-MODE-NOT-BUILT", f"mode {privacy.mode.value} has no mechanism in this version"
        )
    if privacy.mode is PrivacyMode.NONE:
        return
    by_node = privacy.mode in (PrivacyMode.CLIENT_LOCAL, PrivacyMode.CLIENT_DISTRIBUTED)
    if privacy.unit is None or (privacy.unit is PrivacyUnit.CLIENT) is not by_node:
        unit = "no unit" if privacy.unit is None else f"unit {privacy.unit.value}"
        raise RefusedError(
            "E-UNIT-NOT-BUILT", f"{privacy.mode.value} has no mechanism for {unit} in this version"
        )
    if app and not by_node:
        raise RefusedError(
            "E-MODE-APP",
            f"expected the built-in app for {privacy.mode.value}, got an app of its own",
            hint="Nothing here makes a foreign app's training private record by record; "
            "the client modes protect its whole update.",
        )


def _epsilon_has_room(offer: Offer, config: ClientConfig) -> None:
    if offer.specification.audit is not None:
        return  # it has a limit of its own
    if offer.specification.privacy.mode is PrivacyMode.NONE:
        return
    limit = config.policy.max_epsilon_per_run
    allowed = (
        f"policy.max_epsilon_per_run of client.toml allows at most {limit:g}, the run asks for"
    )
    if offer.epsilon is None or not offer.epsilon <= limit:
        asked = "an unknown epsilon" if offer.epsilon is None else f"epsilon {offer.epsilon:.4g}"
        raise RefusedError("E-POLICY-EPSILON", f"{allowed} {asked}")
    evaluation = offer.specification.evaluation.epsilon
    if evaluation > limit:  # of other records: nothing to add
        raise RefusedError(
            "E-POLICY-EPSILON",
            f"{allowed} evaluation.epsilon {evaluation:.4g}",
        )


def _budget_has_room(offer: Offer, config: ClientConfig) -> None:
    del config
    if offer.unaffordable is not None:
        raise offer.unaffordable


def _delta_is_small(offer: Offer, config: ClientConfig) -> None:
    delta = account_delta(offer.specification)
    data_set = config.data_sets.get(offer.specification.data_set)
    if delta is None or data_set is None:
        return
    if delta * data_set.records >= 1:
        raise RefusedError(
            "E-POLICY-DELTA",
            f"expected delta below 1 / {data_set.records} (data_sets."
            f"{offer.specification.data_set}.records of client.toml), the run asks for delta "
            f"{delta:g}",
        )


def _metrics_are_protected(offer: Offer, config: ClientConfig) -> None:
    verify_exact_metrics(offer.specification, config.policy)


def verify_exact_metrics(specification: RunSpec, policy: Policy) -> None:
    """Refuse exact metrics of records whose mode promises noise, unless the owner allows them.

    Raises:
        RefusedError: E-POLICY-EXACT-METRICS, E-POLICY-EXACT-ARRAYS.
    """
    if specification.audit is not None:
        return  # what leaves for an audit is for verify_audit to say
    _verify_update_metrics(specification)
    declared = [
        reply
        for kind, reply in specification.results.items()
        if kind.partition(".")[0] == "evaluate"
    ]
    evaluates = bool(declared) or specification.evaluation.every > 0
    if specification.privacy.mode is PrivacyMode.NONE or not evaluates:
        return
    if any(reply.arrays != "none" for reply in declared):
        raise RefusedError(
            "E-POLICY-EXACT-ARRAYS",
            f'expected results.evaluate with arrays = "none" under '
            f"{specification.privacy.mode.value}: arrays would leave without noise",
        )
    if specification.noises("evaluate"):
        return
    if not policy.allow_exact_metrics:
        raise RefusedError(
            "E-POLICY-EXACT-METRICS",
            f"expected evaluation.epsilon, or neither evaluation.every nor results.evaluate, under "
            f"{specification.privacy.mode.value}: metrics would leave without noise",
            hint="Ask the operator for a run whose metrics are noised (evaluation.epsilon). Who "
            "accepts exact ones says so: allow_exact_metrics = true under [policy].",
        )


def _verify_update_metrics(specification: RunSpec) -> None:
    """Refuse metrics beside an update that the node noises: nothing would noise them."""
    if specification.privacy.mode is not PrivacyMode.CLIENT_LOCAL or specification.app is None:
        return
    for kind, reply in specification.results.items():
        extra = sorted(set(reply.metrics) - {WEIGHT})
        if kind.partition(".")[0] == "train" and extra:
            raise RefusedError(
                "E-POLICY-EXACT-METRICS",
                f"expected no metric but {WEIGHT} beside an update, got {', '.join(extra)}",
                hint="Ask the operator for a run without them: they would leave without noise.",
            )


def _cohort_is_large(offer: Offer, config: ClientConfig) -> None:
    promised, floor = offer.specification.participation.min_clients, config.policy.min_clients
    if promised < floor:
        raise RefusedError(
            "E-POLICY-COHORT",
            f"policy.min_clients of client.toml asks for at least {floor} clients, the run for "
            f"participation.min_clients = {promised}",
        )


def _aggregation_is_secure(offer: Offer, config: ClientConfig) -> None:
    verify_aggregation(offer, config.policy.secure_aggregation)


def _app_is_allowed(offer: Offer, config: ClientConfig) -> None:
    app, model = offer.specification.app, offer.specification.model
    if app is not None and app.client not in config.policy.apps:
        raise RefusedError(
            "E-POLICY-APP",
            f"expected an app that client.toml allows, got {app.client!r}",
            hint=f'To allow it: [policy.apps."{app.client}"] in client.toml, after reading its '
            "code; then restart the node, which reads that file when it starts.",
        )
    factory = model.factory if model is not None else None
    if factory is not None and factory not in config.policy.allowed_factories:
        raise RefusedError(
            "E-POLICY-FACTORY",
            f"expected a factory that client.toml allows, got {factory!r}",
            hint="To allow it, add it to allowed_factories, after reading its code.",
        )


def account_delta(specification: RunSpec) -> float | None:
    """Return the delta at which what a run noises is charged; None where it noises nothing."""
    audit = specification.audit
    return specification.privacy.delta if audit is None else audit.delta


def verify_audit(specification: RunSpec, policy: Policy) -> None:
    """Refuse an audit that the owner does not allow.

    Raises:
        RefusedError: E-POLICY-AUDIT, E-POLICY-AUDIT-EPSILON, E-POLICY-AUDIT-EXACT or
            E-POLICY-COHORT.
    """
    audit, allowed = specification.audit, policy.audit
    if audit is None:
        return
    if not allowed.allow:
        raise RefusedError(
            "E-POLICY-AUDIT",
            f"policy.audit.allow of client.toml is false: nothing is answered about {audit.run}",
            hint="The owner may allow audits: allow = true under [policy.audit].",
        )
    promised = specification.participation.min_clients
    if promised < allowed.min_members:
        raise RefusedError(
            "E-POLICY-COHORT",
            f"policy.audit.min_members of client.toml asks for the answers of at least "
            f"{allowed.min_members} owners to be merged, the audit promises {promised}",
        )
    if audit.epsilon > allowed.epsilon_for_results:
        raise RefusedError(
            "E-POLICY-AUDIT-EPSILON",
            f"policy.audit.epsilon_for_results of client.toml allows at most "
            f"{allowed.epsilon_for_results:g}, the audit asks for epsilon {audit.epsilon:g}",
        )
    trained_open = specification.privacy.mode is PrivacyMode.NONE
    if not audit.is_noised and not (allowed.allow_exact and trained_open):
        raise RefusedError(
            "E-POLICY-AUDIT-EXACT",
            "expected noised histograms (an audit with an epsilon), got exact ones",
            hint="The owner may allow exact ones of a model that was trained without noise: "
            "allow_exact = true under [policy.audit].",
        )


def _worker_is_confined(offer: Offer, config: ClientConfig) -> None:
    model = offer.specification.model
    foreign = offer.specification.app is not None or (
        model is not None and model.kind is ModelKind.MODULE
    )
    if foreign and not offer.isolated and not config.policy.allow_unisolated_apps:
        raise RefusedError(
            "E-POLICY-ISOLATION",
            "expected a confined worker for foreign code; this machine cannot confine one",
            hint="`tacit client check` tells what is missing.",
        )


def _code_is_readable(offer: Offer, config: ClientConfig) -> None:
    del config
    if offer.isolated and offer.unreadable is not None:
        raise offer.unreadable


RULES: tuple[Callable[[Offer, ClientConfig], None], ...] = (
    _aggregation_is_secure,  # first: a run among others is not for this owner to judge
    _audit_is_allowed,
    _canaries_are_allowed,
    _mode_is_accepted,
    _mechanism_is_built,
    _data_set_exists,
    _columns_are_allowed,
    _unit_is_the_owners,
    _epsilon_has_room,
    _budget_has_room,
    _delta_is_small,
    _metrics_are_protected,
    _cohort_is_large,
    _app_is_allowed,
    _worker_is_confined,
    _code_is_readable,
)


def refusals(offer: Offer, config: ClientConfig) -> Iterator[RefusedError]:
    """Yield what the policy has against an offered run, in the order of the rules."""
    for rule in RULES:
        try:
            rule(offer, config)
        except RefusedError as error:
            yield error


def judge(offer: Offer, config: ClientConfig) -> Judgement:
    """Hold an offered run against the policy, and say whether a person must be asked."""
    for error in refusals(offer, config):
        reason = f"{error.message}. {error.hint}".removesuffix(". ")
        return Judgement(verdict=Verdict.DENIED, code=error.code, reason=reason)
    if config.policy.approve is Approval.RULE:
        name = _fitting_rule(offer, config)
        if name is not None:
            return Judgement(verdict=Verdict.APPROVED, reason=name, by="rule")
    return Judgement(
        verdict=Verdict.PENDING,
        code="E-APPROVAL-PENDING",
        reason="the policy admits it; a person must say yes",
    )


def _fitting_rule(offer: Offer, config: ClientConfig) -> str | None:
    if not config.policy.rules:
        return "the policy itself"
    for name, rule in config.policy.rules.items():
        if _fits(offer, rule):
            return name
    return None


def _kind_of(specification: RunSpec) -> RunKind:
    if specification.audit is not None:
        return RunKind.AUDIT
    return RunKind.TRAINING if specification.canaries is None else RunKind.CANARIES


def _fits(offer: Offer, rule: ApprovalRule) -> bool:
    specification = offer.specification
    if _kind_of(specification) not in rule.kinds:
        return False
    if rule.data_sets and specification.data_set not in rule.data_sets:
        return False
    if rule.modes and specification.privacy.mode not in rule.modes:
        return False
    if rule.max_rounds and specification.participation.rounds > rule.max_rounds:
        return False
    if not rule.max_epsilon:
        return True
    evaluation = specification.evaluation.epsilon
    return offer.epsilon is not None and max(offer.epsilon, evaluation) <= rule.max_epsilon
