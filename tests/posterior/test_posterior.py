"""Posteriors: values, functions of draws, prediction, weights, ArviZ groups, files."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh
from whence.diagnostics import (
    AbstractRecord,
    AdaptedChains,
    Optimum,
    ParticleHistory,
    VariationalFit,
)


class Groups(wh.Model):
    mu: Any = wh.latent(dist.Normal(0.0, 1.0))
    tau: Any = wh.latent(dist.HalfNormal(1.0))
    theta: Any = wh.latent(lambda m: dist.Normal(m.mu, m.tau), dims="group")
    weights: Any = wh.latent(dist.Dirichlet(jnp.ones(2)), dims=("group", "part"))

    def likelihood(self, x):
        return dist.Normal(self.theta[:, None] * x[None], 0.5)

    @wh.derived(dims="group")
    def double(self):
        return 2.0 * self.theta

    @wh.derived
    def largest(self):
        return self.theta.max()


LABELS = ["north", "south", "west"]
X = np.linspace(0.1, 1.0, 4)
Y = np.outer([1.0, -1.0, 0.5], X)


@pytest.fixture(scope="module")
def target():
    model = Groups(coords={"group": LABELS, "part": 2})
    return wh.condition(model, Y, X, dims=("group", "time"))


def _posterior(target, chains=2, draws=50, log_weights=None):
    keys = jr.split(jr.key(3), (chains, draws))
    positions = jax.vmap(jax.vmap(lambda k: target.init(key=k)))(keys)
    positions = jax.tree.map(np.asarray, positions)
    lp = jax.vmap(jax.vmap(target.log_density))(positions)
    stats = {"lp": np.asarray(lp), "diverging": np.zeros((chains, draws), bool)}
    manifest = {"key": [0, 1], "key_impl": "threefry2x32", "versions": {"whence": "0"}}
    weighted = log_weights is not None
    sample = wh.Sample(
        positions, stats, method="smc" if weighted else "mcmc", log_weights=log_weights
    )
    return wh.Posterior(target, sample, engine="Test", manifest=manifest)


@pytest.fixture(scope="module")
def posterior(target):
    return _posterior(target)


def test_values_are_the_constrained_positions(target, posterior):
    assert set(posterior) == {"mu", "tau", "theta", "weights", "double", "largest"}
    assert posterior["theta"].shape == (2, 50, 3)
    assert_allclose(posterior["tau"], np.exp(posterior.sample.positions["tau"]), rtol=1e-12)
    assert_allclose(posterior["weights"].sum(-1), 1.0, rtol=1e-12)
    assert_allclose(posterior["double"], 2 * posterior["theta"], rtol=1e-12)
    with pytest.raises(KeyError, match="it has mu"):
        posterior["nothing"]
    assert "mu" in posterior
    assert "nothing" not in posterior


def test_draws_are_a_batched_model(posterior):
    draws = posterior.draws
    assert isinstance(draws, Groups)
    assert_array_equal(draws.theta, posterior["theta"])
    assert list(draws.coords["group"]) == LABELS
    mean = jax.vmap(jax.vmap(lambda m: m.theta.mean()))(draws)
    assert_allclose(mean, posterior["theta"].mean(-1), rtol=1e-12)


def test_map_any_function(posterior):
    assert_allclose(
        posterior.map(lambda m: {"a": m.theta.max(), "b": m.mu > 0})["a"], posterior["largest"]
    )


def test_predict_at_old_and_new_inputs(posterior):
    old = posterior.predict(key=jr.key(0))
    assert old.shape == (2, 50, 3, 4)
    new = posterior.predict(np.full(2000, 2.0), key=jr.key(0))
    assert new.shape == (2, 50, 3, 2000)
    expected = 2.0 * posterior["theta"]
    assert_allclose(new.mean(-1), expected, atol=5 * 0.5 / np.sqrt(2000))
    assert_allclose(new.std(-1), 0.5, atol=5 * 0.5 / np.sqrt(4000))
    assert not np.array_equal(old[0, 0], old[0, 1])


def test_predict_one_value_per_row_for_common_parameters():
    class Iid(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return dist.Normal(self.mu, 1.0)

    posterior = _posterior(wh.condition(Iid(), np.zeros(30)))
    drawn = posterior.predict(key=jr.key(0))
    assert drawn.shape == (2, 50, 30)
    assert np.unique(drawn[0, 0]).size == 30


def test_log_likelihood_is_pointwise(posterior):
    value = posterior.log_likelihood()["y"]
    expected = dist.Normal(posterior["theta"][..., None] * X, 0.5).log_prob(Y)
    assert_allclose(value, expected, rtol=1e-10)


def test_all_groups_with_dims_and_coords(posterior):
    tree = posterior.to_datatree()
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "unconstrained_posterior",
        "log_likelihood",
        "log_prior",
        "posterior_predictive",
        "prior",
        "prior_predictive",
        "observed_data",
        "constant_data",
    }
    assert tree["posterior"]["theta"].dims == ("chain", "draw", "group")
    assert tree["posterior"]["weights"].dims == ("chain", "draw", "group", "part")
    assert tree["posterior"]["double"].dims == ("chain", "draw", "group")
    assert list(tree["posterior"]["group"].values) == LABELS
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "group", "time")
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "group", "time")
    assert tree["observed_data"]["y"].dims == ("group", "time")
    assert_array_equal(tree["observed_data"]["y"], Y)
    assert_array_equal(tree["constant_data"]["x"], X)
    assert tree["prior"]["tau"].shape == (1, 500)
    again = posterior.to_datatree(groups=("posterior_predictive",))
    assert_array_equal(
        again["posterior_predictive"]["y"], tree["posterior_predictive"]["y"]
    )  # the default key is the run's
    with pytest.raises(ValueError, match="`groups`"):
        posterior.to_datatree(groups=("nonsense",))
    with pytest.raises(ValueError, match="not kept"):
        posterior.to_datatree(groups=("warmup_posterior",))


def test_prior_group_has_the_prior(posterior):
    prior = posterior.to_datatree(groups=("prior",), prior_draws=4000)["prior"]
    assert_allclose(prior["mu"].mean(), 0.0, atol=5 / np.sqrt(4000))
    assert_allclose((prior["tau"] ** 2).mean(), 1.0, atol=5 * np.sqrt(2 / 4000))


def test_improper_prior_has_no_prior_groups():
    class Flat(wh.Model):
        mu: Any = wh.latent(dist.ImproperUniform(dist.constraints.real, (), ()))

        def likelihood(self):
            return dist.Normal(self.mu, 1.0)

    posterior = _posterior(wh.condition(Flat(), np.zeros(3)))
    tree = posterior.to_datatree()
    assert "prior" not in tree.children
    assert "posterior_predictive" in tree.children
    with pytest.raises(ValueError, match="improper"):
        posterior.to_datatree(groups=("prior",))


def test_arviz_takes_it_unchanged(posterior, monkeypatch):
    import arviz as az
    import matplotlib

    matplotlib.use("Agg")
    tree = posterior.to_datatree()
    with np.errstate(all="ignore"):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loo = az.loo(tree)
            az.plot_ppc_dist(tree)
            posterior.plot("forest", var_names=["theta"])
            summary = posterior.summary(var_names=["theta"])
    assert np.isfinite(loo.elpd)
    assert list(summary.index) == [f"theta[{label}]" for label in LABELS]
    with pytest.raises(ValueError, match="`kind`"):
        posterior.plot("nonsense")


def test_save_and_load(target, posterior, tmp_path):
    path = tmp_path / "fit.nc"
    posterior.save(path)
    alone = wh.load(path)
    for name in posterior:
        assert_array_equal(alone[name], posterior[name])
    assert_array_equal(alone.stats["diverging"], posterior.stats["diverging"])
    assert alone.manifest == posterior.manifest
    assert alone.diagnose().to_dict()["verdict"] == posterior.diagnose().to_dict()["verdict"]
    assert alone.to_datatree(groups=("posterior",))["posterior"]["theta"].dims[-1] == "group"
    with pytest.raises(ValueError, match="without its target"):
        alone.map(lambda m: m.mu)
    whole = wh.load(path, target=target)
    assert_array_equal(whole.predict(key=jr.key(0)), posterior.predict(key=jr.key(0)))


def test_load_refuses_another_target(target, tmp_path):
    posterior = _posterior(target)
    posterior.manifest["data_sha256"] = "0" * 64
    posterior.save(tmp_path / "fit.nc")
    with pytest.raises(ValueError, match="`target`"):
        wh.load(tmp_path / "fit.nc", target=target)


def test_weights_survive_and_resample(target, tmp_path):
    """Weighted expectations are kept by saving, and by resampling up to its error."""
    total = 4000
    log_weights = np.log(np.arange(1, total + 1, dtype=float))[None]
    log_weights -= np.log(np.exp(log_weights).sum())
    posterior = _posterior(target, 1, total, log_weights=log_weights)
    truth = (np.exp(log_weights) * posterior["mu"]).sum()
    equal = posterior.resample(total, key=jr.key(8))
    assert equal.log_weights is None
    error = np.std(posterior["mu"]) / np.sqrt(total)
    assert abs(equal["mu"].mean() - truth) < 4 * error
    tree = posterior.to_datatree(groups=("posterior",))
    assert abs(float(tree["posterior"]["mu"].mean()) - truth) < 4 * error
    posterior.save(tmp_path / "w.nc")
    assert_allclose(wh.load(tmp_path / "w.nc").log_weights, log_weights, rtol=1e-12)
    with pytest.raises(ValueError, match="`num_draws`"):
        posterior.resample(0, key=jr.key(0))


def test_manifest_says_what_was_run():
    class One(wh.Model):
        a: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return dist.Normal(self.a, 1.0)

    target = wh.condition(One(), np.zeros(3))
    engine = wh.SGLD(steps=20, step_size=1e-2, warmup=0, chains=2)
    posterior = wh.infer(target, engine, key=jr.key(7))
    manifest = json.loads(json.dumps(posterior.manifest))
    assert "step_size=0.01" in manifest["engine"].replace(" ", "")
    assert manifest["key"] == np.asarray(jr.key_data(jr.key(7))).tolist()
    assert manifest["x64"] is True
    assert len(manifest["data_sha256"]) == 64
    assert set(posterior.seconds) == {"trace", "compile", "warmup", "sampling", "total"}


def test_bare_target_is_named_by_its_tree():
    class Bare(wh.AbstractTarget):
        def init(self, *, key):
            return {"a": jnp.zeros(()), "b": [jr.normal(key, (2,))]}

        def log_density(self, position):
            return -0.5 * sum(jnp.sum(x**2) for x in jax.tree.leaves(position))

        def constrain(self, position):
            return position

    posterior = _posterior(Bare())
    assert posterior["b.0"].shape == (2, 50, 2)
    with pytest.raises(ValueError, match="describes its data"):
        posterior.predict(key=jr.key(0))
    assert "log_likelihood" not in posterior.to_datatree().children


FIT = VariationalFit(
    elbo=np.linspace(-3.0, -1.0, 40),
    log_weights_is=np.zeros((1, 30)),
    parameters={"loc": np.arange(3.0), "inner": {"scale_tril": np.eye(2), "none": None}},
    elbo_final=-1.5,
    elbo_final_error=0.01,
    num_nonfinite=2,
)
RECORDS = {
    "fit": ("variational", FIT),
    "chains": ("mcmc", AdaptedChains(0.9)),
    "particles": ("smc", ParticleHistory(temperature=np.array([0.1, 1.0]), ess=np.zeros(0))),
    "optimum": ("point", Optimum(np.array([-1.0, -2.0]), np.array([True, False]))),
}


@pytest.mark.parametrize("name", RECORDS)
def test_nothing_an_engine_tells_is_lost_on_save(target, tmp_path, name):
    method, record = RECORDS[name]
    plain = _posterior(target)
    sample = dataclasses.replace(plain.sample, method=method, record=record)
    posterior = plain._like(sample)
    posterior.save(tmp_path / "a.nc")
    for loaded in (wh.load(tmp_path / "a.nc", target=target), wh.load(tmp_path / "a.nc")):
        assert loaded.sample.method == method
        assert type(loaded.record) is type(record)
        assert jax.tree.structure(loaded.record) == jax.tree.structure(record)
        jax.tree.map(assert_array_equal, loaded.record, record)
        assert str(loaded.diagnose()) == str(posterior.diagnose())


class Other(AbstractRecord):
    found: np.ndarray

    def judge(self, draws, method):
        return [], {"found": float(self.found.sum())}


def test_a_record_of_another_package_comes_back_as_what_it_held(target, tmp_path):
    plain = _posterior(target)
    sample = dataclasses.replace(plain.sample, record=Other(np.arange(3.0)))
    posterior = plain._like(sample)
    assert posterior.diagnose().numbers["found"] == 3.0
    posterior.save(tmp_path / "a.nc")
    loaded = wh.load(tmp_path / "a.nc", target=target)
    assert loaded.record.name.endswith(":Other")
    assert_array_equal(loaded.record.fields["found"], np.arange(3.0))
    assert loaded.diagnose()["record"].severity == "note"


def test_what_draws_are_must_be_said(target):
    positions = {"x": np.zeros((1, 4))}
    with pytest.raises(TypeError, match="method"):
        wh.Sample(positions, {})
    with pytest.raises(ValueError, match="`method` must be one of mcmc, .*; got 'magic'"):
        wh.Sample(positions, {}, method="magic")
