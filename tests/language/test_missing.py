"""Missing values of observed data: imputed against closed forms of Gaussians, or left out."""

from typing import Any

import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, stats

import whence as wh
from whence.testing import compare_moments

PRIOR, NOISE = 2.0, 0.7
Y = np.array([1.0, np.nan, 2.5, 0.3, np.nan])
GONE = np.isnan(Y)


class Mean(wh.Model):
    mu: Any = wh.latent(dist.Normal(0.0, PRIOR))

    def likelihood(self):
        return dist.Normal(self.mu, NOISE)


class Joint(wh.Model):
    """The same data, with `mu` summed out: they are dependent."""

    unused: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self):
        cov = PRIOR**2 + NOISE**2 * np.eye(len(Y))
        return dist.MultivariateNormal(
            jnp.zeros(len(Y)), jnp.asarray(cov, jnp.result_type(float))
        )


def truth():
    """Mean and covariance of `mu` and the missing values, and the log evidence of the rest."""
    cov = PRIOR**2 + NOISE**2 * np.eye(len(Y))
    everything = np.block(
        [
            [np.full((1, 1), PRIOR**2), np.full((1, len(Y)), PRIOR**2)],
            [np.full((len(Y), 1), PRIOR**2), cov],
        ]
    )
    seen = 1 + np.flatnonzero(~GONE)
    wanted = np.array([0, *(1 + np.flatnonzero(GONE))])
    inverse = np.linalg.inv(everything[np.ix_(seen, seen)])
    cross = everything[np.ix_(wanted, seen)]
    mean = cross @ inverse @ Y[~GONE]
    covariance = everything[np.ix_(wanted, wanted)] - cross @ inverse @ cross.T
    evidence = stats.multivariate_normal.logpdf(
        Y[~GONE], np.zeros(len(seen)), everything[np.ix_(seen, seen)]
    )
    return mean, covariance, evidence


def gaussian(target):
    """Return mean, covariance and log integral of a density that is Gaussian."""
    zero = jax.tree.map(jnp.zeros_like, target.init(key=jax.random.key(0)))
    flat, unravel = ravel_pytree(zero)
    density = lambda x: target.log_density(unravel(x))
    slope, curvature = jax.grad(density)(flat), jax.hessian(density)(flat)
    covariance = np.linalg.inv(-curvature)
    mean = covariance @ slope
    log_integral = density(mean) + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    values = lambda x: jnp.concatenate(
        [jnp.atleast_1d(v) for v in target.variables(target.constrain(unravel(x))).values()]
    )
    way = jax.jacobian(values)(flat)
    return values(jnp.asarray(mean)), way @ covariance @ way.T, log_integral


def test_imputed_values_of_independent_data():
    target = wh.condition(Mean(), pd.Series(Y, [f"r{i}" for i in range(5)]), missing="impute")
    mean, covariance, evidence = truth()
    found = gaussian(target)
    for a, b in zip(found, (mean, covariance, evidence), strict=True):
        assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert list(target.coords["y_missing_row"]) == ["r1", "r4"]
    draw = target.constrain(target.init(key=jax.random.key(1)))
    assert isinstance(draw, Mean)
    pointwise = stats.norm.logpdf(Y, draw.mu, NOISE)
    assert_allclose(target.pointwise(draw)["y"], np.where(GONE, 0.0, pointwise))
    assert_allclose(target.pointwise_given_rest(draw)["y"], pointwise[~GONE])
    # The density of engines does not tie imputed values to other latents.
    zero = {"mu": jnp.zeros(()), "y_missing": jnp.ones(2)}
    assert_allclose(
        jax.jacobian(jax.grad(target.log_density))(zero)["mu"]["y_missing"], 0.0, atol=1e-12
    )


