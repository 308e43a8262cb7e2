"""Columns of pandas, polars and xarray: names, labels of rows, categories.

Numbers of labels are compared with those of pandas; densities are written out.
"""

import datetime
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import whence as wh

RNG = np.random.default_rng(0)
TEXT = RNG.choice(["oak", "ash", "yew", "elm"], size=40)
LEVELS = ["yew", "fir", "oak", "elm", "ash"]  # in an order of their own; no fir in the data
TABLE = pd.DataFrame(
    {"height": RNG.normal(size=40), "wet": RNG.normal(size=40), "tree": TEXT},
    index=pd.Index([f"p{i}" for i in range(40)], name="plot"),
)


class Trees(wh.Model):
    effect: Any = wh.latent(dist.Normal(0.0, 1.0), dims="tree")

    def likelihood(self, wet, tree):
        return dist.Normal(wet + self.effect[tree], 0.5)


class Forest(wh.Model):
    trees: Trees

    def likelihood(self, table):
        return self.trees.likelihood(table["wet"], table["tree"])


def density(codes, effect, y=TABLE.height, wet=TABLE.wet):
    prior = stats.norm.logpdf(effect).sum()
    return prior + stats.norm.logpdf(y, wet + effect[codes], 0.5).sum()


def polars(column):
    return pytest.importorskip("polars").Series("tree", column)


@pytest.mark.parametrize(
    ("make", "levels"),
    [
        (np.array, None),
        (list, None),
        (pd.Series, None),
        (lambda x: pd.Series(x, dtype="string"), None),
        (lambda x: pd.Series(x).astype(object), None),
        (lambda x: pd.Series(pd.Categorical(x, LEVELS)), LEVELS),
        (lambda x: pd.Categorical(x, LEVELS, ordered=True), LEVELS),
        (lambda x: xarray.DataArray(x, dims="plot"), None),
        (polars, None),
        (lambda x: polars(x).cast(pytest.importorskip("polars").Enum(LEVELS)), LEVELS),
        (lambda x: polars(x).cast(pytest.importorskip("polars").Categorical), None),
    ],
)
def test_numbers_of_labels_are_those_of_pandas(make, levels):
    expected = pd.Categorical(TEXT, levels)
    found = wh.categories(make(TEXT))
    assert_array_equal(found.codes, expected.codes)
    assert_array_equal(found.labels, np.asarray(expected.categories))
    if not isinstance(make(TEXT), list):
        target = wh.condition(
            Trees(), TABLE.height.to_numpy(), TABLE.wet.to_numpy(), make(TEXT)
        )
        assert_array_equal(target.inputs[1], expected.codes)
        assert_array_equal(target.coords["tree"], np.asarray(expected.categories))


def test_numbers_as_labels_and_labels_in_common():
    years = pd.Series([2003, 2001, 2003, 2010])
    found = wh.categories(years)
    assert_array_equal(found.codes, pd.Categorical(years).codes)
    assert_array_equal(found.labels, [2001, 2003, 2010])
    bins = pd.cut(pd.Series([0.5, 2.5, 1.5]), [0, 1, 2, 3])
    assert_array_equal(wh.categories(bins).codes, bins.cat.codes)
    home, away = (wh.categories(x, ["b", "a", "c"], name="team") for x in (["a"], ["c"]))
    assert (home.codes[0], away.codes[0], home.name) == (1, 2, "team")


def test_a_table_gives_names_labels_and_numbers():
    target = wh.condition(Forest(Trees()), TABLE.height, TABLE[["wet", "tree"]])
    assert target.observed_data.keys() == {"height"}
    assert target.dims["height"] == ("plot",)
    assert_array_equal(target.coords["plot"], TABLE.index)
    expected = pd.Categorical(TABLE.tree)
    assert_array_equal(target.coords["tree"], np.asarray(expected.categories))
    effect = np.array([0.3, -0.2, 0.1, 0.6])
    position = {"trees.effect": jnp.asarray(effect)}
    assert_allclose(target.log_density(position), density(expected.codes, effect), rtol=1e-5)
    posterior = wh.Posterior.from_draws(target, {"trees.effect": effect[None, None]})
    tree = posterior.to_datatree()
    assert tree["log_likelihood"]["height"].sel(plot="p7").shape == (1, 1)
    assert tree["constant_data"]["table.wet"].dims == ("plot",)
    assert list(posterior.draws_df()["tree"]) == list(expected.categories)


