"""Joint distributions of TensorFlow Probability of all kinds, with data, for parity tests."""

import warnings

import jax.numpy as jnp
import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import tensorflow_probability.substrates.jax as tfp

tfb, tfd = tfp.bijectors, tfp.distributions
RNG = np.random.default_rng(20261120)
Y = RNG.normal(1.0, 2.0, size=5)
X = RNG.normal(size=(6, 3))
EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def f(*values):
    """Return float64 numbers: TensorFlow Probability takes Python's for float32."""
    return np.float64(values[0]) if len(values) == 1 else np.array(values)


def scale_of(mu):
    """Bounded by another component from below, and by a constant from above."""
    return tfd.Uniform(jnp.exp(0.1 * mu), f(9.0))


def named():
    """Arrays in a batch are summed by `Sample` and `Independent`."""
    return tfd.JointDistributionNamed(
        {
            "mu": tfd.Normal(f(0), f(2)),
            "sigma": scale_of,
            "weights": tfd.Sample(tfd.Beta(f(2.0), f(1.0)), 3),
            "y": lambda mu, sigma: tfd.Sample(tfd.Normal(mu, sigma), 5),
            "z": lambda weights: tfd.Independent(tfd.Normal(weights, f(1)), 1),
        }
    ), {"y": Y, "z": Y[:3]}


def named_auto():
    return tfd.JointDistributionNamedAutoBatched(
        {
            "mu": tfd.Normal(f(0), f(5)),
            "tau": tfd.HalfCauchy(f(0), f(5)),
            "theta": lambda mu, tau: tfd.Normal(mu * jnp.ones(8), tau),
            "y": lambda theta: tfd.Normal(theta, ERROR),
        }
    ), {"y": EFFECT}


def sequential():
    """Vector supports: a simplex, and a Cholesky factor of a correlation."""
    return tfd.JointDistributionSequential(
        [
            tfd.Dirichlet(jnp.ones(3)),
            tfd.CholeskyLKJ(3, f(2.0)),
            tfd.Sample(tfd.Gamma(f(2.0), f(1.0)), 3),
            lambda s, corr, p: tfd.Sample(tfd.MultivariateNormalTriL(p, s[:, None] * corr), 6),
        ]
    ), {"x": X}


def sequential_auto():
    """Each component bounded by the one before."""
    return tfd.JointDistributionSequentialAutoBatched(
        [
            tfd.Normal(f(0), f(1)),
            lambda low: tfd.TruncatedNormal(low, f(2), low, low + 3.0),
            lambda high, low: tfd.Uniform(low * jnp.ones((2, 1)), high + f(1, 2, 3)),
            lambda middle: tfd.Normal(middle.sum(), f(1) * jnp.ones(5)),
        ]
    ), {"x": Y}


def coroutine():
    """An observed component with latents after it, and one that needs no bijector."""

    def model():
        root = tfd.JointDistributionCoroutine.Root
        a = yield root(tfd.LogNormal(f(0), f(0.5), name="a"))
        y = yield tfd.Sample(tfd.Exponential(a), 5, name="y")
        b = yield tfd.Sample(tfd.Logistic(y.mean(), a), (2, 2), name="b")
        yield tfd.Independent(tfd.Poisson(jnp.exp(0.1 * b)), 2, name="n")

    joint = tfd.JointDistributionCoroutine(model)
    return joint, {"y": np.abs(Y), "n": np.array([[1, 0], [3, 2]])}


def coroutine_auto():
    """A non-centred hierarchy with a deterministic component."""

    @tfd.JointDistributionCoroutineAutoBatched
    def joint():
        mu = yield tfd.Normal(f(0), f(5), name="mu")
        tau = yield tfd.HalfCauchy(f(0), f(5), name="tau")
        z = yield tfd.Normal(jnp.zeros(8), f(1), name="z")
        theta = yield tfd.Deterministic(mu + tau * z, name="theta")
        yield tfd.Normal(theta, ERROR, name="y")

    return joint, {"y": EFFECT}


JOINTS = {
    x.__name__: x
    for x in (named, named_auto, sequential, sequential_auto, coroutine, coroutine_auto)
}
