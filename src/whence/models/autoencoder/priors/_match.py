"""Functional priors: a law of weights under which functions look like those of a GP."""

import dataclasses
import inspect
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from ....core import AnyArray, PRNGKey, one_of, positive, whole
from ....core._cache import remembering
from ....core._key import seeded
from ..._fit import AbstractFit, Adam, minimised, run
from ..distance._sliced import directions, powers
from ..gp._sparse import squared_exponential
from ._abstract_prior import AbstractPrior
from ._network import RandomNetwork
from ._priors import GaussianPrior, movable_prior

METRICS = ("sliced", "bures", "critic")


class HierarchicalKernel(eqx.Module):
    """Squared exponential kernels whose length scales and variance are random.

    Each function of the process has its own: a variance, and a length scale for each feature,
    by default from LogNormal(log sqrt(2 D), 1) for D standardised features, as in the code of
    Tran, Rossi, Milios and Filippone (2022), JMLR 23.
    """

    lengthscale: dist.Distribution | None = None
    variance: dist.Distribution = eqx.field(default_factory=lambda: dist.LogNormal(0.1, 1.0))

    def __call__(self, x: Array, *, key: PRNGKey) -> Array:
        """Return the covariance matrix of inputs under a draw of the hyper-parameters."""
        key_length, key_variance = jr.split(key)
        law: Any = self.lengthscale or dist.LogNormal(0.5 * np.log(2.0 * x.shape[1]), 1.0)
        scaled = x / law.sample(key_length, x.shape[1:])
        variance: Any = self.variance.sample(key_variance)
        return variance * squared_exponential(scaled, scaled)


class Process(NamedTuple):
    """What functions are compared with: covariances, and draws if it is no Gaussian process."""

    matrix: Array
    draws: Any

    def sample(self, num: int, *, key: PRNGKey) -> Array:
        """Return functions `(num, point)`: those that there are, or fresh ones."""
        return gaussian(self.matrix, num, key=key) if self.draws is None else self.draws


class FunctionalFit(AbstractFit):
    """A network, a law of its weights, the kernel its functions are to have; see `match_prior`.

    Batches of the inputs `x` are measurement sets.
    """

    network: RandomNetwork
    prior: AbstractPrior
    kernel: Any
    x: Array
    draws: int = eqx.field(static=True, converter=whole("draws", least=2))
    metric: str = eqx.field(static=True, converter=one_of("metric", METRICS))
    jitter: float = eqx.field(static=True, converter=positive("jitter"))
    critic_steps: int = eqx.field(static=True, converter=whole("critic_steps", least=1))

    @property
    def num_data(self) -> int:
        return len(self.x)

    def start(self, *, key: PRNGKey) -> Any:
        return self.prior.params

    def functions(self, params: Any, x: Array, *, key: PRNGKey) -> Array:
        """Draw functions at inputs, `(output, draw, point)`."""
        prior = self.prior.with_params(params)
        network = lambda key: self.network.with_arrays(prior.sample(key=key))
        values = jax.vmap(lambda key: jax.vmap(network(key))(x))(jr.split(key, self.draws))
        return jnp.moveaxis(values.reshape(*values.shape[:2], -1), -1, 0)

    def covariance(self, x: Array, *, key: PRNGKey) -> Array:
        """Return the covariance of the process, or of one draw of it, jitter included."""
        matrix = covariance(self.kernel, x, key=key)
        added = self.jitter * jnp.mean(jnp.diagonal(matrix))
        return matrix + added * jnp.eye(len(x), dtype=matrix.dtype)

    def process(self, x: Array, *, key: PRNGKey) -> Process:
        """Return the process at inputs."""
        if not is_random(self.kernel):
            return Process(self.covariance(x, key=key), None)
        keys = jr.split(key, (2, self.draws))
        each = jax.vmap(lambda k: self.covariance(x, key=k))(keys[0])
        draw = lambda matrix, k: gaussian(matrix, 1, key=k)[0]
        return Process(each.mean(0), jax.vmap(draw)(each, keys[1]))

    def loss(self, params, rows, *, key):
        key_draws, key_process, key_metric = jr.split(key, 3)
        x = self.x if rows is None else self.x[rows]
        values = self.functions(params, x, key=key_draws)
        process = self.process(x, key=key_process)
        if self.metric == "critic":
            target = process.sample(self.draws, key=key_process)
            one = lambda f, k: critic_distance(f, target, self.critic_steps, key=k)
            return jax.vmap(one)(values, jr.split(key_metric, len(values))).sum()
        if self.metric == "bures":
            return jax.vmap(lambda f: bures_power(f, process.matrix))(values).sum() / len(x)
        return jax.vmap(lambda f: sliced_power(f, process, key=key_metric))(values).sum()


