"""What an approval covers: every resolved value, every byte of the apps, and no formatting."""

from __future__ import annotations

import dataclasses
import enum
import json
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import pytest

from tacit.client.approvals import Verdict
from tacit.client.configuration import Approval, AppRule, AuditPolicy
from tacit.client.preparation import PREPARED_NAME, SPLIT_NAME
from tacit.core.configuration import load_config
from tacit.core.specification import (
    AppSpec,
    AuditSpec,
    CanarySpec,
    ColumnKind,
    ColumnSpec,
    DataSpec,
    EvaluationSpec,
    MetricSpec,
    ModelKind,
    ModelSpec,
    ParticipationSpec,
    PrivacyMode,
    ReplySpec,
    RetentionSpec,
    RunSpec,
    SecureAggregationSpec,
    StrategySpec,
    TrainingSpec,
    audit_of,
    canonical_json,
    specification_sha256,
)
from tacit.privacy.secagg.terms import Member
from tacit.protos import fleet_pb2
from tests.client.fakes import (
    KEY,
    RUN,
    instruction,
    make_config,
    make_node,
    make_spec,
    offer,
    open_mode,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tacit.client.node import Node
    from tacit.client.preparation import PrepareJob

Path_ = tuple[str, ...]

BUILT_IN = make_spec(
    data=DataSpec(
        classes=("0", "1"),
        label_map={"2": "1"},
        columns={"age": ColumnSpec(type=ColumnKind.NUMBER, range=(0.0, 100.0))},
    ),
    model=ModelSpec(kind=ModelKind.MLP, hidden=(4,), parameters={"depth": 2}),
    training=TrainingSpec(learning_rate=0.5),
    strategy=StrategySpec(parameters={"eta": 0.1}, wrapper_parameters={"clip": 1.0}),
    evaluation=EvaluationSpec(every=1, epsilon=0.5),
    retention=RetentionSpec(every=2),
)
FOREIGN = RunSpec(
    name="own",
    privacy=open_mode(),
    participation=ParticipationSpec(rounds=2),
    app=AppSpec(client="covered_app:app", config={"depth": 2}),
    results={"train": ReplySpec(metrics={"num-examples": MetricSpec(range=(1.0, 5.0))})},
)
AUDITED = "r-0000fffe"
AUDIT = audit_of(
    BUILT_IN,
    AuditSpec(
        run=AUDITED,
        model_sha256="0" * 64,
        rounds=BUILT_IN.participation.rounds,
        owners=2,
        epsilon=1.0,
        delta=1e-3,
    ),
    min_clients=2,
    round_deadline_s=60.0,
)

TWIN = dataclasses.replace(BUILT_IN, canaries=CanarySpec(directions=40, mislabelled=20))
MEMBERS = ("ada", "bo", "cy")
SUM = dataclasses.replace(
    FOREIGN,
    participation=ParticipationSpec(rounds=2, min_clients=3),
    secure_aggregation=SecureAggregationSpec(members=MEMBERS),
)
SPECS = {"built-in": BUILT_IN, "app": FOREIGN, "audit": AUDIT, "twin": TWIN, "sum": SUM}


def leaves(value: Any, at: Path_ = ()) -> Iterator[tuple[Path_, Any, Any]]:
    """Yield path, declared type and value of every field of a dataclass, and of those within."""
    for name, hint in get_type_hints(type(value)).items():
        inner = getattr(value, name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, (*at, name))
            continue
        yield (*at, name), hint, inner
        if isinstance(inner, Mapping):
            for key, item in inner.items():
                if dataclasses.is_dataclass(item):
                    yield from leaves(item, (*at, name, key))


def changed(value: Any, hint: Any) -> Any:  # noqa: PLR0911 - one line for each type of value
    """Return another value of a field's type."""
    if value is None:
        return fresh(next(each for each in get_args(hint) if each is not type(None)))
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}x"
        case enum.Enum():
            return next(each for each in type(value) if each is not value)
        case tuple():
            return (*value[:-1], changed(value[-1], None)) if value else fresh(hint)
        case Mapping():
            return {**value, "one-more": fresh(get_args(hint)[1])}
    raise AssertionError(f"expected to know how to change {value!r}")


