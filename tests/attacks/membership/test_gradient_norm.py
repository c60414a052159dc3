"""The norm is that of autograd, record by record, and keeps its digits where a loss has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from tacit.attacks.membership.gradient_norm import GradientNorm, Layers
from tacit.attacks.probe import Evidence
from tacit.attacks.target import Float64Array, ModelTarget, Outputs
from tacit.learning.prepared import Examples

if TYPE_CHECKING:
    from collections.abc import Callable

RECORDS = 12


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )


def table() -> nn.Module:
    return nn.Sequential(nn.Linear(25, 8), nn.Tanh(), nn.Linear(8, 3))


class Last(nn.Module):
    """The last position of an LSTM's outputs."""

    def forward(self, outputs: tuple[torch.Tensor, object]) -> torch.Tensor:
        return outputs[0][:, -1]


def sequences() -> nn.Module:
    return nn.Sequential(nn.LSTM(5, 6, batch_first=True), Last(), nn.Linear(6, 3))


SHAPES: dict[Callable[[], nn.Module], tuple[int, ...]] = {
    images: (1, 5, 5),
    table: (25,),
    sequences: (4, 5),
}


def evidence_of(model: nn.Module, shape: tuple[int, ...]) -> Evidence:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(RECORDS, *shape)).astype(np.float32)
    labels = rng.integers(3, size=RECORDS)
    target = ModelTarget(model=model.eval())
    return Evidence(
        outputs=Outputs(logits=target.logits(features), labels=labels),
        examples=Examples(features=features, labels=labels),
        target=target,
    )


def plain_norms(model: nn.Module, evidence: Evidence, weights: list[nn.Parameter]) -> Float64Array:
    """Return the loss gradient's norm, a backward pass per record."""
    assert evidence.examples is not None
    norms = []
    for record, label in zip(
        torch.from_numpy(evidence.examples.features),
        torch.from_numpy(evidence.examples.labels),
        strict=True,
    ):
        loss = nn.functional.cross_entropy(model(record[None]), label[None])
        gradients = torch.autograd.grad(loss, weights)
        norms.append(sum(float(g.double().square().sum()) for g in gradients) ** 0.5)
    return np.array(norms)


@pytest.mark.parametrize("layers", Layers)
@pytest.mark.parametrize("make", [images, table, sequences])
def test_norms_are_autograd_s(make: Callable[[], nn.Module], layers: Layers) -> None:
    """Of all weights or of the last layer's; BatchNorm in evaluation mode and an LSTM, too."""
    torch.manual_seed(0)
    model = make()
    evidence = evidence_of(model, SHAPES[make])
    last = list(model.children())[-1]
    weights = list((last if layers is Layers.LAST else model).parameters())
    found = GradientNorm(layers=layers).scores(evidence, rng=np.random.default_rng(0))
    np.testing.assert_allclose(found, -np.log(plain_norms(model, evidence, weights)), rtol=1e-4)


def test_a_sure_model_still_has_a_norm() -> None:
    """Where float32 has p_y = 1 and autograd's gradient is zero, scores are finite and differ."""
    torch.manual_seed(0)
    model = table()
    with torch.no_grad():
        model[2].weight *= 1000.0  # type: ignore[index, union-attr, operator]
    evidence = evidence_of(model, (25,))
    assert (plain_norms(model, evidence, list(model.parameters())) == 0.0).any()
    found = GradientNorm().scores(evidence, rng=np.random.default_rng(0))
    assert np.isfinite(found).all()
    assert len(np.unique(found)) == RECORDS


def test_the_model_keeps_its_gradients() -> None:
    """Nothing is left behind in the target."""
    torch.manual_seed(0)
    model = table()
    GradientNorm().scores(evidence_of(model, (25,)), rng=np.random.default_rng(0))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_weights_are_needed() -> None:
    """A target that only answers is refused: the runner should have asked."""
    evidence = evidence_of(table(), (25,))
    blind = Evidence(outputs=evidence.outputs, examples=evidence.examples)
    with pytest.raises(TypeError, match="weights can be read"):
        GradientNorm().scores(blind, rng=np.random.default_rng(0))
