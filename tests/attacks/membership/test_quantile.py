"""The predicted quantiles hold on strangers they were not fitted to, where scales differ."""

from __future__ import annotations

import numpy as np

from tacit.attacks.membership.quantile import Quantile
from tacit.attacks.probe import Evidence
from tacit.attacks.target import Outputs
from tacit.learning.prepared import Examples


def strangers(records: int, rng: np.random.Generator) -> tuple[Examples, Outputs]:
    """Return records whose phi depends on them: its mean on one feature, its spread on another."""
    features = rng.uniform(size=(records, 3)).astype(np.float32)
    labels = rng.integers(2, size=records)
    spread = 0.2 + 2.0 * features[:, 1]
    phi = 4.0 * features[:, 0] + labels + spread * rng.normal(size=records)
    logits = np.zeros((records, 2))
    logits[np.arange(records), labels] = phi
    return Examples(features=features, labels=labels), Outputs(logits=logits, labels=labels)


def test_strangers_lie_below_their_quantiles_as_often_as_they_should() -> None:
    """Half below the median, nine tenths below the upper quantile, in every part of the data."""
    rng = np.random.default_rng(0)
    population_examples, population = strangers(2000, rng)
    examples, outputs = strangers(4000, rng)
    evidence = Evidence(
        outputs=outputs,
        examples=examples,
        population=population,
        population_examples=population_examples,
    )
    scores = Quantile().scores(evidence, rng=rng)
    for part in (examples.features[:, 1] < 0.3, examples.features[:, 1] > 0.7):
        assert abs((scores[part] < 0.0).mean() - 0.5) < 0.06
        assert abs((scores[part] < 1.0).mean() - 0.9) < 0.04
