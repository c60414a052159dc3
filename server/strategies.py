"""Flower's strategies by name: what a run may set, and what they remember between rounds.

One literal table. It is checked without importing flwr, so that ``tacit run check`` is quick; only
:func:`build_strategy` loads the classes, unmodified, in a run's worker. Numbers of nodes and
fractions are not parameters here: ``[participation]`` owns them.

What a strategy carries from one round to the next is named attribute by attribute, so that a
checkpoint is arrays and numbers and never a pickle. An attribute that ``configure_train`` sets anew
in every round (``FedAdam.current_arrays``) is not state.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt
    from flwr.serverapp.strategy import Strategy

    from tacit.core.specification import RunSpec, Scalar

    Arrays = Mapping[str, npt.NDArray[Any]]

MODULE = "flwr.serverapp.strategy"

_RECORD_KEYS: Mapping[str, type] = {
    "weighted_by_key": str,
    "arrayrecord_key": str,
    "configrecord_key": str,
}
_OPTIMISER: Mapping[str, type] = {"eta": float, "eta_l": float, "tau": float}
_MOMENTS: Mapping[str, type] = {"beta_1": float, "beta_2": float}
_ADAPTIVE: Mapping[str, type] = {
    "noise_multiplier": float,
    "num_sampled_clients": int,
    "initial_clipping_norm": float,
    "target_clipped_quantile": float,
    "clip_norm_lr": float,
    "clipped_count_stddev": float,
}
_FIXED: Mapping[str, type] = {
    "noise_multiplier": float,
    "clipping_norm": float,
    "num_sampled_clients": int,
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One class of Flower's.

    Attributes:
        parameters: what a run may set, and the type of each.
        required: the parameters without a default.
        arrays: attributes that hold arrays across rounds (a dict, a list or an ArrayRecord).
        numbers: attributes that hold one number across rounds.
        client_mod: the mod that the ClientApp must carry, if the class needs one.
        needs_mean: whether the weighted mean of all replies is all that it looks at, so that it
            runs over a sum that nobody saw in parts.
    """

    parameters: Mapping[str, type] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    client_mod: str = ""
    needs_mean: bool = False


STRATEGIES: Mapping[str, Entry] = {
    "FedAvg": Entry(needs_mean=True),
    "FedAvgM": Entry(
        parameters={"server_learning_rate": float, "server_momentum": float},
        arrays=("current_arrays", "momentum_vector"),
        needs_mean=True,
    ),
    "FedAdagrad": Entry(parameters=_OPTIMISER, arrays=("m_t", "v_t"), needs_mean=True),
    "FedAdam": Entry(parameters={**_OPTIMISER, **_MOMENTS}, arrays=("m_t", "v_t"), needs_mean=True),
    "FedYogi": Entry(parameters={**_OPTIMISER, **_MOMENTS}, arrays=("m_t", "v_t"), needs_mean=True),
    "FedProx": Entry(parameters={"proximal_mu": float}, needs_mean=True),
    "FedMedian": Entry(),
    "FedTrimmedAvg": Entry(parameters={"beta": float}),
    "Krum": Entry(parameters={"num_malicious_nodes": int}),
    "MultiKrum": Entry(parameters={"num_malicious_nodes": int, "num_nodes_to_select": int}),
    "Bulyan": Entry(parameters={"num_malicious_nodes": int}),
    "QFedAvg": Entry(
        parameters={"client_learning_rate": float, "q": float, "train_loss_key": str},
        required=("client_learning_rate",),
    ),
}

WRAPPERS: Mapping[str, Entry] = {
    "DifferentialPrivacyServerSideFixedClipping": Entry(
        parameters=_FIXED, required=("noise_multiplier", "clipping_norm", "num_sampled_clients")
    ),
    "DifferentialPrivacyClientSideFixedClipping": Entry(
        parameters=_FIXED,
        required=("noise_multiplier", "clipping_norm", "num_sampled_clients"),
        client_mod="fixedclipping_mod",
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": Entry(
        parameters=_ADAPTIVE,
        required=("noise_multiplier", "num_sampled_clients"),
        numbers=("clipping_norm",),
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": Entry(
        parameters=_ADAPTIVE,
        required=("noise_multiplier", "num_sampled_clients"),
        numbers=("clipping_norm",),
        client_mod="adaptiveclipping_mod",
    ),
}

