"""SMC along the data: evidence, moments, every posterior on the way, failures."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpy.testing import assert_allclose
from scipy import stats
from smc_targets import Conjugate, OneDimension, final_state

import whence as wh
from whence import DataTemperedSMC
from whence.core import GrowingTarget
from whence.core._engine import Trace
from whence.inference.smc import start
from whence.inference.smc._data_tempered import Arriving, _finish

CONJUGATE = Conjugate.simulate(2)


@pytest.fixture(scope="module")
def runs():
    """Log evidence, its error, and the mean, of many runs of an engine."""

    def one(engine, key):
        cloud = final_state(engine, CONJUGATE, key)
        points = getattr(cloud.particles, "points", cloud.particles)
        mean = jnp.exp(cloud.log_weights) @ points.x
        return cloud.log_evidence.value, cloud.evidence_variance, mean

    @eqx.filter_jit
    def many(engine, keys):
        return jax.lax.map(lambda key: one(engine, key), keys)

    return lambda engine, num, key: map(np.asarray, many(engine, jr.split(key, num)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"rows": 7}, marks=pytest.mark.slow),
        pytest.param({"kernel": "rwm", "threshold": 0.8}, marks=pytest.mark.slow),
    ],
)
def test_evidence_over_many_runs(runs, options, key):
    engine = DataTemperedSMC(particles=1_000, **options)
    log_evidence, variance, mean = runs(engine, 100, key)
    ratio = np.exp(log_evidence - CONJUGATE.log_evidence)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(100)
    # What one run says of its error is what many runs show: their number leaves 7%, the
    # estimate itself about a quarter.
    assert 0.6 < np.sqrt(variance.mean()) / log_evidence.std() < 1.6
    error = mean.std(0) / np.sqrt(100)
    assert (error < 0.1 * CONJUGATE.sd).all()
    assert (abs(mean.mean(0) - CONJUGATE.mean) < 4.5 * error).all()


@pytest.mark.slow
def test_evidence_against_tempering_of_the_whole_likelihood(runs, key):
    a, _, _ = runs(DataTemperedSMC(particles=1_000), 60, key)
    b, _, _ = runs(wh.TemperedSMC(particles=1_000), 60, jr.fold_in(key, 1))
    gap = np.exp(a - a.max()).mean() / np.exp(b - a.max()).mean()
    assert abs(np.log(gap)) < 4.5 * np.hypot(a.std(), b.std()) / np.sqrt(60)


class Counts(wh.Model):
    rate: jax.Array = wh.latent(dist.Gamma(2.0, 1.0))

    def likelihood(self):
        return dist.Poisson(self.rate)


COUNTS = np.array([0, 2, 1])  # few, so that the posterior, Gamma(5, 4), is skewed


@pytest.mark.slow
def test_a_skewed_posterior_and_those_before_it(key):
    target = wh.condition(Counts(), COUNTS)
    engine = DataTemperedSMC(particles=4_000, kernel="rwm", threshold=0.8)
    posterior = wh.infer(target, engine, key=key)
    rate = np.asarray(posterior["rate"][0])
    weights = np.exp(np.asarray(posterior.log_weights[0]))
    exact = stats.gamma(5.0, scale=1 / 4.0)
    for values, want in (
        (rate, exact.mean()),
        (rate**2, exact.moment(2)),
        ((rate < exact.ppf(0.05)) * 1.0, 0.05),
    ):
        mean = weights @ values
        error = np.sqrt(weights @ (values - mean) ** 2 * (weights**2).sum() * 2.0)
        assert abs(mean - want) < 4.5 * error
    # Each row given those before it is negative binomial.
    shape, inverse = 2.0 + np.array([0, 0, 2]), 1.0 + np.arange(3)
    want = stats.nbinom.logpmf(COUNTS, shape, inverse / (inverse + 1))
    got = posterior.sample.record.log_evidence_increment
    assert_allclose(got, want, atol=0.1)
    assert abs(posterior.log_evidence - want.sum()) < 4.5 * posterior.log_evidence_error
    assert posterior.log_evidence_error < 0.05


@pytest.mark.slow
def test_report_adds_up(key):
    sample = wh.infer(
        CONJUGATE, DataTemperedSMC(particles=500, rows=3, kernel="rwm"), key=key
    ).sample
    table = vars(sample.record)
    assert_allclose(table["rows"], [3, 6, 9, 12, 15, 18, 20])
    assert_allclose(table["log_evidence_increment"].sum(), sample.log_evidence, rtol=1e-12)
    assert len(table["acceptance_rate"]) == table["resampled"].sum() + (table["ess"][-1] <= 250)
    assert (table["num_moves"] > 0).all()
    assert_allclose(np.exp(sample.log_weights).sum(), 1.0)
    lp = jax.vmap(CONJUGATE.log_density)({"x": jnp.asarray(sample.positions["x"][0])})
    assert_allclose(sample.stats["lp"][0], lp, rtol=1e-10)


def test_variance_adds_up_and_particles_move_after_resampling_alone(key):
    """Between resamplings `1 / ess - 1 / particles`, and before them what had been gathered."""
    intake = DataTemperedSMC(particles=4, kernel="rwm", moves=5).model(CONJUGATE)
    particles, control = intake.initial(key=key)
    control = control._replace(settled=jnp.asarray(0.3), num_steps=jnp.asarray(3, jnp.int32))
    equal = jnp.full(4, -jnp.log(4.0))
    mutate = eqx.filter_jit(lambda intake, *rest: intake.mutate(*rest[:-1], key=rest[-1]))
    for weights, variance, settled in (
        ([1.0, 2.0, 3.0, 4.0], 0.3 + 0.30 - 0.25, 0.3),
        ([8.0, 1.0, 1.0, 1e-9], 0.3 + 0.66 - 0.25, 0.71),
    ):
        arriving = Arriving(particles.points, jnp.log(jnp.asarray(weights)))
        _, after = intake.log_potential(arriving, equal, control)
        assert_allclose(after.variance, variance, rtol=1e-6)
        assert_allclose(after.settled, settled, rtol=1e-6)
        assert bool(after.uneven) == (settled != 0.3)
        after = after._replace(rows=jnp.asarray(5, jnp.int32))
        moved, _ = mutate(intake, arriving, equal, after, key)
        assert bool(jnp.any(moved.x != particles.x)) == bool(after.uneven)
    rows = jax.vmap(lambda x: CONJUGATE.log_likelihood({"x": x}))(moved.x)
    assert_allclose(moved.points.log_tilt, rows[:, :6].sum(1), rtol=1e-10)
    assert_allclose(moved.gain, rows[:, 5], rtol=1e-10)
    # What is left of the data at an early end is taken in by weights.
    cloud = eqx.tree_at(
        lambda c: (c.particles, c.control), start(intake, key=key), (moved, after)
    )
    cloud = eqx.tree_at(lambda c: c.control.missing, cloud, jnp.asarray(True))
    ended = _finish(intake, cloud)
    left = np.exp(rows[:, 6:].sum(1) - rows[:, 6:].sum(1).max())
    assert_allclose(np.exp(ended.log_weights), left / left.sum(), rtol=1e-8)
    assert_allclose(ended.particles.points.log_tilt, rows.sum(1), rtol=1e-10)


def test_rows_that_come_later_are_the_same_as_rows_that_are_there(key):
    engine = DataTemperedSMC(particles=200, kernel="rwm", moves=3)
    step = jax.jit(lambda t, s, i: engine.step(t, s, i, key=jr.fold_in(key, i))[0])
    whole = GrowingTarget(CONJUGATE, jnp.asarray(20, jnp.int32))
    at_once = later = jax.jit(engine.init)(whole, key=key)
    for i in range(20):
        at_once = step(whole, at_once, jnp.asarray(i, jnp.int32))
        growing = GrowingTarget(CONJUGATE, jnp.asarray(i + 1, jnp.int32))
        later = step(growing, later, jnp.asarray(i, jnp.int32))
    assert int(later.control.rows) == 20
    assert_allclose(at_once.particles.x, later.particles.x, rtol=1e-10)
    assert_allclose(at_once.log_weights, later.log_weights, rtol=1e-8)
    # A step without a new row changes no weight; what it may do is resample and move.
    still = step(growing, later, jnp.asarray(20, jnp.int32))
    assert_allclose(still.log_evidence.value, later.log_evidence.value, rtol=1e-14)
    assert bool(engine.done(still))
    draws = jax.vmap(lambda k: engine.draw(whole, still, key=k))(jr.split(key, 4_000))
    weights = np.exp(still.log_weights)
    mean = weights @ np.asarray(still.particles.x)
    error = np.asarray(draws["x"]).std(0) / np.sqrt(4_000)
    assert (abs(draws["x"].mean(0) - mean) < 4.5 * error).all()


@pytest.mark.slow
def test_a_run_that_ends_early_takes_in_the_rest_by_importance_sampling(key):
    engine = DataTemperedSMC(particles=4_000, kernel="rwm")
    step = jax.jit(lambda s, i: engine.step(CONJUGATE, s, i, key=jr.fold_in(key, i))[0])
    state = jax.jit(lambda k: engine.init(CONJUGATE, key=k))(key)
    for i in range(12):
        state = step(state, jnp.asarray(i, jnp.int32))
    stacked = jax.tree.map(lambda x: x[None], state)
    sample = engine.posterior(CONJUGATE, stacked, Trace(None, None), key=key)
    off = sample.log_evidence - CONJUGATE.log_evidence
    assert abs(off) < 4.5 * sample.log_evidence_error
    weights = np.exp(sample.log_weights[0])
    mean = weights @ sample.positions["x"][0]
    error = CONJUGATE.sd * np.sqrt((weights**2).sum() * 2.0)
    assert (abs(mean - CONJUGATE.mean) < 4.5 * error).all()
    position = jax.tree.map(lambda x: x[0, 7], sample.positions)
    assert_allclose(sample.stats["lp"][0, 7], CONJUGATE.log_density(position))


@pytest.mark.slow
def test_particles_keep_the_dtype_of_the_target(key):
    target = Conjugate.simulate(2, jnp.float32)
    engine = DataTemperedSMC(particles=1_000, kernel="rwm")
    sample = wh.infer(target, engine, key=key).sample
    assert sample.positions["x"].dtype == np.float32
    assert sample.log_weights.dtype == np.float64
    off = sample.log_evidence - target.log_evidence
    assert abs(off) < 4.5 * sample.log_evidence_error


class Impossible(wh.Model):
    """The second row is impossible for every draw."""

    x: jax.Array = wh.latent(dist.Normal(0.0, 1.0))

    def log_likelihood(self, y):
        return jnp.where(y > 5.0, jnp.nan, norm.logpdf(y, self.x, 1.0))


@pytest.mark.slow
def test_a_row_that_no_particle_allows_is_a_failure(key):
    target = wh.condition(Impossible(), np.array([0.5, 9.0, 0.1]))
    with pytest.raises(wh.InferenceError, match="not finite"):
        wh.infer(target, DataTemperedSMC(particles=50, kernel="rwm"), key=key)


class Walk(wh.Model):
    """Rows depend on each other."""

    x: jax.Array = wh.latent(dist.Normal(0.0, 1.0))

    def log_likelihood(self, y):
        before = jnp.concatenate([jnp.zeros(1), y[:-1]])
        return norm.logpdf(y, self.x * before, 1.0)


REFUSED = {
    "without rows": lambda: DataTemperedSMC().validate(OneDimension(norm.logpdf)),
    "as in a time series or with one latent per row": lambda: DataTemperedSMC().validate(
        wh.condition(Walk(), np.arange(4.0))
    ),
    "depends on which other rows are in the batch": lambda: DataTemperedSMC().validate(
        wh.condition(Walk(), np.arange(4.0))
    ),
    "`max_steps` must be at least 21 for 20 rows": lambda: DataTemperedSMC(
        max_steps=20
    ).validate(CONJUGATE),
    "`particles` must be at least 2; got 1": lambda: DataTemperedSMC(particles=1),
    "`rows` must be at least 1; got 0": lambda: DataTemperedSMC(rows=0),
    "`threshold` must be at least 0 and at most 1; got 1.5": lambda: DataTemperedSMC(
        threshold=1.5
    ),
    "`moves` must be at least 1, or None; got 0": lambda: DataTemperedSMC(moves=0),
    "'mala', 'independent', or an instance of AbstractKernel; got 'nuts'": lambda: (
        DataTemperedSMC(kernel="nuts")
    ),
    "`metric` must be one of": lambda: DataTemperedSMC(metric="sparse"),
    "`resampling` must be one of": lambda: DataTemperedSMC(resampling="best"),
    "`max_steps` must be at least 2": lambda: DataTemperedSMC(max_steps=1),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_what_it_cannot_do_is_refused(rule):
    with pytest.raises(ValueError) as error:
        REFUSED[rule]()
    assert rule in str(error.value)


@pytest.mark.parametrize(("rows", "where"), [(1, "at row 7,"), (5, "at rows 5 to 9,")])
def test_rows_that_nothing_could_have_given_are_named(rows, where, key):
    y = np.zeros((12, 2))
    y[7, 1] = 1e200  # its density underflows to zero everywhere
    target = Conjugate(jnp.asarray(y))
    engine = DataTemperedSMC(particles=50, rows=rows, kernel="rwm", moves=1)
    with pytest.raises(wh.InferenceError, match=where):
        wh.infer(target, engine, key=key)


class Documented(wh.AbstractDataTarget):
    """Exactly the methods that the interface names."""

    y: jax.Array

    num_data = 20

    def init(self, *, key):
        return jr.normal(key)

    def constrain(self, position):
        return position

    def log_prior(self, position):
        return -0.5 * position**2

    def log_likelihood(self, position, rows=None):
        y = self.y if rows is None else self.y[rows]
        return -0.5 * (y - position) ** 2

    def log_density(self, position):
        return self.log_prior(position) + self.log_likelihood(position).sum()


def test_a_target_is_told_the_method_that_it_lacks(key):
    target = Documented(jnp.linspace(0.0, 2.0, 20))
    with pytest.raises(ValueError, match=r"has no method `sample_prior_position"):
        wh.infer(target, DataTemperedSMC(particles=100), key=key)
    with pytest.raises(ValueError, match=r"has no method `sample_prior_position"):
        wh.infer(target, wh.TemperedSMC(particles=100, path="prior"), key=key)
    found = wh.infer(target, wh.TemperedSMC(particles=2000), key=key)  # from a reference
    mean = np.sum(np.exp(found.log_weights) * found["x"])
    # Precision 1 + 20, and 2000 particles: four standard errors.
    assert_allclose(mean, 20 / 21, atol=4 * np.sqrt(1 / 21 / 1000))
