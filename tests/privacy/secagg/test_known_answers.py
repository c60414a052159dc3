"""What this protocol is built from is what the standards say: their own vectors, our own calls."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from tacit.core.errors import ProtocolError, TrustError
from tacit.privacy.secagg.keys import agree, hkdf, open_sealed, seal, verify_signature
from tacit.privacy.secagg.masks import apply_masks, keystream


@pytest.mark.parametrize(
    ("scalar", "point", "shared"),
    [
        (  # RFC 7748, section 5.2, both vectors
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
        (  # section 6.1: Alice's key with Bob's
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
            "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
        ),
        (  # and Bob's with Alice's
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
            "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
        ),
    ],
)
def test_agreement_is_x25519(scalar: str, point: str, shared: str) -> None:
    """Agreeing is RFC 7748's function, on its vectors of sections 5.2 and 6.1."""
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(scalar))
    assert shared == agree(private, bytes.fromhex(point)).hex()


def test_agreement_of_two_rising_keys() -> None:
    """Keys 01..20 and 21..40 (hexadecimal bytes) share one known secret, either way round."""
    one = X25519PrivateKey.from_private_bytes(bytes(range(0x01, 0x21)))
    other = X25519PrivateKey.from_private_bytes(bytes(range(0x21, 0x41)))
    expected = "a84dc7c3c8f058b1b2dc4cd1e9b5dc0a7987f88b6a9564cde3391fc421159e77"
    assert expected == agree(one, other.public_key().public_bytes_raw()).hex()
    assert expected == agree(other, one.public_key().public_bytes_raw()).hex()


@pytest.mark.parametrize("point", [0, 1, 2**255 - 19, 2**255 - 20, 2**255 - 18])
def test_a_point_of_small_order_is_refused(point: int) -> None:
    """A key whose agreement is zero for everybody makes no secret."""
    private = X25519PrivateKey.from_private_bytes(bytes(range(32)))
    with pytest.raises(ProtocolError) as caught:
        agree(private, point.to_bytes(32, "little"))
    assert caught.value.code == "E-SECAGG-KEY-WEAK"


@pytest.mark.parametrize(
    ("secret", "salt", "info", "length", "derived"),
    [
        (  # RFC 5869, A.1
            b"\x0b" * 22,
            bytes(range(0x0D)),
            bytes(range(0xF0, 0xFA)),
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (  # A.2
            bytes(range(0x50)),
            bytes(range(0x60, 0xB0)),
            bytes(range(0xB0, 0x100)),
            82,
            (
                "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
                "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
                "cc30c58179ec3e87c14c01d5c1f3434f1d87"
            ),
        ),
        (  # A.3
            b"\x0b" * 22,
            b"",
            b"",
            42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_derivation_is_hkdf(
    secret: bytes, salt: bytes, info: bytes, length: int, derived: str
) -> None:
    """Deriving is HKDF-SHA-256, on the vectors A.1 to A.3 of RFC 5869."""
    assert derived == hkdf(secret, salt=salt, info=info, length=length).hex()


@pytest.mark.parametrize(
    ("secret", "public", "message", "signature"),
    [  # RFC 8032, section 7.1, tests 1 to 3
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            (
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
                "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
            ),
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            (
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
                "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
            ),
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            (
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
                "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
            ),
        ),
    ],
)
def test_signatures_are_ed25519(secret: str, public: str, message: str, signature: str) -> None:
    """What RFC 8032 signs is accepted, and one bit more of a message is not."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    statement = bytes.fromhex(message)
    assert signature == key.sign(statement).hex()
    verified = {"signature": bytes.fromhex(signature), "code": "E-TEST", "what": "a vector"}
    verify_signature(bytes.fromhex(public), statement=statement, **verified)
    with pytest.raises(TrustError, match="E-TEST"):
        verify_signature(bytes.fromhex(public), statement=statement + b"\0", **verified)


def test_sealing_is_chacha20_of_rfc_8439() -> None:
    """The cipher is section 2.4.2's, and what we seal is that cipher from block 1, nonce zero."""
    nonce = bytes.fromhex("000000000000004a00000000")
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    expected = (
        "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"
        "f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8"
        "07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
        "5af90bbf74a35be6b40b8eedf2785e42874d"
    )
    key = bytes(range(32))
    assert expected == chacha20(key, nonce, plain).hex()
    ours = seal(key, plain, session=bytes(32), sender=1, receiver=2)
    assert chacha20(key, bytes(12), plain) == ours[:-16]
    assert plain == open_sealed(key, ours, session=bytes(32), sender=1, receiver=2)


def chacha20(key: bytes, nonce: bytes, plain: bytes) -> bytes:
    return Cipher(ChaCha20(key, struct.pack("<I", 1) + nonce), None).encryptor().update(plain)


COUNTER_KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")


def test_masks_are_aes_in_counter_mode() -> None:
    """The key stream is that of SP 800-38A, F.5.5."""
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    expected = (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    stream = keystream(COUNTER_KEY, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
    assert expected == stream.update(plain).hex()


def test_a_mask_is_the_stream_from_zero_as_little_endian_words() -> None:
    """Added to zeros, a mask is the stream itself, also across the blocks it is made in."""
    count = 3 * (1 << 16) + 5
    vector = np.zeros(count, dtype=np.uint32)
    apply_masks(vector, added=[COUNTER_KEY])
    expected = np.frombuffer(keystream(COUNTER_KEY).update(bytes(4 * count)), dtype="<u4")
    np.testing.assert_array_equal(expected, vector)
