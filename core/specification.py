"""The run specification: everything an operator may ask of a federation, as typed values.

``run.toml`` is read into these classes by ``core/configuration.py``. What a data owner approves is
the SHA-256 of :func:`canonical_json` of the resolved specification: comments, order and formatting
of the file change nothing, any resolved value does. Nothing here loads torch, flwr or grpc.

Each class may define ``problems()``: it yields ``(key, text)`` for every rule that its values
break, so that a reader can report all of them at once.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tacit.core.audit_spec import AuditSpec
from tacit.core.canary_spec import CanarySpec
from tacit.core.data_contract import ColumnKind, ColumnSpec, DataKind, DataSpec
from tacit.core.privacy_spec import (
    PrivacyMode,
    PrivacySpec,
    PrivacyUnit,
    Relation,
    Sampling,
)
from tacit.core.reply_spec import MetricSpec, ReplySpec
from tacit.core.secagg_spec import SecureAggregationSpec

__all__ = [
    "MAX_NAME_CHARACTERS",
    "MAX_ROUNDS",
    "MAX_ROUND_DEADLINE_S",
    "AppSpec",
    "AuditSpec",
    "CanarySpec",
    "ColumnKind",
    "ColumnSpec",
    "DataKind",
    "DataSpec",
    "EvaluationSpec",
    "MetricSpec",
    "ModelKind",
    "ModelSpec",
    "ParticipationSpec",
    "PrivacyMode",
    "PrivacySpec",
    "PrivacyUnit",
    "Relation",
    "ReplySpec",
    "RetentionSpec",
    "RunSpec",
    "Sampling",
    "Scalar",
    "SecureAggregationSpec",
    "StrategySpec",
    "TrainingSpec",
    "audit_of",
    "audited_run",
    "canonical_json",
    "specification_sha256",
    "to_plain",
]

Scalar = bool | int | float | str

MAX_ROUNDS = 100_000  # a journal entry per message: bounds the daemon's disk
MAX_NAME_CHARACTERS = 80  # it stands in tables on other people's terminals
MAX_ROUND_DEADLINE_S = 7 * 24 * 3600.0

_DATA_SET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class ModelKind(enum.Enum):
    """The built-in models, and ``MODULE`` for a torch factory installed at every owner."""

    LOGISTIC = "logistic"
    MLP = "mlp"
    CNN = "cnn"
    MODULE = "module"


_DEFAULT_HIDDEN = {ModelKind.MLP: (64,), ModelKind.CNN: (16, 32)}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What is trained.

    Attributes:
        kind: a built-in model, or ``module`` for a factory.
        hidden: widths of the hidden layers (mlp) or channels of the convolutions (cnn).
        factory: ``"package.module:function"`` returning a ``torch.nn.Module`` (module); it must be
            installed, and allowed in client.toml, at every owner.
        parameters: keyword arguments of the factory.
        seed: seeds the initial weights, which the operator's side makes and every owner receives.
    """

    kind: ModelKind
    hidden: tuple[int, ...] = ()
    factory: str | None = None
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.hidden:  # what is approved names the widths, and no later default changes them
            object.__setattr__(self, "hidden", _DEFAULT_HIDDEN.get(self.kind, ()))

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.kind is ModelKind.MODULE and self.factory is None:
            yield "factory", 'missing: kind = "module" needs "package.module:function"'
        if self.kind is not ModelKind.MODULE and self.factory is not None:
            yield "factory", 'expected with kind = "module" only'
        if self.factory is not None and self.factory.count(":") != 1:
            yield "factory", f'expected "package.module:function", got {self.factory!r}'
        if any(width < 1 for width in self.hidden):
            yield "hidden", "expected widths of at least 1"
        if self.seed < 0:
            yield "seed", f"expected 0 or more, got {self.seed}"


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """How an owner trains between two messages.

    Attributes:
        local_steps: optimiser steps per round.
        batch_size: records per step without differential privacy; 0 means all of them.
        optimizer: sgd or adam.
        learning_rate, momentum, weight_decay, proximal_mu: the usual ones; ``proximal_mu`` is
            FedProx's, and is also taken from the message's config when the strategy sends it.
        validation_fraction: share of each owner's records that is never trained on.
        seed: seeds the split and the batches, never noise.
    """

    local_steps: int = 1
    batch_size: int = 0
    optimizer: str = "sgd"
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    validation_fraction: float = 0.2
    seed: int = 0

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.local_steps < 1:
            yield "local_steps", f"expected at least 1, got {self.local_steps}"
        if self.batch_size < 0:
            yield "batch_size", f"expected 0 (all records) or more, got {self.batch_size}"
        if self.optimizer not in ("sgd", "adam"):
            yield "optimizer", f'expected "sgd" or "adam", got {self.optimizer!r}'
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            yield "learning_rate", f"expected a positive number, got {self.learning_rate}"
        if not 0 <= self.momentum < 1:
            yield "momentum", f"expected 0 <= momentum < 1, got {self.momentum}"
        for name in ("weight_decay", "proximal_mu", "seed"):
            if not getattr(self, name) >= 0:
                yield name, f"expected 0 or more, got {getattr(self, name)}"
        if not 0 <= self.validation_fraction < 1:
            yield "validation_fraction", "expected 0 <= fraction < 1"


