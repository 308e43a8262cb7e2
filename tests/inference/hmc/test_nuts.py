"""NUTS: its trees against recursion, its stationary distribution, its warm-up."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import whence as wh
from whence.core import AbstractTarget
from whence.inference.hmc import NUTS, AutoEstimator
from whence.inference.hmc._integrator import PhasePoint, leapfrog
from whence.inference.hmc._metric import DiagonalMetric
from whence.inference.hmc._transition import SAMPLING
from whence.inference.hmc._tree import _hash, _uniform, start_tree
from whence.running._loop import run
from whence.testing import Funnel, Gaussian, LogGamma, check_engine, check_truth


def _banana(x):
    return -0.5 * (x[0] ** 2 + (x[1] - 0.6 * x[0] ** 2) ** 2 / 0.3)


UNIT = DiagonalMetric(jnp.ones(2))
VALUE_AND_GRAD = jax.value_and_grad(_banana)


@jax.jit
def _grow(position, momentum, step_size, max_depth, key):
    log_density, gradient = VALUE_AND_GRAD(position)
    point = PhasePoint(position, momentum, log_density, gradient, gradient)
    tree = start_tree(point, step_size, 7, max_depth, key=key)

    def body(tree):
        return tree.extend(leapfrog(VALUE_AND_GRAD, UNIT, tree.end(), tree.step))

    def grow(tree):
        return jax.lax.while_loop(lambda t: t.is_extending(), body, tree).close()

    return jax.lax.while_loop(lambda t: t.is_growing(), grow, tree)


class _Reference:
    """The same tree by recursion, as in the papers, one leaf at a time in NumPy."""

    def __init__(self, position, momentum, step_size, max_depth, seed):
        self.step_size, self.seed = step_size, seed
        self.start = np.array(position), np.array(momentum)
        self.energy = self._energy(*self.start)
        self.max_depth = max_depth
        self.leaves = 0
        self.is_divergent = False

    @staticmethod
    def _energy(x, p):
        return 0.5 * p @ p - float(_banana(x))

    @staticmethod
    def _gradient(x):
        r = (x[1] - 0.6 * x[0] ** 2) / 0.3
        return np.array([-x[0] + 1.2 * x[0] * r, -r])

    def _leapfrog(self, x, p, sign):
        step = sign * self.step_size
        p = p + step / 2 * self._gradient(x)
        x = x + step * p
        return x, p + step / 2 * self._gradient(x)

    def _uniforms(self):
        words = _hash(*self.seed, jnp.uint32(self.leaves))
        return np.asarray(_uniform(jnp.stack(words[:2]), jnp.float64)), int(words[2] >> 31)

    @staticmethod
    def _turns(rho, first, last):
        return rho @ first <= 0 or rho @ last <= 0

    def _union(self, left, right):
        """Both in the order of integration: first momentum, last momentum, sum, turned."""
        rho = left[2] + right[2]
        turned = (
            self._turns(rho, left[0], right[1])
            or self._turns(left[2] + right[0], left[0], right[0])
            or self._turns(right[2] + left[1], left[1], right[1])
        )
        return left[0], right[1], rho, turned

    def _leaf(self, sign):
        self.end = self._leapfrog(*self.end, sign)
        error = self._energy(*self.end) - self.energy
        self.is_divergent = error > 1000
        self.decision = self._uniforms()
        self.leaves += 1
        self.weight = np.logaddexp(self.weight, -error)
        if np.log(self.decision[0][0]) < -error - self.weight:
            self.candidate = self.end[0]
        p = self.end[1]
        return p, p, p, False

    def _build(self, depth, sign):
        if depth == 0:
            return self._leaf(sign)
        left = self._build(depth - 1, sign)
        if left[3] or self.is_divergent:
            return left
        right = self._build(depth - 1, sign)
        if right[3] or self.is_divergent:
            return right
        return self._union(left, right)

    def run(self):
        x, p = self.start
        ends = {1: (x, p), -1: (x, p)}
        first = {1: p, -1: p}  # momenta at both ends
        rho, total, proposal = p, 0.0, x
        sign = 1 if int(self.seed[0] >> 31) else -1
        for depth in range(self.max_depth):
            self.end, self.weight, self.candidate = ends[sign], -np.inf, None
            new = self._build(depth, sign)
            if new[3] or self.is_divergent:
                return proposal, depth
            ends[sign] = self.end
            if np.log(self.decision[0][1]) < self.weight - total:
                proposal = self.candidate
            total = np.logaddexp(total, self.weight)
            union = self._union((first[-sign], first[sign], rho, False), new)
            first[sign], rho = new[1], union[2]
            if union[3]:
                return proposal, depth + 1
            sign = -sign if self.decision[1] else sign
        return proposal, self.max_depth


@pytest.mark.parametrize(("step_size", "max_depth"), [(0.1, 7), (0.35, 7), (0.2, 3), (1.4, 7)])
def test_tree_against_recursion(step_size, max_depth, key):
    depths = []
    for number in range(12):
        keys = jr.split(jr.fold_in(key, number), 3)
        position, momentum = jr.normal(keys[0], (2,)), jr.normal(keys[1], (2,))
        tree = _grow(position, momentum, jnp.asarray(step_size), jnp.int32(max_depth), keys[2])
        reference = _Reference(position, momentum, step_size, max_depth, tree.seed)
        proposal, depth = reference.run()
        assert (int(tree.depth), int(tree.leaves)) == (depth, reference.leaves)
        assert bool(tree.is_divergent) == reference.is_divergent
        assert_allclose(tree.proposal.position, proposal, atol=1e-9)
        depths.append(depth)
    assert len(set(depths)) > 1 or max_depth == 3  # the keys did try different trees


def _exact_state(engine, target, draws, key):
    """States as if warm-up had ended at exact draws."""

    def one(x):
        state = engine.init(target, key=key)
        log_density, gradient = jax.value_and_grad(target.log_density)(x)
        return eqx.tree_at(
            lambda s: (s.chain.position, s.chain.log_density, s.chain.gradient, s.chain.phase),
            state,
            (x, log_density, gradient, jnp.asarray(SAMPLING, jnp.int32)),
        )

    return jax.vmap(one)(draws)


@pytest.mark.parametrize("step_size", [0.4, 1.5])
def test_keeps_a_skewed_target(step_size, key):
    """Exact draws stay exact draws. Kolmogorov-Smirnov, false alarms: 1e-5 each."""
    key_draws, key_run = jr.split(key)
    target = LogGamma((2.0,))
    engine = NUTS(warmup=0, step_size=step_size, max_tree_depth=5)
    draws = jnp.log(jr.gamma(key_draws, 2.0, (20_000, 1)))
    state = _exact_state(engine, target, draws, key)

    @jax.jit
    def advance(state):
        def one(state, number):
            keys = jr.split(jr.fold_in(key_run, number), len(draws))
            step = lambda s, k: engine.step(target, s, jnp.int32(0), key=k)
            state, info = jax.vmap(step)(state, keys)
            return state, info.stats["acceptance_rate"]

        return jax.lax.scan(one, state, jnp.arange(8))

    state, rates = advance(state)
    gamma = np.exp(np.asarray(state.chain.position[:, 0]))
    assert stats.kstest(gamma, stats.gamma(2.0).cdf).pvalue > 1e-5
    assert np.mean(rates) < 0.999  # steps so coarse that rejections matter
    assert abs(np.corrcoef(gamma, np.exp(np.asarray(draws[:, 0])))[0, 1]) < 0.3


def test_conformance(key):
    check_engine(NUTS(warmup=300, draws=300), key=key)


@pytest.mark.parametrize("metric", ["auto", "diagonal", "fisher", "dense", "low_rank"])
@pytest.mark.parametrize("condition_number", [1.0, 1e4])
def test_moments_of_correlated_normals(metric, condition_number, key):
    correlated = condition_number > 1
    target = Gaussian(5, condition_number=condition_number, correlated=correlated)
    engine = NUTS(metric=metric, warmup=500, draws=500)
    posterior = wh.infer(target, engine, key=key)
    check_truth(posterior, target, min_ess=200.0)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_one_dimension_and_precision(dtype, key):
    target = eqx.tree_at(
        lambda t: jax.tree.leaves(t), LogGamma((3.0,)), replace_fn=lambda x: x.astype(dtype)
    )
    posterior = wh.infer(target, NUTS(warmup=300, draws=500), key=key)
    check_truth(posterior, target, min_ess=400.0)


def test_mild_funnel(key):
    target = Funnel(4, scale=1.0)
    check_truth(wh.infer(target, NUTS(draws=4000), key=key), target, min_ess=400.0)


class Picky(AbstractTarget):
    """A normal that exists only above a bound."""

    bound: jax.Array

    def init(self, *, key):
        return {"x": jr.uniform(key, (2,), self.bound.dtype, -2.0, 2.0)}

    def log_density(self, position):
        x = position["x"]
        return jnp.where(x[0] >= self.bound, -0.5 * jnp.sum(x**2), -jnp.inf)

    def constrain(self, position):
        return position


def test_start_is_searched_for(key):
    """One start in 40 is good: 100 tries miss it in 8% of runs of a chain."""
    outcome = run(Picky(jnp.asarray(1.9)), NUTS(chains=1, warmup=50, draws=20), key=key)
    assert outcome.results[0] == wh.RESULTS.successful
    x = outcome.records[0].position
    assert np.all(x[:, 0] >= 1.9)
    assert np.all(np.isfinite(outcome.records[0].stats["lp"]))


def test_no_start(key):
    """Every chain fails, after 100 gradients and no more."""
    outcome = run(Picky(jnp.asarray(3.0)), NUTS(chains=2, warmup=50, draws=20), key=key)
    assert all(result == wh.RESULTS.nonfinite_start for result in outcome.results)
    assert np.sum([record.stats["n_steps"][1:] for record in outcome.records]) == 0
    with pytest.raises(Exception, match="not finite at any of the initial points"):
        wh.infer(Picky(jnp.asarray(3.0)), NUTS(chains=2, warmup=50, draws=20), key=key)


def test_auto_learns_a_correlation_early(key):
    """With a diagonal metric a draw costs 100 gradients and more."""
    target = Gaussian(5, condition_number=1e6, correlated=True)
    outcome = run(target, NUTS(draws=200), key=key)
    steps = np.stack([record.stats["n_steps"] for record in outcome.records])
    assert np.mean(steps[:, 200:]) < 10
    assert np.sum(steps[:, :1000]) < 60_000


@pytest.mark.parametrize("metric", ["auto", "diagonal"])
def test_frozen_after_warmup_at_the_rate_asked_for(metric, key):
    engine = NUTS(metric=metric, warmup=400, draws=400)
    outcome = run(Gaussian(8), engine, key=key)
    step_size = np.stack([r.stats["step_size"][400:] for r in outcome.records])
    assert np.all(step_size == step_size[:, :1])
    rate = np.mean([r.stats["acceptance_rate"][400:] for r in outcome.records])
    assert abs(rate - 0.8) < 0.06


def test_divergences_of_warmup_make_steps_smaller(key):
    """And the posterior says what each chain aimed at."""
    engine = NUTS(draws=500)
    posterior = wh.infer(Funnel(4, scale=3.0), engine, key=key, progress=False)
    aims = posterior.record.target_acceptance
    assert aims.shape == (4,)
    assert (aims >= 0.8).all()
    assert 0.85 < aims.max() <= 0.96
    assert f"to {aims.max():.2f} was aimed at" in posterior.diagnose()["acceptance"].message
    calm = wh.infer(Gaussian(3), engine, key=key, progress=False)
    assert_allclose(calm.record.target_acceptance, 0.8)


class Far(AbstractTarget):
    """A normal around `centre`, of standard deviation `scale`; or its fourth power."""

    centre: jax.Array
    scale: jax.Array
    power: int = 2

    def init(self, *, key):
        return jr.uniform(key, (3,), self.centre.dtype, -2.0, 2.0)

    def log_density(self, position):
        return -0.5 * jnp.sum(((position - self.centre) / self.scale) ** self.power)

    def constrain(self, position):
        return position


@pytest.mark.parametrize(
    ("dtype", "centre", "scale", "power"),
    [
        (jnp.float32, 3e4, 1.0, 2),  # 1e9 nats away: energies that float32 cannot resolve
        (jnp.float32, 1e6, 1e2, 2),
        (jnp.float64, 1e12, 1.0, 2),  # 1e24 nats
        (jnp.float64, 1e12, 1.0, 4),  # 1e48 nats
        (jnp.float64, 0.0, 1e-6, 2),
    ],
)
def test_arrives_from_far_away(dtype, centre, scale, power, key):
    target = Far(jnp.asarray(centre, dtype), jnp.asarray(scale, dtype), power)
    outcome = run(target, NUTS(warmup=300, draws=100), key=key)
    x = np.stack([record.position[300:] for record in outcome.records]).astype(float)
    # Floating point itself can tell only so many places apart.
    unit = max(scale, 8 * float(np.finfo(dtype).eps) * centre)
    assert np.all(np.abs(x.mean(axis=1) - centre) < 1.5 * unit)
    if unit == scale:
        assert np.all(x.std(axis=1) > 0.3 * scale)


def test_starts_stay_dispersed(key):
    """Where a start is not far the descent takes one short step, however long it may be."""
    engine = NUTS(chains=1, warmup=20, draws=1)
    target = Far(jnp.asarray(0.0), jnp.asarray(0.5))
    state = engine.init(target, key=key)
    _, info = engine.step(target, state, jnp.int32(0), key=key)
    assert info.stats["n_steps"] >= 1
    step = lambda key: engine.step(target, state, jnp.int32(0), key=key)[1].position
    first = jax.vmap(step)(jr.split(key, 200))
    assert np.all(first.std(axis=0) > 0.4)


def test_statistics_are_consistent(key):
    outcome = run(Gaussian(3), NUTS(chains=1, warmup=100, draws=100), key=key)
    record = outcome.records[0].stats
    names = {"lp", "acceptance_rate", "step_size", "tree_depth", "n_steps", "diverging"}
    names |= {"energy", "energy_error", "max_energy_error", "reached_max_treedepth"}
    assert set(record) == names
    assert np.all(record["n_steps"] < 2 ** (record["tree_depth"] + 1))
    assert np.all(record["n_steps"] >= 2 ** record["tree_depth"] - 1)
    assert np.all(record["max_energy_error"] >= record["energy_error"] - 1e-9)
    assert np.all(record["energy"] >= -record["lp"])


def test_saturated_trees_are_reported(key):
    outcome = run(
        Gaussian(2), NUTS(warmup=0, draws=20, step_size=1e-3, max_tree_depth=3), key=key
    )
    stats_ = outcome.records[0].stats
    assert np.all(stats_["reached_max_treedepth"])
    assert np.all(stats_["n_steps"] == 7)


class _Counted(AbstractTarget):
    """Counts how often the log density is traced."""

    scale: jax.Array
    traces: list = eqx.field(static=True)

    def init(self, *, key):
        return jr.normal(key, (2,), self.scale.dtype)

    def log_density(self, position):
        self.traces.append(1)
        return -jnp.sum(jnp.arctan(position / self.scale) ** 2) - 0.1 * jnp.sum(position**2)

    def constrain(self, position):
        return position

    def __hash__(self):
        return id(self)


def test_one_copy_of_the_gradient(key):
    target = _Counted(jnp.asarray(2.0), [])
    engine = NUTS(warmup=50, draws=10)
    state = engine.init(target, key=key)
    assert not target.traces
    jaxpr = jax.make_jaxpr(lambda s: engine.step(target, s, jnp.int32(0), key=key))(state)
    assert str(jaxpr).count(" atan ") == 1  # its derivative holds none
    assert len(target.traces) == 1


def test_without_jit(key):
    target = Gaussian(2)
    engine = NUTS(warmup=1, draws=1, max_tree_depth=2)
    state = engine.init(target, key=key)
    jitted = eqx.filter_jit(engine.step)(target, state, jnp.int32(0), key=key)[1]
    with jax.disable_jit():
        plain = engine.step(target, state, jnp.int32(0), key=key)[1]
    assert_allclose(plain.position, jitted.position, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chains": 0}, "`chains` must be at least 1; got 0"),
        ({"warmup": -1}, "`warmup` must be at least 0; got -1"),
        ({"target_accept": 1.0}, "`target_accept` must be above 0 and below 1; got 1.0"),
        ({"step_size": 0.0}, "`step_size` must be positive and finite, or None; got 0.0"),
        ({"max_tree_depth": 0}, "`max_tree_depth` must be at least 1 and at most 20; got 0"),
        ({"metric": "identity"}, "`metric` must be one of .* got 'identity'"),
        ({"metric": AutoEstimator(), "backend": "numpyro"}, "`metric` must be one of"),
        ({"backend": "stan"}, "`backend` must be one of .* got 'stan'"),
        ({"options": {"depth": 3}}, "`options` are for other backends"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        NUTS(**arguments)


def test_an_estimator_in_place_of_a_name(key):
    target = Gaussian(3, condition_number=10.0)
    named, given = (
        wh.infer(target, NUTS(chains=1, warmup=100, draws=20, metric=metric), key=key)
        for metric in ("auto", AutoEstimator())
    )
    np.testing.assert_array_equal(named.variables["x"], given.variables["x"])


def test_backends_are_handed_everything():
    engine = NUTS(
        chains=2,
        warmup=7,
        draws=5,
        backend="blackjax",
        options={"divergence_threshold": 500.0},
        max_tree_depth=4,
    )
    inner = engine.engine
    assert (inner.chains, inner.warmup, inner.draws, inner.max_tree_depth) == (2, 7, 5, 4)
    assert inner.options == (("divergence_threshold", 500.0),)
    assert engine.name == "NUTS (blackjax)"
    assert engine.schedule[:4] == (2, 7, 12, True)


def test_refuses_a_target_without_dimensions():
    class Empty(AbstractTarget):
        def init(self, *, key):
            return {}

        def log_density(self, position):
            return jnp.zeros(())

        def constrain(self, position):
            return position

    with pytest.raises(ValueError, match="at least one unconstrained dimension"):
        NUTS().validate(Empty())
