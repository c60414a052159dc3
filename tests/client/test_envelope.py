"""The envelope: every way in which a reply can be wrong, and the code that it is refused with."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.client.approvals import Verdict
from tacit.client.configuration import Policy
from tacit.client.envelope import CHECKS, Release, verify_release
from tacit.client.finite import first_non_finite
from tacit.core.errors import ProtocolError, RefusedError
from tacit.core.specification import (
    AppSpec,
    EvaluationSpec,
    MetricSpec,
    PrivacyMode,
    PrivacySpec,
    ReplySpec,
    RunSpec,
    canonical_json,
    specification_sha256,
)
from tacit.protos import records_pb2
from tests.client.fakes import MODEL, instruction, make_spec, manifest_of, open_mode

if TYPE_CHECKING:
    from collections.abc import Callable

Manifest = records_pb2.Manifest
GOOD = {"num-examples": 1}


def foreign_spec(**metrics: MetricSpec) -> RunSpec:
    """A run in mode none with an app of its own that declares its metrics."""
    return make_spec(
        model=None,
        training=None,
        privacy=open_mode(),
        app=AppSpec(client="package.module:app"),
        results={"train": ReplySpec(metrics=metrics), "query": ReplySpec(arrays="none")},
    )


def release_of(manifest: Manifest, payload: bytes, **changes: Any) -> Release:
    spec = changes.pop("spec", make_spec())
    head, _ = instruction(spec, message_type=changes.pop("message_type", "train"))
    values: dict[str, Any] = {
        "specification": spec,
        "verdict": Verdict.APPROVED,
        "approved_sha256": specification_sha256(canonical_json(spec)),
        "approved_app_sha256": b"a",
        "app_sha256": b"a",
        "released": 0,
        "epsilon": 1.0,
        "policy": Policy(modes=tuple(PrivacyMode)),
        "instruction": head,
        "manifest": manifest,
        "payload_bytes": len(payload),
        "payload_sha256": hashlib.sha256(payload).digest(),
    }
    return Release(**(values | changes))


def refusal(manifest: Manifest, payload: bytes, **changes: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        verify_release(release_of(manifest, payload, **changes), memoryview(payload))
    return caught.value.code


def test_good_reply_passes() -> None:
    """A reply that keeps every rule raises nothing."""
    manifest, payload = manifest_of(MODEL, GOOD)
    verify_release(release_of(manifest, payload), memoryview(payload))


def test_checks_run_in_the_documented_order() -> None:
    """The list of checks is what the module's docstring says."""
    assert [name for name, _ in CHECKS] == [
        "approved",
        "app unchanged",
        "asked",
        "mechanism",
        "schema",
        "size",
        "digest",
        "finite",
        "metrics",
    ]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"verdict": Verdict.PENDING}, "E-APPROVAL-MISSING"),
        ({"verdict": Verdict.DENIED}, "E-APPROVAL-MISSING"),
        ({"approved_sha256": bytes(32)}, "E-APPROVAL-HASH"),
        ({"app_sha256": b"b"}, "E-APPROVAL-APP"),
        ({"message_type": "query"}, "E-REPLY-UNDECLARED"),
        ({"message_type": "evaluate"}, "E-REPLY-UNDECLARED"),
        ({"policy": Policy(modes=(PrivacyMode.NONE,))}, "E-POLICY-MODE"),
        ({"epsilon": 3.1}, "E-PRIVACY-SPENT"),
        ({"epsilon": None}, "E-PRIVACY-SPENT"),
        ({"epsilon": float("nan")}, "E-PRIVACY-SPENT"),
        ({"payload_bytes": 31}, "E-REPLY-SIZE"),
        ({"policy": Policy(max_update_bytes=16)}, "E-POLICY-SIZE"),
        ({"payload_sha256": bytes(32)}, "E-REPLY-DIGEST"),
    ],
)
def test_good_content_in_a_wrong_case_is_refused(changes: dict[str, Any], code: str) -> None:
    """Approval, app, message, mechanism, size and digest are each able to refuse."""
    manifest, payload = manifest_of(MODEL, GOOD)
    assert refusal(manifest, payload, **changes) == code


