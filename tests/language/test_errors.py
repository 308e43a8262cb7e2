"""Bad input gets an error that names the argument, the rule and the value."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import whence as wh
from whence.core._require import require_engine, require_key, require_target


class Line(wh.Model):
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))
    sigma: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self, x):
        return dist.Normal(self.slope * x, self.sigma)


X = np.linspace(0.0, 1.0, 20)


def _raises(words, function):
    with pytest.raises(ValueError, match=".") as caught:
        function()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_silent_broadcast():
    _raises(
        ["'y'", "(20, 1)", "(20,)", "(20, 20)"], lambda: wh.condition(Line(), X[:, None], X)
    )


def test_shape_disagreement():
    _raises(["'y'", "(20,)", "(5,)"], lambda: wh.condition(Line(), X, X[:5]))


def test_scalar_parameters_for_many_data_are_fine():
    class Iid(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return dist.Normal(self.mu, 1.0)

    assert wh.condition(Iid(), X).num_data == 20


def test_nan_in_data():
    y = X.copy()
    y[[3, 7]] = np.nan
    _raises(["`y`", "NaN", "got 2", "(3,)"], lambda: wh.condition(Line(), y, X))
    _raises(["`inputs[0]`", "NaN"], lambda: wh.condition(Line(), X, y))


def test_masked_data():
    _raises(["masked", "1"], lambda: wh.condition(Line(), np.ma.masked_equal(X, 0.0), X))


def test_empty_data():
    _raises(["`y`", "empty"], lambda: wh.condition(Line(), X[:0], X[:0]))


def test_text_as_data():
    _raises(["`y`", "numbers"], lambda: wh.condition(Line(), np.array(["a", "b"] * 10), X))


@pytest.mark.parametrize(
    ("likelihood", "bad"),
    [
        (dist.Poisson(2.0), [1, -2, 3]),
        (dist.Poisson(2.0), [1.0, 2.5, 3.0]),
        (dist.Bernoulli(0.5), [0, 1, 2]),
        (dist.Gamma(1.0, 1.0), [1.0, -1.0, 2.0]),
        (dist.Binomial(5, 0.5), [1, 2, 6]),
        (dist.Beta(1.0, 1.0), [0.2, 1.2, 0.4]),
    ],
)
def test_data_outside_the_support(likelihood, bad):
    class One(wh.Model):
        x: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return likelihood

    _raises(["'y'", "support"], lambda: wh.condition(One(), np.array(bad)))


def test_missing_coords():
    class Group(wh.Model):
        a: Any = wh.latent(dist.Normal(0.0, 1.0), dims="school")

        def likelihood(self):
            return dist.Normal(self.a, 1.0)

    _raises(["`a`", "'school'", "coords"], lambda: wh.condition(Group(), X))


def test_duplicate_dims_and_labels():
    _raises(["`dims`", "differ"], lambda: wh.latent(dist.Normal(0.0, 1.0), dims=("a", "a")))
    _raises(["'chain'"], lambda: wh.latent(dist.Normal(0.0, 1.0), dims=("chain",)))
    _raises(["coords", "'b'", "repeat"], lambda: Line(coords={"g": ["a", "b", "b"]}))
    _raises(["flat"], lambda: Line(coords={"g": np.eye(2)}))
    _raises(["coords['g']", "at least 0", "-1"], lambda: Line(coords={"g": -1}))
    _raises(["`function`", "method", "3"], lambda: wh.derived(3))
    _raises(["`shape`", "at least 0"], lambda: wh.latent(dist.Normal(0.0, 1.0), shape=(2, -1)))


def test_discrete_latent():
    class Mix(wh.Model):
        z: Any = wh.latent(dist.Categorical(jnp.ones(3) / 3), shape=(20,))

        def likelihood(self):
            return dist.Normal(self.z, 1.0)

    _raises(["`z`", "discrete", "Sum it out"], lambda: wh.condition(Mix(), X))


def test_prior_that_does_not_fit():
    class Wrong(wh.Model):
        a: Any = wh.latent(dist.Normal(jnp.zeros(3), 1.0), shape=(2,))

        def likelihood(self):
            return dist.Normal(0.0, 1.0)

    _raises(["`a`", "(2,)", "(3,)"], lambda: wh.condition(Wrong(), X))


def test_prior_uses_a_field_below():
    class Order(wh.Model):
        a: Any = wh.latent(lambda m: dist.Normal(m.b, 1.0))
        b: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return dist.Normal(self.a, 1.0)

    _raises(["`a`", "declared above"], lambda: wh.condition(Order(), X))


def test_noncentered_needs_location_and_scale():
    class Half(wh.Model):
        a: Any = wh.latent(dist.HalfNormal(1.0), noncentered=True)

        def likelihood(self):
            return dist.Normal(self.a, 1.0)

    _raises(["`a`", "location-scale", "HalfNormal"], lambda: wh.condition(Half(), X))


def test_fixed_value_of_wrong_shape():
    _raises(["`slope`", "(2,)"], lambda: wh.condition(Line(slope=np.zeros(2)), X, X))


def test_names_of_observed_variables():
    _raises(["`y`", "a single array"], lambda: wh.condition(Line(), {"z": X}, X))
    _raises(["share a name", "'slope'"], lambda: wh.condition(Line(), X, X, name="slope"))
    _raises(["'z'", "observed"], lambda: wh.condition(Line(), X, X, dims={"z": "row"}))
    _raises(["1 axes"], lambda: wh.condition(Line(), X, X, dims=("a", "b")))


def test_model_without_likelihood():
    class Nothing(wh.Model):
        a: Any = wh.latent(dist.Normal(0.0, 1.0))

    with pytest.raises(NotImplementedError, match="likelihood"):
        wh.condition(Nothing(), X)


def test_float32_traps():
    with jax.enable_x64(False):
        _raises(["`y`", "float32", "enable_x64"], lambda: wh.condition(Line(), X * 1e300, X))
        _raises(["int32"], lambda: wh.condition(Line(), np.array([2**40]), np.ones(1)))


def test_infer_arguments():
    target = wh.condition(Line(), X, X)
    engine = wh.SGLD(steps=10, step_size=1e-3)
    # Not through `infer`: the test suite's type checks would speak first.
    _raises(["`key`", "typed key"], lambda: require_key(0))
    _raises(["single key"], lambda: require_key(jr.split(jr.key(0))))
    _raises(["parentheses"], lambda: require_engine(wh.SGLD))
    _raises(["engine", "'nuts'"], lambda: require_engine("nuts"))
    _raises(["conditioned"], lambda: require_target(Line()))
    _raises(
        ["`chunk_steps`", "0"], lambda: wh.infer(target, engine, key=jr.key(0), chunk_steps=0)
    )


def test_check_names_latent_row_and_leaf():
    class Bad(wh.Model):
        a: Any = wh.latent(dist.Normal(0.0, 1.0))
        b: Any = wh.latent(lambda m: dist.Normal(0.0, -1.0 - m.a**2))

        def likelihood(self, x):
            return dist.Normal(jnp.log(x) * self.a, 1.0)

    x = np.array([1.0, 2.0, -1.0, 3.0])
    report = wh.check(wh.condition(Bad(), np.zeros(4), x))
    text = str(report)
    assert not report.ok
    assert "latent `b`" in text
    assert "'y' is NaN, first at index 2," in text
    with pytest.raises(wh.InferenceError, match="latent `b`"):
        wh.infer(wh.condition(Bad(), np.zeros(4), x), wh.NUTS(draws=5, warmup=5), key=jr.key(0))


def test_check_names_the_gradient():
    class Bad(wh.Model):
        a: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            safe = jnp.where(self.a > -9.0, 1.0, jnp.sqrt(-1.0 - self.a**2))
            return dist.Normal(safe * self.a, 1.0)

    report = wh.check(wh.condition(Bad(), np.zeros(4)))
    assert "gradient with respect to `a`" in str(report)


def test_check_is_content_with_a_good_model():
    report = wh.check(wh.condition(Line(), X, X))
    assert report.ok
    assert "slope: shape ()" in str(report)
    assert "no problems" in str(report)


def test_a_likelihood_of_data_alone_is_told():
    class Forgot(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return dist.Normal(0.0, 1.0)

    with pytest.warns(wh.InferenceWarning, match="Forgot depends on none of its latents"):
        wh.condition(Forgot(), X)
    wh.condition(Forgot(mu=0.0), X)  # nothing is left to learn


def _log_likelihood(function):
    class Own(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def log_likelihood(self, y):
            return function(self.mu, y)

    return Own()


NO_LIKELIHOODS = {
    "no slope along 'mu'": (
        lambda mu, y: dist.Normal(jax.lax.stop_gradient(mu), 1.0).log_prob(y),
        lambda mu, y: jnp.where(y < mu, -1.0, -2.0),
    ),
    "does not depend on `y`": (lambda mu, y: dist.Normal(mu, 1.0).log_prob(X),),
}


@pytest.mark.parametrize("words", NO_LIKELIHOODS)
def test_what_a_likelihood_does_not_see_is_told(words):
    for function in NO_LIKELIHOODS[words]:
        with pytest.warns(wh.InferenceWarning, match=words):
            wh.condition(_log_likelihood(function), X)
    wh.condition(_log_likelihood(lambda mu, y: -((y - jnp.round(mu) - mu) ** 2)), X)


def test_what_is_no_pointwise_log_likelihood_is_refused():
    """A distribution is a pytree of its parameters, whose sum is no density."""
    wrong = {
        r"Write `\.log_prob\(y\)`": lambda mu, y: dist.Normal(mu, 1.0),
        "an array, or a dict of arrays; got tuple": lambda mu, y: (-mu * y, -mu * y),
        "counts each datum many times": lambda mu, y: mu * jnp.tile(y, (len(X), 1)),
    }
    for words, function in wrong.items():
        with pytest.raises(ValueError, match=words):
            wh.condition(_log_likelihood(function), X)
    wh.condition(_log_likelihood(lambda mu, y: -((y[1:] - mu * y[:-1]) ** 2)), X)


def test_a_log_likelihood_that_forgot_its_return():
    class Forgot(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def log_likelihood(self, y):
            dist.Normal(self.mu, 1.0).log_prob(y)

    class Masked(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def log_likelihood(self, y):
            return y > self.mu

    class Half(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def log_likelihood(self, y):
            return {"a": dist.Normal(self.mu, 1.0).log_prob(y["a"]), "b": None}

    _raises(["`log_likelihood` of Forgot", "`return`"], lambda: wh.condition(Forgot(), X))
    _raises(["of Half", "`return`"], lambda: wh.condition(Half(), {"a": X, "b": X}))
    _raises(
        ["`log_likelihood` of Masked", "real numbers", "bool"],
        lambda: wh.condition(Masked(), X),
    )


@pytest.mark.parametrize("wrong", [None, "text", ["a"], (X, X)])
def test_what_is_no_input_of_predictions(wrong):
    draws = {"slope": np.ones((1, 2)), "sigma": np.ones((1, 2))}
    posterior = wh.Posterior.from_draws(wh.condition(Line(), X, X), draws)
    _raises(["`likelihood` of Line failed"], lambda: posterior.predict(wrong, key=0))


def test_an_input_with_the_name_of_something_else():
    class Clash(wh.Model):
        slope: Any = wh.latent(dist.Normal(0.0, 1.0))

        @wh.derived
        def double(self):
            return 2 * self.slope

        def likelihood(self, slope):
            return dist.Normal(self.slope * slope, 1.0)

    class Derived(Clash):
        def likelihood(self, double):
            return dist.Normal(self.slope * double, 1.0)

    class Observed(Clash):
        def likelihood(self, y):
            return dist.Normal(self.slope * y, 1.0)

    for model, name in [(Clash(), "slope"), (Derived(), "double"), (Observed(), "y")]:
        _raises(["input", repr(name)], lambda model=model: wh.condition(model, X, X))
