"""How long to wait between attempts: quick at first, at most a minute, never all nodes at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

FIRST_S = 1.0
LONGEST_S = 60.0


def delays(rng: random.Random) -> Iterator[float]:
    """Yield seconds to wait, for ever: doubling from 1 to 60, each cut by up to a half at random.

    The chance in it keeps the nodes of a server that was restarted from coming back in one moment.
    """
    longest = FIRST_S
    while True:
        yield longest * (0.5 + rng.random() / 2)
        longest = min(2 * longest, LONGEST_S)
