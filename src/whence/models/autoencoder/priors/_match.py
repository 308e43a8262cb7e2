"""Functional priors: a law of weights under which functions look like those of a GP."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from ....core._cache import remembering
from ....core._convert import one_of, positive, whole
from ....core._key import seeded
from ....core._types import AnyArray, PRNGKey
from ..._fit import AbstractFit, Adam, run
from ..distance._sliced import directions
from ._abstract_prior import AbstractPrior
from ._network import RandomNetwork
from ._priors import FixedPrior, GaussianPrior

METRICS = ("sliced", "bures", "critic")


class FunctionalFit(AbstractFit):
    """A network, a law of its weights, and the kernel that its functions are to have.

    Attributes:
        network: The network.
        prior: Law of its weights to start from.
        kernel: From inputs to a covariance matrix.
        x: Inputs at which functions are compared; batches of them are measurement sets.
        draws: Functions per step.
        metric: See `match_prior`.
        jitter: Added to the diagonal, relative to its mean.
        critic_steps: Of the critic for one step of the prior.
    """

    network: RandomNetwork
    prior: AbstractPrior
    kernel: Any
    x: Array
    draws: int = eqx.field(static=True)
    metric: str = eqx.field(static=True)
    jitter: float = eqx.field(static=True)
    critic_steps: int = eqx.field(static=True)

    @property
    def num_data(self) -> int:
        return len(self.x)

    def start(self, *, key: PRNGKey) -> Any:
        return eqx.filter(self.prior, eqx.is_inexact_array)

    def with_params(self, params: Any) -> AbstractPrior:
        """Return the prior with these arrays."""
        rest = eqx.filter(self.prior, eqx.is_inexact_array, inverse=True)
        return eqx.combine(params, rest)

    def functions(self, prior: AbstractPrior, x: Array, *, key: PRNGKey) -> Array:
        """Draw functions at inputs, `(output, draw, point)`."""

        def one(key):
            return jax.vmap(self.network.with_arrays(prior.sample(key=key)))(x)

        values = jax.vmap(one)(jr.split(key, self.draws))
        values = values.reshape(*values.shape[:2], -1)
        return jnp.moveaxis(values, -1, 0)

    def covariance(self, x: Array) -> Array:
        """Return the target's covariance, jitter included."""
        matrix = covariance(self.kernel, x)
        added = self.jitter * jnp.mean(jnp.diagonal(matrix))
        return matrix + added * jnp.eye(len(x), dtype=matrix.dtype)

    def loss(self, params, rows, *, key):
        key_draws, key_metric = jr.split(key)
        x = self.x if rows is None else self.x[rows]
        values = self.functions(self.with_params(params), x, key=key_draws)
        matrix = self.covariance(x).astype(values.dtype)
        if self.metric == "critic":
            one = lambda f, k: critic_distance(f, matrix, self.critic_steps, key=k)
            return jax.vmap(one)(values, jr.split(key_metric, len(values))).sum()
        if self.metric == "bures":
            return jax.vmap(lambda f: bures_power(f, matrix))(values).sum() / len(x)
        return jax.vmap(lambda f: sliced_power(f, matrix, key=key_metric))(values).sum()


def covariance(kernel: Any, x: Array) -> Array:
    """Return the matrix of a kernel: a description of `nngp`, or a function of inputs."""
    return kernel.nngp(x) if hasattr(kernel, "nngp") else kernel(x)


def sliced_power(
    functions: Float[Array, "draw point"], matrix: Array, *, key: PRNGKey, num: int = 200
) -> Array:
    """Return SW2^2 of functions to N(0, matrix), which needs no draws of it.

    Along t it is the distance of numbers a to N(0, s^2): `mean a^2 - 2 s mean(a_(i) m_i) +
    s^2`, with m_i the mean of a standard normal between its (i-1)/n and i/n quantiles.
    """
    n = len(functions)
    along = directions(num, functions.shape[1], functions.dtype, key=key)
    a = jnp.sort(functions @ along.T, axis=0)
    s = jnp.sqrt(jnp.sum((along @ matrix) * along, axis=1))
    edges = ndtri(jnp.arange(1, n, dtype=a.dtype) / n)
    density = jnp.exp(-(edges**2) / 2) / jnp.sqrt(2 * jnp.pi)
    density = jnp.concatenate([jnp.zeros(1, a.dtype), density, jnp.zeros(1, a.dtype)])
    means = n * (density[:-1] - density[1:])
    return jnp.mean(jnp.mean(a**2, axis=0) - 2 * s * (means @ a) / n + s**2)


