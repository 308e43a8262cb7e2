"""What NUTS of every library must do in our loop.

Limits of 4.5 standard errors: with about 70 comparisons a correct sampler fails somewhere
with probability 0.05%. Over 50 other keys the largest of 2,400 differences was 4.2 and
their root mean square 1.0; effective sizes were at least 440, R-hat at most 1.022.
"""

import subprocess
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.scipy.special import gammaln
from jaxtyping import Array
from numpy.testing import assert_allclose, assert_array_equal

from whence.core._results import RESULTS
from whence.core._target import AbstractTarget
from whence.core._values import check_values
from whence.inference.backends import TFPNUTS, BlackjaxNUTS, NumpyroNUTS
from whence.running._infer import InferenceError, InferenceWarning, infer
from whence.testing import Gaussian, LogGamma, compare_moments

ENGINES = (BlackjaxNUTS, NumpyroNUTS, TFPNUTS)
every_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.library)
STATS = {
    "lp": np.floating,
    "acceptance_rate": np.floating,
    "step_size": np.floating,
    "energy": np.floating,
    "tree_depth": np.int32,
    "n_steps": np.int32,
    "diverging": np.bool_,
    "reached_max_treedepth": np.bool_,
}
KEY = jr.key(20261120)


class Counted(AbstractTarget):
    """Two logarithms of Gamma variables in a dict, and a count of traces."""

    shape: Array
    traces: list = eqx.field(static=True)

    def init(self, *, key):
        return {"a": jr.normal(key, ()), "b": jr.normal(key, (1,))}

    def log_density(self, position):
        self.traces[0] += 1
        x = jnp.stack([position["a"], position["b"][0]])
        return jnp.sum(self.shape * x - jnp.exp(x) - gammaln(self.shape))

    def constrain(self, position):
        return position


class Bounded(AbstractTarget):
    """A Gaussian that exists between -`bound` and `bound` only; starts at +-1."""

    bound: Array

    def init(self, *, key):
        return {"x": jnp.where(jr.bernoulli(key, 0.2), 1.0, -1.0)}

    def log_density(self, position):
        x = position["x"]
        return jnp.where((x < -0.5) | (self.bound < 0.5), jnp.nan, -0.5 * x**2)

    def constrain(self, position):
        return position


def narrow(target: Gaussian) -> Gaussian:
    """The same target in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), target)


def infer_quietly(target, engine, key=KEY, **settings):
    """Draw, whatever the verdict on the draws."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)
        return infer(target, engine, key=key, **settings)


@pytest.fixture(scope="module", params=ENGINES, ids=lambda e: e.library)
def gaussian(request):
    """Engine, target and draws of a correlated Gaussian."""
    target = Gaussian(4, condition_number=30.0, correlated=True)
    engine = request.param(warmup=400, draws=500)
    return engine, target, infer_quietly(target, engine)


def test_moments_of_a_correlated_gaussian(gaussian):
    engine, target, posterior = gaussian
    comparison = compare_moments({"x": posterior.sample.positions}, target.truth)
    comparison.check(max_z=4.5, min_ess=300.0, max_rhat=1.04)


def test_statistics_have_names_types_and_shapes(gaussian):
    engine, _, posterior = gaussian
    assert set(posterior.stats) == set(STATS)
    for name, kind in STATS.items():
        value = posterior.stats[name]
        assert value.shape == (4, 500)
        assert np.issubdtype(value.dtype, kind), name
    assert posterior.sample.positions.dtype == np.float64


def test_lp_is_the_log_density_of_the_draw(gaussian):
    _, target, posterior = gaussian
    lp = jax.vmap(jax.vmap(target.log_density))(posterior.sample.positions)
    assert_allclose(posterior.stats["lp"], lp, rtol=1e-9, atol=1e-9)


def test_energy_is_the_hamiltonian(gaussian):
    _, target, posterior = gaussian
    kinetic = posterior.stats["energy"] + posterior.stats["lp"]
    assert kinetic.min() >= 0
    # In equilibrium twice the kinetic energy is chi-squared in `dim` degrees of freedom,
    # whatever the metric: an additive constant in it would show.
    comparison = compare_moments(
        {"kinetic": kinetic}, {"kinetic": (target.mean.size / 2, (target.mean.size / 2) ** 0.5)}
    )
    comparison.check(max_z=4.5, min_ess=300.0)


