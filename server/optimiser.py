"""The optimiser at the server, for steps on a gradient that is noised before anyone sees it.

In mode ``record-distributed`` owners send clipped sums, and the step is taken here: processing of
what was released, which costs no epsilon. SGD and Adam are torch's arithmetic (held against it in
the tests), in numpy, because a run's worker loads no torch. The state goes into the checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tacit.core.specification import TrainingSpec

    Arrays = Mapping[str, npt.NDArray[Any]]

Float64Array = npt.NDArray[np.float64]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # Kingma and Ba 2015, arXiv 1412.6980, algorithm 1
_PREFIX = "optimiser."


class Optimiser:
    """SGD with momentum, or Adam, over arrays by name; everything is computed in float64."""

    def __init__(self, training: TrainingSpec, state: Arrays | None = None) -> None:
        """Begin anew, or where ``state`` (from :meth:`state`) was left."""
        self._training = training
        self._moments: dict[str, Float64Array] = {
            name.removeprefix(_PREFIX): np.array(values, dtype=np.float64)
            for name, values in (state or {}).items()
            if name.startswith(_PREFIX)
        }

    def step(self, weights: Arrays, gradients: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the weights one step on, in their own dtypes; integer arrays stay as they are.

        Args:
            weights: by name.
            gradients: of the same shapes, float64; an array without one stays as it is.
        """
        steps = self._moments.get("steps", np.zeros(())) + 1.0
        self._moments["steps"] = steps
        moved = {}
        for name, old in weights.items():
            if name not in gradients or old.dtype.kind != "f":
                moved[name] = old
                continue
            gradient = gradients[name] + self._training.weight_decay * old.astype(np.float64)
            if self._training.optimizer == "adam":
                change = self._adam(name, gradient, float(steps))
            else:
                change = self._momentum(name, gradient)
            moved[name] = (old - self._training.learning_rate * change).astype(old.dtype)
        return moved

    def state(self) -> dict[str, Float64Array]:
        """Return what the next step needs, for a checkpoint."""
        return {f"{_PREFIX}{name}": values for name, values in self._moments.items()}

    def _momentum(self, name: str, gradient: Float64Array) -> Float64Array:
        if self._training.momentum == 0:
            return gradient
        velocity = self._moments.get(f"velocity.{name}")
        if velocity is None:  # torch's first velocity is the gradient itself
            velocity = gradient.copy()
        else:
            velocity = self._training.momentum * velocity + gradient
        self._moments[f"velocity.{name}"] = velocity
        return velocity

    def _adam(self, name: str, gradient: Float64Array, steps: float) -> Float64Array:
        zeros = np.zeros_like(gradient)
        first = _BETA1 * self._moments.get(f"first.{name}", zeros) + (1 - _BETA1) * gradient
        second = (
            _BETA2 * self._moments.get(f"second.{name}", zeros) + (1 - _BETA2) * gradient * gradient
        )
        self._moments[f"first.{name}"], self._moments[f"second.{name}"] = first, second
        root = np.sqrt(second / (1 - _BETA2**steps)) + _EPSILON
        return np.asarray(first / (1 - _BETA1**steps) / root)