def bures_power(functions: Float[Array, "draw point"], matrix: Array) -> Array:
    """Return W2^2 between N(0, matrix) and the Gaussian with the functions' own moments.

    Gelbrich's formula; the trace of `(K^1/2 C K^1/2)^1/2`. It is a lower bound of W2^2
    between the laws, and depends on means and covariances alone.
    """
    mean = functions.mean(0)
    centred = (functions - mean) / jnp.sqrt(jnp.asarray(len(functions), functions.dtype))
    half = jnp.linalg.cholesky(matrix)
    product = centred @ half
    # Eigenvalues of L' C L are those of K^1/2 C K^1/2.
    values = jnp.linalg.eigvalsh(product.T @ product)
    tiny = jnp.finfo(values.dtype).eps * jnp.max(values)
    fidelity = jnp.sqrt(jnp.maximum(values, tiny)).sum()
    return jnp.sum(mean**2) + jnp.sum(centred**2) + jnp.trace(matrix) - 2 * fidelity


def critic_distance(
    functions: Float[Array, "draw point"], matrix: Array, steps: int, *, key: PRNGKey
) -> Array:
    """Return the W1 distance of functions to N(0, matrix) as a critic sees it.

    The critic, softplus units with a penalty on gradients of length other than 1, is trained
    from the start each time, as published; its gradient is not followed (Danskin).
    """
    key_target, key_critic, key_mix = jr.split(key, 3)
    target = jr.normal(key_target, functions.shape, functions.dtype)
    target = target @ jnp.linalg.cholesky(matrix).T
    fixed = jax.lax.stop_gradient(functions)
    width = min(200, 2 * functions.shape[1] + 20)
    critic = eqx.nn.MLP(functions.shape[1], "scalar", width, 2, jax.nn.softplus, key=key_critic)
    arrays, rest = eqx.partition(critic, eqx.is_array)
    arrays = jax.tree.map(lambda v: v.astype(functions.dtype), arrays)
    rule = optax.adam(optax.cosine_decay_schedule(0.01, steps))

    def gap(arrays, values):
        phi = jax.vmap(eqx.combine(arrays, rest))
        return phi(values).mean() - phi(target).mean()

    def loss(arrays, key):
        mix = jr.uniform(key, (len(fixed), 1), fixed.dtype)
        between = mix * fixed + (1 - mix) * target
        slope = jax.vmap(jax.grad(eqx.combine(arrays, rest)))(between)
        length = jnp.sqrt(jnp.sum(slope**2, axis=1) + 1e-12)
        return 10 * jnp.mean((length - 1) ** 2) - gap(arrays, fixed)

    def step(i, carry):
        arrays, state = carry
        update, state = rule.update(jax.grad(loss)(arrays, jr.fold_in(key_mix, i)), state)
        return optax.apply_updates(arrays, update), state

    arrays, _ = jax.lax.fori_loop(0, steps, step, (arrays, rule.init(arrays)))
    return gap(jax.lax.stop_gradient(arrays), functions)


@dataclasses.dataclass(frozen=True)
class MatchedPrior:
    """A law of weights whose functions were matched to a Gaussian process; print it.

    Attributes:
        prior: For `RandomNetwork`.
        before: SW2 to the process at the start, per root of a point.
        after: At the end.
        floor: Of as many draws of the process itself.
        losses: What was minimised, at some of the steps.
    """

    prior: AbstractPrior
    before: float
    after: float
    floor: float
    losses: np.ndarray

    def __str__(self) -> str:
        said = f"SW2 to the process {self.before:.4f} before, {self.after:.4f} after; "
        said += f"{self.floor:.4f} for draws of the process itself."
        if self.after <= 1.5 * self.floor:
            return said + " Functions cannot be told from its draws by SW2."
        if self.after >= 0.95 * self.before:
            return said + " Matching changed next to nothing: allow more steps."
        return said + " What is left the family may not reach, or more steps may."


