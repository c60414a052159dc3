"""kill -9 between charge and upload never under-counts; `make chaos` does this 200 times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.chaos import play_chaos

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 12


def test_no_kill_makes_the_ledger_say_less_than_what_left(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """At seven points, by turns: each answer is charged once, before, and is one answer."""
    root: Path = tmp_path_factory.mktemp("chaos")
    result = play_chaos(root, kills=KILLS, seed=7)
    assert result["problems"] == []
    kills = {kill["point"]: kill for kill in result["kills"]}
    assert len(result["kills"]) == KILLS
    charged, stored, uploading = (kills[name] for name in ("charged", "stored", "uploading"))
    assert charged["after"]["entries"] == charged["before"]["entries"] + 1
    assert charged["after"]["epsilon"] > charged["after"]["epsilon_seen"]
    # What was in the kernel's buffers may still arrive; it was charged before it got there.
    assert stored["after"]["entries"] == stored["before"]["entries"] + 1
    assert uploading["part_bytes"] > 0
    assert result["books"]["seen"] == result["rounds"] == KILLS
    assert result["books"]["epsilon"] == result["books"]["epsilon_seen"]