def test_statistics_mean_what_they_say(gaussian):
    engine, _, posterior = gaussian
    stats = posterior.stats
    assert not stats["diverging"].any()
    assert not stats["reached_max_treedepth"].any()
    assert np.all(stats["n_steps"] >= 2.0 ** (stats["tree_depth"] - 1))
    assert np.all(stats["n_steps"] <= 2.0 ** stats["tree_depth"] - 1)
    assert np.all((stats["acceptance_rate"] >= 0) & (stats["acceptance_rate"] <= 1))
    # Step size is frozen after warm-up, chain by chain, where it was aimed at; averaging
    # its logarithm lands a little above the target acceptance.
    assert_array_equal(np.ptp(stats["step_size"], axis=1), 0)
    assert len(np.unique(stats["step_size"])) == 4
    assert 0.75 < stats["acceptance_rate"].mean() < 0.97


def test_draws_do_not_depend_on_chunks(gaussian):
    engine, target, posterior = gaussian
    again = infer_quietly(target, engine, chunk_steps=93)
    assert_array_equal(again.sample.positions, posterior.sample.positions)
    assert_array_equal(again.stats["energy"], posterior.stats["energy"])


def test_chains_and_keys_differ(gaussian):
    engine, target, posterior = gaussian
    first = posterior.sample.positions[:, 0]
    assert len(np.unique(first[:, 0])) == 4
    again = infer_quietly(target, engine, jr.fold_in(KEY, 1))
    assert not np.any(again.sample.positions[:, 0] == first)


@every_engine
def test_skewed_target_in_a_dict_and_one_trace(engine):
    traces = [0]
    engine = engine(warmup=400, draws=1000)
    for seed, shape in enumerate(((1.0, 4.0), (2.0, 0.7))):
        target = Counted(jnp.asarray(shape), traces)
        positions = infer_quietly(target, engine, jr.fold_in(KEY, seed)).sample.positions
        assert positions["a"].shape == (4, 1000)
        assert positions["b"].shape == (4, 1000, 1)
        x = np.stack([positions["a"], positions["b"][..., 0]], axis=-1)
        truth = LogGamma(shape).truth
        comparison = compare_moments({"x": x, "gamma": np.exp(x)}, truth)
        comparison.check(max_z=4.5, min_ess=300.0, max_rhat=1.04)
        if seed == 0:
            after_first = traces[0]
    # Checks evaluate the density of every new target; no gradient is traced again.
    assert after_first > 0
    assert traces[0] - after_first <= evaluations_outside_the_program(target)


def evaluations_outside_the_program(target):
    """How often `infer` itself looks at the density of a target."""
    before = target.traces[0]
    check_values(target)
    return target.traces[0] - before


@every_engine
def test_float32_and_warmup_draws(engine):
    target = narrow(Gaussian(3, condition_number=9.0, correlated=True))
    metric = "diagonal" if engine is TFPNUTS else "dense"
    engine = engine(warmup=300, draws=500, metric=metric, keep_warmup=True)
    sample = infer_quietly(target, engine).sample
    assert sample.positions.dtype == np.float32
    assert sample.stats["lp"].dtype == sample.stats["energy"].dtype == np.float32
    compare_moments({"x": sample.positions}, target.truth).check(min_ess=300.0, max_rhat=1.04)
    assert sample.warmup_positions is not None
    assert sample.warmup_stats is not None
    assert sample.warmup_positions.shape == (4, 300, 3)
    assert set(sample.warmup_stats) == set(STATS)
    assert len(np.unique(sample.warmup_stats["step_size"][0])) > 200


@every_engine
def test_limit_of_depth_and_divergences(engine):
    engine = engine(chains=1, warmup=0, draws=20, max_tree_depth=2, step_size=0.01)
    scaled = lambda target, scale: eqx.tree_at(
        lambda t: (t.scales, t.mean), target, (scale * target.scales, 0 * target.mean)
    )
    limited = infer_quietly(scaled(Gaussian(2), 1.0), engine)
    assert limited.stats["reached_max_treedepth"].all()
    assert_array_equal(limited.stats["tree_depth"], 2)
    assert_array_equal(limited.stats["n_steps"], 3)
    assert_allclose(limited.stats["step_size"], 0.01)
    assert not limited.stats["diverging"].any()
    # A step of 10,000 standard deviations: the same program, other data.
    diverging = infer_quietly(scaled(Gaussian(2), 1e-6), engine)
    assert diverging.stats["diverging"].all()
    assert not diverging.stats["reached_max_treedepth"].any()
    assert_array_equal(diverging.stats["n_steps"], 1)
    assert_array_equal(diverging.stats["tree_depth"], 1)
    assert_allclose(diverging.stats["acceptance_rate"], 0)
    assert_array_equal(np.ptp(diverging.sample.positions, axis=1), 0)