@seeded
def match_prior(
    module: Any,
    kernel: Any,
    x: AnyArray,
    *,
    key: PRNGKey,
    prior: AbstractPrior | None = None,
    metric: str = "sliced",
    draws: int = 256,
    fit: Adam | None = None,
    jitter: float = 1e-4,
    critic_steps: int = 200,
) -> MatchedPrior:
    """Match the functions of a network with random weights to a Gaussian process.

    Args:
        module: The network, from one input to its outputs; each is matched.
        kernel: Of the process, with mean 0: a description of `whence.models.nngp`, or a
            function from inputs `(point, feature)` to their covariance matrix.
        x: Inputs at which functions are compared, `(point, feature)`: inputs of the data, and
            some all over the region that matters. Batches of `fit` are measurement sets.
        key: A typed key.
        prior: Law of the weights to start from; by default `GaussianPrior.fan_in` with a
            scale for each array.
        metric: `"sliced"`: SW2 with the process in closed form along each direction;
            `"bures"`: W2 of Gaussian approximations, which sees covariances only; or
            `"critic"`, as published: W1 by a network, many times the work.
        draws: Functions per step.
        fit: How; by default 500 steps of Adam with a rate of 0.02, 32 inputs each.
        jitter: Added to the diagonal of covariances, relative to its mean.
        critic_steps: Steps of the critic for each one of the prior.

    Raises:
        ValueError: If the kernel matrix is singular, or an argument not of this form.

    References:
        Tran, Rossi, Milios and Filippone (2022), All you need is a good functional prior for
        Bayesian deep learning, JMLR 23.
    """
    if prior is None:
        prior = GaussianPrior.fan_in(module, per="tensor")
    if not isinstance(prior, AbstractPrior) or isinstance(prior, FixedPrior):
        raise ValueError(
            "`prior` must be a GaussianPrior, HierarchicalPrior or FlowPrior; got "
            f"{type(prior).__name__}."
        )
    network = RandomNetwork(module, prior, start="prior")
    x = jnp.asarray(x, jnp.result_type(float))
    if x.ndim < 2 or len(x) < 2 or not np.isfinite(np.asarray(x)).all():
        raise ValueError(
            f"`x` must be at least 2 finite inputs, rows first; got shape {x.shape}."
        )
    problem = FunctionalFit(
        network,
        prior,
        kernel,
        x,
        whole("draws", least=2)(draws),
        one_of("metric", METRICS)(metric),
        positive("jitter")(jitter),
        whole("critic_steps", least=1)(critic_steps),
    )
    _check_kernel(problem)
    fit = Adam(steps=500, learning_rate=0.02, batch_size=32) if fit is None else fit
    key_run, key_report = jr.split(key)
    state, trace = run(problem, fit, key=key_run)
    begin = problem.start(key=key)
    some = np.linspace(0, len(x) - 1, min(len(x), 64)).astype(np.int32)
    before, _ = _judge(problem, begin, some, key_report)
    after, floor = _judge(problem, state.params, some, key_report)
    matched = problem.with_params(state.params)
    return MatchedPrior(matched, float(before), float(after), float(floor), trace["loss"])


@remembering
def _judge(problem, params, rows, key):
    key_draws, key_target, key_along = jr.split(key, 3)
    x = problem.x[rows]
    values = problem.functions(problem.with_params(params), x, key=key_draws)
    matrix = problem.covariance(x).astype(values.dtype)
    own = jr.normal(key_target, values.shape[1:], values.dtype)
    own = own @ jnp.linalg.cholesky(matrix).T
    measure = lambda f: sliced_power(f, matrix, key=key_along)
    return jnp.sqrt(jax.vmap(measure)(values).mean()), jnp.sqrt(measure(own))


def _check_kernel(problem: FunctionalFit) -> None:
    matrix = np.asarray(covariance(problem.kernel, problem.x), np.float64)
    if matrix.shape != (len(problem.x),) * 2:
        raise ValueError(
            f"`kernel` must give a matrix of shape {(len(problem.x),) * 2}; got {matrix.shape}."
        )
    if not np.isfinite(np.asarray(jnp.linalg.cholesky(problem.covariance(problem.x)))).all():
        least = np.linalg.eigvalsh(matrix)[0] if np.isfinite(matrix).all() else np.nan
        raise ValueError(
            f"The kernel matrix of `x` must be positive definite; its smallest eigenvalue is "
            f"{least:.3g} with a trace of {np.trace(matrix):.3g}. Inputs may be alike: leave "
            f"out copies, or use a larger `jitter` than {problem.jitter:g}."
        )