def is_random(kernel: Any) -> bool:
    """Return whether a kernel has hyper-parameters to be drawn with a key."""
    return not hasattr(kernel, "nngp") and "key" in inspect.signature(kernel).parameters


def covariance(kernel: Any, x: Array, *, key: PRNGKey) -> Array:
    """Return the matrix of a kernel: a description of `nngp`, or a function of inputs."""
    if is_random(kernel):
        return kernel(x, key=key)
    return kernel.nngp(x) if hasattr(kernel, "nngp") else kernel(x)


def gaussian(matrix: Array, num: int, *, key: PRNGKey) -> Array:
    """Draw from N(0, matrix), `(num, point)`."""
    drawn = jr.normal(key, (num, len(matrix)), matrix.dtype)
    return drawn @ jnp.linalg.cholesky(matrix).T


def sliced_power(
    functions: Float[Array, "draw point"], process: Process, *, key: PRNGKey, num: int = 200
) -> Array:
    """Return SW2^2 of functions to draws of a process or, if it has none, to N(0, matrix).

    To that it is, along t, the distance of numbers a to N(0, s^2): `mean a^2 - 2 s mean(a_(i)
    m_i) + s^2`, with m_i the mean of a standard normal between its (i-1)/n and i/n quantiles.
    """
    n = len(functions)
    along = directions(num, functions.shape[1], functions.dtype, key=key)
    if process.draws is not None:
        return powers(functions, process.draws, along).mean()
    a = jnp.sort(functions @ along.T, axis=0)
    s = jnp.sqrt(jnp.sum((along @ process.matrix) * along, axis=1))
    edges = ndtri(jnp.arange(1, n, dtype=a.dtype) / n)
    density = jnp.pad(jnp.exp(-(edges**2) / 2) / jnp.sqrt(2 * jnp.pi), 1)
    means = n * (density[:-1] - density[1:])
    return jnp.mean(jnp.mean(a**2, axis=0) - 2 * s * (means @ a) / n + s**2)


def bures_power(functions: Float[Array, "draw point"], matrix: Array) -> Array:
    """Return W2^2 between N(0, matrix) and the Gaussian with the functions' own moments.

    Gelbrich's formula; the trace of `(K^1/2 C K^1/2)^1/2`. It is a lower bound of W2^2
    between the laws, and depends on means and covariances alone.
    """
    mean = functions.mean(0)
    centred = (functions - mean) / len(functions) ** 0.5
    product = centred @ jnp.linalg.cholesky(matrix)
    # Eigenvalues of L' C L are those of K^1/2 C K^1/2.
    values = jnp.linalg.eigvalsh(product.T @ product)
    tiny = jnp.finfo(values.dtype).eps * jnp.max(values)
    fidelity = jnp.sqrt(jnp.maximum(values, tiny)).sum()
    return jnp.sum(mean**2) + jnp.sum(centred**2) + jnp.trace(matrix) - 2 * fidelity


def critic_distance(
    functions: Float[Array, "draw point"], target: Array, steps: int, *, key: PRNGKey
) -> Array:
    """Return the W1 distance of functions to as many others as a critic sees it.

    The critic, softplus units with a penalty on gradients of length other than 1, is trained
    from the start each time, as published; its gradient is not followed (Danskin).
    """
    key_critic, key_mix = jr.split(key)
    fixed = jax.lax.stop_gradient(functions)
    dim = functions.shape[1]
    width, soft, dtype = min(200, 2 * dim + 20), jax.nn.softplus, functions.dtype
    critic = eqx.nn.MLP(dim, "scalar", width, 2, soft, dtype=dtype, key=key_critic)
    arrays, rest = eqx.partition(critic, eqx.is_array)

    def gap(arrays, values):
        phi = jax.vmap(eqx.combine(arrays, rest))
        return phi(values).mean() - phi(target).mean()

    def loss(arrays, key):
        mix = jr.uniform(key, (len(fixed), 1), fixed.dtype)
        between = mix * fixed + (1 - mix) * target
        slope = jax.vmap(jax.grad(eqx.combine(arrays, rest)))(between)
        length = jnp.sqrt(jnp.sum(slope**2, axis=1) + 1e-12)
        return 10 * jnp.mean((length - 1) ** 2) - gap(arrays, fixed)

    arrays = minimised(loss, arrays, steps, 0.01, jr.split(key_mix, steps))
    return gap(jax.lax.stop_gradient(arrays), functions)


