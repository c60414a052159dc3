"""Which canaries are in: fair bits that an owner draws, commits to, and opens after training.

A bound from one run holds only if nobody could choose the bits by what came out. So:

1. Bits and salt come from the operating system's generator, one fair bit a canary.
2. Before any weights are sent the owner publishes SHA-256(salt || bits || design), each part of
   known length, and the design fixes whatever else an auditor could otherwise choose afterwards:
   how many canaries of each kind, the seed of their directions and rows, the number of guesses.
3. After the last round the owner opens salt and bits, and whoever holds the commitment verifies
   them before a score is looked at.

A salt of 32 bytes hides the bits until then: 2^m of them could be tried where m is small.
Loads neither torch nor a model: a node's daemon uses it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tacit.core.canary_spec import MAX_CANARIES, CanarySpec
from tacit.core.errors import RefusedError, TrustError, UnavailableError

if TYPE_CHECKING:
    import numpy.typing as npt

    BoolArray = npt.NDArray[np.bool_]

SALT_BYTES = 32
SEED_BYTES = 32
RELEASED_SHARE = 0.01  # of the declared records, at most, where the model is released
_PREFIX = b"tacit canaries 1|"


@dataclass(frozen=True, kw_only=True)
class CanaryDesign:
    """Everything about an audit by canaries that is fixed before training, and no secret.

    Attributes:
        directions: white-box canaries.
        mislabelled: records with a wrong label.
        seed_hex: 64 digits that name directions and rows.
        direction_guesses, mislabelled_guesses: how many canaries of each kind are called in or
            out; 0 where there are none of the kind.
    """

    directions: int
    mislabelled: int
    seed_hex: str
    direction_guesses: int
    mislabelled_guesses: int

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise ValueError(f"expected a seed of {SEED_BYTES} bytes, got {len(self.seed)}")
        for canaries, guesses in (
            (self.directions, self.direction_guesses),
            (self.mislabelled, self.mislabelled_guesses),
        ):
            if not (0 <= guesses <= canaries and (guesses > 0) == (canaries > 0)):
                raise ValueError(f"expected 1 to {canaries} guesses, got {guesses}")
        if not 0 < self.canaries <= MAX_CANARIES:
            raise ValueError(f"expected 1 to {MAX_CANARIES} canaries, got {self.canaries}")

    @property
    def seed(self) -> bytes:
        """The seed itself."""
        return bytes.fromhex(self.seed_hex)

    @property
    def canaries(self) -> int:
        """How many there are of both kinds."""
        return self.directions + self.mislabelled

    def verify_room(self, *, records: int, declared: int, released: bool) -> None:
        """Refuse canaries that the owner's declared bound on records has no room for.

        All drawn canaries count, not those that are in: how many are is part of the secret.

        Args:
            records: the owner's own.
            declared: the public bound that delta and every step are scaled by.
            released: whether the model with the canaries in it is the one that is released.

        Raises:
            RefusedError: with them there may be more records than declared
                (``E-CANARIES-NO-ROOM``), or a released model would hold more than 1 % of them
                (``E-CANARIES-RELEASED``).
        """
        if records + self.canaries > declared:
            raise RefusedError(
                "E-CANARIES-NO-ROOM",
                f"expected room for {self.canaries} canaries within the declared records, "
                "there is not enough",
                hint="raise `records` of the data set, or ask for fewer canaries",
            )
        most = math.floor(RELEASED_SHARE * declared)
        if released and self.canaries > most:
            raise RefusedError(
                "E-CANARIES-RELEASED",
                f"expected at most {most} canaries (1 % of the declared records) in a run whose "
                f"model is released, got {self.canaries}",
                hint="audit by a twin run, whose model is discarded",
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Opening:
    """What an owner keeps until the run is over, and then shows.

    Attributes:
        design: as it was published.
        salt: 32 bytes.
        included: bool ``(m,)``: directions first, then mislabelled records.
    """

    design: CanaryDesign
    salt: bytes = field(repr=False)
    included: BoolArray = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.salt) != SALT_BYTES:
            raise ValueError(f"expected a salt of {SALT_BYTES} bytes, got {len(self.salt)}")
        expected = (self.design.canaries,)
        if self.included.dtype != np.bool_ or self.included.shape != expected:
            raise ValueError(
                f"expected bits as booleans {expected}, "
                f"got {self.included.dtype} {self.included.shape}"
            )

    @property
    def directions(self) -> BoolArray:
        """Bits of the white-box canaries."""
        return self.included[: self.design.directions]

    @property
    def mislabelled(self) -> BoolArray:
        """Bits of the mislabelled records."""
        return self.included[self.design.directions :]

    def commitment(self) -> str:
        """Return SHA-256(salt || bits || design) in hexadecimal: to be published before training.

        Salt and count are of fixed length and the count gives the bits', so that no two openings
        have one encoding.
        """
        bits = len(self.included).to_bytes(8, "big") + np.packbits(self.included).tobytes()
        design = json.dumps(asdict(self.design), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(_PREFIX + self.salt + bits + design.encode()).hexdigest()


def owner_design(canaries: CanarySpec, node_id: int) -> CanaryDesign:
    """Return one owner's design: directions and rows of their own, so that bits stay apart.

    Two owners with the same rows would each put the other's bits into the model that both are
    scored on.

    Args:
        canaries: of the run.
        node_id: the owner's node, by the number that server and node call it.
    """
    seed = hashlib.sha256(_PREFIX + f"seed {canaries.seed} of node {node_id}".encode())
    return CanaryDesign(
        directions=canaries.directions,
        mislabelled=canaries.mislabelled,
        seed_hex=seed.hexdigest(),
        direction_guesses=canaries.direction_guesses,
        mislabelled_guesses=canaries.mislabelled_guesses,
    )


def encode_opening(opening: Opening) -> bytes:
    """Return an opening as JSON, for the owner's own folder: it holds the secret."""
    values = {
        "design": asdict(opening.design),
        "salt": opening.salt.hex(),
        "included": np.packbits(opening.included).tobytes().hex(),
    }
    return json.dumps(values, sort_keys=True).encode()


