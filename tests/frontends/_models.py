"""Models in the style of numpyro's documentation, with data, for parity tests."""

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer.reparam import LocScaleReparam, TransformReparam

RNG = np.random.default_rng(20261120)
X = RNG.normal(size=(12, 3))
Y = X @ np.array([1.0, -0.5, 0.2]) + 0.3 * RNG.normal(size=12)
BINARY = (Y > 0).astype(int)
GROUP = np.arange(12) % 4
SERIES = np.cumsum(RNG.normal(size=10))
EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def linear(x, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0, 2))
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.Exponential(1.0))
    mu = numpyro.deterministic("mu", alpha + x @ beta)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


eight_schools_noncentered = handlers.reparam(
    eight_schools, config={"theta": LocScaleReparam(0)}
)


def logistic(x, y=None):
    beta = numpyro.sample("beta", dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def hierarchical(group, num_groups, y=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    with numpyro.plate("side", 2, dim=-2):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("group", num_groups, dim=-1):
            a = numpyro.sample("a", dist.StudentT(4, mu, 1.0))
    with numpyro.plate("data", len(group)):
        numpyro.sample("y", dist.Normal(a[0, group] - a[1, group], sigma), obs=y)


def autoregression(y):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))

    def step(previous, current):
        value = numpyro.sample("y", dist.Normal(phi * previous, sigma), obs=current)
        return value, None

    scan(step, y[0], y[1:])


def state_space(y):
    """Positive latent states, so that a bijection runs inside `scan`."""
    drift = numpyro.sample("drift", dist.LogNormal(0, 0.5))

    def step(state, current):
        state = numpyro.sample("state", dist.Gamma(2.0 + drift, 1.0 + 1.0 / (1.0 + state)))
        numpyro.sample("y", dist.Normal(state, 1.0), obs=current)
        return state, state

    scan(step, jnp.ones(()), y)


def dirichlet_multinomial(counts):
    theta = numpyro.sample("theta", dist.Dirichlet(jnp.ones(3)))
    scale = numpyro.sample("scale", dist.Gamma(2.0, 0.1))
    with numpyro.plate("data", len(counts)):
        numpyro.sample("counts", dist.DirichletMultinomial(theta * scale, 10), obs=counts)


def covariance(y):
    scale = numpyro.sample("scale", dist.HalfCauchy(jnp.ones(3)).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(3, 2.0))
    tril = numpyro.deterministic("tril", scale[:, None] * corr)
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(3), scale_tril=tril), obs=y)


def dynamic(y):
    low = numpyro.sample("low", dist.Normal(0, 1))
    high = numpyro.sample("high", dist.TruncatedNormal(0.0, 2.0, low=low))
    middle = numpyro.sample("middle", dist.Uniform(low, high))
    rate = numpyro.sample("rate", dist.ImproperUniform(constraints.positive, (), ()))
    numpyro.sample("y", dist.Normal(middle, rate), obs=y)
    numpyro.factor("penalty", -rate)


def horseshoe(x, y):
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
    lam = numpyro.sample("lam", dist.HalfCauchy(jnp.ones(x.shape[1])))
    unscaled = numpyro.sample("unscaled", dist.Normal(0, jnp.ones(x.shape[1])))
    beta = numpyro.deterministic("beta", tau * lam * unscaled)
    sigma = numpyro.sample("sigma", dist.InverseGamma(2.0, 1.0))
    numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def gaussian_process(x, y):
    length = numpyro.sample("length", dist.LogNormal(0, 1))
    noise = numpyro.sample("noise", dist.LogNormal(0, 1))
    square = (x[:, None] - x[None]) ** 2
    kernel = jnp.exp(-0.5 * square / length**2) + (noise + 1e-6) * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), kernel), obs=y)


def masked(y, mask):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("data", len(y)), handlers.mask(mask=mask):
        numpyro.sample("y", dist.Exponential(jnp.exp(mu)), obs=y)


def weighted(y, weight):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    with numpyro.plate("data", len(y)), handlers.scale(scale=weight):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def mixture(y):
    weight = numpyro.sample("weight", dist.Dirichlet(jnp.ones(2)))
    loc = numpyro.sample(
        "loc",
        dist.TransformedDistribution(
            dist.Normal(0, 1).expand([2]).to_event(1), dist.transforms.OrderedTransform()
        ),
    )
    components = dist.Normal(loc, 0.5)
    with numpyro.plate("data", len(y)):
        d = dist.MixtureSameFamily(dist.Categorical(weight), components)
        numpyro.sample("y", d, obs=y)


def ordered_logistic(x, y):
    beta = numpyro.sample("beta", dist.Normal(0, 1))
    cut = numpyro.sample(
        "cut", dist.ImproperUniform(constraints.ordered_vector, (), event_shape=(3,))
    )
    numpyro.sample("prior", dist.Normal(jnp.zeros(3), 2.0), obs=cut)
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.OrderedLogistic(beta * x, cut), obs=y)


def transformed(y):
    rate = numpyro.sample("rate", dist.LogNormal(1.0, 0.5))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


COUNTS = RNG.multinomial(10, [0.2, 0.3, 0.5], size=6)
LEVELS = RNG.integers(0, 4, size=12)
KEEP = np.arange(12) % 3 > 0

MODELS = {
    "linear": (linear, (X, Y)),
    "eight_schools": (eight_schools, (ERROR, EFFECT)),
    "eight_schools_noncentered": (eight_schools_noncentered, (ERROR, EFFECT)),
    "logistic": (logistic, (X, BINARY)),
    "hierarchical": (hierarchical, (GROUP, 4, Y)),
    "autoregression": (autoregression, (SERIES,)),
    "state_space": (state_space, (np.abs(SERIES),)),
    "dirichlet_multinomial": (dirichlet_multinomial, (COUNTS,)),
    "covariance": (covariance, (X,)),
    "dynamic": (dynamic, (Y,)),
    "horseshoe": (horseshoe, (X, Y)),
    "gaussian_process": (gaussian_process, (X[:, 0], Y)),
    "masked": (masked, (np.abs(Y), KEEP)),
    "weighted": (weighted, (Y, np.linspace(0.5, 2.0, 12))),
    "mixture": (mixture, (Y,)),
    "ordered_logistic": (ordered_logistic, (X[:, 0], LEVELS)),
    "conditioned": (handlers.condition(linear, data={"y": jnp.asarray(Y)}), (X,)),
    "partial": (functools.partial(linear, y=jnp.asarray(Y)), (X,)),
    "transform_reparam": (
        handlers.reparam(transformed, config={"rate": TransformReparam()}),
        (np.array([1, 3, 2]),),
    ),
}
