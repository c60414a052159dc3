"""client.toml: what an owner has, and what may happen to it.

Every default is the careful answer: modes that add noise at the owner only, no exact metrics, no
app but the built-in one, a person who is asked before each run. Limits carry a unit and a reason;
none is unlimited. ``core/configuration.py`` is the only reader.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import math
from collections.abc import Iterator, Mapping  # noqa: TC003 - read when the file is
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - read when the file is

from tacit.core.configuration import Resolved, load_config
from tacit.core.specification import PrivacyMode, Scalar
from tacit.privacy.cleaning import Cleaning

CONFIG_NAME = "client.toml"
CHANGED = "client.toml changed since the node started: restart to apply"
GIB = 1024**3


class DataFormat(enum.Enum):
    """How a data set is stored."""

    CSV = "csv"
    PARQUET = "parquet"
    NPZ = "npz"
    IMAGES = "images"  # a folder per class


class Approval(enum.Enum):
    """Who says yes to a run that the policy admits."""

    ASK = "ask"  # a person, with `tacit client approve`
    RULE = "rule"  # the policy itself, or one of its rules if there are any


class RunKind(enum.Enum):
    """What a run is for."""

    TRAINING = "training"
    CANARIES = "canaries"  # it has canaries in: a twin, or a run that is released with them
    AUDIT = "audit"


class Journal(enum.Enum):
    """What a stored update survives."""

    KILL = "kill"  # the death of the process
    POWER = "power"  # the death of the machine: every file is flushed to the disk


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One of the owner's data sets.

    Attributes:
        path: a file, or a folder of images; relative to client.toml.
        format: csv, parquet, npz or images.
        records: a PUBLIC bound on the number of records; it scales the noise and the delta, so
            declare it once and never derive it from the file.
        max_canaries: PUBLIC too: so many of ``records`` are kept for canaries, made-up units that
            test what a run claims; 0 lets none in. Real records have the rest, in every run.
        delta: probability that the data set's bound fails, one for life; 0 leaves it to the first
            run that is charged. Below 1 / records.
        budget: largest epsilon over all runs together, at delta, for each record, or for each
            subject where the subject column is declared. Beyond 10 a bound says little
            (Ponomareva et al. 2023, arXiv 2303.00654, tier 2).
        subject: the column that names whose record it is; empty if each record is one person.
        sensitive: columns that audits look at.
        forbidden: columns that no run may name, and that are dropped as soon as the file is read.
        clean: what happens to each record before any run sees it.
        separator: of a CSV file.
        header: whether the CSV file's first line names the columns.
        columns: the column names of a file without a header, in order.
    """

    path: Path
    format: DataFormat = DataFormat.CSV
    records: int
    max_canaries: int = 0
    delta: float = 0.0
    budget: float = 10.0
    subject: str = ""
    sensitive: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    clean: Cleaning = field(default_factory=Cleaning)
    separator: str = ","
    header: bool = True
    columns: tuple[str, ...] = ()

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from self._problems_of_terms()
        if len(self.separator) != 1:
            yield "separator", f"expected one character, got {self.separator!r}"
        if not self.header and not self.columns:
            yield "columns", "a file without a header needs the names of its columns, in order"
        if self.header and self.columns:
            yield "columns", "expected only with header = false"
        for name in self.forbidden:
            if name == self.subject:
                yield "forbidden", f"the subject column {name} is no feature as it is; name it once"
            elif name in self.clean.columns:
                key = f"clean.{self.clean.columns[name]}"
                yield key, f"the column {name} is forbidden, so it is gone before cleaning"
        if self.format is DataFormat.IMAGES and self.named_columns:
            keys = ", ".join(sorted(set(self.named_columns.values())))
            yield "format", f"images have no columns for {keys}"

    def _problems_of_terms(self) -> Iterator[tuple[str, str]]:
        if not 0 <= self.max_canaries < max(self.records, 1):
            yield "max_canaries", f"expected 0 or more, below records, got {self.max_canaries}"
        if self.records < 1:
            yield "records", f"expected a public bound of at least 1, got {self.records}"
        elif not 0 <= self.delta < 1.0 / self.records:
            yield "delta", f"expected 0 or more and below 1 / records, got {self.delta}"
        if not (math.isfinite(self.budget) and self.budget > 0):
            yield "budget", f"expected a positive epsilon, got {self.budget}"

    @property
    def named_columns(self) -> dict[str, str]:
        """Columns that must be in the data set, each with the key that names it."""
        cleaned = {name: f"clean.{key}" for name, key in self.clean.columns.items()}
        subject = {self.subject: "subject"} if self.subject else {}
        return {**cleaned, **subject, **dict.fromkeys(self.forbidden, "forbidden")}


