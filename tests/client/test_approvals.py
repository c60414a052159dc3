"""The policy's rules, one by one, and who says yes."""

from __future__ import annotations

import dataclasses
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tacit.client.approvals import (
    Offer,
    Verdict,
    fingerprint_apps,
    judge,
    verify_unit,
)
from tacit.client.backoff import delays
from tacit.client.configuration import (
    CONFIG_NAME,
    SAMPLE,
    Approval,
    ApprovalRule,
    AppRule,
    AuditPolicy,
    ClientConfig,
    RunKind,
    SecureAggregationPolicy,
    load_client_config,
)
from tacit.core.errors import ConfigError, RefusedError, UnavailableError
from tacit.core.specification import (
    AppSpec,
    AuditSpec,
    CanarySpec,
    EvaluationSpec,
    ModelKind,
    ModelSpec,
    ParticipationSpec,
    PrivacyMode,
    PrivacySpec,
    PrivacyUnit,
    ReplySpec,
    audit_of,
)
from tests.client.fakes import Editable, make_config, make_node, make_spec, offer, open_mode

HERE = Path("/data")
REQUIRED = SecureAggregationPolicy(required=True)
MODULE = ModelSpec(kind=ModelKind.MODULE, factory="package.module:make")


def private(**changes: Any) -> PrivacySpec:
    values = {"mode": PrivacyMode.RECORD_LOCAL, "clip": 1.0, "epsilon": 1.0, "delta": 1e-3}
    return PrivacySpec(**(values | changes))


def judged(
    spec: dict[str, Any] | None = None,
    policy: dict[str, Any] | None = None,
    *,
    epsilon: float | None = 1.0,
    isolated: bool = True,
) -> str:
    config = make_config(HERE, **(policy or {}))
    offer = Offer(specification=make_spec(**(spec or {})), epsilon=epsilon, isolated=isolated)
    judgement = judge(offer, config)
    return judgement.code or judgement.verdict.value


def foreign(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model": None,
        "training": None,
        "privacy": open_mode(),
        "app": AppSpec(client="package.module:app"),
        "results": {"train": ReplySpec()},
    }
    return values | changes


def per_record(mode: PrivacyMode) -> PrivacySpec:
    return private(mode=mode, unit=PrivacyUnit.RECORD)


OPEN = {"modes": tuple(PrivacyMode)}
ALLOWED = {**OPEN, "apps": {"package.module:app": AppRule()}}


@pytest.mark.parametrize(
    ("spec", "policy", "outcome"),
    [
        ({}, {}, "approved"),
        ({"privacy": open_mode()}, {}, "E-POLICY-MODE"),
        ({"privacy": open_mode()}, OPEN, "approved"),
        ({"privacy": private(unit=PrivacyUnit.SUBJECT)}, {}, "E-POLICY-SUBJECT"),
        ({"privacy": private(unit=PrivacyUnit.CLIENT)}, {}, "E-UNIT-NOT-BUILT"),
        ({"privacy": private(mode=PrivacyMode.CLIENT_LOCAL)}, {}, "E-POLICY-MODE"),
        ({"privacy": private(mode=PrivacyMode.CLIENT_LOCAL)}, OPEN, "approved"),
        ({"privacy": per_record(PrivacyMode.CLIENT_LOCAL)}, OPEN, "E-UNIT-NOT-BUILT"),
        ({"privacy": private(delta=0.01)}, {}, "E-POLICY-DELTA"),
        ({"data_set": "other"}, {}, "E-POLICY-DATA-SET"),
        ({}, {"max_epsilon_per_run": 0.5}, "E-POLICY-EPSILON"),
        ({"evaluation": EvaluationSpec(every=1)}, {}, "E-POLICY-EXACT-METRICS"),
        ({"evaluation": EvaluationSpec(every=1)}, {"allow_exact_metrics": True}, "approved"),
        ({"evaluation": EvaluationSpec(every=1, epsilon=0.5)}, {}, "approved"),
        ({"evaluation": EvaluationSpec(every=1, epsilon=3.5)}, {}, "E-POLICY-EPSILON"),
        (
            {"participation": ParticipationSpec(rounds=1, min_clients=1)},
            {},
            "E-POLICY-COHORT",
        ),
        ({}, {"secure_aggregation": REQUIRED}, "E-SECAGG-REQUIRED"),
        ({"model": MODULE}, {}, "E-POLICY-FACTORY"),
        ({"model": MODULE}, {"allowed_factories": ("package.module:make",)}, "approved"),
        (foreign(), OPEN, "E-POLICY-APP"),
        (foreign(), ALLOWED, "approved"),
        (foreign(privacy=private()), ALLOWED, "E-MODE-APP"),
        (foreign(privacy=private(mode=PrivacyMode.CLIENT_LOCAL)), ALLOWED, "approved"),
    ],
)
def test_each_rule_can_deny(spec: dict[str, Any], policy: dict[str, Any], outcome: str) -> None:
    """A run that breaks one rule of the policy is denied with that rule's code."""
    assert judged(spec, policy) == outcome


