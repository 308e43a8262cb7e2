"""The model: weights of a network that vary from task to task, and the law they vary by."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.tree_util import keystr, tree_map_with_path
from jaxtyping import Array, PyTree
from scipy import stats

from ...core._convert import one_of, part, positive, whole
from ...core._key import as_key
from ...core._results import InferenceWarning
from ...core._types import Scalar
from ...language._module_leaves import check_module, select
from ._covariance import AbstractCovariance, Diagonal, Full, LowRank, Weights
from ._likelihood import AbstractLikelihood
from ._tasks import AbstractTasks

_COVARIANCES = ("diagonal", "full", "low_rank")
_INPUTS = 32  # at which the size of outputs is looked at
_ODD = 30.0  # times as large or small as what networks are made for
_NODES, _TAIL = 32, 1e-7  # of the law of the scale of a task


class Population(eqx.Module):
    """Components of the law of a task's weights: means and covariances, stacked."""

    log_weights: Array  # unnormalised, `(component,)`
    mean: Array  # `(component, weight)`
    covariance: AbstractCovariance  # its arrays have an axis of components before their own


class Scales(eqx.Module):
    """A law of the factor v on a task's covariance, on a grid."""

    values: Array  # `(node,)`
    log_weights: Array  # normalised, `(node,)`


class Layout(NamedTuple):
    """How a vector of weights is laid out in the network."""

    structure: Any  # of the pytree of adapted arrays
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    last: int  # where the weights of the last layer begin