def test_a_dataset_is_a_dict_of_its_variables(key):
    columns = {"wet": ("plot", TABLE.wet.to_numpy()), "tree": ("plot", TEXT)}
    whole = xarray.Dataset(columns, {"plot": TABLE.index.to_numpy(str)})
    target = wh.condition(Forest(Trees()), xarray.DataArray(TABLE.height), whole)
    expected = wh.condition(Forest(Trees()), TABLE.height, TABLE[["wet", "tree"]])
    position = {"trees.effect": jnp.array([0.3, -0.2, 0.1, 0.6])}
    assert_allclose(target.log_density(position), expected.log_density(position), rtol=1e-6)
    assert target.dims["height"] == ("plot",)
    posterior = wh.Posterior.from_draws(target, {"trees.effect": np.zeros((1, 3, 4))})
    assert posterior.predict(whole.isel(plot=slice(5)), key=key).shape == (1, 3, 5)


class Soil(wh.Model):
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))
    effect: Any = wh.latent(lambda m: dist.Normal(m.slope, 1.0), dims="tree")

    def likelihood(self, tree, depth):
        return dist.Normal((self.effect + depth)[tree], 0.5)


def test_entries_of_a_known_axis_are_in_its_order(key):
    """A predictor of the groups, in the order of a file of its own."""
    depth = pd.Series([1.0, 2.0, 3.0, 4.0], pd.Index(["yew", "oak", "elm", "ash"], name="tree"))
    message = r"`depth`\) must have the labels of axis 'tree'.*'yew' in row 0.*is 'ash'"
    for column in (depth, xarray.DataArray(depth)):
        with pytest.raises(ValueError, match=message):
            wh.condition(Soil(), TABLE.height, TABLE.tree, column)
    target = wh.condition(Soil(), TABLE.height, TABLE.tree, depth.sort_index())
    assert_array_equal(target.inputs[1], [4.0, 3.0, 2.0, 1.0])
    draws = {"slope": np.zeros((1, 2)), "effect": np.zeros((1, 2, 4))}
    posterior = wh.Posterior.from_draws(target, draws)
    with pytest.raises(ValueError, match=message):
        posterior.predict(["oak"], depth, key=key)
    # Rows of their own, as many as those of the fit, may be called anything.
    other = TABLE.tree.set_axis([f"q{i}" for i in range(40)])
    assert posterior.predict(other, depth.sort_index(), key=key).shape == (1, 2, 40)


class Field(wh.Model):
    level: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, x):
        return dist.Normal(self.level + x, 1.0)


def test_axes_of_inputs_are_those_of_the_data():
    y = xarray.DataArray(np.arange(9.0).reshape(3, 3), dims=("day", "site"), name="t")
    target = wh.condition(Field(), y, y + 1.0)
    assert target.dims["t"] == ("day", "site")
    with pytest.raises(ValueError, match=r"`x`\) must have its axes in the order of `y`"):
        wh.condition(Field(), y, y.T)
    named = y.assign_coords(site=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"axis 'site' of `y`.*got 'c' in row 0"):
        wh.condition(Field(), named, named.isel(site=[2, 1, 0]))
    pairs = pd.MultiIndex.from_product([["a", "b"], [1, 2]])
    levels = pd.Series(np.zeros(4), pairs)
    assert wh.condition(Field(), levels, levels).dims == {}
    with pytest.raises(ValueError, match=r"rows of `y`.*got .*'b', .* in row 0"):
        wh.condition(Field(), levels, levels[::-1])


def test_labels_of_the_model_decide():
    model = Trees(coords={"tree": LEVELS})
    target = wh.condition(model, TABLE.height, TABLE.wet, TABLE.tree)
    assert_array_equal(target.inputs[1], pd.Categorical(TEXT, LEVELS).codes)
    # A length takes the labels of the data.
    target = wh.condition(Trees(coords={"tree": 4}), TABLE.height, TABLE.wet, TABLE.tree)
    assert_array_equal(target.coords["tree"], sorted(set(TEXT)))


def test_predictions_know_labels_in_any_form_and_order(key):
    target = wh.condition(Trees(), TABLE.height, TABLE.wet, TABLE.tree)
    effect = np.array([10.0, 20.0, 30.0, 40.0])  # ash, elm, oak, yew
    posterior = wh.Posterior.from_draws(target, {"effect": np.tile(effect, (1, 400, 1))})
    new, wet = ["yew", "elm", "yew"], np.zeros(3)
    forms = [
        new,
        np.array(new),
        pd.Series(new, name="other"),
        pd.Categorical(new, ["yew", "elm"]),
        np.array([3, 1, 3]),
    ]
    drawn = [posterior.predict(wet, form, key=key) for form in forms]
    for one in drawn[1:]:
        assert_array_equal(one, drawn[0])
    assert_allclose(drawn[0].mean((0, 1)), [40.0, 20.0, 40.0], atol=4.5 * 0.5 / 20)
    by_name = posterior.predict(tree=new, wet=wet, key=key)
    assert_array_equal(by_name, drawn[0])


