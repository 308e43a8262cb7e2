"""Columns and tables of polars: every number is that of the same data in NumPy or pandas."""

import datetime
import decimal
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh

pl = pytest.importorskip("polars")

RNG = np.random.default_rng(0)
TREES = RNG.choice(["oak", "ash", "yew", "elm"], size=20)
COLUMNS = {"height": RNG.normal(size=20), "wet": RNG.normal(size=20), "tree": TREES}
WHOLE = RNG.integers(0, 4, size=20)
PANDAS, POLARS = pd.DataFrame(COLUMNS), pl.DataFrame(COLUMNS)
POSITION = {"effect": jnp.array([0.3, -0.2, 0.1, 0.6]), "slope": jnp.array(0.7)}


class Trees(wh.Model):
    effect: Any = wh.latent(dist.Normal(0.0, 1.0), dims="tree")
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, table):
        return dist.Normal(self.effect[table["tree"]] + self.slope * table["wet"], 0.5)


class Line(wh.Model):
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, x):
        return dist.Normal(self.slope * x.astype(float), 1.0)


class Coin(wh.Model):
    slope: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self, x):
        return dist.Bernoulli(logits=self.slope * x)


def line(x, y=COLUMNS["height"], model=Line, **settings):
    target = wh.condition(model(), y, x, **settings)
    return target.log_density({"slope": POSITION["slope"]})


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t,
        lambda t: {name: t[name] for name in t.columns},
        lambda t: t.with_columns(pl.col("tree").cast(pl.Categorical)),
        lambda t: t.with_columns(pl.col("tree").cast(pl.Enum(["ash", "elm", "oak", "yew"]))),
        lambda t: pl.concat([t[:7], t[7:]], rechunk=False),
        lambda t: pl.concat([t, t])[20:],
        lambda t: t.reverse().reverse(),
    ],
)
def test_a_table_is_that_of_pandas(change):
    table = change(POLARS)
    target = wh.condition(Trees(), table["height"], table)
    expected = wh.condition(Trees(), PANDAS["height"], PANDAS)
    assert_allclose(target.log_density(POSITION), expected.log_density(POSITION), rtol=1e-6)
    assert list(target.observed_data) == ["height"]
    assert list(target.coords["tree"]) == ["ash", "elm", "oak", "yew"]


@pytest.mark.parametrize(
    "dtype", ["Int8", "Int64", "Int128", "UInt64", "Float32", "Float64", "Decimal", "Boolean"]
)
@pytest.mark.parametrize("missing", [False, True])
def test_numbers_of_any_type(dtype, missing):
    numbers = WHOLE > 1 if dtype == "Boolean" else WHOLE
    values = (
        [decimal.Decimal(int(v)) for v in WHOLE] if dtype == "Decimal" else numbers.tolist()
    )
    if not missing:
        column = pl.Series("x", values, dtype=getattr(pl, dtype))
        assert_allclose(line(column), line(numbers.astype(float)), rtol=1e-6)
        table = pl.DataFrame({"x": column, "wet": COLUMNS["wet"]})
        assert_array_equal(wh.core._numbers.as_array(table, "`x`")[:, 0], numbers)
        return
    column = pl.Series("x", [None, *values[1:]], dtype=getattr(pl, dtype))
    with pytest.raises(ValueError, match=r"`inputs\[0\]` \(`x`\).* NaN; got 1.*index \(0,\)"):
        line(column)
    expected = line(numbers[1:].astype(float), COLUMNS["height"][1:])
    assert_allclose(line(column, missing="drop"), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["Boolean", "UInt8", "Int128"])
def test_outcomes_that_are_missing(dtype):
    y = (WHOLE > 1).astype(int)
    column = pl.Series("k", [None, *y[1:].tolist()]).cast(getattr(pl, dtype))
    target = wh.condition(Coin(), column, COLUMNS["wet"], missing="drop")
    assert target.y.dtype == np.int32
    assert_array_equal(target.observed_data["k"], y[1:])


def test_missing_outcomes_are_imputed_as_those_of_pandas():
    gaps = [None, *COLUMNS["height"][1:6].tolist(), None, *COLUMNS["height"][7:].tolist()]
    position = {**POSITION, "h_missing": jnp.array([0.3, -0.2])}
    ours, theirs = (
        wh.condition(Trees(), y, table[["wet", "tree"]], missing="impute")
        for y, table in [
            (pl.Series("h", gaps), POLARS),
            (pd.Series(gaps, name="h", dtype=float), PANDAS),
        ]
    )
    assert_allclose(ours.log_density(position), theirs.log_density(position), rtol=1e-6)


