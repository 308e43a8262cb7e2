"""Scores of predicted class probabilities, and of scores that should tell two groups apart."""

from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ._require import numbers, require


class Reliability(NamedTuple):
    """Confidence against accuracy, in groups of equally many predictions.

    Attributes:
        confidence: Mean probability given to the class that was predicted, per group.
        accuracy: How often it was right.
        count: Predictions in the group.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, weighted by counts."""
        gap = np.abs(self.confidence - self.accuracy)
        return float(np.average(gap, weights=self.count))

    def plot(self, axes=None):
        """Draw accuracy over confidence; below the diagonal is over-confident."""
        import matplotlib.pyplot as plt

        if axes is None:
            _, axes = plt.subplots(figsize=(4, 4), layout="constrained")
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        # Bars of one binomial standard error: groups are small.
        error = np.sqrt(self.accuracy * (1 - self.accuracy) / self.count)
        axes.errorbar(self.confidence, self.accuracy, error, fmt="o-", capsize=2)
        axes.set(xlabel="confidence", ylabel="accuracy", aspect="equal")
        return axes


class Separation(NamedTuple):
    """How well a score tells outside examples from inside ones.

    Attributes:
        auroc: Probability that an outside example has the higher score.
        aupr: Average precision, outside examples being the ones to find.
        fpr95: Share of inside examples called outside, where 95% of outside ones are found.
    """

    auroc: float
    aupr: float
    fpr95: float


def reliability(probabilities: ArrayLike, labels: ArrayLike, *, groups: Any = 15):
    """Compare the confidence of predictions with how often they are right.

    Args:
        probabilities: Shape `(rows, classes)`, rows sum to 1.
        labels: True classes, integers of shape `(rows,)`.
        groups: Of equally many predictions each, by confidence.

    Returns:
        A `Reliability`.

    Raises:
        ValueError: If shapes or probabilities are not as said, or there are fewer rows than
            groups.

    References:
        Guo, Pleiss, Sun, Weinberger (2017), On calibration of modern neural networks,
        arXiv:1706.04599; with groups of equal mass as Nixon et al. (2019), arXiv:1904.01685.
    """
    probabilities, labels = _checked(probabilities, labels)
    if not isinstance(groups, int | np.integer) or not 1 <= groups <= len(labels):
        raise ValueError(
            f"`groups` must be 1 to {len(labels)}, the rows, a whole number; got {groups}."
        )
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    parts = np.array_split(np.argsort(confidence, kind="stable"), groups)
    return Reliability(
        np.array([confidence[part].mean() for part in parts]),
        np.array([right[part].mean() for part in parts]),
        np.array([len(part) for part in parts]),
    )


def brier(probabilities: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Return the squared distance of probabilities from the truth, per row, 0 to 2.

    Args:
        probabilities: Shape `(rows, classes)`, rows sum to 1.
        labels: True classes, integers of shape `(rows,)`.

    Raises:
        ValueError: If shapes or probabilities are not as said.

    References:
        Brier (1950), doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """
    probabilities, labels = _checked(probabilities, labels)
    truth = np.eye(probabilities.shape[1])[labels]
    return np.sum((probabilities - truth) ** 2, 1)


def entropy(probabilities: ArrayLike) -> np.ndarray:
    """Return the entropy of predictions in nats: a score of being unsure.

    Args:
        probabilities: Shape `(..., classes)`, they sum to 1.

    Raises:
        ValueError: If they are not probabilities.
    """
    probabilities = _probabilities(probabilities)
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return -np.sum(probabilities * np.log(safe), -1)


def separation(inside: ArrayLike, outside: ArrayLike) -> Separation:
    """Say how well a score tells outside examples from inside ones.

    Args:
        inside: Scores of examples like those trained on.
        outside: Scores of others, which should be higher.

    Returns:
        Areas under the curves and the false positive rate; ties count half in `auroc`.

    Raises:
        ValueError: If one is empty or a score is NaN.

    References:
        Hendrycks and Gimpel (2017), A baseline for detecting misclassified and
        out-of-distribution examples in neural networks, arXiv:1610.02136.
    """
    inside, outside = (
        np.ravel(numbers(name, scores))
        for name, scores in (("inside", inside), ("outside", outside))
    )
    for name, scores in (("inside", inside), ("outside", outside)):
        if not scores.size:
            raise ValueError(f"`{name}` must hold scores; it is empty.")
        require(name, scores, ~np.isnan(scores), "free of NaN")
    # One point of the curves per distinct score, from the highest.
    levels = np.unique(np.concatenate([inside, outside]))[::-1]
    found = _at_least(outside, levels) / outside.size
    alarms = _at_least(inside, levels) / inside.size
    tpr, fpr = np.concatenate([[0.0], found]), np.concatenate([[0.0], alarms])
    precision = found * outside.size / (found * outside.size + alarms * inside.size)
    return Separation(
        float(np.trapezoid(tpr, fpr)),
        float(np.sum(np.diff(tpr) * precision)),
        float(fpr[np.argmax(tpr >= 0.95)]),
    )


def _at_least(scores: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return scores.size - np.searchsorted(np.sort(scores), levels, side="left")


def _checked(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            "`probabilities` must have shape (rows, classes) and `labels` (rows,); got "
            f"{probabilities.shape} and {labels.shape}."
        )
    if not labels.size or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"`labels` must be integers, at least one; got {labels.dtype}.")
    classes = probabilities.shape[1]
    require("labels", labels, (labels >= 0) & (labels < classes), f"0 to {classes - 1}")
    return _probabilities(probabilities), labels


def _probabilities(probabilities) -> np.ndarray:
    probabilities = numbers("probabilities", probabilities)
    if not probabilities.ndim:
        raise ValueError("`probabilities` must have an axis of classes; got a number.")
    total = probabilities.sum(-1)
    fine = (np.abs(total - 1) < 1e-4) & (probabilities >= 0).all(-1)
    require("probabilities", total, fine, "at least 0 and summing to 1 in each row")
    return probabilities
