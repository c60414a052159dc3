"""members.toml, as it is read, written and refused."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core.errors import ConfigError
from tacit.core.members import format_members, load_members, parse_members, save_members

if TYPE_CHECKING:
    from pathlib import Path

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True)
KEYS = st.binary(min_size=32, max_size=32)
ADA, BO = b"a" * 32, b"b" * 32
TEXT = format_members({"ada": ADA, "bo": BO})


@given(keys=st.dictionaries(NAMES, KEYS, max_size=5).filter(lambda d: len({*d.values()}) == len(d)))
def test_what_is_written_is_read(keys: dict[str, bytes]) -> None:
    """Any names and any different keys come back as they were."""
    assert parse_members(format_members(keys)) == keys


def test_the_file_is_private_and_replaced_whole(tmp_path: Path) -> None:
    """Mode 0600, and nothing is left beside it."""
    path = tmp_path / "members.toml"
    save_members(path, {"ada": ADA})
    save_members(path, {"bo": BO})
    assert load_members(path) == {"bo": BO}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_fingerprint_may_be_left_out() -> None:
    """The key alone says who it is."""
    lines = [line for line in TEXT.splitlines() if not line.startswith("fingerprint")]
    assert parse_members("\n".join(lines)) == {"ada": ADA, "bo": BO}


def _words_of_the_other(text: str) -> str:
    ada, bo = (line for line in text.splitlines() if line.startswith("fingerprint"))
    return text.replace(ada, bo)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_words_of_the_other(TEXT), "members.toml:3: members.ada.fingerprint: these words are not"),
        (TEXT.replace("members.bo", "members.ada"), "members.toml:5: expected TOML"),
        (format_members({"ada": ADA, "bo": ADA}), "members.bo: it has the key of ada"),
        (TEXT.replace("members.bo", "members.Bo"), "expected a member name"),
        (TEXT.replace('key = "', 'key = "AAAA'), "members.ada.key: expected 32 bytes in base64"),
        (TEXT.replace('key = "', 'key = "*'), "members.ada.key: expected 32 bytes in base64"),
        (TEXT.replace("fingerprint = ", "fingerprints = "), "unknown key"),
        ('[members.ada]\nfingerprint = "x"\n', "key"),
        (TEXT.replace('fingerprint = "', 'fingerprint = "zzz '), "expected the 6 words"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, said: str) -> None:
    """A file that says two things about a member, or one member twice, is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_members(text)
    assert caught.value.code == "E-CONFIG"
    assert any(said in problem for problem in caught.value.problems), caught.value.problems
