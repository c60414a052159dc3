"""What one owner's node finds out about a model, from the owner's own records.

Two things come of it, and they are kept apart. :func:`score_counts` is what may leave: in which
public bin each record's score falls, of probes whose score depends on that record and the model
alone. :func:`local_report` is for the owner, with everything that a plan has: reference models
trained on these very records, the most exposed rows. It must not leave.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tacit.attacks.findings import to_json
from tacit.attacks.histograms import positions
from tacit.attacks.plans import PLANS
from tacit.attacks.probe import Evidence
from tacit.attacks.registry import MEMBERSHIP
from tacit.attacks.report_form import as_report, split_sha256
from tacit.attacks.runner import run_audit
from tacit.attacks.score_bins import SCALES
from tacit.attacks.subject import Records, subject_of_model, without_overlap
from tacit.attacks.target import ModelTarget, Outputs
from tacit.core.specification import audited_run, canonical_json, specification_sha256
from tacit.learning.made_up import features_from_ranges
from tacit.learning.prepared import Examples
from tacit.privacy.noise import UniformStream
from tacit.privacy.sums import one_hot

if TYPE_CHECKING:
    from torch import nn

    from tacit.attacks.target import BoolArray, Float64Array, Int64Array
    from tacit.core.audit_spec import AuditSpec
    from tacit.core.data_contract import DataSpec
    from tacit.core.specification import RunSpec
    from tacit.learning.prepared import PreparedSets

_MADE_UP = 512  # records: the outermost quantile of 30 or fewer edges rests on several of them


def score_counts(
    model: nn.Module, sets: PreparedSets, audit: AuditSpec, *, data: DataSpec
) -> Float64Array:
    """Return each record's contribution: for each probe one 1, in the cell of its side and bin.

    Training records come first, then those that were held out. A record for which the model's
    answer or a score is no number contributes nothing: an error would tell that there is one.

    Args:
        model: in evaluation mode, whose answer for one record does not depend on the others.
        sets: the owner's two sides.
        audit: which probes, and how many bins.
        data: the contract, whose ranges and the model decide the bins' edges.

    Returns:
        float64, ``(n, probes * 2 * bins)``.
    """
    examples = Examples(
        features=np.concatenate([sets.train.features, sets.validation.features]),
        labels=np.concatenate([sets.train.labels, sets.validation.labels]),
    )
    is_member = np.arange(len(examples)) < len(sets.train)
    target = ModelTarget(model=model)
    logits = target.logits(examples.features)
    counted: BoolArray = np.asarray(np.isfinite(logits).all(axis=1))
    evidence = Evidence(
        outputs=Outputs(logits=np.where(counted[:, None], logits, 0.0), labels=examples.labels),
        examples=examples,
        target=target,
    )
    edges = public_edges(model, audit, data)
    blocks = []
    for name in audit.probes:
        with np.errstate(all="ignore"):
            scores = MEMBERSHIP[name].scores(evidence, rng=_no_draws())
        counted &= ~np.isnan(scores)
        cells = positions(edges[name], np.nan_to_num(scores), is_member)
        blocks.append(one_hot(cells, bins=audit.length))
    contributions: Float64Array = np.concatenate(blocks, axis=1) * counted[:, None]
    return contributions


def public_edges(model: nn.Module, audit: AuditSpec, data: DataSpec) -> dict[str, Float64Array]:
    """Return the bins' edges of each probe, float64, ``(bins - 1,)``; no record has part in them.

    They cut the scores of made-up records (attacks/score_bins.py), whose labels are drawn from the
    model's own answers. The same weights and contract give the same edges at every owner, but for
    rounding, which moves nothing but records that score on an edge.
    """
    coins = UniformStream(hashlib.sha256(b"tacit score bins").digest(), purpose="made-up records")
    features = features_from_ranges(data, _MADE_UP, coins, at_ends=False)
    target = ModelTarget(model=model)
    with np.errstate(all="ignore"):
        logits = np.nan_to_num(target.logits(features).astype(np.float64))
        labels = _answers(logits, coins)
        evidence = Evidence(
            outputs=Outputs(logits=logits, labels=labels),
            examples=Examples(features=features, labels=labels),
            target=target,
        )
        return {
            name: SCALES[name].edges(
                MEMBERSHIP[name].scores(evidence, rng=_no_draws()), bins=audit.bins
            )
            for name in audit.probes
        }


def _answers(logits: Float64Array, coins: UniformStream) -> Int64Array:
    """Return a label for each record, drawn by the model's own chances of it."""
    chances = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
    drawn = coins.uniforms(len(logits))[:, None] * chances[:, -1:]
    labels: Int64Array = (chances <= drawn).sum(axis=1).clip(max=logits.shape[1] - 1)
    return labels.astype(np.int64)


def _no_draws() -> np.random.Generator:
    return np.random.default_rng(0)  # the probes that are sent draw nothing


def subjects_of(sets: PreparedSets) -> Int64Array | None:
    """Return whose record each one is, training records first; None where each is a unit."""
    train, validation = sets.train.subjects, sets.validation.subjects
    if train is None or validation is None:
        return None
    # no subject is on both sides, and each side numbers its own from 0
    return np.concatenate([train, validation + (train.max(initial=-1) + 1)])


def local_report(model: nn.Module, sets: PreparedSets, spec: RunSpec) -> dict[str, Any]:
    """Return the owner's own report: every probe of the plan, on the owner's own records.

    Rows are counted from 1 among the training records, in the order of ``split.json``.

    Args:
        model: in evaluation mode.
        sets: the owner's two sides.
        spec: of the audit.

    Raises:
        DataError: there are too few records on a side (``E-AUDIT-TOO-FEW``).
        ValueError: the specification is of no audit.
    """
    audit, recipe = spec.audit, audited_run(spec)
    if audit is None:
        raise ValueError("expected the specification of an audit")
    sides = without_overlap(Records(examples=sets.train), Records(examples=sets.validation), None)
    subject = subject_of_model(
        model,
        members=sides.members,
        non_members=sides.non_members,
        trained_too=sides.trained_too,
        recipe=recipe,
        owners=audit.owners,
    )
    result = run_audit(subject, PLANS[audit.plan], seed=audit.seed)
    return as_report(
        to_json(result),
        scope={"records": "one owner's, at their node", "is_merged": False, "is_noised": False},
        provenance={
            "files": {
                "model": audit.model_sha256,
                "recipe": specification_sha256(canonical_json(recipe)).hex(),
                "split": split_sha256(recipe),
            },
            "dropped_overlap": sides.dropped,
            "versions": versions(),
        },
    )


def versions() -> dict[str, str]:
    """Return the versions of what runs an audit here."""
    return {
        "tacit": importlib.metadata.version("tacit"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
