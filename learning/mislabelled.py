"""Black-box canaries: records with a wrong label, in the training set by a drawn bit.

Whoever trains can fit such a record only by learning it by heart, so its loss on the final model
tells whether it was in (Nasr et al. 2021, arXiv 2101.04535; Steinke et al. 2023, arXiv 2305.08846,
section 6). It takes the whole path of a record, from its gradient and that gradient's norm on: it
shows a clip that is missing or wrong where white-box directions may not.

Rows come from the contract's public ranges, each column at one of its ends or at one of its values,
so that they are unlike any person and far from each other; or they are given. Given rows must not
be training records: a record that is in twice is two units.

Trusts: the seed was fixed before training, and says nothing about the bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tacit.learning.made_up import features_from_ranges
from tacit.learning.prepared import Examples
from tacit.privacy.noise import UniformStream

if TYPE_CHECKING:
    from tacit.core.data_contract import DataSpec
    from tacit.learning.contract import BoolArray


def mislabelled_from_ranges(data: DataSpec, count: int, *, seed: bytes) -> Examples:
    """Return made-up records with labels drawn by themselves, which no feature explains.

    Args:
        data: the contract: features stand as ``learning/contract.py`` would encode them.
        count: how many.
        seed: 32 bytes; the same seed gives the same records at owner and auditor.
    """
    coins = UniformStream(seed, purpose="mislabelled rows")
    features = features_from_ranges(data, count, coins, at_ends=True)
    labels = (coins.uniforms(count) * len(data.classes)).astype(np.int64)
    return Examples(features=features, labels=labels)


def mislabelled_from_rows(rows: Examples, *, classes: int, seed: bytes) -> Examples:
    """Return given records, each with one of the other labels; none of them is trained on.

    Args:
        rows: with their true labels.
        classes: how many there are, at least 2.
        seed: 32 bytes.
    """
    coins = UniformStream(seed, purpose="mislabelled labels")
    moved = 1 + (coins.uniforms(len(rows)) * (classes - 1)).astype(np.int64)
    return Examples(features=rows.features, labels=(rows.labels + moved) % classes)


def planted(examples: Examples, canaries: Examples, included: BoolArray) -> Examples:
    """Return the training records with the included canaries behind them.

    Where the unit is the subject, each canary is a subject of its own.

    Args:
        examples: the owner's.
        canaries: ``(m, ...)``.
        included: bool ``(m,)``.
    """
    if included.dtype != np.bool_ or included.shape != (len(canaries),):
        raise ValueError(f"expected a bit for each of {len(canaries)} canaries")
    subjects = examples.subjects
    if subjects is not None:
        first = int(subjects.max(initial=-1)) + 1
        fresh = np.arange(first, first + int(included.sum()), dtype=np.int64)
        subjects = np.concatenate([subjects, fresh])
    return Examples(
        features=np.concatenate([examples.features, canaries.features[included]]),
        labels=np.concatenate([examples.labels, canaries.labels[included]]),
        subjects=subjects,
    )
