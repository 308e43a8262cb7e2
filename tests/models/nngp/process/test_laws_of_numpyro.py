"""Laws of the scale with edges, kinks, several peaks and heavy tails, by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import transforms

from whence.models import nngp
from whence.models.nngp import FromDistribution, InverseGamma, ScaleMixture

# By name: the law, its density by NumPy, and where log v is cut.
LAWS = {
    "edges": (dist.Uniform(0.5, 2.0), lambda v: np.where((v > 0.5) & (v < 2), 1 / 1.5, 0)),
    "one edge": (dist.Uniform(0.0, 10.0), lambda v: np.where(v < 10, 0.1, 0)),
    "lower edge": (dist.Pareto(1.0, 2.0), lambda v: np.where(v > 1, 2 / v**3, 0)),
    "power at an edge": (dist.Beta(2.0, 1.5), lambda v: 3.75 * v * np.sqrt(np.fmax(1 - v, 0))),
    "two peaks": (
        dist.MixtureSameFamily(
            dist.Categorical(jnp.array([0.3, 0.7])), dist.LogNormal(jnp.array([-4.0, 4.0]), 0.3)
        ),
        lambda v: 0.3 * _normal(np.log(v), -4) / v + 0.7 * _normal(np.log(v), 4) / v,
    ),
    "edges inside": (
        dist.MixtureGeneral(
            dist.Categorical(jnp.array([0.3, 0.7])),
            [dist.Uniform(1.0, 2.0), dist.HalfCauchy(1.0)],
            support=dist.constraints.positive,
        ),
        lambda v: 0.3 * ((v > 1) & (v < 2)) + 0.7 * 2 / np.pi / (1 + v**2),
    ),
    "kink": (
        dist.TransformedDistribution(dist.Laplace(0.0, 0.5), transforms.ExpTransform()),
        lambda v: np.exp(-2 * np.abs(np.log(v))) / v,
    ),
    "edge below": (
        dist.TransformedDistribution(dist.Uniform(-1.0, 2.0), transforms.ExpTransform()),
        lambda v: np.where((v > np.exp(-1)) & (v < np.exp(2)), 1 / (3 * v), 0),
    ),
}
CUTS = np.log([0.5, 1, 2, 10])
SIZES_AND_SQUARES = (0, 0.0), (1, 1.0), (3, 0.5), (20, 20.0), (20, 400.0), (1000, 1000.0)


def _normal(x, loc):
    return np.exp(-(((x - loc) / 0.3) ** 2) / 2) / (0.3 * np.sqrt(2 * np.pi))


def _rule():
    """Gauss-Legendre between all cuts, with panels that shrink towards them."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    ends = [-120.0, -1.0, *CUTS, 80.0]
    panels = []
    for low, high in zip(sorted(ends), sorted(ends)[1:]):
        shares = np.concatenate([np.geomspace(1e-13, 0.1, 60), np.linspace(0.1, 0.5, 400)[1:]])
        grid = np.concatenate([[0], shares, 1 - shares[-2::-1], [1]])
        panels.append(low + (high - low) * grid)
    low, high = (np.concatenate([p[s] for p in panels]) for s in (slice(-1), slice(1, None)))
    half = ((high - low) / 2)[:, None]
    return ((low + high)[:, None] / 2 + half * nodes).ravel(), (half * weights).ravel()


@pytest.mark.parametrize("name", LAWS)
def test_integrals_are_those_of_brute_force(name):
    distribution, density = LAWS[name]
    law = FromDistribution(distribution)
    u, weights = _rule()
    with np.errstate(divide="ignore", over="ignore"):
        prior = np.log(density(np.exp(u)) * weights) + u
    if name == "edge below":  # its upper edge, 2, is no cut
        u, weights = np.linspace(-1, 2, 100_002)[:-1] + 1.5e-5, np.full(100_001, 3 / 100_001)
        prior = np.log(weights / 3)
    for size, square in SIZES_AND_SQUARES:
        value = law.log_integral(size, jnp.asarray(square))
        terms = prior - size / 2 * u - square / 2 * np.exp(-u)
        truth = np.logaddexp.reduce(np.asarray(terms))
        assert_allclose(value, truth, atol=1e-6 if name == "edge below" else 2e-9)


