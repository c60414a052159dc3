"""Models fit the data contract, start from the specification alone, and mix no records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.configuration import from_plain
from tacit.core.errors import AppError, ConfigError
from tacit.core.specification import DataSpec, ModelKind, ModelSpec, RunSpec
from tacit.learning.features import input_shape
from tacit.learning.models import (
    ModelFacts,
    build_model,
    check_model_fits,
    initial_arrays,
    load_model_arrays,
    model_arrays,
    model_facts,
)
from tacit.privacy.dpsgd.validation import verify_records_do_not_mix

if TYPE_CHECKING:
    from collections.abc import Callable

FACTORY = f"{nn.__name__}:Sequential"


def spec_of(**values: Any) -> ModelSpec:
    return from_plain(values, ModelSpec)


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., object]], ModelSpec]:
    """Install a factory under a name, as an owner installs a package; return a spec of it."""

    def install(function: Callable[..., object]) -> ModelSpec:
        monkeypatch.setattr(torch, "h5_factory", function, raising=False)
        return spec_of(kind="module", factory="torch:h5_factory")

    return install


@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_models_of_tables_fit(kind: str, table_spec: DataSpec) -> None:
    """Six features in, two logits out, each record by itself."""
    model = build_model(spec_of(kind=kind), table_spec)
    assert model(torch.zeros((3, 6))).shape == (3, 2)
    verify_records_do_not_mix(model, shape=input_shape(table_spec))


@pytest.mark.parametrize("kind", ["logistic", "mlp", "cnn"])
def test_models_of_images_fit(kind: str, image_spec: DataSpec) -> None:
    """Images in, one logit per class out, each record by itself."""
    model = build_model(spec_of(kind=kind), image_spec)
    assert model(torch.zeros((3, 1, 8, 8))).shape == (3, 2)
    verify_records_do_not_mix(model, shape=input_shape(image_spec))


def test_hidden_widths_are_the_declared_ones(table_spec: DataSpec) -> None:
    """hidden = [5, 4] makes two hidden layers of these widths."""
    arrays = model_arrays(build_model(spec_of(kind="mlp", hidden=[5, 4]), table_spec))
    shapes = [array.shape for name, array in arrays.items() if name.endswith("weight")]
    assert shapes == [(5, 6), (4, 5), (2, 4)]


def test_initial_weights_follow_from_the_specification(
    make_run: Callable[..., RunSpec],
) -> None:
    """The same seed gives the same bytes, whatever the global generator did; another does not."""
    run = make_run(model={"kind": "mlp", "seed": 4})
    one = initial_arrays(run)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    two = initial_arrays(run)
    other = initial_arrays(make_run(model={"kind": "mlp", "seed": 5}))
    assert torch.equal(state, torch.get_rng_state())
    assert [a.tobytes() for a in one.values()] == [a.tobytes() for a in two.values()]
    assert one["linear.weight"].tobytes() != other["linear.weight"].tobytes()


def test_a_convolution_on_a_table_is_refused(table_spec: DataSpec) -> None:
    """The model does not fit the data contract, and the error says what would."""
    with pytest.raises(ConfigError, match="E-MODEL-CONTRACT"):
        build_model(spec_of(kind="cnn"), table_spec)


def test_images_too_small_for_the_convolutions_are_refused(image_spec: DataSpec) -> None:
    """Four halvings of eight pixels leave none."""
    with pytest.raises(ConfigError, match="E-MODEL-CONTRACT"):
        build_model(spec_of(kind="cnn", hidden=[4, 4, 4, 4]), image_spec)


@pytest.mark.parametrize(
    "model", [nn.Linear(5, 2), nn.Linear(6, 3), nn.LSTM(6, 2)], ids=["inputs", "outputs", "tuple"]
)
def test_a_model_of_another_shape_is_refused(model: nn.Module, table_spec: DataSpec) -> None:
    """Wrong inputs, wrong outputs, outputs that are no tensor."""
    with pytest.raises(ConfigError, match="E-MODEL-CONTRACT"):
        check_model_fits(model, table_spec)


def test_a_factory_of_ones_own_is_used(
    factory: Callable[[Callable[..., object]], ModelSpec], table_spec: DataSpec
) -> None:
    """Any torch module that fits the contract can be trained."""
    model = build_model(factory(lambda: nn.Linear(6, 2)), table_spec)
    assert isinstance(model, nn.Linear)


def test_a_factory_without_batch_norm_under_differential_privacy(
    factory: Callable[[Callable[..., object]], ModelSpec],
    table_spec: DataSpec,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """BatchNorm mixes records: it stays in the open, and is replaced, aloud, under noise."""
    caplog.set_level("INFO", "tacit.learning.models")
    spec = factory(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    assert isinstance(build_model(spec, table_spec)[1], nn.BatchNorm1d)  # type: ignore[index]
    assert not caplog.messages
    private = build_model(spec, table_spec, private=True)
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in private.modules())
    assert "BatchNorm" in caplog.text


class Centred(nn.Module):
    """Subtracts the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x - x.mean(dim=0))