_OWNED_BY_PARTICIPATION: Mapping[str, str] = {
    "fraction_train": "participation.fraction",
    "fraction_evaluate": "evaluation.every and participation.fraction",
    "min_train_nodes": "participation.min_clients",
    "min_evaluate_nodes": "participation.min_clients",
    "min_available_nodes": "participation.min_clients",
}


def strategy_problems(run: RunSpec) -> Iterator[tuple[str, str]]:
    """Yield ``(key, text)`` for everything that is wrong with a run's strategy; imports nothing."""
    spec = run.strategy
    entry = STRATEGIES.get(spec.name)
    if entry is None:
        yield "strategy.name", _unknown("strategy", spec.name, STRATEGIES)
    else:
        allowed = {**_RECORD_KEYS, **entry.parameters}
        yield from _parameter_problems(
            "strategy.parameters", spec.parameters, allowed, entry.required
        )
        yield from _cohort_problems(run)
        if run.secure_aggregation is not None and not entry.needs_mean:
            able = ", ".join(name for name, other in STRATEGIES.items() if other.needs_mean)
            text = f"{spec.name} looks at single updates, which nobody sees under"
            yield "strategy.name", f"{text} [secure_aggregation]: expected one of {able}"
    if not spec.wrapper:
        if spec.wrapper_parameters:
            yield "strategy.wrapper_parameters", "only a wrapper has these: name it in `wrapper`"
        return
    if run.secure_aggregation is not None:
        text = "a wrapper clips or noises single updates, which nobody sees under"
        yield "strategy.wrapper", f"{text} [secure_aggregation]: take a distributed mode"
    wrapper = WRAPPERS.get(spec.wrapper)
    if wrapper is None:
        yield "strategy.wrapper", _unknown("wrapper", spec.wrapper, WRAPPERS)
        return
    yield from _parameter_problems(
        "strategy.wrapper_parameters",
        spec.wrapper_parameters,
        wrapper.parameters,
        wrapper.required,
    )
    yield from _wrapper_problems(run, wrapper)


def build_strategy(run: RunSpec) -> Strategy:
    """Make the run's strategy, wrapped if it asks for it.

    Raises:
        ConfigError: the name, a parameter or its value is wrong; all problems at once.
    """
    problems = tuple(f"{key}: {text}" for key, text in strategy_problems(run))
    if problems:
        raise ConfigError("E-STRATEGY", "the strategy cannot be made", problems=problems)
    module = importlib.import_module(MODULE)
    spec, people = run.strategy, run.participation
    settings: dict[str, Scalar] = {
        "fraction_train": people.fraction,
        "fraction_evaluate": people.fraction,
        "min_train_nodes": people.min_clients,
        "min_evaluate_nodes": people.min_clients,
        "min_available_nodes": people.min_clients,
        **_typed(spec.parameters, STRATEGIES[spec.name].parameters),
    }
    if spec.name == "QFedAvg":  # the built-in app's name for it; a foreign app may set its own
        settings.setdefault("train_loss_key", "loss")
    try:
        strategy: Strategy = getattr(module, spec.name)(**settings)
        if spec.wrapper:
            values = _typed(spec.wrapper_parameters, WRAPPERS[spec.wrapper].parameters)
            strategy = getattr(module, spec.wrapper)(strategy, **values)
    except ValueError as error:
        raise ConfigError(
            "E-STRATEGY", f"Flower refuses the strategy's parameters: {error}"
        ) from error
    return strategy


