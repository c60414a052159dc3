"""How one file becomes the shares of several owners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.client.configuration import DataFormat, DataSet
from tacit.core.errors import DataError, UsageError
from tacit.simulation.dealing import deal_subjects, verify_lines, write_share

if TYPE_CHECKING:
    from pathlib import Path

NAMES = st.lists(st.integers(0, 12).map(str), min_size=4, max_size=80)


@given(NAMES, st.integers(1, 6), st.integers(0, 2**32))
def test_no_subject_is_at_two_owners_and_no_row_is_lost(
    names: list[str], clients: int, seed: int
) -> None:
    """Every row goes to one owner, every owner gets a subject that counts, none gets too many."""
    counting = [int(name) % 4 > 0 for name in names]
    there = {name for name, counts in zip(names, counting, strict=True) if counts}
    if clients > len(there):
        with pytest.raises(UsageError, match="subjects"):
            deal_subjects(names, counting, clients, seed=seed)
        return
    shares = deal_subjects(names, counting, clients, seed=seed)
    assert sorted(row for share in shares for row in share.tolist()) == list(range(len(names)))
    owners = [{names[row] for row in share} for share in shares]
    assert sum(map(len, owners)) == len(set(names))
    assert all(owner & there for owner in owners)
    largest = max(names.count(name) for name in names)
    assert max(map(len, shares)) - min(map(len, shares)) <= largest


def test_a_seed_deals_the_same_hand() -> None:
    """Reruns agree, and another seed deals another one."""
    names = [f"p{n // 3}" for n in range(90)]
    one, again, other = (deal_subjects(names, [True] * 90, 4, seed=s) for s in (1, 1, 2))
    assert [share.tolist() for share in one] == [share.tolist() for share in again]
    assert [share.tolist() for share in one] != [share.tolist() for share in other]


def test_a_file_without_a_header_loses_no_line(tmp_path: Path) -> None:
    """Where client.toml names the columns, the first line is a record."""
    path = tmp_path / "data.csv"
    path.write_text("1;no\n2;yes\n3;no\n")
    data_set = DataSet(path=path, records=3, separator=";", header=False, columns=("a", "y"))
    write_share(data_set, tmp_path / "share.csv", np.array([0, 2]))
    assert (tmp_path / "share.csv").read_text() == "1;no\n3;no\n"
    verify_lines(data_set, 3)


def test_a_record_of_several_lines_is_refused(tmp_path: Path) -> None:
    """A line end inside quotes would be dealt out as two records, and shift all rows after it."""
    path = tmp_path / "data.csv"
    path.write_text('a,y\n"one\nline",no\n2,yes\n')
    with pytest.raises(DataError, match="E-DATA-FORMAT"):
        verify_lines(DataSet(path=path, format=DataFormat.CSV, records=9), 2)
