"""Runs begin where they were told to, whatever the engine; and what cannot be is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh
from whence.core import _cache
from whence.core._begin import members
from whence.running._worker import Worker


class Schools(wh.Model):
    """A scale, effects that are sampled in units of it, and a number below it."""

    tau: Any = wh.latent(dist.HalfNormal(2.0))
    theta: Any = wh.latent(lambda m: dist.Normal(1.0, m.tau), shape=2, noncentered=True)
    below: Any = wh.latent(lambda m: dist.Uniform(0.0, m.tau))
    last: Any = wh.latent(lambda m: dist.Normal(m.below, 1.0), noncentered=True)

    def likelihood(self):
        return dist.Normal(self.theta + self.below, 1.0)


Y = np.array([0.5, 2.0])
STARTS = [{"tau": 0.5 + i, "theta": [0.1 * i, -0.4], "below": 0.2 + 0.3 * i} for i in range(4)]
STILL: Any = dict(warmup=0, draws=1, step_size=1e-20)  # draws that show where they began
POINT: Any = dict(family=wh.Point(), draws=1, optimizer=optax.sgd(1e-20))
ENGINES = {
    "nuts": wh.NUTS(chains=3, **STILL),
    "hmc": wh.HMC(chains=3, **STILL),
    "numpyro": wh.NUTS(backend="numpyro", chains=3, **STILL),
    "blackjax": wh.NUTS(backend="blackjax", chains=3, **STILL),
    "chees": wh.ChEES(chains=4, warmup=20, draws=1, keep_warmup=True),
    "mclmc": wh.MCLMC(chains=3, warmup=20, draws=1, keep_warmup=True),
    "sgld": wh.SGLD(chains=3, steps=1, warmup=0, step_size=1e-20, thin=1),
    "svgd": wh.SVGD(particles=3, steps=1, update=optax.sgd(1e-20)),
    "map": wh.MAP(starts=1, steps=1, objective="unconstrained"),
    "bbvi": wh.BBVI(steps=1, **POINT),
}


@pytest.fixture
def target():
    return wh.condition(Schools(), Y)


@pytest.fixture(scope="module")
def still():
    return wh.infer(wh.condition(Schools(), Y), ENGINES["nuts"], key=2)


@pytest.mark.parametrize("name", [*ENGINES])
@pytest.mark.filterwarnings("ignore::whence.InferenceWarning")
def test_each_chain_begins_where_it_was_told_to(name, target):
    engine = ENGINES[name]
    starts = STARTS[: members(engine.schedule)]
    found = wh.infer(target, engine, key=1, start=starts, throw=False)
    positions = found.sample.positions
    if found.sample.warmup_positions is not None:
        positions = found.sample.warmup_positions
    points = jax.tree.map(lambda x: jnp.asarray(x[:, 0] if x.shape[0] > 1 else x[0]), positions)
    values = jax.vmap(lambda x: target.variables(target.constrain(x)))(points)
    for latent in STARTS[0]:
        told = np.asarray([start[latent] for start in starts])
        assert_allclose(values[latent], told, rtol=2e-4, err_msg=latent)


def test_latents_that_are_not_given_begin_as_ever(target):
    """Of those given the value counts, though the scale it is sampled in differs by chain."""
    given = {"theta": 0.7}
    found = wh.infer(target, ENGINES["nuts"], key=1, start=given)
    assert_allclose(found["theta"], 0.7, rtol=1e-4)
    assert np.unique(found["tau"]).size == 3
    assert np.unique(found["below"]).size == 3
    inside = np.log(found["below"] / (found["tau"] - found["below"]))  # uniform on (-2, 2)
    assert np.all(np.abs(np.append(inside, np.log(found["tau"]))) < 2)
    other = wh.infer(target, ENGINES["nuts"], key=3, start=given)
    assert not np.any(other["tau"] == found["tau"])
    # `last` is sampled from `below`, not given, whose place follows from `tau`, given.
    found = wh.infer(target, ENGINES["nuts"], key=1, start={"tau": 5.0, "last": -0.6})
    assert_allclose(found["tau"], 5.0, rtol=1e-4)
    assert_allclose(found["last"], -0.6, atol=1e-4)


def test_a_draw_of_a_posterior_for_each_chain(target, still):
    engine = ENGINES["nuts"]
    draws = dict(still.variables)
    found = wh.infer(target, engine, key=1, start=still)
    # Three draws, three chains: each once, in an order that the key decides.
    assert_allclose(np.sort(found["tau"], axis=0), np.sort(draws["tau"], axis=0), rtol=1e-5)
    log_weights = np.full((1, 3), -np.inf)
    log_weights[0, 1] = 0.0
    flat = {n: x.reshape(1, 3, *x.shape[2:]) for n, x in draws.items()}
    weighted = wh.Posterior.from_draws(target, flat, log_weights=log_weights)
    found = wh.infer(target, engine, key=1, start=weighted)
    assert_allclose(found["tau"], draws["tau"].ravel()[1], rtol=1e-5)


def test_draws_from_the_prior(target):
    """Means and variances of 2000 particles, within 4.5 standard errors."""
    number = 2_000
    engine = wh.SVGD(particles=number, steps=1, update=optax.sgd(1e-20), kernel="linear")
    found = wh.infer(target, engine, key=4, start="prior")
    tau, share = found["tau"][0], (found["below"] / found["tau"])[0]
    z = ((found["theta"] - 1.0) / found["tau"][..., None])[0]
    for draws, mean, variance in (
        (tau, 2 * np.sqrt(2 / np.pi), 4 * (1 - 2 / np.pi)),
        (share, 0.5, 1 / 12),
        (z[:, 0], 0.0, 1.0),
    ):
        assert abs(draws.mean() - mean) < 4.5 * np.sqrt(variance / number)
        assert abs(draws.var() - variance) < 4.5 * variance * np.sqrt(3 / number)


def test_other_starts_compile_nothing(target):
    engine = ENGINES["nuts"]
    wh.infer(target, engine, key=1, start=STARTS[:3])
    before = _cache.traces
    other = [{**start, "tau": start["tau"] + 1.0} for start in STARTS[:3]]
    found = wh.infer(target, engine, key=1, start=other)
    assert _cache.traces == before
    assert_allclose(found["tau"][:, 0], [1.5, 2.5, 3.5], rtol=1e-4)


def test_a_log_density_over_a_pytree():
    support = {"s": dist.constraints.positive}
    density = lambda x: -x["s"] - jnp.sum(x["a"][0] ** 2)
    target = wh.from_log_density(density, {"a": [np.zeros(2)], "s": 1.0}, support)
    engine = wh.NUTS(chains=2, **STILL)
    found = wh.infer(target, engine, key=1, start={"s": 3.0})
    assert_allclose(found["s"], 3.0, rtol=1e-5)
    assert np.unique(found["a.0"]).size == 4
    found = wh.infer(target, engine, key=1, start={"s": 2.0, "a.0": [1.0, -1.0]})
    assert_allclose(found["a.0"][1, 0], [1.0, -1.0], rtol=1e-5)


class Stopped(Exception):
    """What the test raises in a worker in place of a crash."""


@pytest.mark.parametrize("start", ["prior", {"tau": 0.7}])
def test_a_stored_run_remembers_it(start, target, tmp_path, monkeypatch):
    """Also for a chain that had not begun when the run was killed."""
    engine = wh.NUTS(chains=2, warmup=20, draws=20)
    whole = wh.infer(target, engine, key=5, start=start)
    assert not np.array_equal(whole["tau"], wh.infer(target, engine, key=5)["tau"])

    def stopped(self, stop):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "advance", stopped)
        with pytest.raises(Stopped):
            wh.infer(target, engine, key=5, start=start, store=tmp_path / "a", threads=1)
    resumed = wh.resume(tmp_path / "a", target)
    assert_array_equal(resumed["tau"], whole["tau"])
    assert wh.replay(tmp_path / "a", target).tier == "bitwise"
    assert resumed.manifest["start"] == ("prior" if start == "prior" else "values of tau")
    (tmp_path / "a" / "start.npz").unlink()
    with pytest.raises(ValueError, match="lacks start.npz"):
        wh.resume(tmp_path / "a", target)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            {"Tau": 1.0},
            "must name latents that have no fixed value, tau, theta, below, last; got 'Tau'",
        ),
        ({"theta": np.zeros(3)}, r"`start\['theta'\]` must be finite numbers of shape \(2,\)"),
        ({"tau": np.nan}, r"`start\['tau'\]` must be finite numbers"),
        ({"tau": -1.0}, r"`start\['tau'\]` must lie inside the support of its prior; got -1."),
        ({"tau": 1.0, "below": 2.0}, r"`start\['below'\]` must lie inside the support"),
        ({"tau": "much"}, r"`start\['tau'\]` must be finite numbers"),
        ({}, "`start` must be values by name"),
        (0.5, "`start` must be values by name"),
        ("posterior", "`start` must be values by name"),
        (STARTS[:2], "one dict for each of 3 chains, all of the same latents; got 2"),
        ([{"tau": 1.0}, {"tau": 1.0}, {"below": 0.1}], "all of the same latents"),
    ],
)
def test_wrong_starts_are_refused_before_anything_is_made(start, message, target, tmp_path):
    with pytest.raises(ValueError, match=message):
        wh.infer(target, ENGINES["nuts"], key=1, start=start, store=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_starts_without_a_density_or_an_engine_that_takes_them_are_refused(target, still):
    density = lambda x: jnp.where(x["a"] > 0, -x["a"], jnp.nan)
    half = wh.from_log_density(density, {"a": 1.0})
    with pytest.raises(
        ValueError, match=r"finite log density; that of chain 0 is not, at a = -1"
    ):
        wh.infer(half, wh.NUTS(chains=1), key=1, start={"a": -1.0})
    with pytest.raises(
        ValueError, match="a target with `sample_prior_position`; got LogDensityTarget"
    ):
        wh.infer(half, wh.NUTS(chains=1), key=1, start="prior")
    with pytest.raises(ValueError, match="the posterior has no 'a'"):
        wh.infer(half, wh.NUTS(chains=1), key=1, start=still)
    with pytest.raises(ValueError, match="TemperedSMC, which does not begin at positions"):
        wh.infer(target, wh.TemperedSMC(particles=20), key=1, start=STARTS[0])
    with pytest.raises(ValueError, match="must differ between the 3 particles of SVGD"):
        wh.infer(target, ENGINES["svgd"], key=1, start={**STARTS[0], "last": 0.0})
    fixed = wh.condition(Schools(tau=1.0), Y)
    with pytest.raises(ValueError, match="theta, below, last; got 'tau'"):
        wh.infer(fixed, ENGINES["nuts"], key=1, start={"tau": 1.0})
