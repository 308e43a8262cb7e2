"""Thompson sampling with a model and an engine: draws against exact posteriors, refusals."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh
from whence.models.bandit import (
    GaussianArms,
    KnownVariance,
    ModelTS,
    NormalGamma,
    VarTS,
    act_many,
    load_state,
    save_state,
    simulate,
)

ARMS = np.random.default_rng(0).integers(0, 3, 30)
REWARDS = np.random.default_rng(1).normal(ARMS * 0.3, 1 + 0.5 * ARMS)
PRIOR = NormalGamma(0.5, 1.5, 3.0, 2.0, arms=3)


class Gaussian(wh.Model):
    """The model of `NormalGamma`."""

    precision: jax.Array = wh.latent(dist.Gamma(3.0, 2.0), shape=(3,))
    mean: jax.Array = wh.latent(
        lambda m: dist.Normal(0.5, 1 / jnp.sqrt(1.5 * m.precision)),
        shape=(3,),
        noncentered=False,
    )

    def likelihood(self, arm):
        return dist.Normal(self.mean[arm], 1 / jnp.sqrt(self.precision[arm]))


class Known(wh.Model):
    """The model of `KnownVariance`: the posterior is Gaussian, as the family is."""

    mean: jax.Array = wh.latent(dist.Normal(0.5, 1.2), shape=(3,))

    def likelihood(self, arm):
        return dist.Normal(self.mean[arm], 1.5)


def _policy(model, engine, capacity=30, **options):
    return ModelTS(
        model,
        engine,
        mean_rewards=lambda draw: draw.mean,
        arms=3,
        capacity=capacity,
        **options,
    )


def _played(policy, state):
    for arm, reward in zip(ARMS, REWARDS):
        batch = state.filled.shape
        state = policy.update(state, np.full(batch, arm), np.full(batch, reward))
    return state


def _at(state, i):
    return jax.tree.map(lambda leaf: leaf[i], state)


@pytest.fixture(scope="module")
def particles():
    """Six independent clouds after the same rewards, and what they say."""
    policy = _policy(Gaussian(), wh.DataTemperedSMC(particles=2_000, kernel="rwm"), warmup=1)
    starts = policy.init((6,))
    return policy, [_played(policy, _at(starts, i)) for i in range(6)]


def test_particles_against_the_exact_posterior(particles):
    policy, states = particles
    exact = PRIOR.update_batch(ARMS, REWARDS).mean_distribution()
    keys = jr.split(jr.key(3), 4_000)
    draw = jax.jit(jax.vmap(lambda s, k: policy.sample(s, key=k), (None, 0)))
    draws = np.stack([draw(state, keys) for state in states])
    sd = np.sqrt(exact.variance)
    # Errors from the scatter of independent clouds.
    for got, want in ((draws.mean(1), exact.mean), (draws.std(1), sd)):
        error = got.std(0, ddof=1) / np.sqrt(6)
        assert (error < 0.05 * sd).all()
        assert (abs(got.mean(0) - want) < 5 * np.maximum(error, 0.01 * sd)).all()
    log_evidence = np.array([float(s.engine.log_evidence.value) for s in states])
    off = log_evidence.mean() - PRIOR.log_evidence(ARMS, REWARDS).sum()
    stated = np.mean([float(s.engine.evidence_variance) for s in states]) ** 0.5
    assert stated < 0.3
    assert abs(off) < 4.5 * stated / np.sqrt(6)


def test_arms_are_chosen_as_often_as_they_are_the_best(particles):
    policy, states = particles
    chosen = jax.jit(lambda s, k: act_many(policy, s, 8_000, key=k))(states[0], jr.key(4))
    exact = PRIOR.update_batch(ARMS, REWARDS).sample((40_000,), key=jr.key(5))
    share = np.bincount(chosen, minlength=3) / 8_000
    want = np.bincount(np.argmax(exact, 1), minlength=3) / 40_000
    assert want.max() < 0.95
    # A cloud of 2,000 particles, at least a half of them effective, has a scatter of its own.
    error = np.sqrt(want * (1 - want) * (1 / 1_000 + 1 / 8_000 + 1 / 40_000))
    assert (abs(share - want) < 4.5 * error).all()


def test_states_are_plain_arrays(particles, tmp_path):
    policy, states = particles
    save_state(states[0], tmp_path / "state.npz")
    loaded = load_state(tmp_path / "state.npz", states[1])
    jax.tree.map(assert_array_equal, loaded, states[0])


def test_what_is_not_taken_in(particles):
    policy, states = particles
    full, empty = states[0], policy.init()
    with pytest.raises(ValueError, match="`capacity` must be at least .* number 31.* is 30"):
        policy.update(full, 0, 1.0)
    with pytest.raises(ValueError, match="`reward` must be finite; got nan"):
        policy.update(empty, 0, np.nan)
    with pytest.raises(ValueError, match="`arm` must be from 0 to 2"):
        policy.update(empty, 3, 1.0)
    with pytest.raises(ValueError, match=r"`arm` and `reward` must have the shape"):
        policy.update(empty, [0, 1], [1.0, 2.0])
    compiled = jax.jit(lambda *args: policy.update(*args))
    for state, reward in ((full, 1.0), (empty, np.nan)):
        after = compiled(state, 0, reward)
        assert int(after.left_out) == 1
        jax.tree.map(assert_array_equal, after.engine, state.engine)
        assert int(after.filled) == int(state.filled)
        assert np.isfinite(policy.sample(after, key=jr.key(0))).all()


@pytest.mark.slow
def test_compiled_and_batched_are_the_same():
    engine = wh.DataTemperedSMC(particles=64, kernel="rwm", moves=2)
    policy = _policy(Gaussian(), engine, capacity=4, warmup=1)
    batch = policy.init((2,))
    arms, rewards = np.array([0, 2]), np.array([1.0, -3.0])
    together = jax.jit(lambda *args: policy.update(*args))(batch, arms, rewards)
    assert policy.act(together, key=jr.key(0)).shape == (2,)
    vmapped = jax.vmap(policy.update)(batch, arms, rewards)
    for i in range(2):
        alone = policy.update(_at(batch, i), arms[i], rewards[i])
        for other in (together, vmapped):
            close = lambda a, b: assert_allclose(a, b, rtol=1e-9, atol=1e-12)
            jax.tree.map(close, _at(other, i), alone)
    # Different problems of a batch have different random numbers.
    x = together.engine.particles.points.x
    assert not np.array_equal(
        batch.engine.particles.points.x[0], batch.engine.particles.points.x[1]
    )
    assert np.isfinite(x).all()


@pytest.mark.slow
def test_langevin_draws_against_the_exact_posterior():
    # 300 chains, each of which forgets in some ten updates of the fastest direction; the step
    # inflates variances by about h a / 4 < 2%.
    engine = wh.SGLD(step_size=2e-3, steps=100_000, thin=100, warmup=0)
    policy = _policy(Gaussian(), engine)
    state = _played(policy, policy.init((300,)))
    exact = PRIOR.update_batch(ARMS, REWARDS).mean_distribution()
    draws = np.asarray(policy.sample(state, key=jr.key(0)))
    sd = np.sqrt(exact.variance)
    assert (abs(draws.mean(0) - exact.mean) < 4.5 * sd / np.sqrt(300)).all()
    # The kurtosis of t with 2 alpha > 10 degrees of freedom is below 4.
    error = np.sqrt((4 - 1) / 4 / 300)
    assert (abs(draws.std(0) / sd - 1) < 4.5 * error + 0.02).all()
    # One state is one draw: the same arm for all who come before the next reward.
    assert len(set(act_many(policy, _at(state, 0), 20, key=jr.key(1)).tolist())) == 1


@pytest.mark.slow
def test_variational_draws_against_the_exact_posterior():
    # Steps of one size: what it learned of early rewards it must correct as more come in.
    engine = wh.BBVI(optimizer=optax.adam(0.02), steps=20_000)
    policy = _policy(Known(), engine, steps_per_reward=10)
    state = _played(policy, policy.init())
    exact = KnownVariance(0.5, 1.44, 2.25, arms=3).update_batch(ARMS, REWARDS)
    sample = jax.jit(jax.vmap(lambda k: policy.sample(state, key=k)))
    draws = np.asarray(sample(jr.split(jr.key(2), 8_000)))
    sd = np.sqrt(exact.variance)
    assert (abs(draws.mean(0) - exact.mean) < 4.5 * sd / np.sqrt(8_000)).all()
    assert (abs(draws.std(0) / sd - 1) < 4.5 / np.sqrt(16_000)).all()


class HeavyTails(wh.Model):
    """Arms that share a scale and differ by an unknown amount; rewards with heavy tails."""

    centre: jax.Array = wh.latent(dist.Normal(0.0, 3.0))
    spread: jax.Array = wh.latent(dist.HalfNormal(1.0))
    scale: jax.Array = wh.latent(dist.HalfNormal(1.0))
    mean: jax.Array = wh.latent(
        lambda m: dist.Normal(m.centre, m.spread), shape=(3,), noncentered=True
    )

    def likelihood(self, arm):
        return dist.StudentT(3.0, self.mean[arm], self.scale)


@pytest.mark.slow
def test_heavy_tails_do_not_mislead_a_model_that_knows_of_them():
    """One wild reward: a Gaussian belief falls for it, and this one does not."""
    rng = np.random.default_rng(2)
    engine = wh.DataTemperedSMC(particles=1_000, kernel="rwm")
    policy = _policy(HeavyTails(), engine, capacity=31)
    state, gaussian = policy.init(), NormalGamma(0.0, 0.5, 2.0, 1.0, arms=3)
    for i in range(30):
        arm, reward = i % 3, (0.0, 1.0, 0.2)[i % 3] + 0.1 * rng.standard_t(3)
        state = policy.update(state, arm, reward)
        gaussian = gaussian.update(arm, reward)
    state, gaussian = policy.update(state, 0, 40.0), gaussian.update(0, 40.0)
    chosen = act_many(policy, state, 500, key=jr.key(0))
    assert np.mean(np.asarray(chosen) == 1) > 0.95
    assert gaussian.mean[0] > 3.0


class Logistic(wh.Model):
    """Successes and failures."""

    logit: jax.Array = wh.latent(dist.Normal(0.0, 1.5), shape=(3,))

    @property
    def mean(self):
        return jax.nn.sigmoid(self.logit)

    def likelihood(self, arm):
        return dist.Bernoulli(logits=self.logit[arm])


@pytest.mark.slow
def test_in_the_simulator_it_does_as_the_exact_belief():
    """With the same model as `VarTS`, the same regret, up to what few particles cost."""
    key_scale, key_loc, key_run = jr.split(jr.key(6), 3)
    scale = 1 / jnp.sqrt(jr.gamma(key_scale, 3.0, (3, 60)) / 2.0)
    loc = 0.5 + scale / jnp.sqrt(1.5) * jr.normal(key_loc, (3, 60))
    engine = wh.DataTemperedSMC(particles=200, kernel="rwm", moves=5)
    runs = simulate(
        {"model": _policy(Gaussian(), engine, capacity=40, warmup=1), "exact": VarTS(PRIOR)},
        GaussianArms(loc, scale),
        horizon=40,
        key=key_run,
    )
    gap = runs.difference("model", "exact")
    assert abs(gap.mean[-1]) < 4.5 * gap.standard_error[-1]
    assert gap.standard_error[-1] < 0.2 * runs["exact"].final.std()


@pytest.mark.slow
def test_successes_and_failures():
    policy = _policy(Logistic(), wh.DataTemperedSMC(particles=500, kernel="rwm"))
    state = policy.init()
    for arm, reward in [(0, 1.0), (0, 1.0), (1, 0.0), (2, 0.0), (0, 1.0)]:
        state = policy.update(state, arm, reward)
    x = np.linspace(-9, 9, 20_001)  # three successes of three
    density = np.exp(-0.5 * (x / 1.5) ** 2) / (1 + np.exp(-x)) ** 3
    probability = np.sum(density / (1 + np.exp(-x))) / density.sum()
    draws = [policy.sample(state, key=jr.key(i))[0] for i in range(2_000)]
    assert abs(np.mean(draws) - probability) < 4.5 * np.std(draws) * np.sqrt(1 / 250)


class Chained(wh.Model):
    mean: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=(3,))

    def log_likelihood(self, y, arm):
        return jnp.sum(self.mean[arm] * y)


BAD = {
    "`engine` must be one that can be asked": lambda: _policy(Known(), wh.NUTS()),
    "`optimizer` must be given where data go on coming": lambda: _policy(Known(), wh.BBVI()),
    "`capacity` must be at least 1; got 0": lambda: _policy(
        Known(), wh.SGLD(step_size=0.1), capacity=0
    ),
    "`steps_per_reward` must be": lambda: _policy(
        Known(), wh.SGLD(step_size=0.1), steps_per_reward=0
    ),
    "`placeholder` must be finite": lambda: _policy(
        Known(), wh.SGLD(step_size=0.1), placeholder=np.inf
    ),
    "product over rewards": lambda: _policy(Chained(), wh.SGLD(step_size=0.1)),
    "`mean_rewards` must return an array of shape (3,)": lambda: ModelTS(
        Known(), wh.SGLD(step_size=0.1), mean_rewards=lambda d: d.mean[:2], arms=3, capacity=5
    ),
}


@pytest.mark.parametrize("rule", BAD)
def test_bad_input_is_refused(rule):
    with pytest.raises(ValueError) as error:
        BAD[rule]()
    assert rule in str(error.value)


def test_a_failed_engine_raises():
    policy = _policy(Known(), wh.SGLD(step_size=1e3, thin=200), capacity=3, warmup=0)
    state = policy.init((2,))
    with pytest.raises(wh.InferenceError, match="SGLD: A step produced a non-finite position"):
        policy.update(state, np.zeros(2, int), np.ones(2))
