"""What the server and colluders below the threshold see is uniform, but for the honest sum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tacit.privacy.secagg.masks import apply_masks, pair_mask_key, self_mask_key
from tacit.privacy.secagg.server import Phase
from tests.privacy.secagg.parties import MODEL, Cohort, Vector, make_terms, model_of

if TYPE_CHECKING:
    from collections.abc import Collection

DIMENSION = 1 << 16
COLLUDERS = (1, 4)
HONEST = (2, 3, 5, 6, 7)


def statistic(vector: Vector) -> float:
    """Return the largest chi-squared statistic of the four bytes, in deviations."""
    expected = len(vector) / 256
    largest = 0.0
    for place in range(4):
        counts = np.bincount(vector.view(np.uint8)[place::4], minlength=256)
        value = float(np.sum((counts - expected) ** 2) / expected)
        largest = max(largest, (value - 255) / math.sqrt(2 * 255))
    return largest


def cohort_of_zeros() -> tuple[Cohort, dict[int, Vector]]:
    """Run step 1 of 2 over vectors of zeros; return all masked vectors, of colluders too."""
    cohort = Cohort(make_terms(7, dimension=DIMENSION, steps=2))
    deliveries = cohort.shares(cohort.keys())
    sent = {}
    for one, client in cohort.clients.items():
        sent[one] = np.zeros(DIMENSION, dtype=np.uint32)
        cohort.server.fold(one, client.mask(deliveries[one], sent[one]), sent[one])
    return cohort, sent


def take_off(cohort: Cohort, vector: Vector, member: int, known: Collection[int]) -> None:
    """Take off the masks between a member and those whose secrets are known."""
    session = cohort.server.digest
    for one in known:
        shared = cohort.clients[one]._secrets.pairs[member]
        key = pair_mask_key(shared, session=session, pair=(one, member), step=1, model=MODEL)
        side = {"subtracted": [key]} if member < one else {"added": [key]}
        apply_masks(vector, **side)


def own_mask_off(cohort: Cohort, vector: Vector, member: int) -> None:
    opened = cohort.server._opened
    assert opened is not None
    key = self_mask_key(opened.b[member], session=cohort.server.digest, step=1, model=MODEL)
    apply_masks(vector, subtracted=[key])


def test_before_unmasking_every_sum_of_honest_vectors_is_uniform() -> None:
    """Even all honest vectors together, with every mask that colluders know taken off."""
    cohort, sent = cohort_of_zeros()
    total = np.zeros(DIMENSION, dtype=np.uint32)
    for one in HONEST:
        assert statistic(sent[one]) < 6
        take_off(cohort, sent[one], one, COLLUDERS)
        assert statistic(sent[one]) < 6
        total += sent[one]
        assert statistic(total) < 6


def test_after_unmasking_only_the_sum_of_all_honest_vectors_is_bare() -> None:
    """The server knows every b, colluders their pair masks: each vector is still uniform."""
    cohort, sent = cohort_of_zeros()
    cohort.unmask(cohort.signatures(cohort.server.end_masked()))
    total = np.zeros(DIMENSION, dtype=np.uint32)
    for one in HONEST:
        own_mask_off(cohort, sent[one], one)
        take_off(cohort, sent[one], one, COLLUDERS)
        assert statistic(sent[one]) < 6
        if one != HONEST[-1]:
            total += sent[one]
            assert statistic(total) < 6
    assert not np.any(total + sent[HONEST[-1]])  # the positive control: masks did come off


def test_a_vector_that_comes_late_stays_uniform() -> None:
    """A dropped member's mask seed is open to the server; its b is not, and covers its vector."""
    cohort = Cohort(make_terms(7, dimension=DIMENSION))
    deliveries = cohort.shares(cohort.keys())
    late = np.zeros(DIMENSION, dtype=np.uint32)
    cohort.clients[2].mask(deliveries[2], late)
    cohort.lose([2])
    survivors = cohort.masked(deliveries)
    take_off(cohort, late, 2, cohort.clients)  # what the server learns from the shares of its seed
    cohort.unmask(cohort.signatures(survivors))
    assert cohort.server.phase is Phase.CLOSED
    assert statistic(late) < 6


def test_masks_of_two_steps_have_nothing_in_common() -> None:
    """The difference of one member's vectors at two steps is uniform too."""
    cohort, sent = cohort_of_zeros()
    cohort.unmask(cohort.signatures(cohort.server.end_masked()))
    again = np.zeros(DIMENSION, dtype=np.uint32)
    cohort.clients[2].mask_again(again, step=2, model=model_of(2))
    assert statistic(again) < 6
    assert statistic(again - sent[2]) < 6


@pytest.mark.parametrize("weights", [np.ones(1), np.arange(256)])
def test_the_statistic_finds_what_is_not_uniform(weights: np.ndarray) -> None:
    """A positive control: constants, and bytes of which three of four are zero, are found."""
    cycle = np.resize(weights, DIMENSION).astype(np.uint32)
    assert statistic(cycle) > 100