DAYS = [datetime.date(2020, 1, 5), datetime.date(2020, 1, 1), datetime.date(2020, 1, 5)]


@pytest.mark.parametrize(
    "make",
    [lambda d: pd.Series(pd.to_datetime(d)), lambda d: np.array(d, "datetime64[ns]"), list],
)
def test_dates_are_categories(make, key):
    class Days(wh.Model):
        effect: Any = wh.latent(dist.Normal(0.0, 1.0), dims="day")

        def likelihood(self, day):
            return dist.Normal(self.effect[day], 0.5)

    found = wh.categories(make(DAYS), name="day")
    assert_array_equal(found.codes, [1, 0, 1])
    assert_array_equal(found.labels.astype("datetime64[D]"), sorted(set(DAYS)))
    target = wh.condition(Days(), np.zeros(3), found)
    posterior = wh.Posterior.from_draws(target, {"effect": np.tile([10.0, 20.0], (1, 4, 1))})
    drawn = posterior.predict(pd.Series(pd.to_datetime(DAYS)), key=key)
    assert_allclose(drawn[0], np.tile([20.0, 10.0, 20.0], (4, 1)), atol=3.0)
    zoned = pd.Series(pd.to_datetime(DAYS).tz_localize("UTC"))
    assert_array_equal(wh.categories(zoned).codes, [1, 0, 1])


def test_columns_of_predictions_are_those_of_the_fit(key):
    target = wh.condition(Forest(Trees()), TABLE.height, TABLE[["wet", "tree"]])
    posterior = wh.Posterior.from_draws(target, {"trees.effect": np.zeros((1, 4, 4))})
    new = TABLE[["wet", "tree"]].head(3)
    drawn = posterior.predict(new.assign(note="text"), key=key)
    assert_array_equal(drawn, posterior.predict(new, key=key))
    with pytest.raises(ValueError, match="found no 'tree' among its inputs.*are 'wet'"):
        posterior.predict(new[["wet"]], key=key)


def test_other_labels_compile_nothing(key):
    from whence.core import _cache

    def fit(names):
        renamed = TABLE.assign(tree=TABLE.tree.map(dict(zip(sorted(set(TEXT)), names))))
        target = wh.condition(Trees(), renamed.height, renamed.wet, renamed.tree)
        posterior = wh.Posterior.from_draws(target, {"effect": np.zeros((1, 5, 4))})
        return posterior.predict([0.0], [names[0]], key=key), target.coords["tree"]

    fit(["a", "b", "c", "d"])
    before = _cache.traces
    _, labels = fit(["e", "f", "g", "h"])
    assert _cache.traces == before
    assert list(labels) == ["e", "f", "g", "h"]


def test_answers_in_words():
    class Answers(wh.Model):
        share: Any = wh.latent(dist.Dirichlet(jnp.ones(3)), dims="answer")

        def likelihood(self):
            return dist.Categorical(self.share)

    answers = pd.Series(["no", "yes", None, "no", "perhaps"], name="answer")
    target = wh.condition(Answers(), answers, missing="drop")
    assert_array_equal(target.y, [0, 2, 0, 1])
    assert list(target.coords["answer"]) == ["no", "perhaps", "yes"]
    with pytest.raises(ValueError, match=r"`y` .y. must have a category.*none in row 2"):
        wh.condition(Answers(), answers.rename("y"))


class Schools(wh.Model):
    theta: Any = wh.latent(dist.Normal(0.0, 1.0), dims="school")

    def likelihood(self, sigma):
        return dist.Normal(self.theta, sigma)


def test_rows_that_are_groups():
    names = pd.Index(["B", "C", "A"], name="school")
    y, sigma = pd.Series([1.0, 2.0, 3.0], names), pd.Series([1.0, 1.0, 2.0], names)
    target = wh.condition(Schools(), y, sigma)
    assert list(target.coords["school"]) == ["B", "C", "A"]
    assert target.dims["y"] == ("school",)
    wh.condition(Schools(coords={"school": list("BCA")}), y, sigma)
    array = xarray.DataArray(y.to_numpy(), dims="school", coords={"school": names}, name="gain")
    target = wh.condition(Schools(), array, np.ones(3))
    assert target.dims["gain"] == ("school",)
    assert list(target.coords["school"]) == ["B", "C", "A"]