def test_mean_given_observations_and_slope_by_an_edge():
    """Uniform on (0, b), one observation: by scipy, and by differences in b."""
    from scipy.integrate import quad

    def part(b, power=0):
        return quad(lambda v: v ** (power - 0.5) * np.exp(-1 / (2 * v)) / b, 0, b)[0]

    law = FromDistribution(dist.Uniform(0.0, 10.0))
    posterior = law.posterior(1, jnp.ones(()))
    assert_allclose(posterior.mean, part(10, 1) / part(10), rtol=1e-8)
    slope = jax.grad(
        lambda b: FromDistribution(dist.Uniform(0.0, b)).log_integral(1, jnp.ones(()))
    )(10.0)
    numeric = (np.log(part(10.001)) - np.log(part(9.999))) / 0.002
    assert_allclose(slope, numeric, rtol=1e-6)


@pytest.mark.parametrize(
    ("distribution", "order"),
    [
        (dist.InverseGamma(0.3, 1.0), 0.3),
        (dist.HalfCauchy(1.0), 1.0),
        (dist.Pareto(1.0, 2.0), 2.0),
        (dist.LogNormal(0.0, 3.0), np.inf),
        (dist.Uniform(0.0, 10.0), np.inf),
        (dist.Gamma(0.5, 1.0), np.inf),
    ],
)
def test_moments_that_exist(distribution, order):
    assert_allclose(FromDistribution(distribution).tail(), order, atol=1e-6)


def test_a_law_of_numpyro_has_the_moments_of_its_closed_form():
    net = nngp.Serial(nngp.Dense(2.0, 0.1), nngp.ReLU(), nngp.Dense())
    x, y = np.array([[0.1, 0.2]]), np.array([0.7])
    laws = InverseGamma(0.3, 1.0), dist.InverseGamma(0.3, 1.0)
    closed, by_nodes = (ScaleMixture(net, law, 0.1).condition(x, y) for law in laws)
    for given in (closed, by_nodes):
        marginals = given.observation_marginals(x + 1)
        assert np.isfinite(marginals.mean)
        assert np.isinf(marginals.variance)
        assert "infinite variance" in " ".join(given.remarks)


def _two_peaks(v):
    log = jnp.log(v)
    return jnp.logaddexp(-(((log - 5) / 0.3) ** 2) / 2, -((log / 0.3) ** 2) / 2)


WRONG = {
    "positive numbers": lambda: FromDistribution(dist.Normal(1.0, 0.1)),
    "discrete": lambda: FromDistribution(dist.Poisson(3.0)),
    "mass of 0.98.* in place of 1": lambda: FromDistribution(
        dist.TransformedDistribution(dist.Cauchy(0.0, 1.0), transforms.ExpTransform())
    ),
    "one peak and no upper edge": lambda: nngp.IndependentNoise(
        nngp.Dense(), dist.LogNormal(0.0, 1.0), dist.Uniform(0.0, 1.0)
    ),
    "values. must be positive": lambda: nngp.Draws(jnp.array([1.0, -1.0])),
    "order. must be": lambda: FromDistribution(dist.HalfCauchy(1.0), order=-1.0),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_laws(words):
    with pytest.raises(ValueError, match=words):
        WRONG[words]()


def test_a_law_of_ones_own_that_nodes_cannot_follow_is_said():
    class TwoPeaks(nngp.AbstractDensityLaw):
        def log_density(self, scale):
            return _two_peaks(scale) - jnp.log(scale)

        def tail(self):
            return jnp.asarray(jnp.inf)

    x = np.array([[0.0], [1.0]])
    given = ScaleMixture(nngp.Dense(1.0, 1.0), TwoPeaks(), 0.1).condition(x, x[:, 0])
    assert "law of the scale is known to" in " ".join(given.remarks)
