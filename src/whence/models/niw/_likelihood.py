"""What a network's outputs say of a task's data, pointwise, with curvature by its root.

A likelihood reads *scores*: for a regression or linear head the outputs themselves, for
prototypes minus the squared distances to means of embeddings. A surrogate needs the Fisher
information of the scores as `root' root` and the gradient of the loss as `root' residual`.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array

from ...core._convert import flag, positive, whole

_FLOOR = 1e-6  # of a probability that something is divided by the root of


class AbstractLikelihood(eqx.Module):
    """The law of a task's data given what the network makes of its points."""

    separable: ClassVar[bool]
    """Whether the scores of a point depend on that point alone."""
    spread: ClassVar[float] = 1.0
    """Standard deviation of outputs between tasks that learning is to begin with."""

    @abc.abstractmethod
    def scores(self, outputs: Array, y: Array, mask: Array, new: Array | None = None) -> Array:
        """Return scores `(point, score)` of the points of a set, or of new ones given it.

        Outputs are `(point, output)`: those of the set, and those for the new points.
        """

    @abc.abstractmethod
    def counted(self, y: Array, mask: Array) -> Array:
        """Return which points have a likelihood, `(point,)`."""

    @abc.abstractmethod
    def log_prob(self, scores: Array, y: Array) -> Array:
        """Return log probabilities `(point,)`."""

    @abc.abstractmethod
    def whitened(self, scores: Array, y: Array) -> tuple[Array, Array]:
        """Return `root`, `(point, score, score)`, and `residual`, `(point, score)`."""

    @abc.abstractmethod
    def mean(self, scores: Array) -> Array:
        """Return the mean of y, or probabilities of classes."""

    @abc.abstractmethod
    def check(self, y: Any, mask: Any, outputs: int) -> None:
        """Raise `ValueError` if data `(task, point, ...)` do not fit."""


class AbstractSeparable(AbstractLikelihood):
    """Scores are the outputs, point by point."""

    separable: ClassVar[bool] = True

    def scores(self, outputs, y, mask, new=None):
        return outputs if new is None else new

    def counted(self, y, mask):
        return mask


class Gaussian(AbstractSeparable):
    """Normal noise around the outputs.

    Args:
        scale: Its standard deviation, in the unit of y.
        learn: Whether training finds it, from `scale` on.
    """

    log_scale: Array
    learn: bool = eqx.field(static=True)

    def __init__(self, scale: Any = 1.0, *, learn: bool = False):
        self.log_scale = jnp.log(jnp.asarray(positive("scale")(scale), float))
        self.learn = flag("learn")(learn)

    @property
    def scale(self) -> Array:
        """Standard deviation of the noise."""
        held = self.log_scale if self.learn else jax.lax.stop_gradient(self.log_scale)
        return jnp.exp(held)

    def log_prob(self, scores, y):
        return jnp.sum(norm.logpdf(_like(y, scores), scores, self.scale), axis=-1)

    def whitened(self, scores, y):
        eye = jnp.eye(scores.shape[-1], dtype=scores.dtype) / self.scale
        root = jnp.broadcast_to(eye, (*scores.shape, scores.shape[-1]))
        return root, (scores - _like(y, scores)) / self.scale

    def mean(self, scores):
        return scores

    def check(self, y, mask, outputs):
        size = int(np.prod(np.shape(y)[2:]))
        if size != outputs:
            raise ValueError(
                f"`y` must have {outputs} numbers a point, as the network gives; got {size}."
            )
        if not np.issubdtype(np.asarray(y).dtype, np.floating):
            raise ValueError(
                f"`y` must be floating-point numbers for `Gaussian`; got {np.asarray(y).dtype}."
            )


class AbstractLabels(AbstractLikelihood):
    """Labels 0, 1, ... with scores for logits."""

    classes: eqx.AbstractVar[int]

    def log_prob(self, scores, y):
        return jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], axis=-1)[:, 0]

    def whitened(self, scores, y):
        # With R = diag(sqrt p) (I - 1 p'): R'R = diag(p) - p p', the Fisher information, and
        # R' diag(1 / sqrt p) (p - e_y) = p - e_y, the gradient.
        p = jax.nn.softmax(scores)
        root_p = jnp.sqrt(jnp.maximum(p, _FLOOR))
        eye = jnp.eye(p.shape[-1], dtype=p.dtype)
        root = root_p[..., None] * (eye - p[..., None, :])
        return root, (p - jax.nn.one_hot(y, p.shape[-1], dtype=p.dtype)) / root_p

    def mean(self, scores):
        return jax.nn.softmax(scores)


class Categorical(AbstractLabels, AbstractSeparable):
    """Labels 0, 1, ... whose logits are the outputs: a linear head.

    Args:
        classes: How many, at least 2.
    """

    # With less no prediction from one point of each class could be sure.
    spread: ClassVar[float] = 5.0
    classes: int = eqx.field(static=True, converter=whole("classes", least=2))

    def check(self, y, mask, outputs):
        if outputs != self.classes:
            raise ValueError(
                f"`classes` must be the number of the network's outputs, {outputs}; got "
                f"{self.classes}."
            )
        _check_labels(y, mask, self.classes)


class Prototypes(AbstractLabels):
    """Labels by distance of an embedding to the mean embedding of each class.

    Support points are judged by the prototypes of the *others*: a class of one point lends
    its prototype and has no likelihood of its own. With one point of each class the support
    set says nothing of the weights, which keep their prior.

    Args:
        classes: How many, at least 2.

    References:
        Snell, Swersky, Zemel (2017), Prototypical networks for few-shot learning,
        arXiv:1703.05175.
    """

    separable: ClassVar[bool] = False
    classes: int = eqx.field(static=True, converter=whole("classes", least=2))

    def scores(self, outputs, y, mask, new=None):
        one_hot = jax.nn.one_hot(y, self.classes, dtype=outputs.dtype) * mask[:, None]
        sums, counts = (one_hot.T @ outputs)[None], jnp.sum(one_hot, axis=0)[None]
        if new is None:  # each without itself
            sums = sums - one_hot[:, :, None] * outputs[:, None]
            new, counts = outputs, counts - one_hot
        means = sums / jnp.maximum(counts, 1)[..., None]
        return -jnp.sum((new[:, None] - means) ** 2, axis=-1)

    def counted(self, y, mask):
        one_hot = jax.nn.one_hot(y, self.classes) * mask[:, None]
        return mask & (one_hot @ jnp.sum(one_hot, axis=0) > 1.5)

    def check(self, y, mask, outputs):
        _check_labels(y, mask, self.classes)


def _like(y: Array, scores: Array) -> Array:
    return y.reshape(scores.shape).astype(scores.dtype)


def _check_labels(y: Any, mask: Any, classes: int) -> None:
    y, mask = np.asarray(y), np.asarray(mask)
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 2:
        raise ValueError(
            f"`y` must be integer labels of shape (task, point); got {y.dtype} of shape "
            f"{y.shape}."
        )
    wrong = mask & ((y < 0) | (y >= classes))
    if wrong.any():
        raise ValueError(f"`y` must be labels 0 to {classes - 1}; got {y[wrong][0]}.")
    has = np.stack([(mask & (y == c)).any(axis=1) for c in range(classes)], axis=1)
    if not has.all():
        task, label = np.argwhere(~has)[0]
        raise ValueError(
            f"`y` must have each of the {classes} labels in every task; task {task} lacks "
            f"label {label}. Leave such tasks out, or number the labels of each task anew."
        )