def test_a_factory_that_mixes_records_is_refused_under_differential_privacy(
    factory: Callable[[Callable[..., object]], ModelSpec], table_spec: DataSpec
) -> None:
    """No layer of it is suspicious, and still one record's gradient depends on the others."""
    with pytest.raises(ConfigError, match="E-MODEL-NOT-DP"):
        build_model(factory(Centred), table_spec, private=True)


@pytest.mark.parametrize("name", ["no.such.package:f", "torch:no_such_function"])
def test_a_factory_that_is_not_installed_is_told(name: str, table_spec: DataSpec) -> None:
    """The owner learns what to install."""
    with pytest.raises(AppError, match="E-MODEL-FACTORY"):
        build_model(spec_of(kind="module", factory=name), table_spec)


def test_a_factory_that_returns_something_else_is_told(
    factory: Callable[[Callable[..., object]], ModelSpec], table_spec: DataSpec
) -> None:
    """A function in place of a module is not called as one."""
    with pytest.raises(AppError, match="E-MODEL-FACTORY"):
        build_model(factory(lambda: torch.tanh), table_spec)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "dtype"])
def test_weights_of_another_model_are_refused(fault: str, table_spec: DataSpec) -> None:
    """Names, shapes and dtypes are the model's own, or nothing is loaded."""
    model = build_model(spec_of(kind="logistic"), table_spec)
    arrays = model_arrays(model)
    if fault == "missing":
        del arrays["linear.bias"]
    elif fault == "extra":
        arrays["more"] = np.zeros(1, dtype=np.float32)
    elif fault == "shape":
        arrays["linear.bias"] = np.zeros(3, dtype=np.float32)
    else:
        arrays["linear.bias"] = np.zeros(2, dtype=np.float64)
    with pytest.raises(ConfigError, match="E-MODEL-WEIGHTS") as caught:
        load_model_arrays(model, arrays)
    assert len(caught.value.problems) == 1


def test_an_app_brings_its_own_weights() -> None:
    """A run with [app] has no built-in model to start from."""
    run = from_plain(
        {
            "name": "foreign",
            "privacy": {"mode": "none"},
            "participation": {"rounds": 1},
            "app": {"client": "a.b:c"},
            "results": {"train": {"arrays": "model"}},
        },
        RunSpec,
    )
    with pytest.raises(ValueError, match="an app brings its own weights"):
        initial_arrays(run)


def test_what_is_trained_is_told_before_it_is_trained(
    factory: Callable[[Callable[..., object]], ModelSpec], table_spec: DataSpec
) -> None:
    """What is replaced, and who makes the gradients; nothing of both where nothing is noised."""
    spec = factory(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    facts = model_facts(spec, table_spec, private=True)
    assert facts == ModelFacts(
        kind=ModelKind.MODULE,
        parameters=46,  # 28 and 10, and a GroupNorm's 8 without running statistics
        replaced=("1: BatchNorm replaced by GroupNorm",),
        gradients=("per-example gradients by book-keeping: 1 GroupNorm, 2 Linear",),
    )
    plain = model_facts(spec, table_spec, private=False)
    assert (plain.parameters, plain.replaced, plain.gradients) == (55, (), ())


class Scaled(nn.Module):
    """A layer of somebody's own, without a book-keeping rule."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_layers_that_opacus_serves_are_named(
    factory: Callable[[Callable[..., object]], ModelSpec], table_spec: DataSpec
) -> None:
    """Where book-keeping has no rule, Opacus' gradients are chosen, and the layer is named."""
    spec = factory(lambda: nn.Sequential(Scaled(), nn.Linear(6, 2)))
    by, *reasons = model_facts(spec, table_spec, private=True).gradients
    assert "by Opacus" in by
    assert any("Scaled" in reason for reason in reasons)
