"""Policies that choose sets: formulas in NumPy, limits, cascades, regret."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from whence.models.bandit import (
    C2UCB,
    VAC2UCB,
    CombinatorialTS,
    ContextualCombinatorial,
    LinearGaussian,
    LinUCB,
    TopK,
    simulate_contextual,
)

PRIOR = LinearGaussian(np.zeros(3), np.eye(3), 3.0, 0.5)
ROUNDS = np.random.default_rng(0).dirichlet(
    np.ones(3), size=(30, 2)
)  # (round, position, feature)
CLICKS = np.random.default_rng(1).integers(0, 2, (30, 2)) * 1.0
ACTIONS = np.random.default_rng(2).dirichlet(np.ones(3), size=6)
SEEN = np.random.default_rng(3).uniform(size=(30, 2)) < 0.7


def _after(policy, rounds=ROUNDS, clicks=CLICKS, seen=SEEN):
    def step(state, row):
        return policy.update(state, *row), None

    rows = (jnp.asarray(rounds), jnp.asarray(clicks), jnp.asarray(seen))
    return jax.jit(lambda: jax.lax.scan(step, policy.init(), rows)[0])()


def _reference(width, weighted, ridge, floor):
    """Return fit, inverse and optimistic variances by the published formulas."""
    gram, moment, variances = ridge * np.eye(3), np.zeros(3), []
    for x, y, seen in zip(ROUNDS, CLICKS, SEEN):
        inverse = np.linalg.inv(gram)
        variance = np.ones(2)
        if weighted:
            for i in range(2):
                reach = width * np.sqrt(x[i] @ inverse @ x[i])
                mean = x[i] @ inverse @ moment
                low, high = np.clip([mean - reach, mean + reach], 0, 1)
                if high <= 0.5:
                    variance[i] = high * (1 - high)
                elif low >= 0.5:
                    variance[i] = low * (1 - low)
                else:
                    variance[i] = 0.25
            variance = np.maximum(variance, floor)
            variances.extend(variance)
        for i in np.flatnonzero(seen):
            gram = gram + np.outer(x[i], x[i]) / variance[i]
            moment = moment + x[i] * y[i] / variance[i]
    inverse = np.linalg.inv(gram)
    return inverse @ moment, inverse, np.array(variances)


@pytest.mark.parametrize("weighted", [False, True])
def test_by_the_formulas(weighted):
    rho = 0.1
    if weighted:
        policy, width = VAC2UCB(3, TopK(2), rho=rho, ridge=0.7, floor=0.02), 2 * rho
    else:
        policy, width = C2UCB(3, TopK(2), rho=rho, ridge=0.7), rho
    mu, inverse, variances = _reference(width, weighted, 0.7, 0.02)
    state = _after(policy)
    assert_allclose(state.mu, mu, rtol=1e-9)
    assert_allclose(state.root @ state.root.T, inverse, rtol=1e-8, atol=1e-12)
    reach = width * np.sqrt(np.einsum("ai,ij,aj->a", ACTIONS, inverse, ACTIONS))
    values = np.clip(ACTIONS @ mu + reach, 0, 1)
    assert_allclose(policy.values(state, ACTIONS, key=jr.key(0)), values)
    assert_array_equal(policy.act(state, ACTIONS, key=jr.key(0)), np.argsort(-values)[:2])
    if weighted:  # all three cases of the optimistic variance came up
        assert (variances == 0.25).any()
        assert ((variances < 0.25) & (variances > 0.02)).any()


@pytest.mark.parametrize(
    ("mean", "reach", "variance"),
    [
        (0.2, 0.1, 0.21),
        (0.8, 0.1, 0.21),
        (0.45, 0.1, 0.25),
        (-0.5, 0.1, 0.01),
        (1.5, 0.1, 0.01),
    ],
)
def test_optimistic_variance_by_hand(mean, reach, variance):
    policy = VAC2UCB(1, TopK(1), rho=reach / 2, ridge=1.0, floor=0.01)
    state = policy.init()  # a scale of 1 for the feature 1
    state = type(state)(jnp.array([mean]), state.root)
    assert_allclose(policy.optimistic_variance(state, [[1.0]]), [variance], rtol=1e-6)


def test_equal_variances_are_a_ridge_regression_in_other_units():
    """With a floor of 1/4 every variance is 1/4: the same bounds for a quarter of the ridge."""
    adaptive = VAC2UCB(3, TopK(2), rho=0.3, ridge=2.0, floor=0.25)
    plain = C2UCB(3, TopK(2), rho=0.3, ridge=0.5)
    a, b = _after(adaptive), _after(plain)
    assert_allclose(a.mu, b.mu, rtol=1e-9)
    assert_allclose(
        adaptive.values(a, ACTIONS, key=jr.key(0)), plain.values(b, ACTIONS, key=jr.key(0))
    )


def test_thompson_sampling_of_sets_learns_as_the_belief_does():
    state = _after(CombinatorialTS(PRIOR, TopK(2)))
    exact = PRIOR.update_batch(ROUNDS[SEEN], CLICKS[SEEN])
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-9), state.belief(), exact)


def _pair(values):
    """Choose the best of the first half, then the best of the second half."""
    half = values.shape[0] // 2
    return jnp.stack([jnp.argmax(values[:half]), half + jnp.argmax(values[half:])])


def test_any_oracle():
    policy = C2UCB(3, _pair, rho=0.1)
    state = _after(policy)
    values = np.asarray(policy.values(state, ACTIONS, key=jr.key(0)))
    best = [np.argmax(values[:3]), 3 + np.argmax(values[3:])]
    assert_array_equal(policy.act(state, ACTIONS, key=jr.key(0)), best)
    wide = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], -1), state)
    both = policy.act(wide, np.stack([ACTIONS, ACTIONS[::-1]], -1), key=jr.key(0))
    assert_array_equal(both[:, 0], best)
    assert_array_equal(both[:, 1], [np.argmax(values[:2:-1]), 3 + np.argmax(values[2::-1])])


def _law(key):
    x = jr.exponential(key, (10, 3))
    return x / jnp.sum(x, 1, keepdims=True)


def _environment(low, high, instances=200, **kwargs):
    truth = np.random.default_rng(4).uniform(low, high, (3, instances))
    return ContextualCombinatorial(truth, _law, **kwargs)


def _play(environment, rho, horizon=600):
    policies = {
        "VAC2": VAC2UCB(3, TopK(3), rho=rho),
        "C2": C2UCB(3, TopK(3), rho=rho),
    }
    return simulate_contextual(policies, environment, horizon=horizon, key=jr.key(5))


def test_regret_is_sublinear_and_small_variances_help():
    """Probabilities below 0.1, whose variances are below 0.09."""
    runs = _play(_environment(0.0, 0.1), 1.0)
    for run in runs.values():
        assert (run.pulls.sum(0) == 3 * 600).all()
        assert (np.diff(run.regret, axis=0) > -1e-9).all()
    regret = runs["VAC2"].regret
    gap = regret[49] - (regret[-1] - regret[49])  # the first half costs more
    assert gap.mean() > 4 * gap.std(ddof=1) / np.sqrt(200)
    gain = runs.difference("C2", "VAC2")
    assert gain.mean[-1] > 4 * gain.standard_error[-1]


@pytest.mark.parametrize("cascade", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_regret_of_a_round_by_hand(cascade):
    """In the first round the actions with the longest features are chosen."""
    x = np.random.default_rng(6).dirichlet(np.ones(3), size=10)
    truth = np.random.default_rng(7).uniform(0.2, 0.9, (3, 1))
    environment = ContextualCombinatorial(truth, x[None], cascade=cascade)
    policy = C2UCB(3, _pair)
    run = simulate_contextual({"x": policy}, environment, horizon=1, key=jr.key(8))["x"]
    probs, lengths = (x @ truth)[:, 0], np.linalg.norm(x, axis=1)

    def worth(values):
        p = probs[np.argmax(values[:5])]
        q = probs[5 + np.argmax(values[5:])]
        return 1 - (1 - p) * (1 - q) if cascade else p + q

    assert worth(probs) > worth(lengths)
    assert_allclose(run.final, worth(probs) - worth(lengths))
    pulled = [np.argmax(lengths[:5]), 5 + np.argmax(lengths[5:])]
    assert_array_equal(np.flatnonzero(run.pulls[:, 0]), pulled)


def test_a_cascade_shows_what_comes_before_the_first_success():
    """Actions that always succeed or never do: what was learned from tells what was seen."""
    x = np.eye(4)[None]
    truth = np.array([[0.0], [1.0], [0.0], [1.0]])

    def everything(values):
        return jnp.arange(4)

    for cascade, seen in [(True, [1, 1, 0, 0]), (False, [1, 1, 1, 1])]:
        environment = ContextualCombinatorial(truth, x, cascade=cascade)
        policy = C2UCB(4, everything)
        key = jr.key(0)
        state, hit, gap = environment.turn(policy, policy.init((1,)), jnp.asarray(0), key=key)
        # One reward halves the variance of a coefficient that had variance 1.
        variance = np.diag(state.root[..., 0] @ state.root[..., 0].T)
        assert_allclose(variance, np.where(seen, 0.5, 1.0))
        assert hit.all()
        assert_allclose(gap, 0.0)


@pytest.mark.slow
def test_cascades_are_learned_and_thompson_sampling_too():
    environment = _environment(0.0, 0.3, cascade=True)
    policies = {"TS": CombinatorialTS(PRIOR, TopK(3)), "C2": C2UCB(3, TopK(3), rho=0.3)}
    runs = simulate_contextual(policies, environment, horizon=1_000, key=jr.key(10))
    for run in runs.values():
        gap = 2 * run.regret[9] * 5 - run.regret[-1]
        assert gap.mean() > 4 * gap.std(ddof=1) / np.sqrt(200)


C2 = C2UCB(3, TopK(2))
BAD = {
    "`size` must be at least 1; got 0": lambda: TopK(0),
    "`size` must be at most the number of actions, 1; got 2": lambda: C2.act(
        C2.init(), ACTIONS[:1], key=jr.key(0)
    ),
    "`rho` must be positive": lambda: C2UCB(3, TopK(2), rho=0.0),
    "`oracle` must be a function, as `TopK(5)`; got 2": lambda: C2UCB(3, 2),
    "`floor` must be positive": lambda: VAC2UCB(3, TopK(2), floor=0.0),
    "`rewards` must be between 0 and 1; got 1.5": lambda: C2.update(
        C2.init(), ACTIONS[:2], [0.0, 1.5]
    ),
    "must have shape (2, 3) and `reward` (2,)": lambda: C2.update(
        C2.init(), ACTIONS[:3], [0.0, 1.0]
    ),
    "`observed` must be true or false for each": lambda: C2.update(
        C2.init(), ACTIONS[:2], [0.0, 1.0], [1, 0]
    ),
    "`oracle` must return a vector of indices": lambda: C2UCB(3, lambda v: v).act(
        C2.init(), ACTIONS, key=jr.key(0)
    ),
    "`arm` must be from 0 to 5": lambda: C2UCB(3, lambda v: jnp.array([0, 6])).act(
        C2.init(), ACTIONS, key=jr.key(0)
    ),
    "chooses sets of actions; it is a LinUCB": lambda: simulate_contextual(
        {"x": LinUCB(3)}, _environment(0.0, 0.1), horizon=2, key=jr.key(0)
    ),
    "mean rewards be from 0 to 1": lambda: simulate_contextual(
        {"x": C2}, _environment(1.5, 2.0), horizon=2, key=jr.key(0)
    ),
}


@pytest.mark.parametrize("rule", BAD)
def test_bad_input_is_refused(rule):
    with pytest.raises(ValueError) as error:
        BAD[rule]()
    assert rule in str(error.value)
