"""The summary table: ArviZ's cell by cell and digit by digit, and the truth of weights."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.diagnostics import mcse
from whence.diagnostics._table import summary_table

DIMS = {"theta": ("school",), "effect": ("school", "age")}
COORDS = {"school": ["Choate", "Deerfield", "Andover"], "age": [10, 20]}


def chains(rng, coefficient, shape):
    """AR(1) chains, `(chain, draw, ...)`."""
    x = rng.normal(size=shape)
    for t in range(1, shape[1]):
        x[:, t] += coefficient * x[:, t - 1]
    return x


def zoo(num_chains, draws=300):
    rng = np.random.default_rng(num_chains)
    lead = (num_chains, draws)
    values = {
        "mu": chains(rng, 0.5, lead),
        "large": 1e5 + 1e5 * chains(rng, 0.0, lead),
        "tiny": 1e-7 * np.exp(chains(rng, 0.2, lead)),
        "theta": chains(rng, 0.95, (*lead, 3)),
        "effect": np.exp(chains(rng, -0.5, (*lead, 3, 2))),
        "unnamed": chains(rng, 0.1, (*lead, 2, 2)),
        "count": rng.poisson(3.0, lead),
        "none": np.zeros((*lead, 0)),
        "missing": chains(rng, 0.1, (*lead, 2)),
    }
    values["missing"][0, 3, 1] = np.nan
    return values


def dataset(values):
    """What ArviZ is given; all variables in the Dataset's order of axes, which it needs."""
    xarray = pytest.importorskip("xarray")
    named = {
        name: (
            ("chain", "draw", *DIMS.get(name, [f"{name}_{i}" for i in range(x.ndim - 2)])),
            x,
        )
        for name, x in values.items()
        if x.size
    }
    return xarray.Dataset(named, coords=COORDS)


ARGUMENTS = [
    {},
    {"ci_kind": "hdi"},
    {"ci_prob": 0.5, "kind": "stats"},
    {"kind": "diagnostics"},
    {"round_to": 2},
    {"round_to": None},
    {"round_to": "3g"},
    {"round_to": "none", "ci_kind": "hdi", "ci_prob": 0.29},
]


@pytest.mark.parametrize("num_chains", [1, 2, 4])
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_is_that_of_arviz(num_chains, arguments):
    from arviz_stats import summary

    values = zoo(num_chains)
    theirs = summary(dataset(values), **arguments)
    ours = summary_table(values, dims=DIMS, coords=COORDS, **arguments)
    assert list(ours.index) == list(theirs.index)
    assert list(ours.columns) == list(theirs.columns)
    assert_allclose(ours.to_numpy(float), theirs.to_numpy(float), rtol=1e-8)
    assert ours.to_string() == theirs.to_string()


def test_parts_keep_their_digits_and_changes_lose_them():
    from arviz_stats import summary

    values = zoo(4)
    theirs = summary(dataset(values))
    ours = summary_table(values, dims=DIMS, coords=COORDS)
    for part in (lambda t: t.iloc[2:5, :4], lambda t: t.loc[["mu"]], lambda t: t.T):
        assert part(ours).to_string() == part(theirs).to_string()
    assert repr(ours.head(2)) == repr(theirs.head(2))
    assert ours.to_html() == theirs.to_html()
    assert f"{2 * ours.loc['mu', 'sd']:.4f}"[:5] in (2 * ours).to_string()


def test_settings_of_arviz_hold():
    from arviz_base import rc_context
    from arviz_stats import summary

    values = {"mu": zoo(4)["mu"]}
    with rc_context({"stats.ci_kind": "hdi", "stats.ci_prob": 0.8, "stats.round_to": 3}):
        theirs, ours = summary(dataset(values)), summary_table(values)
        assert list(ours.columns) == list(theirs.columns)
        assert ours.to_string() == theirs.to_string()


def test_of_nothing_to_estimate_there_is_no_estimate():
    """Unlike ArviZ, which counts a constant, or frozen chains, as independent draws."""
    x = np.random.default_rng(0).normal(size=(4, 100, 2))
    x[..., 0] = 3.0
    x[1, 7, 1] = np.inf
    table = summary_table({"x": x})
    assert table.loc["x[0]", "mean"] == 3.0
    columns = ["ess_bulk", "ess_tail", "r_hat", "mcse_mean", "mcse_sd"]
    assert table[columns].isna().all(axis=None)
    assert "nan" in table.to_string()


