"""What the accuracy benchmark feeds to DP-SGD is made of one record at a time."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.accuracy_fashion import (
    CLASSES,
    SETTINGS,
    Examples,
    Settings,
    accuracy,
    featurise,
    load_examples,
    main,
    make_model,
    make_plan,
    train,
)
from benchmarks.scattering import ANGLES, CHANNELS, averaged, scattering

ROOT = Path(__file__).resolve().parents[2]


def images(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, 28, 28), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", sorted(SETTINGS))
def test_features_depend_on_their_record_alone(kind: str) -> None:
    """The last record's features stay when every other record changes, or is absent."""
    one, other = images(40), images(40, seed=1)
    other[-1] = one[-1]
    expected = featurise(kind, one)[-1]
    for batch in (other, one[-1:]):
        assert torch.allclose(expected, featurise(kind, batch)[-1], atol=1e-5)
    assert not torch.allclose(expected, featurise(kind, one)[-2], atol=1e-1)


@pytest.mark.parametrize("kind", sorted(SETTINGS))
def test_models_take_the_features(kind: str) -> None:
    """A model gives one number per class for each record."""
    features = featurise(kind, images(3))
    assert make_model(kind, seed=0)(features).shape == (3, CLASSES)


def test_flat_images_scatter_nowhere() -> None:
    """Wavelets have mean zero and the average has weight one: a flat image is its average."""
    features = scattering(torch.full((1, 28, 28), 0.7))
    assert features.shape == (1, CHANNELS, 7, 7)
    assert torch.allclose(features[:, 0], torch.tensor(0.7), atol=1e-5)
    assert features[:, 1:].abs().max() < 1e-5


@pytest.mark.parametrize("angle", range(ANGLES))
def test_each_angle_answers_to_its_own_waves(angle: int) -> None:
    """A grating is seen best by the fine wavelet of its direction."""
    direction = math.pi * angle / ANGLES
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    grating = torch.cos(0.75 * math.pi * (y * math.cos(direction) + x * math.sin(direction)))
    inner = scattering(grating[None])[0, 1 : 1 + ANGLES, 2:5, 2:5]
    assert int(inner.mean(dim=(1, 2)).argmax()) == angle


def test_average_is_the_same_at_half_the_pixels() -> None:
    """A slow wave averages to the same numbers whether every pixel or every second is given."""
    wave = torch.cos(torch.arange(36.0) * (2 * math.pi / 36))[:, None].expand(36, 36)
    assert torch.allclose(averaged(wave, shrunk=1), averaged(wave[::2, ::2], shrunk=2), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(SETTINGS))
def test_plan_keeps_the_promise(kind: str) -> None:
    """The accountant finds epsilon 3 at most, and at least 2.99, for the steps that are made."""
    settings = SETTINGS[kind]
    plan = make_plan(settings)
    assert plan.local_steps == round(settings.epochs * 60_000 / settings.batch)
    assert plan.normaliser == pytest.approx(settings.batch)
    assert 2.99 <= plan.epsilon_after(1) <= 3.0


def test_labels_and_pixels_come_from_the_published_format(tmp_path: Path) -> None:
    """Headers are skipped, pixels are scaled to [0, 1], rows keep their order."""
    pixels = np.arange(2 * 784, dtype=np.uint32).astype(np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(bytes(16) + pixels.tobytes())
    )
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + bytes([7, 2])))
    examples = load_examples(tmp_path, "t10k")
    assert examples.labels.tolist() == [7, 2]
    assert torch.equal(examples.features.flatten() * 255.0, torch.from_numpy(pixels).float())


def test_noised_training_learns_what_is_easy() -> None:
    """Ten classes, told apart by which rows are bright, are learnt at epsilon 3."""
    labels = torch.arange(3000) % CLASSES
    features = torch.zeros(3000, 1, CLASSES, 4)
    features[torch.arange(3000), 0, labels] = 1.0
    examples = Examples(features=features, labels=labels)
    settings = Settings(
        batch=3000,
        epochs=20,
        clip=0.1,
        learning_rate=10.0,
        momentum=0.9,
        goal=90.0,
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(4 * CLASSES, CLASSES))
    train(model, examples, make_plan(settings, records=3000), settings)
    assert accuracy(model, examples) > settings.goal


def test_absent_data_are_a_reason_to_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the files nothing is measured, and the output says which folder was looked at."""
    absent = tmp_path / "nowhere"
    monkeypatch.setattr("sys.argv", ["accuracy_fashion", "--data", str(absent)])
    assert main() == 0
    assert capsys.readouterr().out == f"skipped: no Fashion-MNIST under {absent}\n"