def fresh(hint: Any) -> Any:
    """Return some value of a type."""
    origin = get_origin(hint)
    if origin is tuple:
        return tuple(fresh(each) for each in get_args(hint) if each is not Ellipsis)
    if origin in (Union, types.UnionType):
        return fresh(get_args(hint)[-1])
    if origin is not None:  # a mapping
        return {"one-more": fresh(get_args(hint)[1])}
    if issubclass(hint, enum.Enum):
        return next(iter(hint))
    donors: dict[type, Any] = {
        float: 3.0,
        int: 3,
        str: "x",
        bool: True,
        **{type(part): part for spec in SPECS.values() for part in parts_of(spec)},
    }
    return donors[hint]


def parts_of(value: Any) -> Iterator[Any]:
    """Yield every dataclass in a specification."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from parts_of(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from parts_of(item)


def replaced(value: Any, path: Path_, new: Any) -> Any:
    """Return a specification with one value changed."""
    first, *rest = path
    if isinstance(value, Mapping):
        return {**value, first: replaced(value[first], tuple(rest), new) if rest else new}
    inner = replaced(getattr(value, first), tuple(rest), new) if rest else new
    return dataclasses.replace(value, **{first: inner})


CASES = [
    (f"{name}-{'.'.join(path)}", spec, path, changed(value, hint))
    for name, spec in SPECS.items()
    for path, hint, value in leaves(spec)
]


@pytest.fixture(scope="module")
def approved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunSpec], Node]:
    """Give a node at which a person has approved the run."""
    nodes: dict[bytes, Node] = {}

    def node_for(spec: RunSpec) -> Node:
        canonical = canonical_json(spec)
        if canonical not in nodes:
            folder = tmp_path_factory.mktemp("approved")
            nodes[canonical] = node = asking_node(folder, spec)
            assert offer(node, spec).verdict is Verdict.PENDING
            assert node.approve(RUN).verdict is Verdict.APPROVED
        return nodes[canonical]

    (package,) = (tmp_path_factory.mktemp("packages") / "covered_app.py",)
    package.write_text("app = 1\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package.parent)
        yield node_for


def asking_node(folder: Path, spec: RunSpec, **policy: Any) -> Node:
    apps = {} if spec.app is None else {spec.app.client: AppRule()}
    config = make_config(
        folder,
        **{
            "approve": Approval.ASK,
            "modes": tuple(PrivacyMode),
            "apps": apps,
            "max_epsilon_per_run": 9.0,
            "audit": AuditPolicy(allow=True),
            "max_canaries": 200,
        }
        | policy,
    )
    keys = {"ada": KEY.public_key().public_bytes_raw(), "bo": b"b" * 32, "cy": b"c" * 32}
    pins = {name: Member(node_id=7, enrolment_key=key) for name, key in keys.items()}
    node = make_node(folder, config, prepare=prepare_noted, pinned=lambda: pins)[0]
    if spec.audit is not None:
        take_part(node)
    return node


def prepare_noted(job: PrepareJob) -> None:
    (job.folder / PREPARED_NAME).write_bytes(b"")
    note = {"rule": "r", "seed": 0, "fraction": 0.2, "train": [], "validation": []}
    (job.folder / SPLIT_NAME).write_text(json.dumps(note))


def take_part(node: Node) -> None:
    """Let a node answer in the run that the audit is of."""
    canonical = canonical_json(BUILT_IN)
    node.offer(AUDITED, canonical, specification_sha256(canonical))
    node.approve(AUDITED)
    head, payload = instruction(BUILT_IN)
    head.run_id, head.message_id = AUDITED, f"{AUDITED}.000001"
    node.answer(head, payload)


def answered(node: Node, spec: RunSpec, number: int = 1) -> str:
    """Return the code of a node's answer to an instruction of the run; empty if it was released."""
    entry = node.answer(*instruction(spec, number))
    return fleet_pb2.ReplyHead.FromString(entry.head).failure.reason


@pytest.mark.parametrize("number", range(len(CASES)), ids=[name for name, *_ in CASES])
def test_any_changed_value_needs_a_new_approval(
    approved: Callable[[RunSpec], Node], number: int
) -> None:
    """As another run it waits for a person, or breaks a rule; as this run it answers nothing."""
    _, spec, path, new = CASES[number]
    other = replaced(spec, path, new)
    node, canonical = approved(spec), canonical_json(other)
    assert canonical != canonical_json(spec)
    judgement = node.offer(f"r-{number + 2:08x}", canonical, specification_sha256(canonical))
    assert judgement.verdict is not Verdict.APPROVED
    assert answered(node, other, number + 2) == "E-APPROVAL-HASH"
    known = node.store.load_run(RUN)
    assert known is not None
    assert known.verdict is Verdict.APPROVED


