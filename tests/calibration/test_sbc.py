"""Simulation-based calibration: what is right passes, what is wrong is caught and named."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import whence as wh
from whence.calibration import _fits
from whence.calibration._generative import check_arguments, check_functions
from whence.core import _cache

sys.path.insert(0, str(Path(__file__).parent))
import _planted as planted  # noqa: E402


def test_exact_draws_are_calibrated(key):
    calibration = wh.sbc(planted.mean_target(), planted.Exact(), key=key, simulations=100)
    assert calibration.ok
    assert calibration.num_draws == 99
    assert set(calibration.ranks) == {"mu", "positive", "log_likelihood"}
    for ranks in calibration.ranks.values():
        assert ranks.shape == (100,)
        assert ranks.min() >= 0
        assert ranks.max() <= 99
    assert "No miscalibration found in 3 quantities" in str(calibration)


@pytest.mark.parametrize(
    ("engine", "simulations", "words"),
    [
        (planted.Exact(width=0.7), 200, "too narrow"),
        (planted.Exact(width=2.0), 100, "too wide"),
        (planted.Exact(shift=1.0), 50, "too high"),
        (planted.Exact(shift=-1.0), 50, "too low"),
    ],
)
def test_distorted_posteriors_are_caught_and_named(engine, simulations, words, key):
    calibration = wh.sbc(planted.mean_target(), engine, key=key, simulations=simulations)
    assert not calibration.ok
    assert words in calibration.report["mu"].message
    assert calibration.report["mu"].remedy


def test_a_posterior_that_ignores_the_data_is_caught_by_the_likelihood(key):
    """Draws from the prior have uniform ranks in every parameter (Modrák et al. 2023)."""
    engine = planted.Exact(use_data=False)
    calibration = wh.sbc(planted.mean_target(), engine, key=key, simulations=100)
    assert not calibration.report["mu"].is_problem
    assert "worse than the truth" in calibration.report["log_likelihood"].message


def test_failures_are_counted_and_make_it_fail(key):
    engine = planted.Exact(fail_above=1.5)
    calibration = wh.sbc(planted.mean_target(), engine, key=key, simulations=100)
    assert not calibration.ok
    # The mean of the data is normal with variance 4 + 1/5.
    expected = 100 * (1 - 0.7678)
    assert abs(len(calibration.failures) - expected) < 4 * np.sqrt(expected * 0.7678)
    assert len(calibration.ranks["mu"]) == 100 - len(calibration.failures)
    assert np.isnan(calibration.ess[list(calibration.failures)]).all()
    assert "failed" in calibration.report["failures"].message


def test_all_fits_failing_is_said(key):
    engine = planted.Exact(fail_above=-100.0)
    calibration = wh.sbc(planted.mean_target(), engine, key=key, simulations=10)
    assert not calibration.ok
    assert "all fits failed" in str(calibration)


@pytest.mark.slow
def test_nuts_on_a_skewed_posterior(key):
    engine = wh.NUTS(chains=2, warmup=200, draws=300)
    calibration = wh.sbc(planted.scale_target(), engine, key=key, simulations=100)
    assert calibration.ok, str(calibration)


def test_a_missing_jacobian_is_caught(key):
    target = planted.without_jacobian(planted.scale_target(), "sigma")
    engine = wh.NUTS(chains=1, warmup=200, draws=400)
    calibration = wh.sbc(target, engine, key=key, simulations=150)
    assert calibration.report["sigma"].is_problem


def test_everything_is_compiled_once(key):
    _cache.clear_programs()
    target, engine = planted.scale_target(), wh.NUTS(chains=1, warmup=50, draws=50)
    before = _cache.traces
    wh.sbc(target, engine, key=key, simulations=10)
    assert _cache.traces - before == 3  # the simulation, the fit, the quantities
    wh.sbc(target, engine, key=jax.random.key(1), simulations=10)
    assert _cache.traces - before == 3


@pytest.mark.slow
def test_many_data_sets_in_one_program(key):
    _cache.clear_programs()
    before = _cache.traces
    right = wh.sbc(
        planted.scale_target(),
        wh.NUTS(chains=2, warmup=100, draws=100),
        key=key,
        simulations=40,
        vectorised=True,
    )
    assert right.ok, str(right)
    assert _cache.traces - before == 3
    narrow = planted.Exact(width=0.5, fail_above=2.0)
    wrong = wh.sbc(planted.mean_target(), narrow, key=key, simulations=60, vectorised=True)
    assert "too narrow" in wrong.report["mu"].message
    assert 0 < len(wrong.failures) < 30
    assert "non-finite position" in next(iter(wrong.failures.values()))


def test_the_size_of_a_batch_changes_nothing(key, monkeypatch):
    arguments = {"key": key, "simulations": 20, "vectorised": True}
    target = planted.mean_target()
    whole = wh.sbc(target, planted.Exact(), **arguments)
    monkeypatch.setattr(_fits, "_BATCH", 8)
    parts = wh.sbc(target, planted.Exact(), **arguments)
    np.testing.assert_array_equal(whole.ranks["mu"], parts.ranks["mu"])


@pytest.mark.parametrize("made", [0, 1])
def test_ctrl_c_keeps_whole_batches(key, monkeypatch, made):
    arguments = {"key": key, "simulations": 40, "vectorised": True, "num_draws": 20}
    whole = wh.sbc(planted.mean_target(), planted.Exact(), **arguments)
    batches, run_job = [], _fits.run_job

    def interrupted(*args):
        batches.append(None)
        if len(batches) > made:
            raise KeyboardInterrupt
        return run_job(*args)

    monkeypatch.setattr(_fits, "run_job", interrupted)
    monkeypatch.setattr(_fits, "_BATCH", 16)
    if not made:
        with pytest.raises(KeyboardInterrupt, match="after 0 of 40 fits"):
            wh.sbc(planted.mean_target(), planted.Exact(), **arguments)
        return
    with pytest.warns(wh.InferenceWarning, match="in the first 16 of 40 fits"):
        part = wh.sbc(planted.mean_target(), planted.Exact(), **arguments)
    np.testing.assert_array_equal(part.ranks["mu"], whole.ranks["mu"][:16])
    assert part.num_simulations == 16


@pytest.mark.slow
def test_engines_that_end_early_in_one_program(key):
    calibration = wh.sbc(
        planted.scale_target(),
        wh.TemperedSMC(particles=512),
        key=key,
        simulations=100,
        vectorised=True,
    )
    assert calibration.ok, str(calibration)


def test_the_same_key_gives_the_same_ranks(key):
    run = lambda: wh.sbc(planted.mean_target(), planted.Exact(), key=key, simulations=20)
    first, second = run(), run()
    np.testing.assert_array_equal(first.ranks["mu"], second.ranks["mu"])
    np.testing.assert_array_equal(first.ranks["positive"], second.ranks["positive"])


@pytest.mark.slow
def test_mean_field_is_too_narrow_where_latents_correlate(key):
    target = wh.condition(planted.Pair(), jnp.zeros(4))
    engine = wh.BBVI(steps=400, learning_rate=0.05, samples=4, draws=200)
    calibration = wh.sbc(target, engine, key=key, simulations=100)
    assert "too narrow" in calibration.report["a"].message
    assert "too narrow" in calibration.report["b"].message


@pytest.mark.slow
def test_weighted_particles(key):
    engine = wh.TemperedSMC(particles=512)
    calibration = wh.sbc(planted.scale_target(), engine, key=key, simulations=40)
    assert calibration.ok, str(calibration)
    assert calibration.num_draws == 99


def test_sgld_runs(key):
    engine = wh.SGLD(chains=1, steps=500, step_size=0.05)
    calibration = wh.sbc(planted.mean_target(), engine, key=key, simulations=10)
    assert calibration.ranks["mu"].shape == (10,)


def test_dependent_draws_are_noted(key):
    engine = wh.SGLD(chains=1, steps=300, step_size=0.001, thin=1)
    calibration = wh.sbc(planted.mean_target(), engine, key=key, simulations=20)
    assert calibration.num_draws == 19
    assert "dependence" in calibration.report


def test_chains_that_do_not_move_are_told(key):
    engine = wh.NUTS(chains=1, warmup=0, draws=30, step_size=1e-30)
    calibration = wh.sbc(planted.mean_target(), engine, key=key, simulations=20)
    assert "20 of 20 fits had chains that did not move" in calibration.report["stuck"].message
    assert not calibration.ok


def _schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(5))
    with numpyro.plate("school", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + tau * theta, sigma), obs=y)


@pytest.mark.slow
def test_a_numpyro_model(key):
    target = wh.from_numpyro(_schools, jnp.array([15.0, 10.0, 16.0]), y=jnp.zeros(3))
    engine = wh.NUTS(chains=1, warmup=200, draws=400)
    before = _cache.traces
    calibration = wh.sbc(target, engine, key=key, simulations=40)
    assert calibration.ok, str(calibration)
    assert calibration.ranks["theta"].shape[1:] == (3,)
    assert _cache.traces - before <= 4  # the observed data, and the three programs


def test_a_numpyro_model_with_a_factor_is_refused(key):
    def model(y):
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("penalty", -jnp.abs(x))
        numpyro.sample("y", dist.Normal(x, 1), obs=y)

    with pytest.raises(ValueError, match="'penalty' is a term of the likelihood"):
        wh.sbc(wh.from_numpyro(model, jnp.zeros(())), wh.NUTS(), key=key)


@pytest.mark.usefixtures("standard")
@pytest.mark.slow
def test_several_observed_variables_counts_and_test_quantities(key):
    class Model(wh.Model):
        rate: jax.Array = wh.latent(dist.Gamma(2.0, 1.0))
        fixed: jax.Array = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return {"n": dist.Poisson(self.rate), "x": dist.Normal(jnp.log(self.rate), 1.0)}

    data = {"n": np.array([1, 2, 3]), "x": np.zeros(2)}
    target = wh.condition(Model(fixed=jnp.array(1.0)), data)
    calibration = wh.sbc(
        target,
        wh.NUTS(chains=1, warmup=200, draws=300),
        key=key,
        simulations=40,
        num_draws=49,
        test_quantities={"surprise": lambda draw, y: y["n"].sum() - 3 * draw.rate},
    )
    assert calibration.ok, str(calibration)
    assert calibration.num_draws == 49
    assert set(calibration.ranks) == {"rate", "log_likelihood", "surprise"}  # not the fixed one


def test_tree_and_picture(key, tmp_path):
    class Model(wh.Model):
        theta: jax.Array = wh.latent(dist.Normal(0.0, 1.0), dims="school")

        def likelihood(self):
            return dist.Normal(self.theta, 1.0)

    target = wh.condition(Model(coords={"school": ["A", "B"]}), np.zeros(2))
    engine = wh.NUTS(chains=1, warmup=50, draws=100)
    calibration = wh.sbc(target, engine, key=key, simulations=10)
    tree = calibration.to_datatree()
    assert tree["prior_sbc"]["theta"].dims == ("chain", "draw", "school")
    assert list(tree["ranks"]["theta"]["school"].values) == ["A", "B"]
    assert float(tree["prior_sbc"]["theta"].max()) < 1
    calibration.plot().savefig(tmp_path / "sbc.png")
    assert (tmp_path / "sbc.png").stat().st_size > 1000
    assert calibration.report.to_dict()["ok"] == calibration.ok


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": wh.from_log_density(lambda x: -(x**2), 0.0)}, "sample_prior"),
        ({"simulations": 5}, "at least 10; got 5"),
        ({"num_draws": 1}, "at least 2, or None; got 1"),
        ({"num_draws": 500}, "at most the draws of a fit, 99; got 500"),
        ({"alpha": 2.0}, "above 0 and below 1; got 2"),
        ({"test_quantities": {"mu": lambda m, y: m.mu}}, "name of a variable"),
    ],
)
def test_wrong_arguments(change, message, key):
    arguments = {"target": planted.mean_target(), "engine": planted.Exact(), "key": key}
    arguments |= {"simulations": 10} | change
    target, engine = arguments.pop("target"), arguments.pop("engine")
    with pytest.raises(ValueError, match=message):
        wh.sbc(target, engine, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": planted.Mean()}, "must first be conditioned"),
        ({"engine": wh.NUTS}, "`engine` must be"),
        ({"key": 1}, "typed key"),
    ],
)
def test_arguments_of_wrong_types(change, message, key):
    right = {"target": planted.mean_target(), "engine": planted.Exact(), "key": key}
    with pytest.raises(ValueError, match=message):
        check_arguments(**(right | {"alpha": 0.05} | change))
    with pytest.raises(ValueError, match="must be a function of a draw"):
        check_functions({"x": 1})


def test_a_model_that_cannot_draw_data_is_refused(key):
    class Model(wh.Model):
        x: jax.Array = wh.latent(dist.Normal(0.0, 1.0))

        def log_likelihood(self, y):
            return dist.Normal(self.x, 1.0).log_prob(y)

    target = wh.condition(Model(), np.zeros(3))
    with pytest.raises(ValueError, match="must be able to draw data"):
        wh.sbc(target, wh.NUTS(), key=key)
