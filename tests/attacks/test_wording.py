"""What a report says: each thing once, with its reason."""

from __future__ import annotations

from typing import Any

from tacit.attacks.wording import (
    INTERRUPTED,
    VOID,
    Counted,
    inconclusive_line,
    probe_lines,
    selection_line,
)

POWER = " (n = 56 members and 56 non-members; smallest resolvable FPR 1.79 %)"


def report(line: str, **lines: str) -> dict[str, Any]:
    return {"line": line, "probes": [{"probe": n, "line": said} for n, said in lines.items()]}


def test_a_power_is_said_once() -> None:
    """Probes that say the same share a line, which refers to the first where that has it."""
    nothing = f"no evidence at this power{POWER}"
    said = report(f"no evidence by any of 3 probes at this power{POWER}", a=nothing, b=nothing)
    assert probe_lines(said) == ["a, b: no evidence at this power, as said above"]
    other = report("c: evidence: AUC 0.9", a=nothing, c="evidence: AUC 0.9", b=nothing)
    assert probe_lines(other) == [f"a, b: {nothing}", "c: evidence: AUC 0.9"]


def test_records_that_are_left_out_are_explained() -> None:
    """As many of each side, so that references are as large as the target; else nothing is said."""
    audited = {"given_members": 247, "given_non_members": 56, "members": 56, "non_members": 56}
    said = selection_line(audited)
    assert said.startswith("Of 247 members and 56 non-members handed in, 56 and 56 are audited")
    assert "as many records as the target" in said
    assert selection_line(audited | {"members": 247}) == ""


def test_a_number_under_noise_is_about_right() -> None:
    """Noisy numbers never look exact."""
    assert str(Counted(members=4, others=5)) == "4 members and 5 non-members"
    said = str(Counted(members=4, others=5, standard_error=2.468))
    assert said == "about 4 members and 5 non-members (standard error 2.5 each, from noise)"


def test_every_doubt_has_its_remedy() -> None:
    """All reasons come first, then what would change them."""
    line = inconclusive_line([VOID, INTERRUPTED], ())
    assert line.startswith(f"INCONCLUSIVE: {VOID.why}; {INTERRUPTED.why}. What would change it: ")
    assert line.endswith(f"{VOID.remedy}; {INTERRUPTED.remedy}.")