@dataclass(frozen=True, kw_only=True)
class StrategySpec:
    """One of Flower's strategies by class name, with its own parameters, unmodified.

    Attributes:
        name: such as ``FedAvg`` or ``Krum``; server/strategies.py has the table.
        parameters: keyword arguments of the class.
        wrapper: one of flwr's server-side differential-privacy wrappers, or empty.
        wrapper_parameters: its keyword arguments.
    """

    name: str = "FedAvg"
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    wrapper: str = ""
    wrapper_parameters: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ParticipationSpec:
    """Who takes part, how often, and how long a round may last.

    Attributes:
        rounds: rounds to run.
        min_clients: a round starts, and ends well, with at least this many.
        fraction: share of the connected clients that each round samples.
        round_deadline_s: a reply that is not here by then counts as failed.
        max_attempts: how often a round with too few replies is tried before the run fails.
    """

    rounds: int
    min_clients: int = 2
    fraction: float = 1.0
    round_deadline_s: float = 600.0
    max_attempts: int = 3

    def problems(self) -> Iterator[tuple[str, str]]:
        if not 1 <= self.rounds <= MAX_ROUNDS:
            yield "rounds", f"expected 1 to {MAX_ROUNDS}, got {self.rounds}"
        if self.min_clients < 1:
            yield "min_clients", f"expected at least 1, got {self.min_clients}"
        if not 0 < self.fraction <= 1:
            yield "fraction", f"expected 0 < fraction <= 1, got {self.fraction}"
        if not 0 < self.round_deadline_s <= MAX_ROUND_DEADLINE_S:
            yield "round_deadline_s", f"expected 0 < seconds <= {MAX_ROUND_DEADLINE_S:.0f}"
        if self.max_attempts < 1:
            yield "max_attempts", f"expected at least 1, got {self.max_attempts}"


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """Federated evaluation on each owner's validation records.

    Exact metrics are values that leave the owner: under any privacy mode but ``none`` an owner's
    node refuses them unless its policy says ``allow_exact_metrics = true``. With ``epsilon`` they
    leave as noised sums instead (privacy/evaluation_plan.py).

    Attributes:
        every: evaluate after every this many rounds; 0 never.
        epsilon: what all evaluations of the run together may cost each unit on the validation side,
            at the run's delta; 0: the metrics are exact.
    """

    every: int = 0
    epsilon: float = 0.0

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.every < 0:
            yield "every", f"expected 0 (never) or more, got {self.every}"
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            yield "epsilon", f"expected 0 (exact metrics) or more, got {self.epsilon}"


@dataclass(frozen=True, kw_only=True)
class AppSpec:
    """A Flower app that is installed at both sides and allowed in client.toml.

    Attributes:
        client: ``"package.module:client_app"``.
        server: ``"package.module:server_app"``; empty runs the named strategy.
        config: the app's ``run_config``.
    """

    client: str
    server: str = ""
    config: Mapping[str, Scalar] = field(default_factory=dict)

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("client", "server"):
            value = getattr(self, key)
            if value and value.count(":") != 1:
                yield key, f'expected "package.module:app", got {value!r}'


