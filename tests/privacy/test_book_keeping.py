"""Book-keeping gives the sums that Opacus' written-out gradients give, layer by layer."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from tacit.core.errors import ConfigError
from tacit.privacy.dpsgd import layers
from tacit.privacy.dpsgd.book_keeping import BookKeeping, unsupported_layers
from tacit.privacy.dpsgd.engine import make_engine
from tacit.privacy.dpsgd.opacus_gradients import OpacusGradients
from tacit.privacy.dpsgd.units import one_row_each
from tests.privacy.dpsgd_models import KEY, QUIET, Lambda, clipped_sum, distance, norm_of

if TYPE_CHECKING:
    from tacit.privacy.dpsgd.engine import GradientSource

IMAGE, SERIES, VOLUME, TEXT = (3, 9, 8), (4, 16), (2, 5, 6, 4), (7,)
# torch tells that "same" with an even kernel copies its input
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

MEAN = Lambda(lambda x: x.mean(dim=1))


def over(*convolution: nn.Module, out: int) -> nn.Module:
    pool = nn.Flatten()
    return nn.Sequential(*convolution, nn.Tanh(), pool, nn.Linear(out, 3))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3, bias=False))


def group_norm_cnn() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU())
    return over(block, nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), out=4 * 2 * 2)


def text(padding_idx: int | None = None) -> nn.Module:
    embedding = nn.Embedding(5, 6, padding_idx=padding_idx)
    return nn.Sequential(Lambda(torch.Tensor.long), embedding, MEAN, nn.Linear(6, 3))


def layer_norm_sequences() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 6), MEAN, nn.Linear(6, 3)
    )


MODELS = {
    "mlp": (mlp, (4,)),
    "cnn with group norm": (group_norm_cnn, IMAGE),
    "strided": (lambda: over(nn.Conv2d(3, 4, 3, stride=(2, 3)), out=4 * 4 * 2), IMAGE),
    "dilated": (lambda: over(nn.Conv2d(3, 4, 3, dilation=(2, 3)), out=4 * 5 * 2), IMAGE),
    "padded": (lambda: over(nn.Conv2d(3, 4, (3, 2), padding=(2, 1)), out=4 * 11 * 9), IMAGE),
    "same": (lambda: over(nn.Conv2d(3, 4, 4, padding="same"), out=4 * 9 * 8), IMAGE),
    "grouped": (
        lambda: over(nn.Conv2d(3, 6, 3, groups=3, stride=2, padding=1), out=6 * 5 * 4),
        IMAGE,
    ),
    "one axis": (lambda: over(nn.Conv1d(4, 6, 5, stride=2, padding=3), out=6 * 9), SERIES),
    "three axes": (lambda: over(nn.Conv3d(2, 3, 3, padding=1, stride=2), out=3 * 18), VOLUME),
    "embedding, mean, linear": (text, TEXT),
    "layer norm over sequences": (layer_norm_sequences, SERIES),
    "a bias without effect": (
        lambda: over(nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4), out=4 * 42),
        IMAGE,
    ),
    "group norm first": (
        lambda: over(nn.GroupNorm(3, 3), nn.Conv2d(3, 2, 3), out=2 * 7 * 6),
        IMAGE,
    ),
}

NOT_IN_OPACUS = {  # ignored there: padding_mode, padding_idx; refused: activations in place
    "padded text": (lambda: text(0), TEXT),
    "reflected": (
        lambda: over(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), out=4 * 72),
        IMAGE,
    ),
    "in place": (
        lambda: over(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3), out=2 * 20),
        IMAGE,
    ),
}
EVERY = MODELS | NOT_IN_OPACUS


def batch(shape: tuple[int, ...], count: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn((count, *shape), generator=generator) * 2.0
    if shape == TEXT:
        features = torch.randint(0, 5, (count, *shape), generator=generator).float()
    return features, torch.randint(0, 3, (count,), generator=generator)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return EVERY[name][0]()


def sums_of(
    source: GradientSource, features: torch.Tensor, labels: torch.Tensor, clip: float
) -> list[torch.Tensor]:
    parts = source.contributions(features, labels, one_row_each(len(labels)))
    norms = torch.stack([part.squared_norms() for part in parts]).sum(dim=0).sqrt()
    sums = [torch.zeros(p.shape, dtype=torch.float64) for p in source.parameters]
    for part in parts:
        part.add_to(sums[part.parameter], (clip / norms).clamp(max=1.0))
    return sums


@pytest.mark.parametrize("form", ["written", "ghost"])
@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_is_that_of_opacus(
    name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to 1e-6 of its norm, with gradients written out and by the ghost norm."""
    monkeypatch.setattr(layers, "use_written", lambda *_: form == "written")
    features, labels = batch(MODELS[name][1])
    assert not unsupported_layers(made(name))
    expected = sums_of(OpacusGradients(made(name)), features, labels, 0.5)
    actual = sums_of(BookKeeping(made(name)), features, labels, 0.5)
    assert distance(actual, expected) <= 1e-6 * norm_of(expected)


