"""The joint distribution test: exact kernels pass, broken ones are caught."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import whence as wh
from whence.core import _cache

sys.path.insert(0, str(Path(__file__).parent))
import _planted as planted  # noqa: E402


@pytest.mark.parametrize(
    "engine",
    [
        wh.NUTS(warmup=0, step_size=0.4),
        wh.HMC(warmup=0, step_size=0.55, num_steps=3),  # rejects often: the rule counts
        pytest.param(
            wh.NUTS(warmup=0, step_size=0.4, backend="blackjax"), marks=pytest.mark.slow
        ),
    ],
    ids=["nuts", "hmc", "blackjax"],
)
def test_exact_kernels_pass(engine, key):
    result = wh.geweke(planted.scale_target(), engine, key=key)
    assert result.ok, str(result)
    assert result.moved > 0.9


def test_the_pair_model_and_a_compilation_each(key):
    _cache.clear_programs()
    before = _cache.traces
    target = wh.condition(planted.Pair(), jnp.zeros(4))
    result = wh.geweke(target, wh.NUTS(warmup=0, step_size=0.2), key=key)
    assert result.ok, str(result)
    assert set(result.ranks) == {"a", "b", "log_likelihood", "mean(y)"}
    assert _cache.traces - before == 3  # the start, the transition, new data


class NoTest(wh.AbstractEngine):
    """A random walk, with or without the Metropolis test, or with its sign turned round."""

    rule: str = "metropolis"
    scale: float = 0.7

    @property
    def name(self) -> str:
        return "walk"

    @property
    def schedule(self) -> wh.Schedule:
        return wh.Schedule(1, 0, 1)

    def validate(self, target) -> None:
        pass

    def init(self, target, *, key):
        return target.init(key=key)

    def step(self, target, state, index, *, key):
        keys = jax.random.split(key)
        leaves, treedef = jax.tree.flatten(state)
        noise = self.scale * jax.random.normal(keys[0], (len(leaves),))
        new = jax.tree.unflatten(treedef, [x + e for x, e in zip(leaves, noise)])
        gain = target.log_density(new) - target.log_density(state)
        log_uniform = jnp.log(jax.random.uniform(keys[1]))
        accept = {
            "metropolis": log_uniform < gain,
            "sign": log_uniform < -gain,
            "always": jnp.asarray(True),
            "never": jnp.asarray(False),
        }[self.rule]
        state = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, state)
        return state, wh.Info(state, {})

    def done(self, state):
        return jnp.asarray(False)

    def result(self, state):
        return wh.RESULTS.successful

    def posterior(self, target, state, trace, *, key):
        return wh.Sample(trace.sampling.position, {}, method="mcmc")


def test_a_random_walk_passes(key):
    result = wh.geweke(planted.scale_target(), NoTest(), key=key)
    assert result.ok, str(result)


@pytest.mark.parametrize("rule", ["sign", "always"])
def test_a_broken_acceptance_rule_is_caught(rule, key):
    result = wh.geweke(planted.scale_target(), NoTest(rule), key=key)
    assert result.report["sigma"].is_problem
    assert "distributed as in the prior" in str(result)


def test_a_chain_that_does_not_move_is_no_evidence(key):
    result = wh.geweke(planted.scale_target(), NoTest("never"), key=key, iterations=4)
    assert not result.ok
    assert "no replicate moved" in str(result)
    assert "memory" in result.report


@pytest.mark.parametrize("engine", [wh.NUTS(warmup=0, step_size=0.4), NoTest()])
def test_a_missing_jacobian_is_caught(engine, key):
    target = planted.without_jacobian(planted.scale_target(), "sigma")
    assert wh.geweke(target, engine, key=key).report["sigma"].is_problem


@pytest.mark.slow
def test_a_simulator_of_another_model_is_caught(key):
    class Model(wh.Model):
        sigma: jax.Array = wh.latent(dist.HalfNormal(1.0))

        def likelihood(self):
            return dist.Normal(0.0, self.sigma)

        def log_likelihood(self, y):  # the scale for the variance
            return dist.Normal(0.0, jnp.sqrt(self.sigma)).log_prob(y)

    target = wh.condition(Model(), np.ones(6))
    assert not wh.geweke(target, wh.NUTS(warmup=0, step_size=0.4), key=key).ok


@pytest.mark.slow
def test_sgld_with_a_large_step_is_caught_and_with_a_small_one_not(key):
    engine = lambda step_size: wh.SGLD(warmup=0, thin=1, steps=10, step_size=step_size)
    large = wh.geweke(planted.mean_target(), engine(0.25), key=key, steps=4)
    assert large.report["mu"].is_problem
    assert "tails" in large.report["mu"].message
    small = wh.geweke(planted.mean_target(), engine(0.001), key=key, steps=4)
    assert small.ok, str(small)


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_promised():
    """Over many keys the smallest p-value must be no smaller than uniform ones."""
    target, engine = planted.mean_target(), NoTest(scale=1.5)
    smallest = []
    for i in range(40):
        result = wh.geweke(target, engine, key=jax.random.key(i), replicates=100, iterations=4)
        found = min(float(np.min(p)) for p in result.p_values.values())
        smallest.append(min(1.0, found * result.num_quantities))
    for level in (0.05, 0.2):
        error = np.sqrt(level * (1 - level) / 40)
        assert np.mean(np.array(smallest) <= level) < level + 3 * error


@pytest.mark.slow
def test_picture(key, tmp_path):
    target = wh.condition(planted.Pair(), jnp.zeros(4))
    result = wh.geweke(target, NoTest(), key=key, replicates=100, iterations=2)
    result.plot().savefig(tmp_path / "geweke.png")
    assert (tmp_path / "geweke.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (wh.NUTS(step_size=0.3), "must not adapt.*1000 steps of warm-up"),
        (wh.NUTS(warmup=0), "fixed `step_size`"),
        (wh.BBVI(), "must be a Markov chain"),
        (wh.TemperedSMC(), "must be a Markov chain"),
        (wh.ChEES(), "must not adapt"),
    ],
    ids=["warmup", "search", "bbvi", "smc", "chees"],
)
def test_engines_that_are_no_fixed_chain_are_refused(engine, message, key):
    with pytest.raises(ValueError, match=message):
        wh.geweke(planted.scale_target(), engine, key=key)


@pytest.mark.parametrize("name", ["replicates", "iterations", "steps"])
def test_counts_are_checked(name, key):
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        wh.geweke(planted.scale_target(), NoTest(), key=key, **{name: 0})
