"""What a node must remember: the guard in memory keeps every rule of the seam."""

from __future__ import annotations

import dataclasses

import pytest

from tacit.privacy.secagg.guard import MemoryGuard, attempt_of
from tests.privacy.secagg.guard_rules import GuardRules, OpenGuard
from tests.privacy.secagg.parties import make_terms


class TestMemoryGuard(GuardRules):
    """It forgets with its process, so that opening it anew is the same object."""

    @pytest.fixture
    def open_guard(self) -> OpenGuard:
        guard = MemoryGuard()
        return lambda: guard


def test_an_attempt_is_named_by_its_terms() -> None:
    """Run, round and attempt: no other purpose or length makes it another one."""
    terms = make_terms(4)
    assert attempt_of(terms) == attempt_of(dataclasses.replace(terms, purpose=bytes(32), steps=2))
    assert attempt_of(terms) != attempt_of(dataclasses.replace(terms, attempt=2))
