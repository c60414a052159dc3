"""Six words for a key."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit.core import fingerprint
from tacit.core.errors import TrustError, UsageError
from tacit.core.fingerprint import fingerprint_of, parse_fingerprint, verify_fingerprint

ZERO = bytes(32)
WORDS = "upscale viselike edging chess monogram stopped"
KEYS = st.binary(min_size=32, max_size=32)


def test_the_list_is_the_one_that_every_version_must_have() -> None:
    """7776 different words in EFF's order: with another list two owners would never agree."""
    words = fingerprint._words()
    assert len(set(words)) == len(words) == 6**5
    assert (
        hashlib.sha256("\n".join(words).encode()).hexdigest()
        == "abae49761b88f3f1ba31ef944bea1f61b795a3cd7e1cfb7d276ed45bf77967ba"
    )


def test_the_words_of_a_known_key_never_change() -> None:
    """Golden: they are told over the telephone, from one version of the software to another."""
    assert fingerprint_of(ZERO) == WORDS


@given(key=KEYS)
def test_the_words_are_the_lowest_digits_of_the_hash(key: bytes) -> None:
    """Read back as a number to the base 7776, they are the hash modulo 7776^6: no bit is lost."""
    known = fingerprint._words()
    number = 0
    for word in fingerprint_of(key).split():
        number = number * len(known) + known.index(word)
    digest = hashlib.sha256(b"tacit member fingerprint v1\0" + key).digest()
    assert number == int.from_bytes(digest, "big") % 7776**6


def test_only_a_raw_key_has_a_fingerprint() -> None:
    """A key in another encoding, which would read differently, is a programming error."""
    with pytest.raises(ValueError, match="32 bytes"):
        fingerprint_of(bytes(44))


def test_words_are_taken_as_people_type_them() -> None:
    """Capitals and spaces do not matter."""
    verify_fingerprint("ada", ZERO, "  " + WORDS.upper().replace(" ", "   ") + "\n")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "got 0"),
        (WORDS + " abacus", "got 7"),
        (WORDS.rpartition(" ")[0], "got 5"),
        (WORDS.replace("chess", "ches"), "word 4, 'ches', is not in the list; the nearest is"),
    ],
)
def test_what_is_no_fingerprint_is_told_from_a_wrong_one(typed: str, said: str) -> None:
    """A slip of the pen is a usage error that names the word."""
    with pytest.raises(UsageError) as caught:
        parse_fingerprint(typed)
    assert caught.value.code == "E-FINGERPRINT-WORDS"
    assert said in caught.value.message


@given(place=st.integers(0, 5), other=st.integers(0, 7775))
def test_one_other_word_is_another_key(place: int, other: int) -> None:
    """Five right words of six are refused, in any place and with any word."""
    words = WORDS.split()
    word = fingerprint._words()[other]
    if words[place] == word:
        return
    words[place] = word
    with pytest.raises(TrustError) as caught:
        verify_fingerprint("ada", ZERO, " ".join(words))
    assert caught.value.code == "E-MEMBER-FINGERPRINT"
    assert WORDS not in str(caught.value)  # nobody learns here what to type instead
