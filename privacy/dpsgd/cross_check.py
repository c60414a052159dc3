"""A second opinion on epsilon: Opacus' PRV accountant, beside our PLD. It decides nothing.

Gopi, Lee & Wutschitz 2021 (arXiv 2106.02848). Its upper bound stands within its own error (0.01)
above the PLD accountant's value; the tests hold both against the same reference table.
"""

from __future__ import annotations

import warnings

from opacus.accountants import PRVAccountant

# Its grid grows with epsilon and with the square root of the steps: beyond these, to gigabytes.
MAX_EPSILON = 30.0
MAX_STEPS = 1_000_000


def prv_epsilon(
    *, noise_multiplier: float, sample_rate: float, steps: int, delta: float, expected: float
) -> float | None:
    """Return the PRV accountant's upper bound for so many noised sums of Poisson samples.

    Args:
        noise_multiplier: sigma / sensitivity.
        sample_rate: Poisson's q.
        steps: noised sums.
        delta: at which to ask.
        expected: the epsilon to check, which tells how large the grid would be.

    Returns:
        The bound, or None where the grid would be too large to ask for.
    """
    if expected > MAX_EPSILON or steps > MAX_STEPS:
        return None
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the range of RDP orders that sizes its grid
        return float(accountant.get_epsilon(delta))