def make(**columns):
    table = TABLE.assign(**columns)
    return wh.condition(Trees(), table.height, table.wet, table.tree)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: make(tree=TABLE.tree.where(TABLE.index != "p5")),
            r"`inputs\[1\]` \(`tree`\) must have a category in every row; got none in row 5",
        ),
        (
            lambda: wh.condition(
                Trees(coords={"tree": ["oak", "ash"]}), TABLE.height, TABLE.wet, TABLE.tree
            ),
            r"`tree`\) must have labels of axis 'tree' \(oak, ash\); got 'elm', 'yew', the",
        ),
        (
            lambda: wh.condition(Trees(), TABLE.height, TABLE.wet[::-1], TABLE.tree),
            r"`inputs\[0\]` \(`wet`\) must have the labels of rows of `y`.*got 'p39' in row 0",
        ),
        (
            lambda: wh.condition(
                Schools(coords={"school": ["A", "B"]}),
                pd.Series([1.0, 2.0], pd.Index(["B", "A"], name="school")),
                np.ones(2),
            ),
            r"Rows of `y` must be in the order of `coords\['school'\]`; got 'B' in row 0",
        ),
        (
            lambda: wh.condition(
                Forest(Trees()), TABLE.height, TABLE.set_axis(["wet", "wet", "tree"], axis=1)
            ),
            "must have distinct names; got 'wet' twice",
        ),
        (
            lambda: wh.condition(
                Forest(Trees()),
                TABLE.height,
                TABLE.assign(**{"x": 0})[["wet", "tree", "x"]].rename(columns={"x": 3}),
            ),
            "all be called by text.*got 3 beside text",
        ),
        (lambda: wh.categories(["a", "b"], ["a"]), "labels of `labels` .a.; got 'b'"),
        (lambda: wh.categories(np.zeros((2, 2))), r"`values` must be a column.*\(2, 2\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_and_missing_categories_of_predictions_are_refused(key):
    posterior = wh.Posterior.from_draws(make(), {"effect": np.zeros((1, 2, 4))})
    with pytest.raises(ValueError, match=r"`tree`.*got 'fir', the first in row 1.*new_groups"):
        posterior.predict(np.zeros(2), ["oak", "fir"], key=key)
    with pytest.raises(ValueError, match=r"`tree`.*got none in row 0"):
        posterior.predict(np.zeros(2), pd.Series([None, "oak"]), key=key)


def test_a_module_takes_a_table_as_a_matrix():
    import equinox as eqx
    import jax

    linear = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    bnn = wh.bayesian(linear, dist.Normal(0.0, 1.0), likelihood=wh.regression(0.5))
    table = TABLE[["height", "wet"]]
    target = wh.condition(bnn, TABLE.wet, table)
    assert_array_equal(target.inputs[0], table.to_numpy().astype(target.inputs[0].dtype))


ARITHMETIC = {
    "a slope": lambda b, g: b[0] * g,
    "a polynomial": lambda b, g: b[0] + b[1] * (g * g + 1),
    "an affine index and a slope": lambda b, g: b[g] + 0.1 * g.astype(float),
    "compiled by itself": lambda b, g: jax.jit(lambda x: x / 2)(g) * b[0],
}
CHOICES = {
    "entries": lambda b, g: b[g],
    "an index computed": lambda b, g: b[(2 * g + 1) // 2],
    "comparison": lambda b, g: jnp.where(g == 2, b[0], b[1]),
    "columns of 0 and 1": lambda b, g: jax.nn.one_hot(g, 4) @ b,
    "sums by group": lambda b, g: b[g] - (jax.ops.segment_sum(b[g], g, 4) / 9)[g],
    "numbers of the groups": lambda b, g: b[g] / jnp.array([3, 5, 7, 9])[g],
}


@pytest.mark.usefixtures("standard")
@pytest.mark.parametrize("use", [*ARITHMETIC, *CHOICES])
def test_categories_that_are_computed_with_are_told(use):
    class Groups(wh.Model):
        b: Any = wh.latent(dist.Normal(0.0, 1.0), shape=(4,))

        def likelihood(self, tree):
            return dist.Normal((ARITHMETIC | CHOICES)[use](self.b, tree), 0.5)

    if use in CHOICES:
        wh.condition(Groups(), TABLE.height, TABLE.tree)  # warnings are errors
        return
    with pytest.warns(wh.InferenceWarning, match="Categories of 'tree' were made 0, 1, 2"):
        wh.condition(Groups(), TABLE.height, TABLE.tree)
