"""Six words for a key, which two people can compare over the telephone.

The server is also the authority and could mint members: so owners tell each other, on a channel
that the server has no part in, six words that follow from their node's enrolment key alone. What
they protect against is another key under a member's name.

Each word is one of 7776 (EFF's Long Wordlist), so six say log2(7776^6) = 77.5 bits of a SHA-256.
Who wants a key of their own that reads like one given key must make 7776^6 = 2.2e23 keys on average
(a second preimage; for any one of m given keys, m times fewer). Words compared by halves protect by
halves: three are 38.8 bits, which one machine finds. Two keys of one's own that read alike take
about 2^39 of them (a collision); that gains nothing, since every member pins keys, not words, and
members who hold different keys for one name have no sum in common.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import hmac
from pathlib import Path

from tacit.core.errors import TrustError, UsageError

FINGERPRINT_WORDS = 6

_CONTEXT = b"tacit member fingerprint v1\0"  # separates this hash from every other of the key
_KEY_BYTES = 32  # a raw Ed25519 public key
_LIST = Path(__file__).with_name("fingerprint_words.txt")


def fingerprint_of(enrolment_public_key: bytes) -> str:
    """Return the six words of a raw Ed25519 public key (32 bytes), with spaces between.

    The words are the six lowest digits, the highest of them first, of the SHA-256 of context and
    key, read as a big-endian number to the base 7776.
    """
    if len(enrolment_public_key) != _KEY_BYTES:
        raise ValueError(f"expected a raw Ed25519 public key of {_KEY_BYTES} bytes")
    rest = int.from_bytes(hashlib.sha256(_CONTEXT + enrolment_public_key).digest(), "big")
    known = _words()
    words = []
    for _ in range(FINGERPRINT_WORDS):
        rest, digit = divmod(rest, len(known))
        words.append(known[digit])
    return " ".join(reversed(words))


def parse_fingerprint(text: str) -> str:
    """Return six words as :func:`fingerprint_of` writes them, from what a person typed.

    Raises:
        UsageError: E-FINGERPRINT-WORDS, they are not six, or one is not in the list.
    """
    words = text.lower().split()
    if len(words) != FINGERPRINT_WORDS:
        raise _not_words(f"got {len(words)}")
    for place, word in enumerate(words, start=1):
        if word not in _words():
            close = difflib.get_close_matches(word, _words(), n=1)
            nearest = f"; the nearest is {close[0]!r}" if close else ""
            raise _not_words(f"word {place}, {word!r}, is not in the list{nearest}")
    return " ".join(words)


def verify_fingerprint(name: str, enrolment_public_key: bytes, text: str) -> None:
    """Check that these six words are those of a key.

    Raises:
        UsageError: E-FINGERPRINT-WORDS, they are not six words of the list.
        TrustError: E-MEMBER-FINGERPRINT, they are those of another key.
    """
    given, own = parse_fingerprint(text), fingerprint_of(enrolment_public_key)
    if not hmac.compare_digest(given.encode("ascii"), own.encode("ascii")):
        raise TrustError(
            "E-MEMBER-FINGERPRINT",
            f"expected the six words of the key that the server tells for {name}, got those of "
            "another key",
            hint=f"Ask {name}'s owner to read them again, from `tacit client status` at their "
            "node, on a channel that you trust. If they stay as they are, the server tells you a "
            "key that is not theirs: pin nothing, and tell the other owners.",
        )


@functools.cache
def _words() -> tuple[str, ...]:
    lines = _LIST.read_text("ascii").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


def _not_words(what: str) -> UsageError:
    return UsageError(
        "E-FINGERPRINT-WORDS",
        f"expected the {FINGERPRINT_WORDS} words of a fingerprint, {what}",
        hint="Both owners see their own with `tacit client status`; six words with spaces between.",
    )
