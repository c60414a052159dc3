"""Write secagg.json: a whole secure-aggregation session, message by message.

Four members, of whom node 2 is lost before it sends its vector, and two steps.
Run it again only when the protocol changes on purpose: ``python -m tests.vectors.make_secagg``.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.privacy.secagg.parties import Cohort, Lost, make_terms

VECTOR = Path(__file__).parent / "secagg.json"


def make_vector() -> dict[str, object]:
    """Return terms, session, sums and every message, bytes as hexadecimal digits."""
    terms = make_terms(4, dimension=3, steps=2)
    cohort = Cohort(terms)
    sums = [cohort.first(Lost(masked=[2]))]
    session = cohort.server.digest
    sums.append(cohort.again(2))
    return {
        "terms": terms.encode().hex(),
        "session": session.hex(),
        "survivors": list(sums[0].survivors),
        "sums": [one.values.tolist() for one in sums],
        "messages": [[what, message.hex()] for what, message in cohort.log],
    }


if __name__ == "__main__":
    VECTOR.write_text(json.dumps(make_vector(), indent=1) + "\n")