def test_subjects_need_a_column_that_names_them() -> None:
    """Unit subject is admitted where the owner's data set says whose record each is."""
    config = make_config(HERE)
    named = dataclasses.replace(config.data_sets["default"], subject="patient")
    config = dataclasses.replace(config, data_sets={"default": named})
    spec = make_spec(privacy=private(unit=PrivacyUnit.SUBJECT, most_records=5))
    offer = Offer(specification=spec, epsilon=1.0, isolated=True)
    assert judge(offer, config).verdict is Verdict.APPROVED


def test_run_without_an_account_is_denied() -> None:
    """An epsilon that nobody can compute has no room in any budget."""
    assert judged(epsilon=None) == "E-POLICY-EPSILON"
    assert judged(epsilon=float("nan")) == "E-POLICY-EPSILON"


def test_foreign_code_needs_a_confined_worker() -> None:
    """Without isolation only the built-in app runs, unless the owner says otherwise."""
    assert judged(isolated=False) == "approved"
    assert judged(foreign(), ALLOWED, isolated=False) == "E-POLICY-ISOLATION"
    unconfined = {**ALLOWED, "allow_unisolated_apps": True}
    assert judged(foreign(), unconfined, isolated=False) == "approved"


def test_rules_narrow_what_needs_no_person() -> None:
    """With rules, a run that the policy admits but no rule fits waits for a person."""
    rule = ApprovalRule(modes=(PrivacyMode.RECORD_LOCAL,), max_epsilon=0.5, max_rounds=10)
    policy = {"rules": {"small": rule}}
    assert judged({}, policy) == "E-APPROVAL-PENDING"
    assert judged({}, policy, epsilon=0.5) == "approved"
    noisy = {"evaluation": EvaluationSpec(every=1, epsilon=0.6)}
    assert judged(noisy, policy, epsilon=0.5) == "E-APPROVAL-PENDING"
    many = {"participation": ParticipationSpec(rounds=11)}
    assert judged(many, policy, epsilon=0.5) == "E-APPROVAL-PENDING"
    assert judged({}, {"approve": Approval.ASK}) == "E-APPROVAL-PENDING"


def test_a_rule_for_training_approves_no_canaries_and_no_audit() -> None:
    """A rule names the kinds of run that it covers; by default it is training alone."""
    canaries = {"canaries": CanarySpec(directions=20)}
    room = {"max_canaries": 200}
    assert judged(canaries, room | {"rules": {"small": ApprovalRule()}}) == "E-APPROVAL-PENDING"
    wide = ApprovalRule(kinds=(RunKind.TRAINING, RunKind.CANARIES))
    assert judged(canaries, room | {"rules": {"small": wide}}) == "approved"
    assert judged({}, {"rules": {"small": wide}}) == "approved"
    twins_alone = ApprovalRule(kinds=(RunKind.CANARIES,))
    assert judged({}, {"rules": {"small": twins_alone}}) == "E-APPROVAL-PENDING"