def test_labels_follow_the_order_of_each_variable():
    """One variable has axes (age, school), another (school, age)."""
    truth = np.arange(6.0).reshape(3, 2)
    x = truth + 0.01 * np.random.default_rng(1).normal(size=(4, 100, 3, 2))
    values = {"turned": np.swapaxes(x, 2, 3), "straight": x}
    dims = {"turned": ("age", "school"), "straight": ("school", "age")}
    table = summary_table(values, dims=dims, coords=COORDS)
    for i, school in enumerate(COORDS["school"]):
        for j, age in enumerate(COORDS["age"]):
            expected = truth[i, j]
            for label in (f"straight[{school}, {age}]", f"turned[{age}, {school}]"):
                assert_allclose(table.loc[label, "mean"], expected, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "name"), [({"ci_prob": 1.2}, "ci_prob"), ({"ci_kind": "fti"}, "ci_kind")]
)
def test_wrong_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        summary_table({"mu": zoo(2)["mu"]}, **arguments)


# Weighted draws: N(0, 1) with weights towards N(1, 1), whose mean, sd and quantiles are
# known, and whose ESS is size / exp(1): E w^2 = exp(shift^2) for a shift of 1.
SHIFT, SIZE = 1.0, 4000


def weighted(rng):
    x = rng.normal(size=(1, SIZE))
    return x, SHIFT * x


def test_weights_are_used():
    x, log_weights = weighted(np.random.default_rng(2))
    table = summary_table({"x": x}, log_weights=log_weights, ci_prob=0.6827)
    row = table.loc["x"]
    weights = np.exp(log_weights - log_weights.max()).ravel()
    weights /= weights.sum()
    assert_allclose(row[["ess_bulk", "ess_tail"]], 1 / np.sum(weights**2))
    assert_allclose(row["ess_bulk"], SIZE / np.e, rtol=0.3)
    assert np.isnan(row["r_hat"])
    error = row["mcse_mean"]
    assert_allclose(row["mean"], SHIFT, atol=4 * error)
    assert_allclose(row["sd"], 1.0, atol=4 * row["mcse_sd"])
    assert_allclose(row["eti68_lb"], SHIFT - 1, atol=8 * error)
    assert_allclose(row["eti68_ub"], SHIFT + 1, atol=8 * error)


def test_errors_of_weighted_estimates_are_their_spread():
    """200 replications: the estimates' spread is what the table says, within 20%.

    The spread of 200 estimates has a relative error of 5%, the mean of their errors less.
    """
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(200):
        x, log_weights = weighted(rng)
        table = summary_table({"x": x}, log_weights=log_weights, round_to="none")
        rows.append(table.loc["x", ["mean", "sd", "mcse_mean", "mcse_sd"]].to_numpy())
    mean, sd, error_of_mean, error_of_sd = np.array(rows, float).T
    assert_allclose(error_of_mean.mean(), mean.std(ddof=1), rtol=0.2)
    assert_allclose(error_of_sd.mean(), sd.std(ddof=1), rtol=0.2)


def test_equal_weights_change_no_estimate():
    x = np.random.default_rng(4).normal(size=(1, 1000, 2))
    plain = summary_table({"x": x}, round_to="none", ci_kind="hdi")
    equal = summary_table(
        {"x": x}, log_weights=np.zeros((1, 1000)), round_to="none", ci_kind="hdi"
    )
    assert_allclose(equal["mean"], plain["mean"], rtol=1e-10)
    assert_allclose(equal["sd"], plain["sd"], rtol=1e-3)  # divisors n and n - 1
    assert_allclose(equal["ess_bulk"], 1000)
    width = lambda t: (t["hdi89_ub"] - t["hdi89_lb"]).to_numpy()
    assert_allclose(width(equal), width(plain), rtol=0.02)


def test_monte_carlo_errors_of_an_autoregression():
    """The error of the mean of an AR(1) is known; 200 replications average its estimate."""
    a = 0.6
    x = np.moveaxis(
        chains(np.random.default_rng(5), a, (200 * 4, 1000)).reshape(200, 4, -1), 0, 2
    )
    variance = 1 / (1 - a**2)
    truth = np.sqrt(variance * (1 + a) / (1 - a) / 4000)
    assert_allclose(mcse(x).mean.mean(), truth, rtol=0.03)
    # Of the square: autocorrelation a**2; the variance of a squared normal is 2 variance^2.
    truth = np.sqrt(2 * variance**2 * (1 + a**2) / (1 - a**2) / 4000) / (2 * np.sqrt(variance))
    assert_allclose(mcse(x).sd.mean(), truth, rtol=0.03)