@dataclass(frozen=True, kw_only=True)
class AppRule:
    """An app of somebody's own that this node may run, under its ``package.module:attribute``.

    Attributes:
        node_config: what the app finds in ``Context.node_config``.
        readable: files and folders that its worker may read, beside the installed packages.
    """

    node_config: Mapping[str, Scalar] = field(default_factory=dict)
    readable: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ApprovalRule:
    """A kind of run that needs no person; everything that is declared must fit.

    Attributes:
        kinds: what the run is for: training alone, unless audits and canaries are named as well.
        data_sets: names of data sets; empty means any.
        modes: privacy modes; empty means any that the policy accepts.
        max_epsilon: per run; 0 leaves the policy's own limit.
        max_rounds: per run; 0 leaves the platform's limit.
    """

    kinds: tuple[RunKind, ...] = (RunKind.TRAINING,)
    data_sets: tuple[str, ...] = ()
    modes: tuple[PrivacyMode, ...] = ()
    max_epsilon: float = 0.0
    max_rounds: int = 0

    def problems(self) -> Iterator[tuple[str, str]]:
        if not (math.isfinite(self.max_epsilon) and self.max_epsilon >= 0):
            yield "max_epsilon", f"expected 0 or more, got {self.max_epsilon}"
        if self.max_rounds < 0:
            yield "max_rounds", f"expected 0 or more, got {self.max_rounds}"


@dataclass(frozen=True, kw_only=True)
class AuditPolicy:
    """What auditors may ask of this owner's records, once a run is over.

    Attributes:
        allow: whether audits are answered at all.
        min_members: an audit must promise to merge the answers of at least this many owners.
        epsilon_for_results: most that the noised histograms of one audit may cost each record, or
            each subject where the subject column is declared; it counts towards the budget.
        allow_exact: whether counts may leave without noise, of a model that was trained without.
    """

    allow: bool = False
    min_members: int = 2
    epsilon_for_results: float = 1.0
    allow_exact: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.min_members < 1:
            yield "min_members", f"expected at least 1, got {self.min_members}"
        if not (math.isfinite(self.epsilon_for_results) and self.epsilon_for_results > 0):
            yield (
                "epsilon_for_results",
                f"expected a positive epsilon, got {self.epsilon_for_results}",
            )


