"""Draws made elsewhere: round trips, other samplers on our density, messages."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import constraints

import whence as wh
from whence.core._dtype import relaxed
from whence.testing import compare_reference

X = np.linspace(-1.0, 1.0, 25)
Y = 1.0 + 2.0 * X + 0.4 * np.sin(17.0 * np.arange(25))


class Line(wh.Model):
    slope: Any = wh.latent(dist.Normal(0.0, 2.0))
    tau: Any = wh.latent(dist.HalfNormal(1.0))
    effect: Any = wh.latent(
        lambda m: dist.Normal(0.0, m.tau), dims="half", shape=2, noncentered=True
    )
    sigma: Any = wh.latent(dist.HalfNormal(1.0))
    share: Any = wh.latent(dist.Dirichlet(jnp.ones(3)))

    def likelihood(self, x):
        return dist.Normal(self.effect.sum() + self.slope * x, self.sigma)

    @wh.derived
    def total(self):
        return self.effect.sum()


@pytest.fixture(scope="module")
def target():
    return wh.condition(Line(), Y, X)


@pytest.fixture(scope="module")
def posterior(target):
    return wh.infer(
        target, wh.NUTS(chains=2, warmup=200, draws=200), key=jr.key(1), throw=False
    )


@pytest.mark.filterwarnings("ignore::whence.InferenceWarning")
def test_round_trip(target, posterior, tmp_path):
    again = wh.Posterior.from_draws(
        target, posterior.variables, stats=posterior.stats, engine="elsewhere"
    )
    assert list(again) == list(posterior)
    for name in posterior:
        assert_allclose(again[name], posterior[name], rtol=1e-8, atol=1e-10)
    assert_allclose(again.log_likelihood()["y"], posterior.log_likelihood()["y"], rtol=1e-7)
    key = jr.key(2)
    new = X[:3]
    assert_allclose(again.predict(new, key=key), posterior.predict(new, key=key), rtol=1e-7)
    assert {f.code for f in again.diagnose().findings} >= {"rhat", "divergences"}
    groups = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive")
    tree = again.to_datatree(groups=groups)
    assert tree["posterior"]["effect"].dims == ("chain", "draw", "half")
    assert set(tree.children) == set(groups)
    again.save(tmp_path / "a.nc")
    loaded = wh.load(tmp_path / "a.nc", target=target)
    assert loaded.engine == "elsewhere"
    assert_allclose(loaded["total"], posterior["total"], rtol=1e-7)


def test_positions(target, posterior):
    positions = posterior.sample.positions
    again = wh.Posterior.from_draws(target, positions, unconstrained=True)
    for name in posterior:
        assert_allclose(again[name], posterior[name])
    assert again.engine == "external"
    assert again.stats == {}


def test_targets_without_a_model():
    density = lambda d: -0.5 * jnp.sum(d["b"][0] ** 2) - d["a"]
    target = wh.from_log_density(
        density,
        {"b": (np.zeros(2),), "a": 1.0},
        {"a": constraints.positive},
    )
    rng = np.random.default_rng(0)
    draws = {"a": rng.exponential(size=(2, 9)), "b.0": rng.normal(size=(2, 9, 2))}
    posterior = wh.Posterior.from_draws(target, draws)
    assert_allclose(posterior["a"], draws["a"])
    assert_allclose(posterior["b.0"], draws["b.0"])
    assert_allclose(posterior.sample.positions["a"], np.log(draws["a"]))


def test_numpyro_models():
    import numpyro

    def model(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        scale = numpyro.sample("scale", dist.HalfNormal(1))
        numpyro.deterministic("ratio", mu / scale)
        with numpyro.plate("data", 3):
            numpyro.sample("y", dist.Normal(mu, scale), obs=y)

    target = wh.from_numpyro(model, y=np.array([0.1, 0.5, -0.3]))
    rng = np.random.default_rng(0)
    draws = {"mu": rng.normal(size=(1, 8)), "scale": rng.exponential(size=(1, 8))}
    posterior = wh.Posterior.from_draws(target, draws)
    assert_allclose(posterior["ratio"], draws["mu"] / draws["scale"])
    assert posterior.log_likelihood()["y"].shape == (1, 8, 3)


def test_weights():
    """Weighted draws of the prior, with the likelihood as weight, are the posterior."""

    class Mean(wh.Model):
        mu: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return dist.Normal(self.mu, 1.0)

    y = np.array([0.5, 1.0, 0.2])
    target = wh.condition(Mean(), y)
    draws = np.random.default_rng(5).normal(size=(1, 20_000))
    log_weights = 7.0 - 0.5 * np.sum((y - draws[..., None]) ** 2, axis=-1)
    posterior = wh.Posterior.from_draws(target, {"mu": draws}, log_weights=log_weights)
    assert_allclose(np.exp(posterior.log_weights).sum(), 1.0)
    w = np.exp(posterior.log_weights)
    error = np.sqrt(np.sum(w**2 * (draws - y.sum() / 4) ** 2))
    assert abs(np.sum(w * draws) - y.sum() / 4) < 4.5 * error
    equal = posterior.resample(20_000, key=jr.key(0))
    order = np.argsort(draws[0])
    copies = np.bincount(order[np.searchsorted(draws[0], equal["mu"][0], sorter=order)])
    wanted = 20_000 * w[0, : len(copies)]  # systematic: each the nearest whole numbers
    assert np.abs(copies - wanted).max() < 1 + 1e-6
    assert_allclose(equal["mu"].std(), 0.5, rtol=0.05)
    assert posterior.diagnose() is not None


def _draws(**changes):
    draws = {
        "slope": np.zeros((2, 5)),
        "tau": np.ones((2, 5)),
        "effect": np.zeros((2, 5, 2)),
        "sigma": np.ones((2, 5)),
        "share": np.full((2, 5, 3), 1 / 3),
    }
    return {n: v for n, v in {**draws, **changes}.items() if v is not None}


BAD = {
    "missing": (_draws(sigma=None), "'sigma' is missing"),
    "unknown": (_draws(rho=np.ones((2, 5))), "'rho'"),
    "shape": (_draws(effect=np.zeros((2, 5, 3))), r"`draws\['effect'\]` must have shape"),
    "no chain": (_draws(slope=np.zeros(5)), r"x\[None\]"),
    "chains": (_draws(tau=np.ones((3, 5))), r"`draws\['tau'\]`.*\(2, 5\); got \(3, 5\)"),
    "nan": (_draws(slope=np.full((2, 5), np.nan)), r"`draws\['slope'\]` must be finite"),
    "negative": (_draws(tau=-np.ones((2, 5))), r"`draws\['tau'\]` must lie inside the supp"),
    "boundary": (_draws(sigma=np.zeros((2, 5))), r"`draws\['sigma'\]` must lie inside"),
    "simplex": (_draws(share=np.full((2, 5, 3), 0.5)), r"`draws\['share'\]` must lie"),
    "text": (_draws(slope=np.full((2, 5), "a")), "real numbers"),
    "empty": ({n: v[:, :0] for n, v in _draws().items()}, "at least one draw"),
    "no dict": (np.zeros((2, 5)), "dict"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_draws(name, target):
    draws, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        wh.Posterior.from_draws(target, draws)


def test_good_draws_pass(target):
    assert wh.Posterior.from_draws(target, _draws()).num_draws == 5


def test_other_bad_arguments(target, posterior):
    make = wh.Posterior.from_draws
    with pytest.raises(ValueError, match="stats"):
        make(target, _draws(), stats={"lp": np.zeros((5, 2))})
    with pytest.raises(ValueError, match="one chain"):
        make(target, _draws(), log_weights=np.zeros((2, 5)))
    one = {n: v[:1] for n, v in _draws().items()}
    with pytest.raises(ValueError, match="log_weights"):
        make(target, one, log_weights=np.full((1, 5), -np.inf))
    with pytest.raises(ValueError, match="method"):
        make(target, _draws(), method="gibbs")
    with pytest.raises(ValueError, match="structure"):
        make(target, {"slope": np.zeros((2, 5))}, unconstrained=True)
    positions = dict(posterior.sample.positions)
    positions["slope"] = positions["slope"][:, :-1]
    with pytest.raises(ValueError, match=r"chains and draws"):
        make(target, positions, unconstrained=True)


def test_fixed_latents():
    target = wh.condition(Line(tau=0.5), Y, X)
    draws = _draws(tau=None)
    posterior = wh.Posterior.from_draws(target, draws)
    assert_allclose(posterior["tau"], 0.5)
    wh.Posterior.from_draws(target, {**draws, "tau": np.full((2, 5), 0.5)})
    with pytest.raises(ValueError, match="tau"):
        wh.Posterior.from_draws(target, _draws())


# Other libraries' samplers on our log density, against our own.


class Normal(wh.Model):
    mu: Any = wh.latent(dist.Normal(0.0, 5.0))
    sigma: Any = wh.latent(dist.HalfNormal(2.0))

    def likelihood(self):
        return dist.Normal(self.mu, self.sigma)


@pytest.fixture(scope="module")
def simple():
    return wh.condition(Normal(), Y)


@pytest.fixture(scope="module")
def ours(simple):
    return wh.infer(simple, wh.NUTS(chains=2, draws=1000), key=jr.key(3))


def _compare(posterior, ours):
    compare_reference(posterior.variables, ours.variables).check()


@relaxed()
def test_blackjax(simple, ours):
    import blackjax

    def chain(key):
        key_init, key_warmup, key_run = jr.split(key, 3)
        adapt = blackjax.window_adaptation(blackjax.nuts, simple.log_density)
        (state, parameters), _ = adapt.run(key_warmup, simple.init(key=key_init), 500)
        kernel = blackjax.nuts(simple.log_density, **parameters)

        def step(state, key):
            state, info = kernel.step(key, state)
            return state, (state.position, info.is_divergent)

        return jax.lax.scan(step, state, jr.split(key_run, 1000))[1]

    positions, diverging = jax.jit(jax.vmap(chain))(jr.split(jr.key(4), 2))
    posterior = wh.Posterior.from_draws(
        simple, positions, unconstrained=True, stats={"diverging": diverging}
    )
    _compare(posterior, ours)


@pytest.mark.usefixtures("standard")
@pytest.mark.slow
def test_numpyro(simple, ours):
    from numpyro.infer import MCMC, NUTS

    kernel = NUTS(potential_fn=lambda position: -simple.log_density(position))
    mcmc = MCMC(
        kernel,
        num_warmup=500,
        num_samples=1000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    start = jax.vmap(lambda k: simple.init(key=k))(jr.split(jr.key(5), 2))
    mcmc.run(jr.key(6), init_params=start)
    posterior = wh.Posterior.from_draws(
        simple, mcmc.get_samples(group_by_chain=True), unconstrained=True
    )
    _compare(posterior, ours)
