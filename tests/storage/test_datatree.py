"""Trees by ArviZ's conventions, and ArviZ's own functions working on them unchanged."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from whence.storage import to_datatree

SCHOOLS = ["Choate", "Deerfield", "Phillips Andover", "Phillips Exeter", "Hotchkiss"]


def eight_schools(rng, draws=100):
    """A tree's worth of arrays; the log likelihood is that of the draws."""
    n = lambda *shape: rng.normal(size=(4, draws, *shape))
    y, sigma = 8 * rng.normal(size=5), np.full(5, 10.0)
    theta = n(5) + y / 3
    log_likelihood = -(((y - theta) / sigma) ** 2) / 2 - np.log(sigma * np.sqrt(2 * np.pi))
    return {
        "posterior": {"mu": n(), "tau": np.exp(n()), "theta": theta, "net.weight": n(2, 3)},
        "sample_stats": {
            "diverging": rng.random((4, draws)) < 0.05,
            "energy": n(),
            "lp": n(),
            "acceptance_rate": rng.random((4, draws)),
            "tree_depth": rng.integers(1, 5, (4, draws)),
            "reached_max_treedepth": np.zeros((4, draws), bool),
        },
        "log_likelihood": {"y": log_likelihood},
        "posterior_predictive": {"y": theta + sigma * n(5)},
        "prior": {"mu": n()[:1], "tau": np.exp(n())[:1]},
        "prior_predictive": {"y": n(5)[:1]},
        "observed_data": {"y": y},
        "constant_data": {"sigma": sigma},
        "unconstrained_posterior": {"mu": n(), "tau": n(), "theta": theta},
        "warmup_posterior": {"mu": n()[:, :50]},
        "warmup_sample_stats": {"lp": n()[:, :50]},
    }


@pytest.fixture
def groups():
    return eight_schools(np.random.default_rng(20261120))


@pytest.fixture
def tree(groups):
    dims = {"theta": ("school",), "y": ("school",), "sigma": ("school",)}
    return to_datatree(groups, dims, {"school": SCHOOLS}, {"inference_library": "whence"})


def test_groups_dims_and_coords(tree, groups):
    assert set(tree.children) == set(groups)
    assert tree.posterior.theta.dims == ("chain", "draw", "school")
    assert tree.posterior["net.weight"].dims == (
        "chain",
        "draw",
        "net.weight_dim_0",
        "net.weight_dim_1",
    )
    assert tree.observed_data.y.dims == ("school",)
    for group in ("log_likelihood", "posterior_predictive", "prior_predictive"):
        assert tree[group].y.dims == ("chain", "draw", "school")
        assert_array_equal(tree[group].school, SCHOOLS)
    assert_array_equal(tree.posterior.draw, np.arange(100))
    assert tree.warmup_posterior.sizes["draw"] == 50
    assert tree.attrs["inference_library"] == "whence"
    for group, variables in groups.items():
        for name, value in variables.items():
            assert_array_equal(tree[group][name].values, value)
    theta = tree.posterior.theta.sel(school="Hotchkiss")
    assert_array_equal(theta, groups["posterior"]["theta"][..., 4])


def test_unnamed_axes_are_shared_between_groups(groups):
    tree = to_datatree(groups)
    for group in ("observed_data", "log_likelihood", "posterior_predictive"):
        assert "y_dim_0" in tree[group].y.dims


def test_multivariate_likelihood_has_no_event_axis(groups):
    rng = np.random.default_rng(0)
    made = {
        "posterior": {"mu": rng.normal(size=(2, 10))},
        "log_likelihood": {"y": rng.normal(size=(2, 10, 7))},
        "observed_data": {"y": rng.normal(size=(7, 3))},
    }
    tree = to_datatree(made, {"y": ("row", "response")}, {"response": ["a", "b", "c"]})
    assert tree.log_likelihood.y.dims == ("chain", "draw", "row")
    assert tree.observed_data.y.dims == ("row", "response")


def test_empty_groups_are_left_out_and_weights_have_their_place():
    draws = np.random.default_rng(1).normal(size=(1, 20))
    tree = to_datatree({"posterior": {"mu": draws}, "prior": {}, "log_likelihood": None})
    assert set(tree.children) == {"posterior"}
    tree = to_datatree({"posterior": {"mu": draws}}, log_weights=-np.abs(draws))
    assert_array_equal(tree.sample_stats.log_weight, -np.abs(draws))


def test_predictions_at_new_inputs_have_their_own_length():
    draws = np.random.default_rng(2).normal(size=(1, 20, 5))
    made = {"posterior": {"a": draws}, "posterior_predictive": {"y": draws[..., :3]}}
    tree = to_datatree(made, {"a": ("s",), "y": ("s",)}, {"s": list("abcde")})
    assert_array_equal(tree.posterior_predictive.s, [0, 1, 2])
    assert_array_equal(tree.posterior.s, list("abcde"))


@pytest.mark.parametrize(
    ("groups", "dims", "coords", "message"),
    [
        ({"posteriors": {}}, {}, {}, "unknown group 'posteriors'"),
        ({"posterior": {"a": np.zeros(4)}}, {}, {}, r"leading axes \(chain, draw\)"),
        (
            {"posterior": {"a": np.zeros((1, 2, 3))}},
            {"a": ("s", "t")},
            {},
            r"`dims\['a'\]` names 2 axes",
        ),
        (
            {"posterior": {"a": np.zeros((1, 2, 3))}},
            {"a": ("s",)},
            {"s": ["x", "y"]},
            r"`coords\['s'\]` has 2 labels, but that axis has length 3",
        ),
        (
            {"posterior": {"a": np.zeros((1, 2, 3)), "b": np.zeros((1, 2, 4))}},
            {"a": ("s",), "b": ("s",)},
            {},
            "has length 4 along 's', where another variable of the group has 3",
        ),
        (
            {"posterior": {"a": np.zeros((1, 2, 3, 3))}},
            {"a": ("s", "s")},
            {},
            "must be distinct",
        ),
    ],
)
def test_disagreements_are_named(groups, dims, coords, message):
    with pytest.raises(ValueError, match=message):
        to_datatree(groups, dims, coords)


# -- ArviZ on it ------------------------------------------------------------------


@pytest.fixture
def arviz():
    import matplotlib

    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' warnings are not under test
        import arviz

        yield arviz
        matplotlib.pyplot.close("all")


def test_summary(tree, arviz, groups):
    table = arviz.summary(tree, round_to="none")
    assert "theta[Phillips Andover]" in table.index
    assert_allclose(table.loc["mu", "mean"], groups["posterior"]["mu"].mean())
    from whence.diagnostics import ess_bulk

    assert_allclose(table.loc["mu", "ess_bulk"], ess_bulk(groups["posterior"]["mu"]), rtol=1e-6)


def test_loo(tree, arviz):
    result = arviz.loo(tree)
    assert result.n_data_points == 5
    assert np.isfinite(result.elpd)


@pytest.mark.parametrize(
    ("plot", "arguments"),
    [
        ("plot_trace_dist", {"var_names": ["mu", "theta"]}),
        ("plot_ppc_dist", {"num_samples": 20}),
        ("plot_rank", {"var_names": ["mu"]}),
        ("plot_energy", {}),
        ("plot_forest", {"var_names": ["theta"]}),
        ("plot_pair", {"var_names": ["mu", "tau"], "visuals": {"divergence": True}}),
        ("plot_prior_posterior", {"var_names": ["mu"]}),
    ],
)
def test_plots(tree, arviz, plot, arguments, tmp_path):
    collection = getattr(arviz, plot)(tree, backend="matplotlib", **arguments)
    collection.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000
