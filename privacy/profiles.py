"""What people elsewhere call a strong or a reasonable epsilon, with the source.

The targets themselves are ``core.privacy_spec.PRESETS``: ``[privacy] preset = "strong"`` in
``run.toml`` resolves to its epsilon before anybody approves. The tiers are those of Ponomareva et
al. 2023, How to DP-fy ML (arXiv 2303.00654): up to 1 a strong formal guarantee, up to 10 a
reasonable one, above 10 weak or none. They were written for one trained model and small delta;
they are a convention among practitioners, not a theorem, and say nothing of a second release.
"""

from __future__ import annotations

from tacit.core.privacy_spec import PRESETS

SOURCE = "Ponomareva et al. 2023, arXiv 2303.00654"
WEAK = "weak"


def tier_of(epsilon: float) -> str:
    """Return the first preset that is no smaller than ``epsilon``, or ``weak`` above them all."""
    fitting = [name for name, target in PRESETS.items() if epsilon <= target * (1.0 + 1e-9)]
    return min(fitting, key=lambda name: PRESETS[name], default=WEAK)
