"""Whether reference models resemble the target: else what they say does not carry over to it.

Trusts: the caller to know who is a member of the target; no probe sees what is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tacit.attacks.probe import References
    from tacit.attacks.target import BoolArray, Float64Array, Outputs

# A reference that is more or less accurate than the target scores another model than the target.
MOST_POINTS_APART = 2.0


@dataclass(frozen=True, kw_only=True)
class RecipeCheck:
    """Whether references are as accurate as the target: else they do not stand for it.

    Attributes:
        train_accuracy: mean of the references, on the target's members that they were trained on.
        test_accuracy: mean of the references, on its non-members that they were not trained on.
        target_train_accuracy, target_test_accuracy: the target's, on members and non-members.
        test_deviation: standard deviation of the references' test accuracies.
    """

    train_accuracy: float
    test_accuracy: float
    target_train_accuracy: float
    target_test_accuracy: float
    test_deviation: float

    @property
    def points_apart(self) -> float:
        """The larger of the two differences, in percentage points."""
        train = self.train_accuracy - self.target_train_accuracy
        test = self.test_accuracy - self.target_test_accuracy
        return 100.0 * max(abs(train), abs(test))

    @property
    def reproduces(self) -> bool:
        """Whether neither accuracy is further than ``MOST_POINTS_APART`` from the target's."""
        return self.points_apart <= MOST_POINTS_APART


def check_recipe(references: References, outputs: Outputs, is_member: BoolArray) -> RecipeCheck:
    """Compare accuracies on the same records, by whoever knows who is a member of the target.

    Args:
        references: their answers for the audited records.
        outputs: the target's.
        is_member: bool ``(n,)``.

    Raises:
        ValueError: there are no members or no non-members.
    """
    if is_member.all() or not is_member.any():
        raise ValueError("expected members and non-members")
    right = references.logits.argmax(axis=2) == outputs.labels
    train = _mean_where(right, references.is_in & is_member)
    test = _mean_where(right, ~references.is_in & ~is_member)
    target = outputs.logits.argmax(axis=1) == outputs.labels
    return RecipeCheck(
        train_accuracy=float(train.mean()),
        test_accuracy=float(test.mean()),
        target_train_accuracy=float(target[is_member].mean()),
        target_test_accuracy=float(target[~is_member].mean()),
        test_deviation=float(test.std()),
    )


def _mean_where(right: BoolArray, counted: BoolArray) -> Float64Array:
    """Return each model's share of right answers, of the models that have any to count."""
    numbers = counted.sum(axis=1)
    shares = (right & counted).sum(axis=1)[numbers > 0] / numbers[numbers > 0]
    return np.asarray(shares, dtype=np.float64)
