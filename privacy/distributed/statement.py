"""What a run in a distributed mode promises at one of its members.

Trusts nothing: ``run.toml`` as it was parsed, and the bound that the owner declared.
Promises: all members whose declarations are complete derive one and the same noise, scale and
threshold from it; only the bound on records, which delta is compared with, is each owner's own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tacit.core.errors import ConfigError, RefusedError
from tacit.core.specification import PrivacyMode, RunSpec, Sampling
from tacit.privacy.distributed.cohort import Cohort
from tacit.privacy.spec import (
    ClientDistributed,
    DistributedStatement,
    RecordDistributed,
    declared_bounds,
    declared_calibration,
    declared_unit,
    needs_built_in,
    verify_count,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def parse_distributed(spec: RunSpec, *, records: int, dimension: int) -> DistributedStatement:
    """Return what a run in a distributed mode promises at one of its members.

    Args:
        spec: of the run.
        records: the most that the owner declares to hold.
        dimension: every number of one sum, metrics included.

    Raises:
        RefusedError: an app of one's own by record (``E-MODE-NEEDS-BUILT-IN``), samples
            (``E-SAMPLING-NO-ACCOUNT``), or a delta not below 1 / records (``E-DELTA-TOO-LARGE``).
        ConfigError: the values do not make one statement (``E-PRIVACY-INCOMPLETE``).
        ValueError: the mode is another, or ``records`` or ``dimension`` is not positive.
    """
    privacy, secure = spec.privacy, spec.secure_aggregation
    by_record = privacy.mode is PrivacyMode.RECORD_DISTRIBUTED
    if not by_record and privacy.mode is not PrivacyMode.CLIENT_DISTRIBUTED:
        raise ValueError(f"expected a distributed mode, got {privacy.mode}")
    verify_count("records", records)
    clip, delta = declared_bounds(privacy, records)
    if secure is None or (by_record and privacy.normaliser == 0):
        raise ConfigError(
            "E-PRIVACY-INCOMPLETE",
            "the run's privacy is not completely declared",
            problems=tuple(_missing_for_sums(spec)),
        )
    shared: dict[str, Any] = {
        "clip": clip,
        "calibration": declared_calibration(privacy),
        "delta": delta,
        "relation": privacy.relation,
        "releases": spec.participation.rounds,
        "most_owner_records": records,
        "cohort": Cohort(
            members=len(secure.members), threshold=secure.threshold, colluders=secure.colluders
        ),
        "dimension": dimension,
    }
    if not by_record:
        return ClientDistributed(**shared)
    _verify_summed_by_record(spec)
    most_records = secure.max_records or math.ceil(privacy.normaliser)
    return RecordDistributed(
        unit=declared_unit(privacy),
        steps_per_round=secure.steps_per_round,
        normaliser=privacy.normaliser,
        bound=secure.bound or most_records * clip,
        **shared,
    )


def _missing_for_sums(spec: RunSpec) -> Iterator[str]:
    if spec.secure_aggregation is None:
        yield "secure_aggregation: missing: expected the members whose sums nobody sees in parts"
    if spec.privacy.mode is PrivacyMode.RECORD_DISTRIBUTED and spec.privacy.normaliser == 0:
        yield "privacy.normaliser: missing: expected one public number of records for all members"


def _verify_summed_by_record(spec: RunSpec) -> None:
    if spec.app is not None:
        raise needs_built_in(spec.privacy.mode)
    if spec.privacy.sampling is not Sampling.FULL:
        raise RefusedError(
            "E-SAMPLING-NO-ACCOUNT",
            f'expected sampling = "full" in mode "{spec.privacy.mode.value}", got '
            f'"{spec.privacy.sampling.value}"',
            hint="no tight account is published of samples under shared discrete noise; every "
            "record in every step costs little accuracy where noise is shared",
        )