def parse_opening(text: bytes) -> Opening:
    """Read what :func:`encode_opening` wrote.

    Raises:
        UnavailableError: it is damaged (``E-CANARY-OPENING``).
    """
    try:
        values = json.loads(text)
        design = CanaryDesign(**values["design"])
        packed = np.frombuffer(bytes.fromhex(values["included"]), dtype=np.uint8)
        included = np.unpackbits(packed, count=design.canaries).astype(np.bool_)
        return Opening(design=design, salt=bytes.fromhex(values["salt"]), included=included)
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            "E-CANARY-OPENING",
            "expected the canaries' bits of a run, the file is damaged",
            hint="Without them the run cannot be opened: stop it, and submit another twin.",
        ) from error


def draw_opening(design: CanaryDesign) -> Opening:
    """Draw a fair bit for each canary, and a salt, from the operating system's generator."""
    drawn = np.frombuffer(secrets.token_bytes(-(-design.canaries // 8)), dtype=np.uint8)
    included = np.unpackbits(drawn, count=design.canaries).astype(np.bool_)
    return Opening(design=design, salt=secrets.token_bytes(SALT_BYTES), included=included)


def verify_opening(opening: Opening, *, commitment: str) -> None:
    """Refuse bits, a salt or a design other than those committed to.

    Raises:
        TrustError: ``E-CANARY-COMMITMENT``.
    """
    if not hmac.compare_digest(opening.commitment(), commitment):
        raise TrustError(
            "E-CANARY-COMMITMENT",
            "expected the canaries' bits that were committed to before training, got others",
            hint="the audit is void: the owner may have chosen the bits after seeing the model",
        )