@dataclasses.dataclass(frozen=True)
class MatchedPrior:
    """A law of weights whose functions were matched to a Gaussian process; print it.

    SW2 to the process, per root of a point: `before` and `after`; `floor` of as many draws of
    the process itself. `losses` are what was minimised, at some of the steps.
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
        kernel: Of the process, with mean 0: a description of `whence.models.nngp`; a function
            from inputs `(point, feature)` to their covariance matrix; or one of inputs and
            `key`, as `HierarchicalKernel()`, whose hyper-parameters are drawn with each
            function.
        x: Inputs at which functions are compared, `(point, feature)`: inputs of the data, and
            some all over the region that matters. Batches of `fit` are measurement sets.
        key: A typed key.
        prior: Law of the weights to start from; by default `GaussianPrior.fan_in` with a
            scale for each array.
        metric: `"sliced"`: SW2 with the process in closed form along each direction;
            `"bures"`: W2 of Gaussian approximations, which sees means and covariances; or
            `"critic"`, as published: W1 by a network, many times the work.
        draws: Functions per step.
        fit: How; by default 500 steps of Adam with a rate of 0.02, 32 inputs each.
        jitter: Added to the diagonal of covariances, relative to its mean.
        critic_steps: Steps of the critic for each one of the prior.

    Raises:
        ValueError: If the kernel matrix is singular.

    References:
        Tran, Rossi, Milios and Filippone (2022), All you need is a good functional prior, JMLR.
    """
    prior = GaussianPrior.fan_in(module, per="tensor") if prior is None else prior
    prior = movable_prior("prior", prior, module)
    network = RandomNetwork(module, prior, start="prior")
    x = jnp.asarray(x, jnp.result_type(float))
    if x.ndim < 2 or len(x) < 2 or not np.isfinite(np.asarray(x)).all():
        raise ValueError(f"`x` must be at least 2 finite inputs in rows; got shape {x.shape}.")
    problem = FunctionalFit(network, prior, kernel, x, draws, metric, jitter, critic_steps)
    _check_kernel(problem)
    fit = Adam(steps=500, learning_rate=0.02, batch_size=32) if fit is None else fit
    key_run, key_report = jr.split(key)
    state, trace = run(problem, fit, key=key_run)
    some = np.linspace(0, len(x) - 1, min(len(x), 64)).astype(np.int32)
    before, _ = map(float, _judge(problem, prior.params, some, key_report))
    after, floor = map(float, _judge(problem, state.params, some, key_report))
    return MatchedPrior(prior.with_params(state.params), before, after, floor, trace["loss"])


@remembering
def _judge(problem, params, rows, key):
    key_draws, key_process, key_own, key_along = jr.split(key, 4)
    x = problem.x[rows]
    values = problem.functions(params, x, key=key_draws)
    process = problem.process(x, key=key_process)
    own = problem.process(x, key=key_own).sample(problem.draws, key=key_own)
    measure = lambda f: sliced_power(f, process, key=key_along)
    return jnp.sqrt(jax.vmap(measure)(values).mean()), jnp.sqrt(measure(own))


def _check_kernel(problem: FunctionalFit) -> None:
    if not callable(problem.kernel) and not hasattr(problem.kernel, "nngp"):
        raise ValueError(f"`kernel` must be a function of inputs; got {problem.kernel!r}.")
    key, want = jr.key(0), (len(problem.x),) * 2
    matrix = np.asarray(covariance(problem.kernel, problem.x, key=key), np.float64)
    if matrix.shape != want:
        raise ValueError(f"`kernel` must give a matrix of shape {want}; got {matrix.shape}.")
    tril = jnp.linalg.cholesky(problem.covariance(problem.x, key=key))
    if not np.isfinite(np.asarray(tril)).all():
        least = np.linalg.eigvalsh(matrix)[0] if np.isfinite(matrix).all() else np.nan
        raise ValueError(
            f"The kernel matrix of `x` must be positive definite; its smallest eigenvalue is "
            f"{least:.3g} with a trace of {np.trace(matrix):.3g}. Inputs may be alike: leave "
            f"out copies, or use a larger `jitter` than {problem.jitter:g}."
        )