def test_mode_without_mechanism_is_refused() -> None:
    """What no mechanism protects does not leave, whatever the policy accepts."""
    manifest, payload = manifest_of(MODEL, GOOD)
    privacy = PrivacySpec(mode=PrivacyMode.CENTRAL, clip=1.0, epsilon=1.0, delta=1e-3)
    assert refusal(manifest, payload, spec=make_spec(privacy=privacy)) == "E-MODE-NOT-BUILT"


def test_exact_metrics_under_a_noised_mode_need_the_owners_word() -> None:
    """Evaluation passes only with allow_exact_metrics."""
    spec = make_spec(evaluation=EvaluationSpec(every=1))
    metrics = {"num-examples": 1, "loss": 0.5, "accuracy": 0.5}
    manifest, payload = manifest_of(None, metrics)
    changes = {"spec": spec, "message_type": "evaluate"}
    assert refusal(manifest, payload, **changes) == "E-POLICY-EXACT-METRICS"
    allowed = Policy(allow_exact_metrics=True)
    release = release_of(manifest, payload, policy=allowed, **changes)
    verify_release(release, memoryview(payload))


NOISED = {"num-examples": 1, "sum-correct": -3.5, "sum-wrong": 30.25, "sum-loss": 12.5}


def test_noised_metrics_need_nobodys_word() -> None:
    """With evaluation.epsilon the sums leave, below zero as well; exact metrics still do not."""
    spec = make_spec(evaluation=EvaluationSpec(every=1, epsilon=0.5))
    manifest, payload = manifest_of(None, NOISED)
    changes = {"spec": spec, "message_type": "evaluate"}
    verify_release(release_of(manifest, payload, **changes), memoryview(payload))
    exact, payload = manifest_of(None, {"num-examples": 1, "loss": 0.5, "accuracy": 0.5})
    assert refusal(exact, payload, **changes) == "E-REPLY-METRIC"


def test_no_more_noised_evaluations_leave_than_share_the_epsilon() -> None:
    """Two rounds, each evaluated: the noise is for two releases, and a third is refused."""
    spec = make_spec(evaluation=EvaluationSpec(every=1, epsilon=0.5))
    manifest, payload = manifest_of(None, NOISED)
    changes = {"spec": spec, "message_type": "evaluate"}
    verify_release(release_of(manifest, payload, released=1, **changes), memoryview(payload))
    assert refusal(manifest, payload, released=2, **changes) == "E-PRIVACY-SPENT"


def renamed(name: str) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        manifest.records[0].arrays[0].name = name

    return change


def change_dtype(manifest: Manifest) -> None:
    manifest.records[0].arrays[0].dtype = "int32"


def change_shape(manifest: Manifest) -> None:
    manifest.records[0].arrays[0].shape[:] = [3, 2]


def double_array(manifest: Manifest) -> None:
    manifest.records[0].arrays.append(manifest.records[0].arrays[0])


def double_record(manifest: Manifest) -> None:
    manifest.records.append(manifest.records[0])


def other_key(manifest: Manifest) -> None:
    manifest.records[0].key = "gradients"


def extra_record(manifest: Manifest) -> None:
    manifest.records.add(key="notes", kind=records_pb2.Record.CONFIG).items.add(
        key="text", text="the age is 63"
    )


def second_metrics(manifest: Manifest) -> None:
    manifest.records.add(key="more", kind=records_pb2.Record.METRICS)


def no_arrays(manifest: Manifest) -> None:
    del manifest.records[0]


def hidden_items(manifest: Manifest) -> None:
    manifest.records[0].items.add(key="num-examples", integer=1)


def unknown_metric(manifest: Manifest) -> None:
    manifest.records[1].items.add(key="mean-age", real=63.0)


def metric_out_of_range(manifest: Manifest) -> None:
    manifest.records[1].items[0].integer = 303


def metric_not_a_number(manifest: Manifest) -> None:
    manifest.records[1].items[0].real = float("nan")


def metric_as_list(manifest: Manifest) -> None:
    manifest.records[1].items[0].reals.values.extend([1.0])


def metric_as_text(manifest: Manifest) -> None:
    manifest.records[1].items[0].text = "1"


def metric_twice(manifest: Manifest) -> None:
    manifest.records[1].items.append(manifest.records[1].items[0])