def state_of(
    run: RunSpec, strategy: Strategy
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, float]]:
    """Return what the strategy remembers: arrays by ``attribute/form/key``, and numbers."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    numbers: dict[str, float] = {}
    for prefix, part, entry in _parts(run, strategy):
        for attribute in entry.arrays:
            arrays |= _flatten(f"{prefix}{attribute}", getattr(part, attribute))
        for attribute in entry.numbers:
            numbers[f"{prefix}{attribute}"] = float(getattr(part, attribute))
    return arrays, numbers


def restore_state(
    run: RunSpec, strategy: Strategy, arrays: Arrays, numbers: Mapping[str, float]
) -> None:
    """Give a fresh strategy what :func:`state_of` returned for the one before it."""
    for prefix, part, entry in _parts(run, strategy):
        for attribute in entry.arrays:
            setattr(part, attribute, _unflatten(f"{prefix}{attribute}", arrays))
        for attribute in entry.numbers:
            setattr(part, attribute, numbers[f"{prefix}{attribute}"])


def _parts(run: RunSpec, strategy: Strategy) -> Iterator[tuple[str, Any, Entry]]:
    inner: Any = strategy
    if run.strategy.wrapper:
        yield "wrapper.", strategy, WRAPPERS[run.strategy.wrapper]
        inner = inner.strategy
    yield "", inner, STRATEGIES[run.strategy.name]


def _flatten(
    name: str,
    value: Any,  # noqa: ANN401 - whatever shape Flower chose
) -> dict[str, npt.NDArray[Any]]:
    """Name the arrays of one attribute; the form (dict, list, record) goes into the name."""
    if value is None:
        return {}
    if isinstance(value, list):
        return {f"{name}/list/{index:06d}": np.asarray(item) for index, item in enumerate(value)}
    if isinstance(value, dict) and all(
        isinstance(item, np.ndarray | np.generic) for item in value.values()
    ):
        return {f"{name}/dict/{key}": np.asarray(item) for key, item in value.items()}
    return {f"{name}/record/{key}": item.numpy() for key, item in value.items()}


def _unflatten(name: str, arrays: Arrays) -> Any:  # noqa: ANN401 - the form that Flower chose
    found = {
        key.removeprefix(f"{name}/"): array
        for key, array in arrays.items()
        if key.startswith(f"{name}/")
    }
    if not found:
        return None
    form = next(iter(found)).split("/")[0]
    values = {key.removeprefix(f"{form}/"): array for key, array in found.items()}
    if form == "list":
        return [values[key] for key in sorted(values)]
    if form == "dict":
        return values
    flower = importlib.import_module("flwr.app")
    return flower.ArrayRecord({key: flower.Array(array) for key, array in values.items()})


def _parameter_problems(
    where: str,
    given: Mapping[str, Scalar],
    allowed: Mapping[str, type],
    required: tuple[str, ...],
) -> Iterator[tuple[str, str]]:
    for name, value in given.items():
        key = f"{where}.{name}"
        if name in _OWNED_BY_PARTICIPATION:
            yield key, f"set {_OWNED_BY_PARTICIPATION[name]} instead"
        elif name not in allowed:
            yield key, _unknown("parameter", name, allowed)
        elif not _fits(value, allowed[name]):
            yield key, f"expected {allowed[name].__name__}, got {value!r}"
    for name in required:
        if name not in given:
            yield f"{where}.{name}", "missing: Flower gives it no default"


def _cohort_problems(run: RunSpec) -> Iterator[tuple[str, str]]:
    spec, least = run.strategy, run.participation.min_clients
    malicious = spec.parameters.get("num_malicious_nodes", 0)
    if spec.name == "Bulyan" and isinstance(malicious, int) and least < 4 * malicious + 3:
        yield (
            "participation.min_clients",
            f"Bulyan with {malicious} malicious nodes needs {4 * malicious + 3} nodes, got {least}",
        )
    if run.app is None and run.privacy.mode.value != "none" and spec.name == "QFedAvg":
        yield "strategy.name", "QFedAvg needs each owner's loss, which leaves only in mode none"


def _wrapper_problems(run: RunSpec, wrapper: Entry) -> Iterator[tuple[str, str]]:
    if wrapper.client_mod and run.app is None:
        yield (
            "strategy.wrapper",
            f"{run.strategy.wrapper} needs flwr's {wrapper.client_mod} in the ClientApp: use [app]",
        )
    sampled = run.strategy.wrapper_parameters.get("num_sampled_clients")
    least = run.participation.min_clients
    if isinstance(sampled, int) and least < sampled:
        # The wrapper divides its noise by this number: fewer replies would carry too little.
        yield (
            "participation.min_clients",
            f"expected at least num_sampled_clients ({sampled}), got {least}",
        )


def _fits(value: Scalar, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _typed(given: Mapping[str, Scalar], kinds: Mapping[str, type]) -> dict[str, Scalar]:
    """Return the values with integers turned into floats where Flower expects floats."""
    return {
        name: float(value) if kinds.get(name) is float else value for name, value in given.items()
    }


def _unknown(what: str, name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} {name!r}: {hint}"