def test_predictions_know_labels_and_leave_other_columns(key):
    target = wh.condition(Trees(), POLARS["height"], POLARS)
    effect = np.tile([10.0, 20.0, 30.0, 40.0], (1, 4, 1))
    posterior = wh.Posterior.from_draws(target, {"effect": effect, "slope": np.zeros((1, 4))})
    new = {"note": ["a", "b", "c"], "wet": np.zeros(3), "tree": ["yew", "elm", "yew"]}
    ours, theirs = (
        posterior.predict(make(new), key=key) for make in (pl.DataFrame, pd.DataFrame)
    )
    assert_array_equal(ours, theirs)
    assert_allclose(ours[0], np.tile([40.0, 20.0, 40.0], (4, 1)), atol=3.0)
    for make in (pl.DataFrame, pd.DataFrame):
        with pytest.raises(ValueError, match="likelihood. of Trees found no 'tree'.*are 'wet'"):
            posterior.predict(make({"wet": np.zeros(3)}), key=key)
    for wrong, message in (("fir", "got 'fir', the first in row 1"), (None, "none in row 1")):
        with pytest.raises(ValueError, match=f"`table`. at 'tree' must have.*{message}"):
            posterior.predict(
                pl.DataFrame({"wet": np.zeros(2), "tree": ["oak", wrong]}), key=key
            )


DAYS = [datetime.date(2020, 1, 5), datetime.date(2020, 1, 1), datetime.date(2020, 1, 5)]


class Days(wh.Model):
    effect: Any = wh.latent(dist.Normal(0.0, 1.0), dims="day")

    def likelihood(self, day):
        return dist.Normal(self.effect[day], 0.5)


@pytest.mark.parametrize("make", [pl.Series, lambda d: pl.Series(d).cast(pl.Datetime("ns"))])
def test_dates_are_categories(make, key):
    found = wh.categories(make(DAYS), name="day")
    assert_array_equal(found.codes, [1, 0, 1])
    assert_array_equal(found.labels.astype("datetime64[D]"), sorted(set(DAYS)))
    target = wh.condition(Days(), np.zeros(3), found)
    effect = np.tile([10.0, 20.0], (1, 4, 1))
    posterior = wh.Posterior.from_draws(target, {"effect": effect})
    for new in (pl.Series(DAYS), pd.Series(pd.to_datetime(DAYS))):
        drawn = posterior.predict(new, key=key)
        assert_allclose(drawn[0], np.tile([20.0, 10.0, 20.0], (4, 1)), atol=3.0)
    times = [datetime.time(3), datetime.time(1), datetime.time(3)]
    assert_array_equal(wh.categories(pl.Series(times)).codes, [1, 0, 1])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (DAYS, r"dtype Date.*`\(x - x\.min\(\)\)\.dt\.total_days\(\)`"),
        ([datetime.datetime(2020, 1, 1)] * 3, r"dtype Datetime.*dt\.total_seconds"),
        ([datetime.timedelta(days=1)] * 3, r"dtype Duration.*`x\.dt\.total_seconds\(\)`"),
        ([datetime.time(1)] * 3, r"dtype Time.*`x\.dt\.hour\(\)`"),
        ([[1.0, 2.0]] * 3, r"dtype List.*`x\.list\.to_array\(length\)`"),
        ([{"a": 1, "b": 2}] * 3, r"dtype Struct.*`x\.struct\.unnest\(\)`"),
        ([b"a"] * 3, "dtype Binary.$"),
    ],
)
def test_what_is_no_number_is_refused_in_words_of_polars(column, message):
    with pytest.raises(ValueError, match=r"`inputs\[0\]` must be real numbers.*" + message):
        line(pl.Series("x", column), np.zeros(3))


def test_columns_without_any_category_and_lazy_tables_are_refused():
    for dtype in (pl.String, pl.Categorical, pl.Enum(["oak", "ash"])):
        empty = POLARS.with_columns(tree=pl.lit(None, dtype=dtype))
        with pytest.raises(ValueError, match=r"'tree' must have a category.*row 0 and 19 more"):
            wh.condition(Trees(), POLARS["height"], empty)
    with pytest.raises(ValueError, match=r"got LazyFrame. Write `\.collect\(\)` first"):
        wh.condition(Trees(), POLARS["height"], POLARS.lazy())