@pytest.mark.parametrize("name", EVERY)
def test_the_engine_chooses_book_keeping_and_says_so(name: str) -> None:
    """No supported layer goes the slow way, and the sum is the definition's."""
    engine = make_engine(made(name), plan=QUIET, noise_key=KEY)
    features, labels = batch(EVERY[name][1])
    actual = engine.gradient(features, labels)
    expected = clipped_sum(made(name), features, labels, QUIET.clip)
    assert distance(actual, expected) <= 1e-5 * norm_of(expected)
    assert [note.partition(":")[0] for note in engine.notes] == [
        "per-example gradients by book-keeping"
    ]


class Twice(nn.Module):
    """Uses its layers twice in one pass, on inputs of different sizes where that is possible."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.norm(torch.tanh(self.linear(x)))
        two = self.norm(self.linear(torch.stack([one, x, one * x], dim=1))).sum(dim=1)
        return self.out(one + two)


def test_uses_of_one_layer_add_up_before_clipping() -> None:
    """A layer that a forward pass calls twice has one gradient per record."""
    torch.manual_seed(0)
    model = Twice()
    features, labels = batch((4,))
    engine = make_engine(copy.deepcopy(model), plan=QUIET, noise_key=KEY)
    expected = clipped_sum(model, features, labels, QUIET.clip)
    assert distance(engine.gradient(features, labels), expected) <= 1e-5 * norm_of(expected)
    assert len(engine.notes) == 1


class Overwriting(nn.Module):
    """Changes a layer's input after the layer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x) * 1.0
        with torch.no_grad():
            given = hidden.detach()
        out = self.second(given) + hidden.sum(dim=1, keepdim=True)
        given.mul_(2.0)
        return out


def test_an_input_changed_in_place_is_refused() -> None:
    """Norms and products would be those of another input."""
    with pytest.raises((ConfigError, RuntimeError)) as caught:
        make_engine(Overwriting(), plan=QUIET, noise_key=KEY).gradient(*batch((4,)))
    assert "in place" in str(caught.value) or "inplace" in str(caught.value)


class Behind(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + x[:, :3] @ self.first.weight[:, :3]


def test_a_weight_used_behind_its_layer_is_refused() -> None:
    """Half its gradient would be missing, and nobody would notice."""
    with pytest.raises(ConfigError, match="they do not"):
        make_engine(Behind(), plan=QUIET, noise_key=KEY).gradient(*batch((4,)))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 3)), "1 (PReLU): no book-keep"),
        (nn.Sequential(nn.Bilinear(4, 4, 3)), "0 (Bilinear): no book-keep"),
    ],
    ids=["prelu", "bilinear"],
)
def test_other_layers_are_left_to_opacus(model: nn.Module, reason: str) -> None:
    """The engine says which layer is the reason."""
    (found,) = unsupported_layers(model)
    assert found.startswith(reason)


def test_shared_weights_are_left_to_opacus() -> None:
    """The notes name both the choice and the reason, and the sum is the definition's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    features, labels = batch((4,))
    expected = clipped_sum(model, features, labels, QUIET.clip)
    engine = make_engine(model, plan=QUIET, noise_key=KEY)
    assert distance(engine.gradient(features, labels), expected) <= 1e-5 * norm_of(expected)
    assert engine.notes[0].startswith("per-example gradients by Opacus")
    assert engine.notes[1] == "layers share a parameter"


def test_weights_of_a_hostile_server_do_not_hide_a_norm() -> None:
    """Inputs whose squares vanish in float32, times huge gradients, are clipped all the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight.mul_(1e-25)
        model[0].bias.zero_()
        model[2].weight.mul_(1e30)
    model[0].requires_grad_(requires_grad=False)
    model[2].requires_grad_(requires_grad=False)
    features, labels = batch((4,), 1)
    released = make_engine(model, plan=QUIET, noise_key=KEY).gradient(features, labels)
    assert norm_of(released) == pytest.approx(1.0, rel=1e-5)


def test_positions_that_cancel_do_not_hide_a_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ghost norm is a sum of terms that may cancel; it never falls below what is added."""
    monkeypatch.setattr(layers, "use_written", lambda *_: False)
    torch.manual_seed(0)
    signs = torch.tensor([1.0, -1.0] * 8)[:, None]
    model = nn.Sequential(
        nn.Linear(4, 4, bias=False), Lambda(lambda x: (x * signs * 1e6).mean(dim=1) * 1e3)
    )
    x = torch.ones((2, 16, 4)) + 1e-6 * torch.randn((2, 16, 4))
    for row in range(2):
        released = make_engine(copy.deepcopy(model), plan=QUIET, noise_key=KEY).gradient(
            x[row : row + 1], torch.tensor([row])
        )
        assert norm_of(released) <= 1.0 + 1e-5