def test_imputed_values_of_dependent_data():
    target = wh.condition(Joint(), Y, missing="impute")
    mean, covariance, evidence = truth()
    found = gaussian(target)
    assert_allclose(found[0][1:], mean[1:], rtol=1e-9)
    assert_allclose(found[1][1:, 1:], covariance[1:, 1:], rtol=1e-9)
    assert_allclose(found[2], evidence, rtol=1e-9)
    draw = target.constrain(target.init(key=jax.random.key(1)))
    assert_allclose(target.pointwise_given_rest(draw)["y"], evidence, rtol=1e-9)


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: d.expand((4,))])
def test_rows_of_which_a_part_is_missing_have_the_term_of_the_other_part(wrap, key):
    """In leave-one-out cross-validation; of a row of which nothing is known there is none."""
    cov = np.array([[2.0, 0.6, -0.4], [0.6, 1.0, 0.3], [-0.4, 0.3, 1.5]])

    class Triples(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return wrap(dist.MultivariateNormal(self.mu * jnp.ones(3), jnp.asarray(cov)))

    gap = np.nan
    y = np.array([[0.5, 1.0, -1.0], [gap, 0.2, 0.9], [gap, gap, gap], [gap, 2.0, gap]])
    target = wh.condition(Triples(), y, missing="impute")
    draw = target.constrain(target.init(key=key))
    expected = [
        stats.multivariate_normal.logpdf(
            row[at], np.full(at.sum(), float(draw.mu)), cov[np.ix_(at, at)]
        )
        for row, at in zip(y, ~np.isnan(y))
        if at.any()
    ]
    assert_allclose(target.pointwise_given_rest(draw)["y"], expected, rtol=1e-6)
    posterior = wh.Posterior.from_draws(
        target, {"mu": np.zeros((1, 5)), "y_missing": np.ones((1, 5, 6))}
    )
    assert list(posterior.to_datatree()["log_likelihood"]["y"]["y_known_row"]) == [0, 1, 3]


def test_rows_of_other_distributions_have_terms_if_they_are_complete(key):
    class Heavy(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return dist.MultivariateStudentT(4.0, self.mu * jnp.ones(2), jnp.eye(2))

    y = np.array([[np.nan, 1.0], [0.3, -0.2]])
    target = wh.condition(Heavy(), y, missing="impute")
    draw = target.constrain(target.init(key=key))
    expected = stats.multivariate_t.logpdf(y[1], np.full(2, float(draw.mu)), np.eye(2), df=4)
    assert_allclose(target.pointwise_given_rest(draw)["y"], [expected], rtol=1e-6)


def test_imputed_values_with_bounds():
    """One value above bounds of its own: the density integrates to that of the others."""

    class Above(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self, low):
            return dist.TruncatedNormal(self.mu, 1.0, low=low)

    y, low = np.array([0.5, np.nan, 3.0]), np.array([0.0, 1.0, 2.0])
    target = wh.condition(Above(mu=0.4), y, low, missing="impute")
    grid = np.linspace(-12.0, 4.0, 4001)
    densities = jax.vmap(target.log_density)({"y_missing": jnp.asarray(grid[:, None], float)})
    found = np.log(integrate.trapezoid(np.exp(np.asarray(densities, float)), grid))
    seen = ~np.isnan(y)
    law = stats.truncnorm(low[seen] - 0.4, np.inf, loc=0.4)
    expected = law.logpdf(y[seen]).sum() + stats.norm.logpdf(0.4)
    assert_allclose(found, expected, atol=2e-4)
    position = {"y_missing": jnp.asarray([0.0])}
    assert float(target.constrain(position).imputed["y_missing"][0]) > 1.0
    drawn = target.sample_prior(key=jax.random.key(0)).imputed["y_missing"]
    assert float(drawn[0]) > 1.0


# Of three rows one weighs so much that its k-hat is at the limit.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_imputed_values_by_nuts(key):
    target = wh.condition(Mean(), Y, missing="impute")
    posterior = wh.infer(target, wh.NUTS(chains=2, draws=800, warmup=300), key=key)
    mean, covariance, _ = truth()
    sd = np.sqrt(np.diag(covariance))
    draws = {"mu": posterior["mu"], "missing": posterior["y_missing"]}
    expected = {"mu": (mean[0], sd[0]), "missing": (mean[1:], sd[1:])}
    compare_moments(draws, expected).check()
    tree = posterior.to_datatree()
    assert list(tree["log_likelihood"]["y"]["y_known_row"]) == [0, 2, 3]
    assert np.isfinite(arviz_stats.loo(tree, pointwise=False).elpd)
    assert_array_equal(np.isnan(tree["observed_data"]["y"]), GONE)
    assert tree["posterior_predictive"]["y"].shape == (2, 800, 5)


def test_two_variables_and_axes():
    class Two(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return {"a": dist.Normal(self.mu, 1.0), "n": dist.Poisson(jnp.exp(self.mu))}

    a, n = np.array([[1.0, np.nan], [np.nan, 2.0]]), np.array([1, 2])
    target = wh.condition(Two(), {"a": a, "n": n}, missing="impute")
    assert [site.name for site in target.sites] == ["mu", "a_missing"]
    assert list(target.coords["a_missing_row"]) == ["0, 1", "1, 0"]
    at = {"mu": jnp.asarray(0.2), "a_missing": jnp.zeros(2)}
    expected = stats.norm.logpdf([1.0, 2.0], 0.2).sum() + stats.norm.logpdf(0.2)
    expected += stats.poisson.logpmf(n, np.exp(0.2)).sum() + 2 * stats.norm.logpdf(0.0)
    assert_allclose(target.log_density(at), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="'n' cannot be imputed: Poisson.* is discrete"):
        wh.condition(Two(), {"a": np.zeros(2), "n": np.array([1.0, np.nan])}, missing="impute")


class Line(wh.Model):
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))
    effect: Any = wh.latent(dist.Normal(0.0, 1.0), dims="group")

    def likelihood(self, x, group):
        return dist.Normal(self.slope * x + self.effect[group], 1.0)


def test_rows_with_missing_values_are_left_out():
    table = pd.DataFrame({
        "y": [1.0, None, 3.0, 4.0, 5.0],
        "x": [0.1, 0.2, None, 0.4, 0.5],
        "group": ["a", "b", "a", None, "b"],
    }, index=pd.Index(list("uvwxy"), name="person"))  # fmt: skip
    whole = table.dropna()
    target = wh.condition(Line(), table.y, table.x, table.group, missing="drop")
    expected = wh.condition(Line(), whole.y, whole.x, whole.group)
    assert target.num_data == 2
    assert list(target.coords["person"]) == list("uy")
    position = {"slope": jnp.asarray(0.3), "effect": jnp.asarray([0.5, -0.5])}
    assert_allclose(target.log_density(position), expected.log_density(position), rtol=1e-6)
    masked = np.ma.masked_invalid(table.y.to_numpy())
    again = wh.condition(Line(), masked, table.x.to_numpy(), table.group.array, missing="drop")
    assert_allclose(again.log_density(position), expected.log_density(position), rtol=1e-6)


def test_counts_stay_whole_numbers_where_rows_are_left_out():
    class Coin(wh.Model):
        p: Any = wh.latent(dist.Dirichlet(jnp.ones(3)))

        def likelihood(self):
            return dist.Categorical(self.p)

    y = pd.Series([0, 2, None, 1], dtype="Int64")
    target = wh.condition(Coin(), y, missing="drop")
    assert_array_equal(target.y, [0, 2, 1])
    assert jnp.issubdtype(target.y.dtype, jnp.integer)


class Written(wh.Model):
    mu: Any = wh.latent(dist.Normal(0.0, 1.0))

    def log_likelihood(self, y):
        return -0.5 * (y - self.mu) ** 2


class Simplex(wh.Model):
    mu: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self):
        return dist.Dirichlet(self.mu * jnp.ones(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wh.condition(Mean(), Y), "`y` must not contain NaN; got 2.*`missing=`"),
        (
            lambda: wh.condition(Mean(), Y, missing="mean"),
            "`missing` must be one of 'drop', 'im",
        ),
        (
            lambda: wh.condition(Written(), Y, missing="impute"),
            "needs a `likelihood` of Written",
        ),
        (
            lambda: wh.condition(
                Simplex(), np.array([[0.4, 0.6], [0.2, np.nan]]), missing="impute"
            ),
            "'y' cannot be imputed: the values of Dirichlet in one row",
        ),
        (lambda: wh.condition(Mean(), np.full(3, np.nan), missing="drop"), "leaves no row"),
    ],
)
def test_what_cannot_be_done_with_missing_values_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
