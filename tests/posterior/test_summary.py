"""`Posterior.summary`: labels, arguments left to ArviZ, weights, and what copies are worth."""

import dataclasses
import subprocess
import sys
from typing import Any

import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import whence as wh

FIRMS, TERMS = ["A", "B", "C"], ["intercept", "slope"]
TRUTH = np.array([[10.0, 1.0], [20.0, 2.0], [30.0, 3.0]])


class Panel(wh.Model):
    """`mu` comes first, so that a Dataset's order of axes is not that of `b`."""

    mu: Any = wh.latent(dist.Normal(0.0, 10.0), dims="term")
    b: Any = wh.latent(lambda m: dist.Normal(m.mu, 10.0), dims=("firm", "term"))

    def likelihood(self):
        return dist.Normal(self.b, 1.0)


@pytest.fixture(scope="module")
def posterior():
    target = wh.condition(Panel(coords={"firm": FIRMS, "term": TERMS}), TRUTH)
    rng = np.random.default_rng(0)
    draws = {
        "mu": rng.normal(size=(2, 200, 2)),
        "b": TRUTH + 0.01 * rng.normal(size=(2, 200, 3, 2)),
    }
    return wh.Posterior.from_draws(target, draws)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"var_names": "b"},
        {"kind": "all_median"},
        {"filter_vars": "like", "var_names": ["b"]},
        {"skipna": True},
        {"kind": "all_median", "var_names": ["mu", "b"]},
        {"kind": "all_median", "var_names": ["b", "mu"]},
        {"kind": "all_median", "var_names": ["~mu"]},
    ],
)
def test_labels_are_right_whoever_makes_the_table(posterior, arguments):
    table = posterior.summary(**arguments)
    middle = table["median" if "median" in table else "mean"]
    for firm, row in zip(FIRMS, TRUTH):
        for term, expected in zip(TERMS, row):
            found = [x for x in middle.index if x.startswith("b[") and firm in x and term in x]
            assert len(found) == 1
            assert_allclose(middle[found[0]], expected, atol=0.1)


def test_unknown_arguments_get_the_words_of_arviz(posterior):
    with pytest.raises(ValueError, match="kind"):
        posterior.summary(kind="nonsense")
    with pytest.raises(KeyError, match="nothing"):
        posterior.summary(var_names=["nothing"])
    assert list(posterior.summary(var_names=["~mu"]).index)[0].startswith("b[")
    assert posterior.summary(var_names=["mu"], fmt="xarray")["mu"].dims[-1] == "term"


class Line(wh.Model):
    a: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self):
        return dist.Normal(self.a, 1.0)


def line(draws, **kwargs):
    target = wh.condition(Line(), np.zeros(1))
    return wh.Posterior.from_draws(target, {"a": draws}, **kwargs)


def test_few_effective_particles_stay_few():
    """4000 draws of N(0, 1) weighted to N(3, 1) are worth about 4000 / exp(9), or a few."""
    x = np.random.default_rng(0).normal(size=(1, 4000))
    posterior = line(x, log_weights=3.0 * x - 4.5)
    worth = 1 / np.sum(np.exp(posterior.log_weights) ** 2)
    assert worth < 200
    assert_allclose(posterior.summary().loc["a", "ess_bulk"], worth)
    copies = posterior.resample(4000, key=jr.key(1))
    # Runs of copies, beside each other, are worth sum(run)^2 / sum(run^2): the same.
    assert copies.summary().loc["a", "ess_bulk"] < 2 * worth
    assert not copies.diagnose().ok
    left_to_arviz = posterior.summary(kind="all_median", round_to="none")
    assert left_to_arviz.loc["a", "ess_median"] < 4 * worth


@pytest.mark.parametrize("number", [1000, 4000, 9000])
def test_copies_of_a_slow_chain_stay_slow(number):
    """Chains worth 4000 (1 - a) / (1 + a), or 20 draws, however often they are drawn from."""
    rng, a = np.random.default_rng(1), 0.99
    x = np.zeros((4, 1000))
    for t in range(1, 1000):
        x[:, t] = a * x[:, t - 1] + np.sqrt(1 - a**2) * rng.normal(size=4)
    posterior = line(x)
    copies = posterior.resample(number, key=jr.key(2))
    assert copies["a"].shape == (4, number // 4)
    assert_allclose(copies["a"].mean(), x.mean(), atol=0.1 * x.std())
    worth = posterior.summary().loc["a", "ess_bulk"]
    assert_allclose(copies.summary().loc["a", "ess_bulk"], worth, rtol=0.1)
    assert posterior.resample(number + 1, key=jr.key(2))["a"].shape == (1, number + 1)


def test_weighted_draws_of_a_chain_are_not_independent():
    """Weights that do not depend on the draw leave an AR(1) with the error that it has."""
    rng, a, size = np.random.default_rng(1), 0.9, 4000
    x = np.zeros((200, 4, size))
    for t in range(1, size):
        x[..., t] = a * x[..., t - 1] + np.sqrt(1 - a**2) * rng.normal(size=(200, 4))
    weights = np.tile((1 + np.arange(size) / 100) ** -0.55, (4, 1)) / 4
    weights /= weights.sum()
    spread = np.std(np.sum(x * weights, axis=(1, 2)))  # of the means of 200 replications
    posterior = line(x[0], method="unadjusted")
    weighted = dataclasses.replace(posterior.sample, log_weights=np.log(weights))
    posterior = wh.Posterior(posterior.target, weighted, engine="SGLD")
    row = posterior.summary(round_to="none").loc["a"]
    # 5% of the spread, and 10% of the estimate of an error by one replication.
    assert_allclose(row["mcse_mean"], spread, rtol=0.3)
    assert_allclose(row["ess_bulk"], (row["sd"] / row["mcse_mean"]) ** 2)
    assert row["ess_bulk"] < 1000
    assert row["r_hat"] < 1.05
    assert_allclose(row["mean"], np.sum(x[0] * weights))
    report = posterior.diagnose()
    assert report["weight_ess"].severity == "ok"
    assert "draws" in report["weight_ess"].message
    assert posterior.resample(400, key=jr.key(0)).sample.method == "unadjusted"


def test_a_table_needs_little():
    """Importing `arviz_stats` takes longer than the rest of a small fit's summary."""
    code = """
import sys
import numpy as np
import whence as wh
from whence.diagnostics import _table
_table.summary_table({"x": np.random.default_rng(0).normal(size=(4, 100))}).to_string()
print(*sorted(m for m in sys.modules if m.startswith(("arviz_", "matplotlib", "scipy.stats"))))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    heavy = {name.split(".")[0] for name in out.stdout.split()}
    assert heavy <= {"arviz_base"}
