"""Top-two sampling: its choices against SciPy, its allocation, and stopping."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from whence.models.bandit import (
    BetaBernoulli,
    KnownVariance,
    NormalGamma,
    TopTwoTS,
    VarTS,
    act_many,
    decide,
    probability_best,
)

BELIEF = NormalGamma([0.0, 0.4, 0.1, -2.0], [3.0, 4.0, 9.0, 2.0], [2.0, 4.0, 6.0, 3.0], 1.5)
SCALE = np.sqrt(1.5 / np.array([2.0 * 3, 4.0 * 4, 6.0 * 9, 3.0 * 2]))
LOCATIONS = np.array([0.0, 0.4, 0.1, -2.0])


def _draws(num, seed):
    t = stats.t(2 * np.array([2.0, 4.0, 6.0, 3.0]), LOCATIONS, SCALE)
    return t.rvs((num, 4), random_state=np.random.default_rng(seed))


def test_probability_best_against_quadrature():
    t = stats.t(2 * np.array([2.0, 4.0, 6.0, 3.0])[:, None], LOCATIONS[:, None], SCALE[:, None])
    x = np.linspace(-30, 30, 60_001)
    density, below = t.pdf(x), t.cdf(x)
    exact = [np.trapezoid(density[i] * np.prod(np.delete(below, i, 0), 0), x) for i in range(4)]
    got = probability_best(BELIEF, key=jr.key(0), draws=40_000)
    error = np.sqrt(np.array(exact) * (1 - np.array(exact)) / 40_000)
    assert (abs(got - np.array(exact)) < 5 * error).all()
    assert_allclose(np.sum(got), 1)


def test_decision():
    draws = _draws(100_000, 1)  # their own error makes the errors below 1.2 times as large
    decision = decide(BELIEF, key=jr.key(2), level=0.7, draws=40_000)
    assert decision.arm == 1
    best = np.mean(draws.argmax(1) == 1)
    assert abs(decision.probability - best) < 5 * 1.2 * decision.standard_error
    loss = draws.max(1) - draws[:, 1]
    assert abs(decision.loss - loss.mean()) < 5 * 1.2 * loss.std() / np.sqrt(40_000)
    assert bool(decision.stop) is bool(decision.probability >= 0.7)
    wide = decide(BELIEF.expand((3,)), key=jr.key(2), draws=500)
    assert wide.arm.shape == wide.stop.shape == wide.loss.shape == (3,)


@pytest.mark.parametrize("beta", [0.8, pytest.param(0.5, marks=pytest.mark.slow)])
def test_choices_have_the_published_probabilities(beta):
    """Arm i: `p_i (beta + (1 - beta) sum over j != i of p_j / (1 - p_j))`."""
    policy = TopTwoTS(BELIEF, beta=beta)
    num = 20_000
    taken = np.bincount(act_many(policy, BELIEF, num, key=jr.key(3)), minlength=4) / num
    p = np.bincount(_draws(1_000_000, 4).argmax(1), minlength=4) / 1_000_000
    odds = p / (1 - p)
    exact = p * (beta + (1 - beta) * (odds.sum() - odds))
    assert (abs(taken - exact) < 5 * np.sqrt(exact * (1 - exact) / num) + 1e-4).all()


@pytest.mark.slow
def test_when_one_arm_is_always_best_the_second_is_the_closest():
    sure = KnownVariance([9.0, 4.0, 5.0, 0.0], [1e-4, 1e-4, 1e-4, 1e-4], 1.0)
    arms = np.asarray(act_many(TopTwoTS(sure, redraws=5), sure, 2_000, key=jr.key(5)))
    shares = np.bincount(arms, minlength=4) / 2_000
    assert abs(shares[0] - 0.5) < 5 * np.sqrt(0.25 / 2_000)
    assert_allclose(shares[2], 1 - shares[0])


PRIOR = NormalGamma(0.0, 1.0, 3.0, 2.0, arms=5)
MEANS = (
    np.random.default_rng(6).permuted(np.tile([0.0, 0.2, 0.4, 0.5, 1.0], (300, 1)), axis=1).T
)


def _play(policy):
    """Return P(best arm), and its pulls so far, after 300 and 600 rounds of 300 trials."""
    best = jnp.arange(5)[:, None] == jnp.argmax(MEANS, 0)

    def one_round(carry, key):
        state, pulls = carry
        key_act, key_reward = jr.split(key)
        arm = policy.act(state, key=key_act)
        hit = jnp.arange(5)[:, None] == arm
        reward = jnp.sum(jnp.where(hit, MEANS + jr.normal(key_reward, (300,)), 0), 0)
        return (policy.update(state, arm, reward), pulls + jnp.any(hit & best, 0)), None

    def half(carry, key):
        carry, _ = jax.lax.scan(one_round, carry, jr.split(key, 300))
        sure = probability_best(carry[0], key=jr.fold_in(key, 1), draws=1_000)
        return carry, (jnp.sum(jnp.where(best, sure, 0), 0), carry[1])

    start = (policy.init((300,)), jnp.zeros(300))
    return jax.jit(lambda key: jax.lax.scan(half, start, jr.split(key, 2))[1])(jr.key(7))


@pytest.fixture(scope="module")
def played():
    return {"top two": _play(TopTwoTS(PRIOR)), "VarTS": _play(VarTS(PRIOR))}


@pytest.mark.slow
def test_it_is_sure_sooner_than_thompson_sampling(played):
    """One arm is better than four by half a standard deviation and more."""
    for i in range(2):
        gain = np.asarray(played["top two"][0][i] - played["VarTS"][0][i])
        assert gain.mean() > 4 * gain.std(ddof=1) / np.sqrt(300)


@pytest.mark.slow
def test_share_of_the_best_arm_is_about_beta(played):
    """In the second half; at first it has to be found."""
    shares = {
        name: float(np.mean(np.diff(run[1], axis=0)) / 300) for name, run in played.items()
    }
    assert abs(shares["top two"] - 0.5) < 0.03
    assert shares["VarTS"] > 0.85


@pytest.mark.slow
def test_trials_stopped_at_a_level_are_wrong_no_more_often_than_it_says():
    """Under a true prior, looking after every tenth reward."""
    rng = np.random.default_rng(8)
    precision = rng.gamma(3.0, 1 / 2.0, (5, 1_000))
    means = jnp.asarray(rng.normal(size=(5, 1_000)) / np.sqrt(precision))
    scale = jnp.asarray(1 / np.sqrt(precision))
    policy = TopTwoTS(PRIOR)

    def step(carry, key):
        state, stopped, wrong = carry
        for k in jr.split(key, 10):
            arm = policy.act(state, key=k)
            hit = jnp.arange(5)[:, None] == arm
            noise = jr.normal(jr.fold_in(k, 0), (1_000,))
            reward = jnp.sum(jnp.where(hit, means + scale * noise, 0), 0)
            state = policy.update(state, arm, reward)
        best = probability_best(state, key=jr.fold_in(key, 2), draws=1_000)
        now = ~stopped & (jnp.max(best, 0) >= 0.9)
        mistaken = jnp.argmax(best, 0) != jnp.argmax(means, 0)
        return (state, stopped | now, wrong | (now & mistaken)), None

    never = jnp.zeros(1_000, bool)
    start = (PRIOR.expand((1_000,)), never, never)
    run = jax.jit(lambda keys: jax.lax.scan(step, start, keys)[0])
    _, stopped, wrong = run(jr.split(jr.key(9), 60))
    count = int(stopped.sum())
    assert count > 800
    assert wrong.sum() / count < 0.1 + 4 * np.sqrt(0.1 * 0.9 / count)
    assert wrong.sum() / count > 0.01  # it is not sure for no reason


@pytest.mark.slow
def test_other_beliefs():
    policy = TopTwoTS(BetaBernoulli(arms=3))
    state = policy.update(policy.init(), 1, 1.0)
    assert 0 <= policy.act(state, key=jr.key(0)) < 3
    # Density 2 x for the second, uniform for the others: E of x^2 under 2 x is 1/2.
    best = probability_best(state, key=jr.key(1), draws=4_000)
    assert abs(best[1] - 0.5) < 5 * np.sqrt(0.25 / 4_000)


BAD = {
    "`beta` must be above 0 and below 1; got 1.0": lambda: TopTwoTS(PRIOR, beta=1.0),
    "`redraws` must be at least 1": lambda: TopTwoTS(PRIOR, redraws=0),
    "at least 2 arms; got 1": lambda: TopTwoTS(NormalGamma(0.0, 1.0, 1.0, 1.0, arms=1)),
    "`draws` must be": lambda: probability_best(PRIOR, key=jr.key(0), draws=0),
    "`level` must be at least 0 and at most 1; got 95.0": lambda: decide(
        PRIOR, key=jr.key(0), level=95.0
    ),
    "`arm` must be from 0 to 4": lambda: TopTwoTS(PRIOR).update(PRIOR, 5, 0.0),
    "`reward` must be finite": lambda: TopTwoTS(PRIOR).update(PRIOR, 0, np.nan),
}


@pytest.mark.parametrize("rule", BAD)
def test_bad_input_is_refused(rule):
    with pytest.raises(ValueError) as error:
        BAD[rule]()
    assert rule in str(error.value)