class NIWMeta(eqx.Module):
    """Tasks whose networks differ: `theta_i ~ N(mu, Sigma)`, `y | x, theta_i` of a likelihood.

    Selected arrays of a network have values of their own in each task. Their law, and the
    arrays that all tasks share, are learned from many tasks (`OneTimeIterates`); a new task
    needs few points then (`adapt`). Of the posterior of `(mu, Sigma)`, a Normal-inverse-
    Wishart law, endless tasks identify only its mean and `E[Sigma^-1]`, which is what is
    learned; `df` and `strength` say how sure it is, where that is asked for.

    With `"diagonal"` the law is the product of one-dimensional laws (`ProductNIW`), with
    `"full"` and `"low_rank"` an inverse Wishart over the matrix (`NIW`), with df > d - 1.

    Args:
        net: An Equinox module, from one input to outputs; its values are the start.
        likelihood: For example `Gaussian(scale=0.3)`, `Categorical(5)`, `Prototypes(5)`.
        random: Which arrays vary by task: a filter of leaves as `equinox.is_inexact_array`,
            or a function of the module that returns some of its parts
            (`lambda net: net.layers[-1]`). The other floating-point arrays are shared.
        covariance: `"diagonal"`, `"full"` or `"low_rank"`.
        rank: Of the low-rank part.
        components: Components of a mixture, for tasks of several kinds.
        precision: Of each weight between tasks, at the start. None for one with which outputs
            vary between tasks by 1 (logits by 5, embeddings for `Prototypes` by 1 in length),
            which `on` finds at the inputs of the tasks, but at least 100 for `Prototypes` and
            where more than the last layer varies.
        tails: Degrees of freedom of a scale v of each task, `theta_i ~ N(mu, v Sigma)` with
            v ~ IG(tails / 2, tails / 2): tasks far from the others cost less, and `adapt`
            says how unusual a task is. None is v = 1.
        likelihood_scale: Factor on the log likelihood, a *sum* over points. 1 is Bayes' rule.
        df: Degrees of freedom of the law of Sigma (about the number of tasks learned from),
            for `adapt(..., prior="mode")` and `"predictive_t"`.
        strength: Number of tasks that mu is known from; by default `df`.
        key: For where the components of a mixture start.

    Raises:
        ValueError: If an argument is not as said; the message names it.

    References:
        Kim, Hospedales (2024), A hierarchical Bayesian model for deep few-shot meta learning,
        ICLR, arXiv:2306.09702.
    """

    shared: PyTree
    frozen: PyTree
    likelihood: AbstractLikelihood
    population: Population
    scales: Scales
    layout: Layout = eqx.field(static=True)
    df: float | None = eqx.field(static=True)
    strength: float | None = eqx.field(static=True)
    likelihood_scale: float = eqx.field(static=True)
    precision: float | None = eqx.field(static=True)

    def __init__(
        self,
        net: Any,
        likelihood: Any,
        *,
        random: Any = eqx.is_inexact_array,
        covariance: str = "diagonal",
        rank: Any = 4,
        components: Any = 1,
        precision: Any = None,
        tails: Any = None,
        likelihood_scale: Any = 1.0,
        df: Any = None,
        strength: Any = None,
        key: Any = 0,
    ):
        check_module(net)
        self.likelihood = part("likelihood", AbstractLikelihood)(likelihood)
        net = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, net)
        own, self.shared, self.frozen, names = _split(net, random)
        leaves, structure = jax.tree.flatten(own)
        mean = ravel_pytree(own)[0]
        size, sizes = len(mean), tuple(leaf.size for leaf in leaves)
        owners = [name.rpartition(".")[0] for name in names]
        of_last = sum(n for n, owner in zip(sizes, owners) if owner == owners[-1])
        shapes = tuple(leaf.shape for leaf in leaves)
        self.layout = Layout(structure, shapes, sizes, size - of_last)
        kind = one_of("covariance", _COVARIANCES)(covariance)
        self.df = positive("df", optional=True)(df)
        self.strength = positive("strength", optional=True)(strength) or self.df
        if kind != "diagonal" and self.df is not None and self.df <= size - 1:
            raise ValueError(
                f"`df` must be above d - 1 = {size - 1} with `covariance={kind!r}`, an inverse "
                f"Wishart over the {size} adapted weights; got {self.df:g}. Adapt fewer "
                "weights, or use 'diagonal', which needs only df > 0."
            )
        number, rank = whole("components", least=1)(components), whole("rank", least=1)(rank)
        self.precision = positive("precision", optional=True)(precision)
        spread = (self.precision or 1.0) ** -0.5
        key_mean, key_factor = jr.split(as_key(key))
        start = spread * jr.normal(key_mean, (number, size), mean.dtype)
        self.population = Population(
            jnp.zeros(number, mean.dtype),
            mean[None] + (start if number > 1 else 0),
            _covariance(kind, (number, size, rank), spread, mean.dtype, key_factor),
        )
        self.scales = grid_of(positive("tails", optional=True)(tails), mean.dtype)
        self.likelihood_scale = positive("likelihood_scale")(likelihood_scale)

    @property
    def is_product(self) -> bool:
        """Whether weights have one-dimensional laws."""
        return isinstance(self.population.covariance, Diagonal)

    @property
    def num_weights(self) -> int:
        """Number of weights that vary by task."""
        return sum(self.layout.sizes)

    def network(self, weights: Weights) -> Any:
        """Return the Equinox module of a task with these weights, `(weight,)`."""
        parts = jnp.split(weights, np.cumsum(self.layout.sizes)[:-1])
        arrays = [p.reshape(s) for p, s in zip(parts, self.layout.shapes)]
        own = jax.tree.unflatten(self.layout.structure, arrays)
        return eqx.combine(own, self.shared, self.frozen)

    def outputs(self, weights: Weights, x: Array) -> Array:
        """Return outputs `(point, output)` at inputs `(point, ...)`."""
        net = self.network(weights)
        x = x.astype(weights.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        return jax.vmap(lambda row: jnp.ravel(net(row)))(x)

    def on(self, tasks: Any) -> Problem:
        """Return what `whence.train` works on: this model and tasks to learn from.

        Args:
            tasks: `Tasks` or `Episodes`.

        Raises:
            ValueError: If the tasks do not fit the network or the likelihood.
        """
        if not isinstance(tasks, AbstractTasks):
            raise ValueError(f"`tasks` must be `niw.Tasks` or `niw.Episodes`; got {tasks!r}.")
        batch = tasks.example()
        check_fit(self, *batch)
        for name in ("x", "y"):
            _warn_of_units(name, np.asarray(getattr(batch, name)), np.asarray(batch.mask))
        x = np.asarray(batch.x)[np.asarray(batch.mask)]
        some = x[:: max(1, len(x) // _INPUTS)][:_INPUTS]  # of tasks far apart
        return Problem(self if self.precision else _in_units(self, jnp.asarray(some)), tasks)


class Problem(eqx.Module):
    """A model and tasks to learn it from; made by the model's `on`."""

    model: Any  # a pytree of whose floating-point arrays those count that its loss uses
    tasks: AbstractTasks


class TaskLoss(eqx.Module):
    """`-log p(data of one task | weights)`, and its curvature by rows of a Jacobian."""

    meta: NIWMeta
    x: Array
    y: Array
    mask: Array

    def scores(self, weights: Weights, new: Array | None = None) -> Array:
        """Return scores of the task's own points, or of those at new inputs."""
        new = None if new is None else self.meta.outputs(weights, new)
        outputs = self.meta.outputs(weights, self.x)
        return self.meta.likelihood.scores(outputs, self.y, self.mask, new)

    def __call__(self, weights: Weights) -> Scalar:
        """Return the loss in nats: a sum over points."""
        likelihood = self.meta.likelihood
        log_prob = likelihood.log_prob(self.scores(weights), self.y)
        kept = jnp.where(likelihood.counted(self.y, self.mask), log_prob, 0)
        return -self.meta.likelihood_scale * jnp.sum(kept)

    def jacobian(self, weights: Weights, root: Array | None = None) -> Array:
        """Return derivatives of the scores, `(point, score, weight)`, or `root` times them."""
        if not self.meta.likelihood.separable:
            each = jax.jacrev(self.scores)(weights)
            return each if root is None else jnp.einsum("pst,ptw->psw", root, each)

        def of_point(x, root):
            out, back = jax.vjp(lambda w: self.meta.outputs(w, x[None])[0], weights)
            eye = jnp.eye(len(out), dtype=out.dtype)
            return jax.vmap(lambda row: back(row)[0])(eye if root is None else root)

        return jax.vmap(of_point)(self.x, root)

    def rows(self, weights: Weights) -> tuple[Array, Array]:
        """Return B and c with curvature `B'B` (Gauss-Newton) and gradient `B'c`.

        Shapes are `(point * score, weight)` and `(point * score,)`.
        """
        likelihood = self.meta.likelihood
        root, residual = likelihood.whitened(self.scores(weights), self.y)
        counted = likelihood.counted(self.y, self.mask).astype(root.dtype)
        factor = (counted * self.meta.likelihood_scale**0.5)[:, None]
        rows = self.jacobian(weights, factor[..., None] * root)
        return rows.reshape(-1, rows.shape[-1]), (factor * residual).ravel()


def check_fit(meta: NIWMeta, x: Any, y: Any, mask: Any) -> None:
    """Raise `ValueError` unless data of tasks, `(task, point, ...)`, fit the model."""
    weights = meta.population.mean[0]
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    row = jax.ShapeDtypeStruct(x.shape[2:], weights.dtype if floating else x.dtype)
    net = meta.network(weights)
    try:
        out = eqx.filter_eval_shape(net, row)
    except Exception as error:
        raise ValueError(
            f"`x` must hold inputs of the network, which is called for one at a time, here of "
            f"shape {row.shape}; it failed: {error}"
        ) from error
    if not any(isinstance(value, Tracer) for value in (y, mask)):
        meta.likelihood.check(y, mask, int(np.prod(out.shape)))


@eqx.filter_jit
def _in_units(meta: NIWMeta, x: Array) -> NIWMeta:
    """Return a model whose outputs vary between tasks by what its likelihood asks for."""
    start = jnp.mean(meta.population.mean, axis=0)
    one = lambda weights, x: meta.outputs(weights, x[None])[0]
    jacobian = jax.vmap(jax.jacrev(one), in_axes=(None, 0))(start, x)
    size = jnp.mean(jnp.sum(jacobian**2, axis=2), axis=0)
    size = jnp.mean(size) if meta.likelihood.separable else jnp.sum(size)
    factor = meta.likelihood.spread**2 / jnp.maximum(size, 1e-6)
    # Scores are linear in nothing but small changes of the weights, unless a last layer is all.
    if meta.layout.last or not meta.likelihood.separable:
        factor = jnp.minimum(factor, 0.01)
    mean = start + jnp.sqrt(factor) * (meta.population.mean - start)
    covariance = jax.vmap(lambda c: c.scaled(factor))(meta.population.covariance)
    where = lambda m: (m.population.mean, m.population.covariance)
    return eqx.tree_at(where, meta, (mean, covariance))


def _warn_of_units(name: str, values: np.ndarray, mask: np.ndarray) -> None:
    size = np.sqrt(np.mean(values[mask].astype(float) ** 2))
    if np.issubdtype(values.dtype, np.floating) and not 1 / _ODD < size < _ODD:
        warnings.warn(
            f"`{name}` is of size {size:.1g} (root mean square), and networks are made for "
            "numbers of size 1: learning may be slow or fail. Subtract its mean and divide by "
            "its standard deviation over all tasks, and the `scale` of the noise with it.",
            InferenceWarning,
            stacklevel=3,
        )


def _split(net: Any, random: Any) -> tuple[PyTree, PyTree, PyTree, list[str]]:
    """Return the adapted arrays, the shared ones, what stays, and names of the first."""
    if not callable(random):
        raise ValueError(
            "`random` must be a filter of leaves, as `equinox.is_inexact_array`, or a function "
            f"of the module that returns parts of it; got {random!r}."
        )
    where = random
    try:
        if isinstance(random(net), bool | np.bool_):
            where = lambda path, leaf: bool(random(leaf))
        names = [leaf.path for leaf in select(net, where)]
    except (ValueError, AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"`random` must select arrays of the network. {error}") from error
    arrays, frozen = eqx.partition(net, eqx.is_inexact_array)
    is_own = lambda path, _: keystr(path, simple=True, separator=".") in names
    own, shared = eqx.partition(arrays, tree_map_with_path(is_own, arrays))
    return own, shared, frozen, names


def _covariance(kind, shape, spread, dtype, key) -> AbstractCovariance:
    log_spread = jnp.full(shape[:2], np.log(spread), dtype)
    if kind == "diagonal":
        return Diagonal(-2 * log_spread)
    if kind == "full":
        return Full(jax.vmap(jnp.diag)(log_spread))
    # Directions small beside the rest: they grow where tasks differ along them.
    factor = jr.normal(key, shape, dtype) * (0.1 * spread)
    return LowRank(-2 * log_spread, factor)


def grid_of(tails: float | None, dtype: Any) -> Scales:
    """Return `IG(tails / 2, tails / 2)` on a grid; for None all of it at 1."""
    if tails is None:
        return Scales(jnp.ones(1, dtype), jnp.zeros(1, dtype))
    law: Any = stats.invgamma(tails / 2, scale=tails / 2)
    low, high = np.log(law.ppf([_TAIL, 1 - _TAIL]))
    logs = np.linspace(low, high, _NODES)
    weights = law.pdf(np.exp(logs)) * np.exp(logs)
    logs, weights = jnp.asarray(logs, dtype), jnp.asarray(weights / weights.sum(), dtype)
    return Scales(jnp.exp(logs), jnp.log(weights))