def test_the_unchanged_run_goes_on(approved: Callable[[RunSpec], Node]) -> None:
    """The positive control: under the approved hash the same node answers."""
    assert [answered(approved(spec), spec) for spec in (BUILT_IN, FOREIGN, TWIN)] == [""] * 3


def test_every_field_of_a_specification_was_changed() -> None:
    """A field that somebody adds tomorrow is among the cases, or this fails."""
    parts = [part for spec in SPECS.values() for part in parts_of(spec)]
    assert {type(part) for part in parts} == set(reachable_classes(RunSpec))
    tested = {path for _, _, path, _ in CASES}
    for spec in SPECS.values():
        for name, hint in get_type_hints(type(spec)).items():
            inner = getattr(spec, name)
            fields = dataclasses.fields(inner) if dataclasses.is_dataclass(inner) else ()
            assert {(name, field.name) for field in fields} <= tested
            assert fields or (name,) in tested, hint


def reachable_classes(kind: Any) -> Iterator[Any]:
    """Yield every dataclass that a specification can hold."""
    if dataclasses.is_dataclass(kind):
        yield kind
        for hint in get_type_hints(kind).values():
            yield from reachable_classes(hint)
    for inner in get_args(kind):
        yield from reachable_classes(inner)


TEXT = """
name = "own"
[privacy]
mode = "none"
[participation]
rounds = 2
[app]
client = "covered_app:app"
config = { depth = 2 }
[results.train.metrics]
num-examples = { range = [1.0, 5.0] }
"""
REFORMATTED = """
# somebody's comment
participation = { rounds = 2, min_clients = 2 }   # a default, written out

results.train = { arrays = "model", metrics = { num-examples = { range = [ 1, 5.0, ] } } }
name       = 'own'
app.config.depth = 2
app.client = "covered_app:app"
privacy.mode = "none"
"""


def test_reformatting_needs_none(approved: Callable[[RunSpec], Node], tmp_path: Path) -> None:
    """Comments, order, spelling of values and written-out defaults: a person's word stands."""
    judgements = []
    for number, text in enumerate((TEXT, REFORMATTED)):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        judgements.append(offer(approved(FOREIGN), load_config(path, RunSpec).value))
    assert [(each.verdict, each.by) for each in judgements] == [(Verdict.APPROVED, "hand")] * 2


def module_spec() -> RunSpec:
    model = ModelSpec(kind=ModelKind.MODULE, factory="covered_package.models:make")
    return make_spec(model=model)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with an app and a factory; nothing here imports it."""
    root = tmp_path / "packages" / "covered_package"
    (root / "deep").mkdir(parents=True)
    for name in ("__init__.py", "models.py", "deep/part.py", "weights.bin"):
        (root / name).write_bytes(b"x = 1\n")
    monkeypatch.syspath_prepend(root.parent)
    return root


@pytest.mark.parametrize("name", ["__init__.py", "models.py", "deep/part.py", "weights.bin"])
@pytest.mark.parametrize("kind", ["app", "factory"])
def test_a_changed_byte_of_an_app_needs_a_new_approval(
    tmp_path: Path, package: Path, kind: str, name: str
) -> None:
    """The next message is refused before the app is called, and the run waits for a person."""
    spec = module_spec()
    if kind == "app":
        spec = dataclasses.replace(FOREIGN, app=AppSpec(client="covered_package.deep:app"))
    folder = tmp_path / "node"
    folder.mkdir()
    node = asking_node(folder, spec, allowed_factories=("covered_package.models:make",))
    offer(node, spec)
    node.approve(RUN)
    assert answered(node, spec, 1) == ""
    before = (package / name).read_bytes()
    (package / name).write_bytes(b"x = 2\n")
    assert answered(node, spec, 2) == "E-APPROVAL-APP"
    judgement = offer(node, spec)
    assert (judgement.verdict, judgement.code) == (Verdict.PENDING, "E-APPROVAL-APP")
    assert answered(node, spec, 3) == "E-APPROVAL-MISSING"
    node.approve(RUN)
    assert answered(node, spec, 4) == ""
    (package / name).write_bytes(before)  # what a person approved once is not approved for good
    assert answered(node, spec, 5) == "E-APPROVAL-APP"
