"""Forms of data, indices, missing values, names and starts, as users bring them.

Right values are sums of normal log densities, written out.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import whence as wh
from whence.core._names import check_variable_names

Y = np.array([1.0, 2.0, 4.0])
G = np.array([0, 1, 2])


class Line(wh.Model):
    a: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, x):
        return dist.Normal(self.a + x, 1.0)


class Groups(wh.Model):
    a: Any = wh.latent(dist.Normal(0.0, 1.0), dims="g")

    def likelihood(self, g):
        return dist.Normal(self.a[g], 1.0)


class Outer(wh.Model):
    inner: Groups
    codes: Any = None

    def likelihood(self, g):
        return self.inner.likelihood(g if self.codes is None else self.codes)


class Masked(wh.Model):
    a: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, mask):
        return dist.Normal(self.a, 1.0).expand(mask.shape).mask(mask)


class SeesMissing(wh.Model):
    a: Any = wh.latent(dist.Normal(0.0, 1.0))

    def log_likelihood(self, y):
        known = jnp.isfinite(y)
        return jnp.where(known, -0.5 * (jnp.where(known, y, 0.0) - self.a) ** 2, 0.0)


class Above(wh.Model):
    a: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, x):
        return dist.Normal(jnp.where(x > 0.5, self.a, 2.0 * self.a), 1.0)


class Bounded(wh.Model):
    a: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, high):
        return dist.Normal(self.a + jnp.exp(-high), 1.0)


def at(target, value=0.3):
    position = {s.name: jnp.full(s.unconstrained_shape, value) for s in target.free}
    return float(target.log_density(position))


LINE = stats.norm.logpdf(Y, 0.3 + Y / 10).sum() + stats.norm.logpdf(0.3)


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        pd.Series,
        lambda x: x.astype(">f8"),
        lambda x: x.astype(np.longdouble),
        lambda x: pd.Series(x).astype("Float64"),
    ],
    ids=["list", "tuple", "series", "big-endian", "longdouble", "nullable"],
)
def test_every_form_of_an_array_is_one(form):
    assert_allclose(at(wh.condition(Line(), form(Y), form(Y / 10))), LINE, rtol=1e-5)


def test_half_precision_is_exact_in_single():
    target = wh.condition(Line(), jnp.asarray(Y, jnp.bfloat16), Y / 10)
    assert target.y.dtype == jnp.result_type(float)
    assert_array_equal(target.y, Y)


TABLE = pd.DataFrame({"x": Y, "c": pd.Categorical(["u", "v", "u"])})


@pytest.mark.parametrize(
    ("y", "inputs", "message"),
    [
        (Y, (TABLE,), r"`likelihood` of Line failed.*A table is a dict.*`table\.to_numpy\(\)`"),
        (Y, (pd.Series([1, "v", None]),), r"`inputs\[0\]`.*object.*whence\.categories"),
        (pd.Series(["u", "v", "w"]), (Y,), "`y` .'y'. must be numbers.*Normal is continuous"),
        (pd.Series([1, 2, 3], dtype=object), (Y,), r"`y`.*object.*astype\(float\)"),
        (Y, (pd.to_datetime(["2020", "2021", "2022"]),), r"`inputs\[0\]`.*timedelta64"),
        (
            pd.array([1, None, 3], dtype="Int64"),
            (Y,),
            r"`y` must not contain NaN; got 1.*\(1,\)",
        ),
        (Y, (np.array([0.0, np.inf, 1.0]),), r"`inputs\[0\]` \(`x`\) must be finite.*\(1,\)"),
        (Y, (np.array([0.0, np.nan, 1.0]),), r"`inputs\[0\]` \(`x`\).*NaN; got 1.*\(1,\)"),
        ([[1.0], [2.0, 3.0]], (Y,), "`y`.*rows differ in length"),
        (None, (Y,), "`y` must be the observed data; got None"),
    ],
)
def test_what_is_no_array_of_numbers_is_named(y, inputs, message):
    with pytest.raises(ValueError, match=message):
        wh.condition(Line(), y, *inputs)


def test_missing_values_behind_a_mask():
    y = np.array([1.0, np.nan, 4.0])
    known = np.array([True, False, True])
    expected = stats.norm.logpdf([1.0, 4.0], 0.3).sum() + stats.norm.logpdf(0.3)
    assert_allclose(at(wh.condition(Masked(), y, known)), expected, rtol=1e-6)
    assert_allclose(
        at(wh.condition(SeesMissing(), y)),
        expected + np.log(2 * np.pi),  # of two data, whose constant it leaves out
        rtol=1e-6,
    )
    with pytest.raises(ValueError, match="`y` must not contain NaN"):
        wh.condition(Masked(), y, ~known)
    # NaN is not above 0.5 either: no sign of it in the density, and yet it counts.
    with pytest.raises(ValueError, match=r"`x`.*must not contain NaN"):
        wh.condition(Above(), Y, np.array([0.0, np.nan, 1.0]))
    wh.condition(Bounded(), Y, np.array([5.0, np.inf, 5.0]))  # no bound


def test_indices_of_every_part_of_a_model():
    groups = Groups(coords={"g": 3})
    wh.condition(groups, Y, G)
    for wrong in (3, -1):
        g = np.array([0, 1, wrong])
        with pytest.raises(
            ValueError, match=rf"`inputs\[0\]` \(`g`\).*3; got {wrong} at index 2"
        ):
            wh.condition(groups, Y, g)
        with pytest.raises(ValueError, match=rf"\(`g`\).*3; got {wrong}"):
            wh.condition(Outer(groups), Y, g)
        with pytest.raises(ValueError, match=rf"`codes` of Outer.*3; got {wrong}"):
            wh.condition(Outer(groups, g), Y, G)


def model(g, y=None, wide=False):
    with numpyro.plate("group", 3):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a[g], 2.0 if wide else 1.0), obs=y)


def test_indices_through_other_front_ends():
    wrong = np.array([0, 1, 7])
    wh.from_numpyro(model, G, y=Y)
    with pytest.raises(ValueError, match=r"`g` must give.*length 3; got 7 at index 2"):
        wh.from_numpyro(model, wrong, y=Y)
    with pytest.raises(ValueError, match=r"`g` must give.*length 3; got 7"):
        wh.from_numpyro(functools.partial(model, g=wrong), y=Y)
    with pytest.raises(ValueError, match=r"`wrong` must give.*length 3; got 7"):
        wh.from_log_density(lambda a: -jnp.sum(a[wrong] ** 2), np.zeros(3))
    table = jax.tree_util.Partial(lambda g, a: -jnp.sum(a[g] ** 2), jnp.asarray(wrong))
    with pytest.raises(ValueError, match=r"must give.*length 3; got 7 at index 2"):
        wh.from_log_density(table, np.zeros(3))


def test_predictions_at_new_inputs_are_checked(key):
    target = wh.condition(Groups(coords={"g": 3}), Y, G)
    values = np.random.default_rng(0).normal(size=(1, 50, 3))
    posterior = wh.Posterior.from_draws(target, {"a": values})
    by_order = posterior.predict([2, 2], key=key)
    assert by_order.shape == (1, 50, 2)
    assert_array_equal(by_order, posterior.predict(g=np.array([2, 2]), key=key))
    for wrong in (7, -1):
        with pytest.raises(ValueError, match=rf"`inputs\[0\]` \(`g`\).*got {wrong} at index 1"):
            posterior.predict(np.array([0, wrong]), key=key)
    with pytest.raises(ValueError, match="inputs of `likelihood` of Groups \\(g\\)"):
        posterior.predict(G, G, key=key)
    line = wh.Posterior.from_draws(wh.condition(Line(), Y, Y), {"a": np.zeros((1, 4))})
    with pytest.raises(ValueError, match=r"`x`.*NaN; got 1"):
        line.predict(np.array([0.0, np.nan]), key=key)


def test_arguments_of_the_program_stay_so_in_predictions(key):
    target = wh.from_numpyro(model, G, Y, True)
    posterior = wh.Posterior.from_draws(target, {"a": np.zeros((1, 4000, 3))})
    wide = posterior.predict(np.array([0]), key=key)
    narrow = posterior.predict(g=np.array([0]), wide=False, key=key)
    # Standard deviations of 4,000 normal draws, within 4.5 of their own standard errors.
    for drawn, sd in ((wide, 2.0), (narrow, 1.0)):
        assert_allclose(drawn.std(), sd, atol=4.5 * sd / np.sqrt(2 * 4000))
    with pytest.raises(ValueError, match=r"`g` must give.*got 5 at index 0"):
        posterior.predict(np.array([5]), key=key)


def test_missing_values_and_shapes_of_numpyro_sites():
    def masked(y):
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(m, 1.0).mask(jnp.isfinite(y)), obs=y)

    def broadcast(x, y):
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(m * x, 1.0), obs=y)

    at_03 = {"m": jnp.asarray(0.3)}
    expected = stats.norm.logpdf([1.0, 4.0], 0.3).sum() + stats.norm.logpdf(0.3)
    target = wh.from_numpyro(masked, np.array([1.0, np.nan, 4.0]))
    assert_allclose(target.log_density(at_03), expected, rtol=1e-6)
    assert_allclose(jax.grad(target.log_density)(at_03)["m"], 0.7 + 3.7 - 0.3, rtol=1e-5)
    with pytest.raises(ValueError, match=r"'y' have shape \(3,\).*\(3, 1\).*\(3, 3\)"):
        wh.from_numpyro(broadcast, np.ones((3, 1)), Y)


class Named(wh.Model):
    mu: Any = wh.latent(dist.Normal(0.0, 1.0), dims="mu")

    def likelihood(self):
        return dist.Normal(self.mu, 1.0)


class Doubled(wh.Model):
    a: Any = wh.latent(dist.Normal(0.0, 1.0))

    @wh.derived
    def y(self):
        return 2 * self.a

    def likelihood(self):
        return dist.Normal(self.a, 1.0)


class Draw(wh.Model):
    draw: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self):
        return dist.Normal(self.draw, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wh.condition(Draw(), Y), "other than 'chain' and 'draw'.*got 'draw'"),
        (
            lambda: wh.condition(Named(coords={"mu": 3}), Y),
            "must not be the name of a variable",
        ),
        (lambda: wh.condition(Line(), Y, Y, name=""), "got ''"),
        (lambda: wh.condition(Line(), Y, Y, name="chain"), "got 'chain'"),
        (lambda: wh.from_log_density(lambda d: d["draw"], {"draw": 1.0}), "got 'draw'"),
        (lambda: check_variable_names([["a/b", "a.b"]], {}), "'a.b' and 'a/b'"),
        (lambda: check_variable_names([["a\\b", "a.b"]], {}), "when slashes are"),
        (lambda: check_variable_names([["é" * 101]], {}), "at most 200 bytes"),
        (lambda: check_variable_names([["é", "e\u0301"]], {}), "accents as parts of"),
        (lambda: check_variable_names([["\udc80"]], {}), "that UTF-8 can hold"),
        (lambda: check_variable_names([["zarr.json"]], {}), "which are files of zarr"),
        (lambda: check_variable_names([["y"]], {"y": ["a/b", "a.b"]}), "Names of axes must"),
        (lambda: check_variable_names([["y"]], {"y": [3]}), "Names of axes must be text"),
        (lambda: check_variable_names([["a.b"]], {"a.b": ["a/b"]}), "name of a variable"),
        (lambda: Groups(coords={"g": ["a", "b\0"]}), "null characters"),
        (
            lambda: check_variable_names([["a", "a_dim_0"]], {}),
            "'a_dim_0', which is what files",
        ),
        (lambda: check_variable_names([["y"]], {"y": ["chain"]}), "got 'chain'. Name the axis"),
        (lambda: wh.condition(Doubled(), Y), "derived values; got 'y'"),
        (lambda: wh.latent(dist.Normal(0.0, 1.0), dims=""), "got ''"),
        (lambda: Groups(coords={"g": [("a", 1), ("b", 2)]}), "several levels"),
        (lambda: Groups(coords={"g": ["a", None]}), "none missing; got None"),
        (lambda: Groups(coords={"g": [1.0, np.nan]}), "none missing; got .*nan"),
    ],
)
def test_what_could_not_be_written_is_refused_before_a_run(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_rows_may_be_called_like_an_input():
    """As of a table by `x` that is also an input."""
    target = wh.condition(Line(), pd.Series(Y, pd.Index(Y, name="x")), Y)
    tree = wh.Posterior.from_draws(target, {"a": np.zeros((1, 4))}).to_datatree()
    assert tree["observed_data"]["y"].dims == ("x",)
    assert_allclose(tree["constant_data"]["x"], Y, rtol=1e-6)


def test_a_length_may_be_a_number_of_numpy():
    assert_array_equal(Groups(coords={"g": np.int64(3)}).coords["g"], [0, 1, 2])


def test_slashes_are_dots_in_files_and_come_back(tmp_path):
    def inner(y):
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(m, 1.0), obs=y)

    target = wh.from_numpyro(numpyro.handlers.scope(inner, prefix="north"), Y)
    values = np.random.default_rng(0).normal(size=(2, 5))
    posterior = wh.Posterior.from_draws(target, {"north/m": values})
    assert_allclose(posterior.to_datatree()["posterior"]["north.m"], values, rtol=1e-6)
    posterior.save(tmp_path / "x.nc")
    for given in (None, target):
        loaded = wh.load(tmp_path / "x.nc", target=given)
        assert_allclose(loaded["north/m"], values, rtol=1e-6)


def test_groups_without_a_sampler_are_named_and_the_others_exported(key):
    class Counts(wh.Model):
        p: Any = wh.latent(dist.Dirichlet(jnp.ones(3)))

        def likelihood(self, n):
            return dist.Multinomial(n, probs=self.p)

    y = np.array([[3, 1, 0], [10, 2, 5]])
    target = wh.condition(Counts(), y, y.sum(axis=1))
    drawn = np.random.default_rng(0).dirichlet(np.ones(3), size=(1, 4))
    posterior = wh.Posterior.from_draws(target, {"p": drawn})
    with pytest.warns(
        wh.InferenceWarning, match="'p.*predictive' is left out.*total_count_max"
    ):
        tree = posterior.to_datatree()
    expected = stats.multinomial.logpmf(y, y.sum(axis=1), drawn[0, 0])
    assert_allclose(tree["log_likelihood"]["y"][0, 0], expected, rtol=1e-4)
    assert "prior" in tree.children
    with pytest.raises(ValueError, match="Multinomial.*total_count_max=1000"):
        posterior.predict(key=key)


class Law(dist.Distribution):
    """A normal distribution whose sampler the user wrote, or forgot."""

    support = dist.constraints.real
    arg_constraints = {}
    pytree_data_fields = ("loc",)
    draw = None

    def __init__(self, loc):
        self.loc = loc
        super().__init__(jnp.shape(loc), ())

    def log_prob(self, value):
        return -((value - self.loc) ** 2) / 2

    def sample(self, key, sample_shape=()):
        if self.draw is None:
            raise NotImplementedError
        return self.draw(sample_shape)


class Raises(Law):
    pytree_data_fields = ()

    def draw(self, shape):
        raise RuntimeError("nobody is in")


class Broadcasts(Law):
    pytree_data_fields = ()

    def draw(self, shape):
        return jnp.zeros((2, *shape, *self.batch_shape))


SAMPLERS = {
    Law: "`sample` of the distribution of the data 'y', Law, is not there: write it",
    Raises: "to draw it raised RuntimeError: nobody is in",
    Broadcasts: r".*of the data 'y', Broadcasts, must draw shape \(3,\); got \(2, 3\)",
}


@pytest.mark.parametrize("front", ["model", "numpyro"])
@pytest.mark.parametrize("law", SAMPLERS)
def test_samplers_of_users_that_fail_cost_no_other_group(law, front, key):
    class Both(wh.Model):
        m: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return {"y": law(self.m * jnp.ones(3)), "z": dist.Normal(self.m, 1.0)}

    def both(y, z):
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        numpyro.sample("y", law(m * jnp.ones(3)), obs=y)
        numpyro.sample("z", dist.Normal(m, 1.0), obs=z)

    data = {"y": Y, "z": np.asarray(0.5)}
    target = wh.condition(Both(), data) if front == "model" else wh.from_numpyro(both, **data)
    posterior = wh.Posterior.from_draws(target, {"m": np.zeros((1, 4))})
    with pytest.warns(wh.InferenceWarning, match=f"predictive' is left out: {SAMPLERS[law]}"):
        tree = posterior.to_datatree()
    assert {"log_likelihood", "prior"} <= set(tree.children)
    assert not {"posterior_predictive", "prior_predictive"} & set(tree.children)
    with pytest.raises((ValueError, RuntimeError), match=SAMPLERS[law].rpartition(": ")[2]):
        posterior.predict(key=key)


def test_starts(key):
    class Starts(wh.Model):
        a: Any = wh.latent(dist.HalfNormal(1.0), start=0.25)
        b: Any = wh.latent(dist.Normal(0.0, 1.0), shape=3, start=[1.0, 2.0, 3.0])

        def likelihood(self):
            return dist.Normal(self.b, self.a)

    target = wh.condition(Starts(), Y)
    draw = target.constrain(target.init(key=key))
    assert_allclose(draw.a, 0.25, rtol=1e-6)
    assert_allclose(draw.b, [1.0, 2.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (-1.0, "`start` of latent `a` must lie in the support"),
        ([1.0, 2.0], r"`start` of latent `a` must have its shape, \(\)"),
        ("posterior", "`start` must be finite numbers"),
    ],
)
def test_starts_that_cannot_be(start, message):
    def make():
        class Starts(wh.Model):
            a: Any = wh.latent(dist.HalfNormal(1.0), start=start)

            def likelihood(self):
                return dist.Normal(0.0, self.a)

        return wh.condition(Starts(), Y)

    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_that_cannot_be_name_their_latent():
    class Scaled(wh.Model):
        scale: float
        a: Any = wh.latent(lambda m: dist.Normal(0.0, m.scale))

        def likelihood(self):
            return dist.Normal(self.a, 1.0)

    with pytest.raises(ValueError, match="prior of latent `a`.*invalid scale"):
        wh.condition(Scaled(-1.0), Y)


def test_errors_in_the_model_are_told_in_its_own_words():
    class Gives(wh.Model):
        a: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return dist.Normal(eqx.error_if(self.a, self.a > -2.0, "no solution here"), 1.0)

    target = wh.condition(Gives(), Y)
    for function in (
        lambda: wh.check(target),
        lambda: wh.infer(target, wh.NUTS(chains=1, warmup=10, draws=10), key=0),
    ):
        with pytest.raises(
            wh.InferenceError, match=r"raised an error: no solution here($|\. No step was made)"
        ):
            function()


def test_a_gradient_that_is_not_finite_is_traced_to_its_row():
    class Exposed(wh.Model):
        rate: Any = wh.latent(dist.Gamma(2.0, 1.0))

        def likelihood(self, exposure):
            return dist.Poisson(self.rate * exposure)

    # A rate of zero and a count of zero: the density is 1, its derivative is 0 times 1 / 0.
    target = wh.condition(Exposed(), np.array([3, 0, 2]), np.array([2.0, 0.0, 1.0]))
    (problem,) = wh.check(target).problems
    assert "with respect to `rate`" in problem
    assert "it comes from 'y' at index 1." in problem