@pytest.mark.parametrize(
    ("kinds", "verdict"),
    [((RunKind.TRAINING,), Verdict.PENDING), ((RunKind.AUDIT,), Verdict.APPROVED)],
)
def test_a_rule_approves_an_audit_only_if_it_names_audits(
    kinds: tuple[RunKind, ...], verdict: Verdict
) -> None:
    """Whatever else of the rule fits."""
    audit = AuditSpec(
        run="r-0000000a", model_sha256="0" * 64, rounds=1, owners=2, epsilon=0.5, delta=1e-4
    )
    asked = audit_of(make_spec(), audit, min_clients=2, round_deadline_s=60.0)
    rules = {"small": ApprovalRule(kinds=kinds)}
    config = make_config(HERE, audit=AuditPolicy(allow=True), rules=rules)
    assert judge(Offer(specification=asked, epsilon=0.5, isolated=True), config).verdict is verdict


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({"privacy": open_mode()}, "policy.modes of client.toml allows record-local, the run asks"),
        ({"evaluation": EvaluationSpec(every=1, epsilon=3.5)}, "policy.max_epsilon_per_run"),
        ({"privacy": private(delta=0.01)}, "data_sets.default.records"),
        ({"participation": ParticipationSpec(rounds=1, min_clients=1)}, "policy.min_clients"),
    ],
)
def test_denial_names_the_key_of_client_toml(spec: dict[str, Any], key: str) -> None:
    """Whoever reads a refusal knows which line of which file it comes from."""
    asked = Offer(specification=make_spec(**spec), epsilon=1.0, isolated=True)
    reason = judge(asked, make_config(HERE)).reason
    assert key in reason
    assert "client.toml" in reason


def test_denial_says_what_to_do() -> None:
    """Each denial has a sentence for the owner."""
    offer = Offer(specification=make_spec(**foreign()), epsilon=None, isolated=True)
    judgement = judge(offer, make_config(HERE, **OPEN))
    assert judgement.verdict is Verdict.DENIED
    assert "policy.apps" in judgement.reason


