"""Every membership probe by its name, in the order of what it needs."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tacit.attacks.membership.base import Base
from tacit.attacks.membership.calibrated import Calibrated
from tacit.attacks.membership.gradient_norm import GradientNorm, Layers
from tacit.attacks.membership.label_only import BoundaryDistance, NoiseRobustness
from tacit.attacks.membership.lira import Lira, Variance
from tacit.attacks.membership.loss import Loss
from tacit.attacks.membership.modified_entropy import ModifiedEntropy
from tacit.attacks.membership.quantile import Quantile
from tacit.attacks.membership.rmia import Rmia
from tacit.attacks.membership.shadow import Shadow
from tacit.attacks.membership.signals import Mode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.attacks.probe import Probe

MEMBERSHIP: Final[Mapping[str, Probe]] = MappingProxyType(
    {
        "loss": Loss(),
        "modified-entropy": ModifiedEntropy(),
        "quantile": Quantile(),
        "label-only-boundary": BoundaryDistance(),
        "label-only-noise": NoiseRobustness(),
        "gradient-norm-all": GradientNorm(layers=Layers.ALL),
        "gradient-norm-last": GradientNorm(layers=Layers.LAST),
        "shadow": Shadow(),
        "calibrated-offline": Calibrated(mode=Mode.OFFLINE),
        "calibrated-online": Calibrated(mode=Mode.ONLINE),
        "lira-offline": Lira(mode=Mode.OFFLINE),
        "lira-offline-pooled": Lira(mode=Mode.OFFLINE, variance=Variance.POOLED),
        "lira-offline-per-example": Lira(mode=Mode.OFFLINE, variance=Variance.PER_EXAMPLE),
        "lira-online": Lira(mode=Mode.ONLINE),
        "lira-online-pooled": Lira(mode=Mode.ONLINE, variance=Variance.POOLED),
        "lira-online-per-example": Lira(mode=Mode.ONLINE, variance=Variance.PER_EXAMPLE),
        "rmia-offline": Rmia(mode=Mode.OFFLINE),
        "rmia-online": Rmia(mode=Mode.ONLINE),
        "base-offline": Base(mode=Mode.OFFLINE),
        "base-online": Base(mode=Mode.ONLINE),
    }
)