@dataclass(frozen=True, kw_only=True)
class RetentionSpec:
    """Which rounds' weights the run folder keeps.

    Attributes:
        rounds: ``"auto"`` (all while they fit in 100 MB, else the last), ``"all"``, ``"none"``.
        every: keep each k-th round as well; 0 does not.
    """

    rounds: str = "auto"
    every: int = 0

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.rounds not in ("auto", "all", "none"):
            yield "rounds", f'expected "auto", "all" or "none", got {self.rounds!r}'
        if self.every < 0:
            yield "every", f"expected 0 (no) or more, got {self.every}"


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A whole run. Either ``data``, ``model`` and ``training`` are given, or ``app``.

    Attributes:
        name: what people call it.
        data_set: which of an owner's data sets, by the name in client.toml.
        secure_aggregation: whose updates are summed unseen; the distributed modes need it.
        initial: a safetensors file with the initial weights (app runs; relative to run.toml).
        results: what replies may contain, by message type (``train``, ``evaluate``, ``query``);
            built-in runs derive it.
        audit: what is asked of a finished run's owners; then nothing is trained, and everything
            else here describes that run. ``tacit audit run RUN`` makes it.
        canaries: what each owner puts into the run to test its claim; ``tacit audit canaries RUN``
            makes such a twin of a run.
    """

    name: str
    data_set: str = "default"
    data: DataSpec | None = None
    model: ModelSpec | None = None
    training: TrainingSpec | None = None
    privacy: PrivacySpec
    secure_aggregation: SecureAggregationSpec | None = None
    strategy: StrategySpec = StrategySpec()
    participation: ParticipationSpec
    evaluation: EvaluationSpec = EvaluationSpec()
    retention: RetentionSpec = RetentionSpec()
    app: AppSpec | None = None
    initial: str = ""
    results: Mapping[str, ReplySpec] = field(default_factory=dict)
    audit: AuditSpec | None = None
    canaries: CanarySpec | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if not (self.name.isprintable() and 1 <= len(self.name) <= MAX_NAME_CHARACTERS):
            yield "name", f"expected 1 to {MAX_NAME_CHARACTERS} printable characters"
        if not _DATA_SET.fullmatch(self.data_set):
            yield "data_set", f"expected letters, digits, '-', '_' and '.', got {self.data_set!r}"
        yield from self._problems_of_parts()
        if self.secure_aggregation is not None:
            yield from self.secure_aggregation.problems_in(self)
        elif self.privacy.mode.is_distributed and self.audit is None:
            text = "missing: name the members among whom the noise is shared"
            yield "secure_aggregation", f'{text} (mode "{self.privacy.mode.value}")'
        if self.evaluation.epsilon > 0:
            yield from self._problems_of_noised_metrics()
        if self.audit is not None:
            yield from self._problems_of_audit()
        if self.canaries is not None:
            yield from self._problems_of_canaries(self.canaries)

    @property
    def discards_model(self) -> bool:
        """Whether the run is a twin: it ends with a report, and keeps no weights."""
        return self.canaries is not None and self.canaries.twin

    @property
    def secure_steps(self) -> int:
        """Secure sums in one round; 1 also where updates are not summed unseen."""
        return self.secure_aggregation.steps_per_round if self.secure_aggregation else 1

    @property
    def training_releases(self) -> int:
        """How often an owner answers training: once a round, or once a step of a secure sum."""
        return self.participation.rounds * self.secure_steps

    @property
    def evaluations(self) -> int:
        """How often the owners are asked to evaluate: after every ``evaluation.every`` rounds."""
        every = self.evaluation.every
        return self.participation.rounds // every if every > 0 else 0

    def noises(self, message_type: str) -> bool:
        """Whether replies to this kind of message carry noise, which takes a key of the node's."""
        if self.audit is not None:
            return message_type == "query" and self.audit.is_noised
        if self.privacy.mode is PrivacyMode.NONE:
            return False
        return message_type == "train" or (
            message_type == "evaluate" and self.evaluation.epsilon > 0
        )

    def _problems_of_noised_metrics(self) -> Iterator[tuple[str, str]]:
        key = "evaluation.epsilon"
        if self.privacy.mode is PrivacyMode.NONE:
            yield key, 'mode = "none" adds no noise: remove this key or choose another mode'
        if self.app is not None:
            yield key, "only the built-in app adds noise to metrics: remove this key"
        if self.evaluations == 0:
            yield key, "nothing is evaluated: set evaluation.every to 1 up to participation.rounds"
        if self.training is not None and self.training.validation_fraction == 0:
            yield key, "nothing is held out to evaluate on: raise training.validation_fraction"

    def _problems_of_audit(self) -> Iterator[tuple[str, str]]:
        if self.app is not None:
            yield "audit", "only runs of the built-in app can be audited where their records are"
        if self.participation.rounds != 1:
            yield "participation.rounds", "an audit asks once: expected 1"
        if self.evaluation.every:
            yield "evaluation.every", "an audit evaluates nothing: expected 0"
        if self.training is not None and self.training.validation_fraction == 0:
            yield "audit", "the run held no records out, so there are no non-members to compare"

    def _problems_of_canaries(self, canaries: CanarySpec) -> Iterator[tuple[str, str]]:
        if self.app is not None or self.privacy.mode is not PrivacyMode.RECORD_LOCAL:
            yield "canaries", 'expected the built-in app and privacy.mode = "record-local"'
        if self.audit is not None:
            yield "canaries", "an audit trains nothing that they could be in: remove one of both"
        if canaries.mislabelled and self.model and self.model.kind is ModelKind.MODULE:
            yield "canaries.mislabelled", "the server scores them, and has built-in models alone"

    def _problems_of_parts(self) -> Iterator[tuple[str, str]]:
        built_in = [key for key in ("data", "model", "training") if getattr(self, key) is not None]
        if self.app is None:
            for key in ("data", "model", "training"):
                if key not in built_in:
                    yield key, f"missing: a run needs [{key}], or [app] for an app of your own"
            if self.results:
                yield "results", "only runs with [app] declare results; built-in runs derive them"
        else:
            for key in ("model", "training"):
                if key in built_in:
                    yield key, "a run with [app] brings its own model and training"
            if not self.results:
                yield "results", "missing: a run with [app] declares what its replies may contain"
        for key in self.results:
            if key.split(".")[0] not in ("train", "evaluate", "query"):
                yield f"results.{key}", "expected train, evaluate or query (or train.<action>)"