def test_fingerprint_changes_with_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One changed byte of an app's file is another app."""
    package = tmp_path / "fingerprinted_app"
    package.mkdir()
    (package / "__init__.py").write_text("app = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = make_spec(**foreign(app=AppSpec(client="fingerprinted_app:app")))
    before = fingerprint_apps(spec)
    assert fingerprint_apps(spec) == before
    (package / "__init__.py").write_text("app = 2\n")
    assert fingerprint_apps(spec) != before


def placed(where: Path, config: ClientConfig, **spec: Any) -> str:
    """Judge a run as a node at ``where`` does, with workers that can be confined."""
    where.mkdir(mode=0o700, exist_ok=True)
    run = offer(make_node(where, config)[0], make_spec(**spec))
    return f"{run.code} {run.reason}"


def test_code_outside_what_a_worker_reads_is_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable install is found by the node alone: refused until the owner lists it."""
    source = tmp_path / "source" / "outside_app"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("app = make = None\n")
    monkeypatch.setattr(sys, "meta_path", [Editable(source), *sys.meta_path])
    spec = foreign(app=AppSpec(client="outside_app:app"))
    rule = AppRule(readable=(source,))
    denied = make_config(tmp_path, **OPEN, apps={"outside_app:app": AppRule()})
    said = placed(tmp_path / "a", denied, **spec)
    assert said.startswith("E-APP-UNREADABLE")
    assert f"its files are in {source}" in said
    assert "without -e" in said
    listed = make_config(tmp_path, **OPEN, apps={"outside_app:app": rule})
    assert "E-APP" not in placed(tmp_path / "b", listed, **spec)
    factory = {"model": ModelSpec(kind=ModelKind.MODULE, factory="outside_app:make")}
    open_to_it = make_config(tmp_path, allowed_factories=("outside_app:make",))
    assert "E-APP-UNREADABLE" in placed(tmp_path / "c", open_to_it, **factory)


def test_missing_app_has_no_fingerprint() -> None:
    """An app that is not installed cannot be approved."""
    spec = make_spec(**foreign(app=AppSpec(client="no_such_package_here:app")))
    with pytest.raises(UnavailableError) as caught:
        fingerprint_apps(spec)
    assert caught.value.code == "E-APP-MISSING"


def test_sample_configuration_is_careful(tmp_path: Path) -> None:
    """What `join` writes reads back as the defaults, and asks a person."""
    (tmp_path / CONFIG_NAME).write_text(SAMPLE)
    config = load_client_config(tmp_path / CONFIG_NAME).value
    assert config.policy == ClientConfig().policy
    assert config.policy.approve is Approval.ASK
    assert PrivacyMode.NONE not in config.policy.modes
    assert config.data_sets["default"].path == tmp_path / "data.csv"


def test_every_mistake_of_client_toml_is_reported_at_once(tmp_path: Path) -> None:
    """Unknown keys name the nearest known one; wrong values stand beside them."""
    text = '[data_sets.a]\npath = "x"\nrecords = 0\n[policy]\nmax_epsilon = 1\nmin_clients = 0\n'
    (tmp_path / CONFIG_NAME).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_client_config(tmp_path / CONFIG_NAME)
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) >= 2
    assert "max_epsilon_per_run" in problems
    assert "client.toml:5" in problems


def test_back_off_is_quick_at_first_and_at_most_a_minute() -> None:
    """Waits double from a second at most to a minute at most, and differ between nodes."""
    first, other = (
        [wait for wait, _ in zip(delays(random.Random(seed)), range(12), strict=False)]  # noqa: S311
        for seed in (1, 2)
    )
    assert first[0] <= 1.0
    assert all(0.5 <= wait <= 60.0 for wait in first)
    assert all(wait >= 30.0 for wait in first[6:])
    assert first != other


def judged_with(data_set: dict[str, Any], **spec: Any) -> str:
    config = make_config(HERE)
    declared = replace(config.data_sets["default"], **data_set)
    offer = Offer(specification=make_spec(**spec), epsilon=1.0, isolated=True)
    judgement = judge(offer, replace(config, data_sets={"default": declared}))
    return judgement.code or judgement.verdict.value


@pytest.mark.parametrize(
    ("data_set", "outcome"),
    [
        ({"forbidden": ("weight",)}, "approved"),
        ({"forbidden": ("weight", "age")}, "E-POLICY-COLUMN"),
        ({"forbidden": ("label",)}, "E-POLICY-COLUMN"),
        ({"subject": "age"}, "E-POLICY-COLUMN"),
        ({"subject": "patient"}, "E-POLICY-SUBJECT"),  # the run's unit is the record
    ],
)
def test_forbidden_and_subject_columns_are_denied_at_judgement(
    data_set: dict[str, Any], outcome: str
) -> None:
    """A contract that names one, as a feature or as the label, never gets as far as the data."""
    assert judged_with(data_set) == outcome


def test_the_unit_subject_needs_a_declared_column() -> None:
    """A run per subject on a data set that names none is refused by rule."""
    by_subject = make_spec(privacy=private(unit=PrivacyUnit.SUBJECT, most_records=5))
    data_set = make_config(HERE).data_sets["default"]
    for named in (data_set, None):
        with pytest.raises(RefusedError, match="E-POLICY-SUBJECT"):
            verify_unit(by_subject, named)
    verify_unit(by_subject, replace(data_set, subject="patient"))


def test_a_promise_per_record_is_none_to_a_subject_with_several() -> None:
    """Where the owner names subjects, a private run per record is refused; an open one is not."""
    declared = replace(make_config(HERE).data_sets["default"], subject="patient")
    with pytest.raises(RefusedError, match="E-POLICY-SUBJECT") as caught:
        verify_unit(make_spec(), declared)
    assert "column patient" in caught.value.message
    assert "most_records" in caught.value.hint
    verify_unit(make_spec(privacy=open_mode()), declared)
    verify_unit(make_spec(privacy=private(mode=PrivacyMode.CLIENT_LOCAL)), declared)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('subject = "name"\nforbidden = ["name"]', "data_sets.a.forbidden"),
        ('forbidden = ["name"]\nclean.hash = ["name"]', "data_sets.a.clean.hash"),
        ('format = "images"\nclean.hash = ["name"]', "data_sets.a.format"),
        ("clean.clip.age = [9, 1]", "data_sets.a.clean.clip.age"),
        ('clean.forbiddn = ["name"]', "data_sets.a.clean.forbiddn"),
    ],
)
def test_cleaning_that_contradicts_itself_is_a_configuration_error(
    tmp_path: Path, text: str, said: str
) -> None:
    """client.toml's new keys are read by the one reader, with place and reason."""
    path = tmp_path / CONFIG_NAME
    path.write_text(f'[data_sets.a]\npath = "x"\nrecords = 9\n{text}\n')
    with pytest.raises(ConfigError) as caught:
        load_client_config(path)
    assert any(said in problem for problem in caught.value.problems)
