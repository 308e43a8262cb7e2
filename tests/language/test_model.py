"""Models: priors as functions of the model so far, shapes, nesting, supports, fixing."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import constraints
from scipy.stats import kstest

import whence as wh


class Hierarchical(wh.Model):
    mu: Any = wh.latent(dist.Normal(1.0, 2.0))
    tau: Any = wh.latent(dist.LogNormal(0.0, 0.5))
    theta: Any = wh.latent(lambda m: dist.Normal(m.mu, m.tau), dims="group")

    def likelihood(self, sigma):
        return dist.Normal(self.theta, sigma)

    @wh.derived
    def spread(self):
        return self.theta.max() - self.theta.min()

    @wh.derived(dims="group")
    def shifted(self):
        return self.theta + 1.0


class Noncentered(wh.Model):
    mu: Any = wh.latent(dist.Normal(1.0, 2.0))
    tau: Any = wh.latent(dist.LogNormal(0.0, 0.5))
    theta: Any = wh.latent(lambda m: dist.Normal(m.mu, m.tau), dims="group", noncentered=True)

    def likelihood(self, sigma):
        return dist.Normal(self.theta, sigma)


SIGMA = jnp.array([1.0, 2.0, 0.5])
Y = np.array([0.3, -1.0, 2.0])


def test_log_density_is_prior_likelihood_and_jacobian():
    target = wh.condition(Hierarchical(coords={"group": 3}), Y, SIGMA)
    position = {
        "mu": jnp.asarray(0.4),
        "tau": jnp.asarray(-0.2),
        "theta": jnp.array([1.0, 0.0, 2.0]),
    }
    tau = np.exp(-0.2)
    expected = dist.Normal(1.0, 2.0).log_prob(0.4)
    expected += dist.LogNormal(0.0, 0.5).log_prob(tau) + np.log(tau)
    expected += dist.Normal(0.4, tau).log_prob(position["theta"]).sum()
    expected += dist.Normal(position["theta"], SIGMA).log_prob(Y).sum()
    assert_allclose(target.log_density(position), expected, rtol=1e-12)
    assert_allclose(
        target.log_prior(position) + target.log_likelihood(position).sum(), expected, rtol=1e-12
    )


def test_noncentered_is_the_same_model_in_other_coordinates():
    """Densities differ by the Jacobian tau^3 of theta = mu + tau z, and by nothing else."""
    coords = {"group": 3}
    centred = wh.condition(Hierarchical(coords=coords), Y, SIGMA)
    noncentred = wh.condition(Noncentered(coords=coords), Y, SIGMA)
    z = jnp.array([0.3, -1.2, 0.8])
    position = {"mu": jnp.asarray(0.4), "tau": jnp.asarray(-0.2), "theta": z}
    draw = noncentred.constrain(position)
    theta = 0.4 + np.exp(-0.2) * z
    assert_allclose(draw.theta, theta, rtol=1e-12)
    other = {**position, "theta": theta}
    assert_allclose(
        noncentred.log_density(position), centred.log_density(other) + 3 * -0.2, rtol=1e-12
    )
    assert_allclose(noncentred.unconstrain(draw)["theta"], z, rtol=1e-12)


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(2.0, 3.0),
        dist.Cauchy(2.0, 3.0),
        dist.StudentT(4.0, 2.0, 3.0),
        dist.Laplace(2.0, 3.0),
        dist.Logistic(2.0, 3.0),
        dist.Gumbel(2.0, 3.0),
        dist.LogNormal(0.3, 0.7),
        dist.MultivariateNormal(
            jnp.array([1.0, 2.0]), scale_tril=jnp.array([[1.0, 0.0], [0.5, 2.0]])
        ),
    ],
    ids=lambda d: type(d).__name__,
)
def test_noncentered_density_against_autodiff(prior):
    class One(wh.Model):
        x: Any = wh.latent(prior, noncentered=True)

        def likelihood(self):
            return dist.Normal(0.0, 1.0)

    target = wh.condition(One(), np.array([0.0]))
    z = jnp.asarray(
        np.linspace(-0.7, 0.9, max(1, prior.event_shape[0] if prior.event_shape else 1))
    )
    z = z.reshape(prior.event_shape)
    value = lambda z: target.constrain({"x": z}).x
    jacobian = jax.jacobian(value)(z).reshape(z.size, z.size)
    expected = prior.log_prob(value(z)) + jnp.linalg.slogdet(jacobian)[1]
    assert_allclose(target.log_prior({"x": z}), expected, rtol=1e-9)


SUPPORTS = {
    "positive": dist.Gamma(2.0, 1.0),
    "interval": dist.Uniform(-1.0, 3.0),
    "unit": dist.Beta(2.0, 3.0),
    "greater_than": dist.Pareto(1.5, 3.0),
    "real_vector": dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
    "simplex": dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])),
    "ordered": dist.ImproperUniform(constraints.ordered_vector, (), (3,)),
    "positive_ordered": dist.ImproperUniform(constraints.positive_ordered_vector, (), (3,)),
    "corr_cholesky": dist.LKJCholesky(3, 2.0),
    "cholesky": dist.ImproperUniform(constraints.lower_cholesky, (), (2, 2)),
    "corr_matrix": dist.LKJ(3, 2.0),
    "positive_definite": dist.ImproperUniform(constraints.positive_definite, (), (2, 2)),
    "circular": dist.VonMises(0.0, 2.0),
    "flat": dist.ImproperUniform(constraints.real, (), ()),
    "truncated": dist.TruncatedNormal(0.0, 1.0, low=0.5),
    "zero_sum": dist.ZeroSumNormal(1.0, (3,)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_supports_round_trip_and_hold(name, key):
    prior = SUPPORTS[name]

    class One(wh.Model):
        x: Any = wh.latent(prior)

        def likelihood(self):
            return dist.Normal(0.0, 1.0)

    target = wh.condition(One(), np.array([0.0]))
    position = target.init(key=key)
    draw = target.constrain(position)
    assert jnp.all(prior.support(draw.x))
    assert np.isfinite(target.log_density(position))
    again = target.unconstrain(draw)
    assert_allclose(again["x"], position["x"], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "name", ["positive", "interval", "unit", "simplex", "ordered", "positive_ordered"]
)
def test_jacobian_against_autodiff(name, key):
    """log_prior = log_prob + log|det d(free coordinates of value)/d position|."""
    prior = SUPPORTS[name]

    class One(wh.Model):
        x: Any = wh.latent(prior)

        def likelihood(self):
            return dist.Normal(0.0, 1.0)

    target = wh.condition(One(), np.array([0.0]))
    u = target.init(key=key)["x"]
    free = lambda u: jnp.atleast_1d(target.constrain({"x": u}).x)[: max(u.size, 1)]
    jacobian = jax.jacobian(free)(u).reshape(max(u.size, 1), max(u.size, 1))
    log_prob = prior.log_prob(target.constrain({"x": u}).x)
    expected = log_prob + jnp.linalg.slogdet(jacobian)[1]
    assert_allclose(target.log_prior({"x": u}), expected, rtol=1e-9)


def test_support_that_depends_on_another_latent():
    class Garch(wh.Model):
        a: Any = wh.latent(dist.ImproperUniform(constraints.unit_interval, (), ()))
        b: Any = wh.latent(
            lambda m: dist.ImproperUniform(constraints.interval(0.0, 1.0 - m.a), (), ())
        )

        def likelihood(self):
            return dist.Normal(self.a, 1.0)

    target = wh.condition(Garch(), np.array([0.0]))
    position = {"a": jnp.asarray(0.3), "b": jnp.asarray(-0.4)}
    draw = target.constrain(position)
    a = 1 / (1 + np.exp(-0.3))
    s = 1 / (1 + np.exp(0.4))
    assert_allclose(draw.b, (1 - a) * s, rtol=1e-9)
    expected = np.log(a * (1 - a)) + np.log((1 - a) * s * (1 - s))
    assert_allclose(target.log_prior(position), expected, rtol=1e-9)


class Layer(wh.Model):
    size: int
    weight: Any = wh.latent(lambda m: dist.Normal(0.0, 1.0 / m.size), shape=lambda m: (m.size,))

    @wh.derived
    def norm(self):
        return jnp.sum(self.weight**2)


class Net(wh.Model):
    first: Layer
    rest: list
    sigma: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self, x):
        total = self.first.weight.sum() + sum(layer.weight.sum() for layer in self.rest)
        return dist.Normal(total * x, self.sigma)


def test_nested_models_contribute_under_a_path():
    target = wh.condition(Net(Layer(2), [Layer(3), Layer(1)]), np.zeros(4), np.ones(4))
    assert [s.name for s in target.sites] == [
        "first.weight",
        "rest.0.weight",
        "rest.1.weight",
        "sigma",
    ]
    position = jax.tree.map(lambda x: x * 0.1, target.init(key=jr.key(0)))
    draw = target.constrain(position)
    assert isinstance(draw, Net)
    assert draw.rest[0].weight.shape == (3,)
    named = target.variables(draw)
    assert set(named) == {
        "first.weight",
        "rest.0.weight",
        "rest.1.weight",
        "sigma",
        "first.norm",
        "rest.0.norm",
        "rest.1.norm",
    }
    expected = dist.HalfNormal(1.0).log_prob(draw.sigma) + position["sigma"]
    for layer in (draw.first, *draw.rest):
        expected += dist.Normal(0.0, 1.0 / layer.size).log_prob(layer.weight).sum()
    assert_allclose(target.log_prior(position), expected, rtol=1e-12)


def test_inner_model_uses_coords_of_the_outer():
    class Inner(wh.Model):
        w: Any = wh.latent(dist.Normal(0.0, 1.0), dims="feature")

    class Outer(wh.Model):
        inner: Inner

        def likelihood(self):
            return dist.Normal(self.inner.w.sum(), 1.0)

    target = wh.condition(Outer(Inner(), coords={"feature": list("ab")}), np.zeros(3))
    assert target.sites[0].shape == (2,)
    assert target.dims["inner.w"] == ("feature",)
    assert list(target.coords["feature"]) == ["a", "b"]
    for labels in ("xy", "xyz"):  # one axis has one set of labels
        outer = Outer(Inner(coords={"feature": list(labels)}), coords={"feature": list("ab")})
        with pytest.raises(ValueError, match="Axis 'feature' must have the same.*`inner`"):
            wh.condition(outer, np.zeros(3))


def test_fixed_latent_counts_as_observed():
    free = wh.condition(Hierarchical(coords={"group": 3}), Y, SIGMA)
    fixed = wh.condition(Hierarchical(tau=0.7, coords={"group": 3}), Y, SIGMA)
    position = {"mu": jnp.asarray(0.4), "theta": jnp.zeros(3)}
    assert set(fixed.init(key=jr.key(0))) == {"mu", "theta"}
    full = {**position, "tau": jnp.log(0.7)}
    # The same density in the value's own coordinates: no Jacobian for what is fixed.
    assert_allclose(
        fixed.log_density(position), free.log_density(full) - np.log(0.7), rtol=1e-12
    )
    assert_allclose(fixed.constrain(position).tau, 0.7)


def test_prior_moments_and_prediction(key):
    model = Hierarchical(coords={"group": 2000})
    draw = model.sample_prior(key)
    assert_allclose((draw.theta.mean() - draw.mu) / draw.tau, 0.0, atol=5 / np.sqrt(2000))
    y = draw.predict(jnp.full(2000, 0.1), key=key)
    assert y.shape == (2000,)
    assert_allclose(np.std(y - draw.theta), 0.1, rtol=5 / np.sqrt(4000))


def test_several_observed_variables():
    class Two(wh.Model):
        rate: Any = wh.latent(dist.Gamma(2.0, 1.0))

        def likelihood(self, x):
            return {"count": dist.Poisson(self.rate * x), "size": dist.Exponential(self.rate)}

    data = {"count": np.array([1, 2, 0]), "size": np.array([0.3, 2.0, 1.0])}
    target = wh.condition(Two(), data, np.ones(3))
    assert target.num_data == 3
    position = {"rate": jnp.asarray(0.2)}
    rate = np.exp(0.2)
    expected = dist.Poisson(rate).log_prob(data["count"]) + dist.Exponential(rate).log_prob(
        data["size"]
    )
    assert_allclose(target.log_likelihood(position), expected, rtol=1e-12)
    assert_allclose(
        target.log_likelihood(position, jnp.array([2, 0])),
        expected[np.array([2, 0])],
        rtol=1e-12,
    )


def test_own_log_likelihood():
    class Own(wh.Model):
        p: Any = wh.latent(dist.Beta(1.0, 1.0))

        def log_likelihood(self, y, x):
            return y * jnp.log(self.p) * x

    target = wh.condition(Own(), np.array([1.0, 2.0]), np.array([1.0, 3.0]))
    position = {"p": jnp.asarray(0.0)}
    assert_allclose(target.log_likelihood(position), np.log(0.5) * np.array([1.0, 6.0]))
    assert set(target.constant_data) == {"x"}


@hypothesis.settings(deadline=None, max_examples=8, derandomize=True)
@hypothesis.given(
    batch=st.lists(st.integers(1, 4), max_size=2).map(tuple),
    event=st.integers(2, 4),
)
def test_shape_is_the_full_shape(batch, event):
    """`shape` and `dims` count event axes, for any batch."""

    class One(wh.Model):
        x: Any = wh.latent(dist.Dirichlet(jnp.ones(event)), shape=(*batch, event))

        def likelihood(self):
            return dist.Normal(0.0, 1.0)

    target = wh.condition(One(), np.zeros(2))
    assert target.sites[0].shape == (*batch, event)
    assert target.sites[0].unconstrained_shape == (*batch, event - 1)
    draw = target.constrain(target.init(key=jr.key(1)))
    assert_allclose(draw.x.sum(-1), np.ones(batch), rtol=1e-9)


def test_labels_survive_compilation():
    """Coords of equal lengths share a program, and each posterior keeps its own labels."""
    assert wh.language.Coords({"a": ["x", "y"]}) == wh.language.Coords({"a": ["u", "v"]})
    assert wh.language.Coords({"a": 2}) != wh.language.Coords({"a": 3})


def test_log_jacobian_and_start_of_a_positive_latent():
    """sigma = exp(u) has the log-Jacobian u; starts are spread as in Stan."""

    class Scale(wh.Model):
        sigma: jax.Array = wh.latent(dist.HalfNormal(1.0))

        def likelihood(self):
            return dist.Normal(0.0, self.sigma)

    target = wh.condition(Scale(), np.array([1.0, -2.0]))
    assert_allclose(target.log_jacobian({"sigma": jnp.asarray(0.7)}), 0.7, rtol=1e-12)
    keys = jr.split(jr.key(1), 400)
    starts = jax.vmap(lambda key: target.init(key=key)["sigma"])(keys)
    assert kstest(starts, "uniform", (-2.0, 4.0)).pvalue > 1e-4


def test_a_likelihood_that_exec_made_may_have_no_module():
    lines = [
        "class Coin(wh.Model):",
        "    p: object = wh.latent(dist.Uniform())",
        "    def log_likelihood(self, y):",
        "        return dist.Bernoulli(self.p).log_prob(y)",
    ]
    names: dict = {"wh": wh, "dist": dist}
    exec("\n".join(lines), names)
    target = wh.condition(names["Coin"](), np.array([1, 0, 1]))
    assert_allclose(
        target.log_likelihood({"p": jnp.zeros(())}).sum(), 3 * np.log(0.5), rtol=1e-6
    )