def bulk_metric(manifest: Manifest) -> None:
    manifest.records[1].items[0].bulk_bytes = 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (renamed("Weight"), "E-REPLY-SCHEMA"),
        (double_array, "E-REPLY-SCHEMA"),
        (double_record, "E-REPLY-SCHEMA"),
        (other_key, "E-REPLY-SCHEMA"),
        (extra_record, "E-REPLY-SCHEMA"),
        (second_metrics, "E-REPLY-SCHEMA"),
        (no_arrays, "E-REPLY-SCHEMA"),
        (hidden_items, "E-REPLY-SCHEMA"),
        (change_dtype, "E-REPLY-DTYPE"),
        (change_shape, "E-REPLY-SHAPE"),
        (unknown_metric, "E-REPLY-METRIC"),
        (metric_out_of_range, "E-REPLY-METRIC"),
        (metric_not_a_number, "E-REPLY-METRIC"),
        (metric_as_list, "E-REPLY-METRIC"),
        (metric_as_text, "E-REPLY-METRIC"),
        (metric_twice, "E-REPLY-METRIC"),
        (bulk_metric, "E-REPLY-METRIC"),
    ],
)
def test_content_that_the_run_did_not_declare_is_refused(
    change: Callable[[Manifest], None], code: str
) -> None:
    """Records, arrays, dtypes, shapes and metrics are exactly those that were declared."""
    manifest, payload = manifest_of(MODEL, GOOD)
    change(manifest)
    assert refusal(manifest, payload) == code


def test_lists_of_metrics_have_their_declared_length() -> None:
    """A list passes with its length and range, and only then."""
    spec = foreign_spec(hist=MetricSpec(range=(0.0, 1.0), length=3))
    for values, passes in (([0.0, 0.5, 1.0], True), ([0.0, 0.5], False), ([0.0, 0.5, 2.0], False)):
        manifest, payload = manifest_of(MODEL, {})
        manifest.records[1].items.add(key="hist").reals.values.extend(values)
        if passes:
            verify_release(release_of(manifest, payload, spec=spec), memoryview(payload))
        else:
            assert refusal(manifest, payload, spec=spec) == "E-REPLY-METRIC"


def test_declared_query_without_arrays_takes_none() -> None:
    """Where a run declares no arrays, arrays are refused."""
    manifest, payload = manifest_of(MODEL, {})
    code = refusal(manifest, payload, spec=foreign_spec(), message_type="query")
    assert code == "E-REPLY-SCHEMA"


def test_message_type_that_is_no_type_is_refused() -> None:
    """A path or text in the place of a message type reaches no app."""
    manifest, payload = manifest_of(MODEL, GOOD)
    release = release_of(manifest, payload, message_type="train.../etc")
    with pytest.raises(ProtocolError):
        verify_release(release, memoryview(payload))


@given(
    st.sampled_from(["float16", "float32", "float64"]),
    st.integers(0, 300_000),
    st.sampled_from([np.nan, np.inf, -np.inf]),
)
def test_one_bad_number_anywhere_is_found(dtype: str, place: int, bad: float) -> None:
    """A NaN or infinity is found in every piece of an array, for every real dtype."""
    array = np.zeros(300_001, dtype)
    manifest, payload = manifest_of({"a": array})
    assert first_non_finite(manifest, memoryview(payload)) is None
    array[place] = bad
    manifest, payload = manifest_of({"good": np.ones(3, dtype), "a": array})
    assert first_non_finite(manifest, memoryview(payload)) == "a"


@pytest.mark.parametrize(("bits", "finite"), [(0x3F80, True), (0x7F80, False), (0xFFC0, False)])
def test_bfloat16_is_checked_by_its_bits(bits: int, finite: bool) -> None:  # noqa: FBT001
    """Opaque bfloat16 arrays are held to the same rule."""
    manifest, payload = manifest_of({"a": np.array([0, bits], "uint16")})
    manifest.records[0].arrays[0].dtype = "bfloat16"
    assert (first_non_finite(manifest, memoryview(payload)) is None) == finite


def test_array_of_unreadable_type_counts_as_not_finite() -> None:
    """What cannot be checked does not leave."""
    manifest, payload = manifest_of({"a": np.zeros(4, np.uint8)})
    manifest.records[0].arrays[0].dtype = ""
    assert first_non_finite(manifest, memoryview(payload)) == "a"


def test_release_is_frozen() -> None:
    """No check can change what the next one sees."""
    manifest, payload = manifest_of(MODEL, GOOD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        release_of(manifest, payload).released = 0  # type: ignore[misc]