def audit_of(
    run: RunSpec, audit: AuditSpec, *, min_clients: int, round_deadline_s: float
) -> RunSpec:
    """Return the specification of an audit of a run.

    Args:
        run: what was trained.
        audit: what is asked of its owners.
        min_clients: so many owners' answers are merged, or none.
        round_deadline_s: an answer that is not here by then counts as failed.
    """
    return RunSpec(
        name=f"audit of {run.name}"[:MAX_NAME_CHARACTERS],
        data_set=run.data_set,
        data=run.data,
        model=run.model,
        training=run.training,
        privacy=run.privacy,
        strategy=run.strategy,
        participation=ParticipationSpec(
            rounds=1, min_clients=min_clients, round_deadline_s=round_deadline_s, max_attempts=1
        ),
        app=run.app,
        audit=audit,
    )


def audited_run(audit: RunSpec) -> RunSpec:
    """Return the run that an audit is of, as far as its recipe goes: what was trained, and how.

    Raises:
        ValueError: the specification is of no audit.
    """
    if audit.audit is None:
        raise ValueError("expected the specification of an audit")
    people = dataclasses.replace(audit.participation, rounds=audit.audit.rounds)
    return dataclasses.replace(audit, audit=None, participation=people)


def to_plain(value: Any) -> Any:  # noqa: ANN401 - any field of a specification
    """Turn a specification, or a part of one, into dicts, lists and scalars for JSON.

    Enum members become their values; every field is written, defaults included.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def canonical_json(specification: RunSpec) -> bytes:
    """Return the one byte string that stands for a resolved specification (UTF-8, sorted keys)."""
    text = json.dumps(
        to_plain(specification),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )
    return text.encode("utf-8")


def specification_sha256(canonical: bytes) -> bytes:
    """Return the hash that an owner's approval covers (32 bytes)."""
    return hashlib.sha256(canonical).digest()
