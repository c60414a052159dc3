"""What is said at the end of a run whose updates were summed unseen, in exact words.

`tacit demo` and `tacit simulate` end with it. Everything follows from the specification and from
the manifest, which has each round's survivors and what the owners' own ledgers claim.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tacit.cli.checks import plan_of, secure_summary
from tacit.cli.output import visible

if TYPE_CHECKING:
    from tacit.core.artifacts import RunFolder
    from tacit.core.specification import RunSpec


def summary_of_sums(specification: RunSpec, folder: RunFolder) -> dict[str, Any]:
    """Return, under ``secure_aggregation``, who was in the sums of a run and what they cost.

    ``survivors_least`` is the smallest number of members in a round's sum, ``epsilon_claimed`` what
    each owner's ledger said last of the training: settled, but for sums that were opened since.
    Nothing for a run whose updates are not summed.
    """
    found = secure_summary(specification, plan_of(specification, 0))
    if not found:
        return {}
    manifest = json.loads(folder.manifest.read_bytes())
    counts = [len(entry["survivors"]) for entry in manifest["rounds"]]
    summary = found["secure_aggregation"] | {"survivors_least": min(counts, default=0)}
    if "epsilon_reserved" in summary:
        summary["epsilon_claimed"] = {
            manifest["members"][node]: sides["train"]["epsilon"]
            for node, sides in manifest["claims"].items()
            if "train" in sides
        }
    return {"secure_aggregation": summary}


def words_of_sums(specification: RunSpec, summary: dict[str, Any]) -> list[str]:
    """Return lines for people about what :func:`summary_of_sums` found; none for a plain run."""
    found = summary.get("secure_aggregation")
    if found is None:
        return []
    count, least = len(found["members"]), found["survivors_least"]
    stayed = f"all {count} were" if least == count else f"at least {least} were"
    rows = [
        ("members", f"{count}; a sum is opened over {found['threshold']} or more; {stayed}"),
        (
            "colluders",
            f"all this holds while at most {found['colluders']} of them works with the server",
        ),
    ]
    if "epsilon_reserved" in found:
        rows += _rows_of_noise(specification, found)
    if specification.noises("evaluate"):
        epsilon = specification.evaluation.epsilon
        what = "apart: each owner's own noised sums, which the server sees, at epsilon"
        rows.append(("metrics", f"{what} {epsilon:.3g}"))
    first = "Nobody, the server included, saw an update of another owner: only sums were opened."
    if "epsilon_reserved" not in found:
        rows.append(("noise", "the sums have none of their own, beside what each update had"))
    return [first, *(visible(f"  {name:<10} {text}") for name, text in rows)]


def _rows_of_noise(specification: RunSpec, found: dict[str, Any]) -> list[tuple[str, str]]:
    reserved, delta = found["epsilon_reserved"], specification.privacy.delta
    claims = found["epsilon_claimed"].values()
    times = f"{found['noise_to_central']:.3g} times what a trusted server would add"
    cost = f"{reserved:.3f} reserved, as if only {found['threshold']} stayed"
    if claims:
        cost = f"{cost}; {max(claims):.3f} settled for who did, by the owners' ledgers"
    return [
        ("noise", f"inside each sum, shared by its members, known to nobody; {times}"),
        ("epsilon", f"{cost} (delta {delta:g})"),
    ]