@dataclass(frozen=True, kw_only=True)
class SecureAggregationPolicy:
    """Among whom, and how, a run may sum the updates that nobody is to see one by one.

    Attributes:
        required: whether a training run must use secure aggregation; what may leave for an audit
            is for ``[policy.audit]`` to say.
        require_pinned_members: whether every member of such a run must be pinned here, in
            members.toml; otherwise the server's word on who they are is believed, and a server that
            invents members sees the update.
        min_members: fewest members of such a run. Among two, each sees the other's.
        min_threshold: fewest members who must answer before a sum is opened; it can raise
            floor(2n/3) + 1 of n members, which 0 stands for, and never lowers it.
    """

    required: bool = False
    require_pinned_members: bool = True
    min_members: int = 3
    min_threshold: int = 0

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.min_members < 2:
            yield "min_members", f"expected at least 2: one alone is no sum, got {self.min_members}"
        if self.min_threshold < 0:
            yield "min_threshold", f"expected 0 or more, got {self.min_threshold}"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the owner allows; the node enforces it on every run and every outgoing message.

    Attributes:
        modes: privacy modes that a run may name.
        max_epsilon_per_run: at the run's delta, for the unit that it names.
        min_clients: a run must promise to aggregate at least this many owners.
        allow_exact_metrics: whether un-noised metrics on the owner's records may leave under a
            mode that promises noise.
        approve: ask a person, or let the rules decide.
        rules: by name; see ApprovalRule.
        apps: apps of somebody's own that may run here, by ``package.module:attribute``.
        allowed_factories: model factories (``package.module:function``) that may run here.
        audit: what auditors may ask; by default nothing.
        secure_aggregation: among whom, and how, updates may be summed unseen.
        allow_unisolated_apps: run the apps above even where the worker cannot be confined.
        message_timeout_s: a call of an app that takes longer is killed.
        max_update_bytes: largest reply that may leave, and largest instruction that is taken.
        worker_memory_bytes: largest private memory of a worker; it is refused more.
        scratch_bytes: largest file that a worker may write.
        max_workers: apps kept in memory at once; further runs start theirs when first called.
    """

    modes: tuple[PrivacyMode, ...] = (PrivacyMode.RECORD_LOCAL,)
    max_epsilon_per_run: float = 3.0
    min_clients: int = 2
    allow_exact_metrics: bool = False
    approve: Approval = Approval.ASK
    rules: Mapping[str, ApprovalRule] = field(default_factory=dict)
    apps: Mapping[str, AppRule] = field(default_factory=dict)
    allowed_factories: tuple[str, ...] = ()
    audit: AuditPolicy = field(default_factory=AuditPolicy)
    secure_aggregation: SecureAggregationPolicy = field(default_factory=SecureAggregationPolicy)
    allow_unisolated_apps: bool = False
    message_timeout_s: float = 3600.0
    max_update_bytes: int = 2 * GIB
    worker_memory_bytes: int = 16 * GIB
    scratch_bytes: int = 4 * GIB
    max_workers: int = 2

    def problems(self) -> Iterator[tuple[str, str]]:
        if not (math.isfinite(self.max_epsilon_per_run) and self.max_epsilon_per_run > 0):
            yield (
                "max_epsilon_per_run",
                f"expected a positive number, got {self.max_epsilon_per_run}",
            )
        if not (math.isfinite(self.message_timeout_s) and self.message_timeout_s > 0):
            yield "message_timeout_s", f"expected a positive number, got {self.message_timeout_s}"
        for key in (
            "min_clients",
            "max_update_bytes",
            "worker_memory_bytes",
            "scratch_bytes",
            "max_workers",
        ):
            if getattr(self, key) < 1:
                yield key, f"expected at least 1, got {getattr(self, key)}"
        for name in (*self.apps, *self.allowed_factories):
            if name.count(":") != 1:
                yield "apps", f'expected "package.module:attribute", got {name!r}'
        if self.rules and self.approve is Approval.ASK:
            yield "rules", 'expected only with approve = "rule"'


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """The whole of client.toml.

    Attributes:
        data_sets: by the name that runs ask for.
        policy: what may happen to them.
        journal: what a stored update survives.
        keep_decisions: entries of the decision log that are kept.
    """

    data_sets: Mapping[str, DataSet] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    journal: Journal = Journal.KILL
    keep_decisions: int = 100_000

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.keep_decisions < 1:
            yield "keep_decisions", f"expected at least 1, got {self.keep_decisions}"


def load_client_config(path: Path) -> Resolved[ClientConfig]:
    """Read client.toml; relative paths in it are relative to its folder.

    Raises:
        ConfigError: the file is missing or wrong; all problems are listed.
    """
    resolved = load_config(path, ClientConfig, prefix="TACIT_CLIENT")
    return dataclasses.replace(resolved, value=anchored(resolved.value, path.parent))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of client.toml as it lies there now, in hex; empty if it is gone."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def anchored(config: ClientConfig, folder: Path) -> ClientConfig:
    """Make every path of a configuration absolute, relative to ``folder``."""
    folder = folder.resolve()
    data_sets = {
        name: dataclasses.replace(data_set, path=folder / data_set.path.expanduser())
        for name, data_set in config.data_sets.items()
    }
    apps = {
        name: dataclasses.replace(
            rule, readable=tuple(folder / path.expanduser() for path in rule.readable)
        )
        for name, rule in config.policy.apps.items()
    }
    policy = dataclasses.replace(config.policy, apps=apps)
    return dataclasses.replace(config, data_sets=data_sets, policy=policy)


SAMPLE = """\
# What this owner has, and what may happen to it. `tacit client check` tells what is wrong.
# A node reads this file when it starts: restart it (`tacit client start`) after a change.

[data_sets.default]
path = "data.csv"          # relative to this file
format = "csv"             # csv, parquet, npz or images
records = 1000             # a PUBLIC bound on the number of records; never derive it from the file
# max_canaries = 0         # of `records`, kept for made-up units that test what a run claims
# budget = 10.0            # largest epsilon over all runs together, for life
# delta = 1e-4             # one for life, below 1 / records; without it, that of the first run
# subject = "patient"      # whose record it is, if a person may have several
# forbidden = ["name"]     # columns that no run may ever use
# clean.require = ["age"]  # and more: what happens to each record before a run sees it

[policy]
modes = ["record-local"]
max_epsilon_per_run = 3.0
approve = "ask"            # a person: `tacit client approve RUN`; or "rule"

# [policy.secure_aggregation]      # among whom updates may be summed unseen: members.toml
# required = false                 # refuse training runs whose updates the server would see
# require_pinned_members = true    # all of them pinned: tacit client members pin
# min_members = 3                  # fewest members of such a run
# min_threshold = 0                # fewest who must answer; 0: floor(2n/3) + 1 of n

# [policy.audit]           # whether auditors may ask what a finished model gives away; default: no
# allow = true
# min_members = 2          # fewest owners whose answers an audit must merge
# epsilon_for_results = 1  # most that one audit's noised histograms may cost; within the budget
# allow_exact = false      # counts without noise, of a model that was trained without
"""
