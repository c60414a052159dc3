"""The last word on every outgoing message: an ordered list of checks, all of which must pass.

Whatever app made a reply, it leaves only through :func:`verify_release`, which looks at the
daemon's own copy of it. The checks run in the order of ``CHECKS``; each raises or returns nothing,
and a check that cannot be applied raises: fail closed.

1. approved: this run, by this owner, under this very specification
2. app unchanged: the installed files are those that were approved
3. asked: the instruction belongs to the run and asks for something the run declares
4. mechanism: the run's privacy mode can be kept, and what it costs with this message has room
5. schema: records, arrays, dtypes and shapes are those of the model that the instruction carried
6. size: within the owner's limit, and as many bytes as the manifest says
7. digest: the bytes are those that the app announced
8. finite: no NaN and no infinity
9. metrics: only declared ones, each within its range

A reply that has passed is clipped and noised here where the mode is ``client-local``
(``client/update.py``), is charged to the ledger (``client/charges.py``), and only then stored to
leave; each of the three refuses where it cannot be done.

The node rebuilds the head of a reply itself, so that nothing else an app wrote can leave: no
unknown field, no time stamp, no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tacit.client.approvals import (
    Verdict,
    verify_audit,
    verify_exact_metrics,
    verify_mechanism,
)
from tacit.client.finite import first_non_finite
from tacit.client.identifiers import verify_message_type
from tacit.core.errors import RefusedError
from tacit.core.results import result_schema
from tacit.core.specification import MetricSpec, PrivacyMode, ReplySpec, RunSpec
from tacit.protos import fleet_pb2, records_pb2
from tacit.protos.secure import RECORD, VECTOR, secure_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tacit.client.configuration import Policy


@dataclass(frozen=True, kw_only=True)
class ReplySchema:
    """What one reply may contain.

    Attributes:
        arrays_keys: the record keys under which its arrays may stand.
        arrays: the arrays that it must contain, by name; None if it may contain none.
        metrics: allowed metrics by name.
    """

    arrays_keys: tuple[str, ...]
    arrays: Mapping[str, records_pb2.ArrayEntry] | None
    metrics: Mapping[str, MetricSpec]


@dataclass(frozen=True, kw_only=True)
class Release:
    """One reply that asks to leave, and what it is held against.

    Attributes:
        specification: of the run.
        verdict: the owner's word on the run.
        approved_sha256: hash of the specification that the owner's word covers.
        approved_app_sha256: fingerprint of the apps that it covers.
        app_sha256: fingerprint of the apps as they are installed now.
        released: replies of this kind of message that this run has released so far.
        epsilon: what the run costs each of its units with this reply; None without an account.
        policy: the owner's.
        instruction: what the server asked.
        manifest: what the reply says that it contains.
        payload_bytes: size of the daemon's copy.
        payload_sha256: digest of the daemon's copy.
    """

    specification: RunSpec
    verdict: Verdict
    approved_sha256: bytes
    approved_app_sha256: bytes
    app_sha256: bytes
    released: int
    epsilon: float | None
    policy: Policy
    instruction: fleet_pb2.InstructionHead
    manifest: records_pb2.Manifest
    payload_bytes: int
    payload_sha256: bytes


def reply_schema(
    specification: RunSpec, instruction: records_pb2.Manifest, message_type: str
) -> ReplySchema:
    """Derive what a reply may contain from the run and from the model that was sent.

    Raises:
        RefusedError: the run declares no such reply, or the instruction carries no single model.
    """
    declared = _declared(specification, message_type)
    if declared.arrays == "none":
        return ReplySchema(arrays_keys=(), arrays=None, metrics=declared.metrics)
    if declared.arrays == "share":
        return _share_schema(specification)
    models = [record for record in instruction.records if record.kind == records_pb2.Record.ARRAYS]
    if len(models) != 1:
        raise RefusedError(
            "E-REPLY-SCHEMA", f"expected an instruction with one model, got {len(models)}"
        )
    return ReplySchema(
        arrays_keys=(models[0].key, "arrays"),
        arrays={entry.name: entry for entry in models[0].arrays},
        metrics=declared.metrics,
    )


def _share_schema(specification: RunSpec) -> ReplySchema:
    secure = specification.secure_aggregation
    size = 0 if secure is None else secure.dimension
    share = secure_entry(VECTOR, "uint32", size)
    return ReplySchema(arrays_keys=(RECORD,), arrays={VECTOR: share}, metrics={})


def _declared(specification: RunSpec, message_type: str) -> ReplySpec:
    verify_message_type(message_type)
    results = specification.results if specification.app else result_schema(specification)
    declared = results.get(message_type) or results.get(message_type.partition(".")[0])
    if declared is None:
        raise RefusedError(
            "E-REPLY-UNDECLARED", f"the run declares no reply to a message {message_type!r}"
        )
    return declared


def verify_permitted(release: Release) -> None:
    """Run the checks that need no reply, before an app is called at all.

    Raises:
        RefusedError: the first check that said no.
    """
    for _, check in CHECKS_BEFORE:
        check(release)


def verify_release(release: Release, payload: memoryview) -> None:
    """Run every check on one reply.

    Args:
        release: the reply's manifest and what it is held against.
        payload: the daemon's own copy of the reply's bytes.

    Raises:
        RefusedError: the first check that said no.
    """
    verify_permitted(release)
    for _, check in CHECKS_AFTER:
        check(release, payload)


def _approved(release: Release) -> None:
    if release.verdict is not Verdict.APPROVED:
        raise RefusedError("E-APPROVAL-MISSING", "the owner has not approved this run")
    if release.instruction.specification_sha256 != release.approved_sha256:
        raise RefusedError(
            "E-APPROVAL-HASH", "the instruction names another specification than was approved"
        )


def _app_unchanged(release: Release) -> None:
    if release.app_sha256 != release.approved_app_sha256:
        raise RefusedError(
            "E-APPROVAL-APP",
            "the app's installed files are not those that were approved",
            hint="Put the approved version back; or ask the operator to submit the run anew, and "
            "approve it with the app as it is now.",
        )


def _asked(release: Release) -> None:
    _declared(release.specification, release.instruction.message_type)
    if release.instruction.message_type.partition(".")[0] == "evaluate":
        if release.specification.app is None and release.specification.evaluation.every == 0:
            raise RefusedError("E-REPLY-UNDECLARED", "the run declares no evaluation")
        verify_exact_metrics(release.specification, release.policy)


def _mechanism(release: Release) -> None:
    specification = release.specification
    if specification.privacy.mode not in release.policy.modes:
        raise RefusedError("E-POLICY-MODE", "the owner's policy accepts this mode no longer")
    verify_mechanism(specification.privacy, app=specification.app is not None)
    if specification.audit is not None:
        _audit_has_room(release)
        return
    if specification.privacy.mode is PrivacyMode.NONE:
        return
    message_type = release.instruction.message_type
    if message_type == "query" and specification.canaries is not None:
        return  # bits, salt and functions of what has left: learning/planted.py
    if message_type not in ("train", "evaluate"):
        raise RefusedError(
            "E-REPLY-UNDECLARED", "only train and evaluate have an account in this mode"
        )
    if message_type == "evaluate" and specification.noises("evaluate"):
        _evaluations_have_room(release)
    limit = release.policy.max_epsilon_per_run
    if message_type == "train" and not (release.epsilon is not None and release.epsilon <= limit):
        raise RefusedError(
            "E-PRIVACY-SPENT",
            f"expected epsilon of at most {limit} with this update, after {release.released} that "
            "have left",
            hint="Rounds that are tried again cost again; your limit is max_epsilon_per_run in "
            "client.toml.",
        )


def _audit_has_room(release: Release) -> None:
    """Refuse what the owner allows no longer, another model, and a second answer."""
    verify_audit(release.specification, release.policy)
    audit, instruction = release.specification.audit, release.instruction
    if instruction.message_type != "query":  # another name would be counted and noised as nothing
        raise RefusedError("E-REPLY-UNDECLARED", "an audit answers messages of type query alone")
    sent = instruction.manifest.payload_sha256.hex()
    if audit is not None and sent != audit.model_sha256:
        raise RefusedError(
            "E-AUDIT-MODEL", "the model that was sent is not the one that the audit names"
        )
    if release.released >= 1:
        raise RefusedError("E-PRIVACY-SPENT", "expected one answer to an audit, and one has left")


def _evaluations_have_room(release: Release) -> None:
    """Refuse one noised evaluation more than ``evaluation.epsilon`` was shared out among."""
    evaluations = release.specification.evaluations
    if release.released >= evaluations:
        raise RefusedError(
            "E-PRIVACY-SPENT",
            f"expected at most {evaluations} noised evaluations, after {release.released} that "
            "have left",
        )


def _schema(release: Release, payload: memoryview) -> None:
    del payload
    schema = reply_schema(
        release.specification, release.instruction.manifest, release.instruction.message_type
    )
    arrays = 0
    keys = set()
    for record in release.manifest.records:
        if record.key in keys:
            raise RefusedError("E-REPLY-SCHEMA", "expected each record once")
        keys.add(record.key)
        if record.kind == records_pb2.Record.ARRAYS and schema.arrays is not None:
            arrays += 1
            _verify_arrays(record, schema)
        elif record.kind != records_pb2.Record.METRICS or record.key != "metrics" or record.arrays:
            raise RefusedError(
                "E-REPLY-SCHEMA",
                'expected one array record and one metric record "metrics", got another record',
            )
    if arrays != (0 if schema.arrays is None else 1):
        raise RefusedError("E-REPLY-SCHEMA", f"expected one array record, got {arrays}")


def _verify_arrays(record: records_pb2.Record, schema: ReplySchema) -> None:
    expected = schema.arrays or {}
    if record.key not in schema.arrays_keys or record.items:
        raise RefusedError(
            "E-REPLY-SCHEMA", f"expected the arrays under {' or '.join(schema.arrays_keys)}"
        )
    names = [entry.name for entry in record.arrays]
    if len(names) != len(set(names)) or set(names) != set(expected):
        raise RefusedError(
            "E-REPLY-SCHEMA", f"expected the {len(expected)} arrays of the model, by name"
        )
    for entry in record.arrays:
        wanted = expected[entry.name]
        if entry.dtype != wanted.dtype or entry.stype != wanted.stype:
            raise RefusedError(
                "E-REPLY-DTYPE",
                f"array {entry.name}: expected {wanted.dtype or 'opaque'}, got another dtype",
            )
        if list(entry.shape) != list(wanted.shape) or entry.bytes != wanted.bytes:
            raise RefusedError(
                "E-REPLY-SHAPE",
                f"array {entry.name}: expected shape {list(wanted.shape)}, "
                f"got {list(entry.shape)[:8]}",
            )


def _size(release: Release, payload: memoryview) -> None:
    announced = sum(entry.bytes for record in release.manifest.records for entry in record.arrays)
    if not announced == release.manifest.payload_bytes == release.payload_bytes == payload.nbytes:
        raise RefusedError(
            "E-REPLY-SIZE", f"expected {announced} bytes, got {release.payload_bytes}"
        )
    if release.payload_bytes > release.policy.max_update_bytes:
        raise RefusedError(
            "E-POLICY-SIZE",
            f"expected at most {release.policy.max_update_bytes} bytes, "
            f"got {release.payload_bytes}",
        )


def _digest(release: Release, payload: memoryview) -> None:
    del payload
    if release.manifest.payload_sha256 not in (b"", release.payload_sha256):
        raise RefusedError("E-REPLY-DIGEST", "the reply's bytes are not those that were announced")


def _finite(release: Release, payload: memoryview) -> None:
    name = first_non_finite(release.manifest, payload)
    if name is not None:
        raise RefusedError("E-REPLY-NOT-FINITE", f"array {name} holds a NaN or an infinity")


def _metrics(release: Release, payload: memoryview) -> None:
    del payload
    allowed = _declared(release.specification, release.instruction.message_type).metrics
    seen = set()
    for record in release.manifest.records:
        for item in record.items:
            metric = allowed.get(item.key)
            if metric is None or item.key in seen:
                raise RefusedError(
                    "E-REPLY-METRIC", f"expected only {sorted(allowed)}, each once, as metrics"
                )
            seen.add(item.key)
            _verify_metric(item, metric)


def _verify_metric(item: records_pb2.Item, metric: MetricSpec) -> None:
    values = list(_numbers_of(item))
    scalar = item.WhichOneof("value") in ("real", "integer")
    if scalar != (metric.length == 0) or (metric.length and len(values) != metric.length):
        wanted = "one number" if metric.length == 0 else f"a list of {metric.length} numbers"
        raise RefusedError("E-REPLY-METRIC", f"metric {item.key}: expected {wanted}")
    low, high = metric.range
    if not all(low <= value <= high for value in values):
        raise RefusedError(
            "E-REPLY-METRIC", f"metric {item.key}: expected a value within [{low:g}, {high:g}]"
        )


def _numbers_of(item: records_pb2.Item) -> Iterator[float]:
    match item.WhichOneof("value"):
        case "real":
            yield item.real
        case "integer":
            yield item.integer
        case "reals":
            yield from item.reals.values
        case "integers":
            yield from item.integers.values
        case _:
            raise RefusedError("E-REPLY-METRIC", f"metric {item.key}: expected numbers")


CHECKS_BEFORE: tuple[tuple[str, Callable[[Release], None]], ...] = (
    ("approved", _approved),
    ("app unchanged", _app_unchanged),
    ("asked", _asked),
    ("mechanism", _mechanism),
)
CHECKS_AFTER: tuple[tuple[str, Callable[[Release, memoryview], None]], ...] = (
    ("schema", _schema),
    ("size", _size),
    ("digest", _digest),
    ("finite", _finite),
    ("metrics", _metrics),
)
CHECKS = (*CHECKS_BEFORE, *CHECKS_AFTER)