@every_engine
def test_start_is_sought_and_failure_told(engine):
    engine = engine()
    start = eqx.filter_jit(engine.init)
    for seed in range(3):
        state = start(Bounded(jnp.asarray(2.0)), key=jr.fold_in(KEY, seed))
        assert engine.result(state) == RESULTS.successful
        assert not engine.done(state)
    state = start(Bounded(jnp.asarray(0.0)), key=KEY)
    assert engine.result(state) == RESULTS.nonfinite_start
    assert engine.done(state)


def test_failure_of_all_chains_raises():
    engine = NumpyroNUTS(chains=2, warmup=10, draws=10)
    with pytest.raises(InferenceError, match="not finite at any of the initial points"):
        infer(Bounded(jnp.asarray(0.0)), engine, key=KEY)


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
@every_engine
def test_state_keeps_its_types(engine, x64):
    with jax.enable_x64(x64):
        target, engine = Gaussian(3), engine()
        dtype = target.mean.dtype
        assert dtype == (jnp.float64 if x64 else jnp.float32)
        before = jax.eval_shape(lambda: engine.init(target, key=jr.key(0)))
        after, info = jax.eval_shape(
            lambda s: engine.step(target, s, jnp.int32(0), key=jr.key(1)), before
        )
        assert jax.tree.structure(before) == jax.tree.structure(after)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert (old.shape, old.dtype, old.weak_type) == (new.shape, new.dtype, False)
            assert not jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
        for value in (info.position, *info.stats.values()):
            if jnp.issubdtype(value.dtype, jnp.floating):
                assert value.dtype == dtype


@every_engine
def test_bad_arguments_are_refused(engine):
    for name, value in (
        ("chains", 0),
        ("warmup", -1),
        ("draws", 0),
        ("max_tree_depth", 0),
        ("target_accept", 1.0),
        ("step_size", -0.1),
        ("step_size", float("inf")),
    ):
        with pytest.raises(ValueError, match=f"`{name}` .*{value}"):
            engine(**{name: value})
    with pytest.raises(ValueError, match="`metric` must be one of 'auto', 'diagonal'"):
        engine(metric="fisher")
    with pytest.raises(ValueError, match="no option `nonsense`; the options are"):
        engine(options=(("nonsense", 1),))
    with pytest.raises(ValueError, match="no option `max_tree_depth`"):
        engine(options={"max_tree_depth": 3})


def test_what_tfp_does_not_have_is_refused():
    with pytest.raises(ValueError, match="must be one of 'auto', 'diagonal'; got 'dense'"):
        TFPNUTS(metric="dense")
    with pytest.raises(ValueError, match="at most 12.*got 15"):
        TFPNUTS(max_tree_depth=15)


@every_engine
def test_targets_without_real_dimensions_are_refused(engine):
    class Empty(AbstractTarget):
        value: Array

        def init(self, *, key):
            return {"x": self.value}

        def log_density(self, position):
            return jnp.zeros(())

        def constrain(self, position):
            return position

    with pytest.raises(ValueError, match="at least one unconstrained dimension"):
        engine().validate(Empty(jnp.zeros(0)))
    with pytest.raises(ValueError, match="floating-point numbers; got int"):
        engine().validate(Empty(jnp.zeros(2, int)))


def test_import_leaves_the_libraries_alone():
    code = (
        "import sys, whence.inference.backends\n"
        "loaded = {'blackjax', 'tensorflow_probability'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@every_engine
def test_vectorised_chains_sample_the_same_distribution(engine):
    target = Gaussian(4, condition_number=30.0, correlated=True)
    engine = engine(warmup=300, draws=500)
    sample = infer_quietly(target, engine, vectorised=True).sample
    assert sample.positions.shape == (4, 500, 4)
    compare_moments({"x": sample.positions}, target.truth).check(min_ess=300.0, max_rhat=1.04)
