"""Policies with features: against beliefs, formulas, brute force, and each other."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.special import gamma

from whence.models.bandit import (
    UCB1,
    ContextualLinear,
    LinearBayesUCB,
    LinearGaussian,
    LinearTS,
    LinUCB,
    NormalGamma,
    TopK,
    VarTS,
    load_state,
    own_coefficients,
    save_state,
    simulate_contextual,
)

COV = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])
PRIOR = LinearGaussian([0.1, -0.4, 1.0], COV, 2.0, 1.5)
POLICIES = {
    "LinearTS": LinearTS(PRIOR),
    "LinearBayesUCB": LinearBayesUCB(PRIOR),
    "LinUCB": LinUCB(3, width=0.7, ridge=2.0),
}
X = np.random.default_rng(0).normal(size=(40, 3))
Y = X @ [0.5, -1.0, 0.2] + np.random.default_rng(1).normal(size=40)
ACTIONS = np.random.default_rng(2).normal(size=(5, 3))


def _after(policy, x=X, y=Y):
    state = policy.init()

    def step(state, row):
        return policy.update(state, *row), None

    return jax.lax.scan(step, state, (jnp.asarray(x), jnp.asarray(y)))[0]


def test_one_constant_feature_is_an_arm():
    arm = NormalGamma(0.3, 1.5, 2.5, 0.8, arms=1)
    policy = LinearTS(LinearGaussian([0.3], [[1 / 1.5]], 2.5, 0.8))
    state = policy.init()
    for reward in [1.2, -0.7, 0.4, 2.9]:
        arm, state = arm.update(0, reward), policy.update(state, [1.0], reward)
    belief = state.belief()
    assert_allclose(belief.mu, arm.mu)
    assert_allclose(1 / belief.cov[0], arm.kappa)
    assert_allclose([belief.alpha, belief.beta], [arm.alpha[0], arm.beta[0]])


def test_state_is_the_belief_and_the_batch_posterior():
    state = _after(POLICIES["LinearTS"])
    exact = PRIOR.update_batch(X, Y)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-10), state.belief(), exact)
    precision = 2.0 * np.eye(3) + X.T @ X  # ridge regression
    fit = _after(POLICIES["LinUCB"])
    assert_allclose(fit.mu, np.linalg.solve(precision, X.T @ Y))
    assert_allclose(fit.root @ fit.root.T, np.linalg.inv(precision))


def test_ten_thousand_updates_in_float32():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(10_000, 5)) * [1.0, 0.03, 1.0, 10.0, 1.0]
    x[:, 2] = x[:, 0] + 0.05 * rng.normal(size=10_000)  # nearly collinear
    y = x @ [1.0, 3.0, -1.0, 0.1, 2.0] + 0.3 * rng.normal(size=10_000)
    exact = LinearGaussian(np.zeros(5), np.eye(5), 2.0, 1.0).update_batch(x, y)
    prior = LinearGaussian(*(np.float32(v) for v in (np.zeros(5), np.eye(5), 2.0, 1.0)))
    state = _after(LinearTS(prior), np.float32(x), np.float32(y))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype(np.float32)}
    sd = np.sqrt(np.diag(exact.cov))
    cov = np.float64(state.fit.root) @ np.float64(state.fit.root).T
    assert_allclose(cov / np.outer(sd, sd), exact.cov / np.outer(sd, sd), atol=5e-3)
    # In posterior standard deviations: the error of the mean is far below one.
    assert abs((state.fit.mu - exact.mu) / (sd * 0.3)).max() < 0.05
    assert_allclose(state.beta / state.alpha, exact.beta / exact.alpha, rtol=1e-3)


SLOW = pytest.param("LinearBayesUCB", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["LinearTS", "LinUCB", SLOW])
def test_batch_axes_are_problems_of_their_own(name):
    policy = POLICIES[name]
    state = policy.init((2,))
    for x, y in zip(X[:6].reshape(3, 2, 3), Y[:6].reshape(3, 2)):
        state = policy.update(state, x.T, y)
    for i in range(2):
        alone = policy.init()
        for x, y in zip(X[i:6:2], Y[i:6:2]):
            alone = policy.update(alone, x, y)
        mine = jax.tree.map(lambda leaf: leaf[..., i], state)
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-10), mine, alone)
        if name != "LinearTS":
            arms = policy.act(state, np.stack([ACTIONS, -ACTIONS], -1), key=jr.key(0))
            assert arms[i] == policy.act(alone, ACTIONS * (1, -1)[i], key=jr.key(0))


def test_indices():
    state = _after(POLICIES["LinUCB"])
    inverse = np.linalg.inv(2.0 * np.eye(3) + X.T @ X)
    width = np.sqrt(np.einsum("ai,ij,aj->a", ACTIONS, inverse, ACTIONS))
    index = ACTIONS @ inverse @ X.T @ Y + 0.7 * width
    assert POLICIES["LinUCB"].act(state, ACTIONS, key=jr.key(0)) == np.argmax(index)
    post = PRIOR.update_batch(X, Y)
    scale = np.einsum("ai,ij,aj->a", ACTIONS, post.cov, ACTIONS) * post.beta / post.alpha
    quantile = stats.t.isf(1 / 41.5, 2 * float(post.alpha))
    index = ACTIONS @ np.asarray(post.mu) + quantile * np.sqrt(scale)
    policy = POLICIES["LinearBayesUCB"]
    assert policy.act(_after(policy), ACTIONS, key=jr.key(0)) == np.argmax(index)


def test_thompson_sampling_matches_probabilities():
    """An action is taken as often as it is best under draws that SciPy made."""
    policy, num = POLICIES["LinearTS"], 40_000
    state = _after(policy, X[:4], Y[:4])
    keys = jr.split(jr.key(4), num)
    taken = jax.vmap(lambda key: policy.act(state, ACTIONS, key=key))(keys)
    taken = np.bincount(taken, minlength=5) / num
    post = PRIOR.update_batch(X[:4], Y[:4])
    draws = stats.multivariate_t.rvs(
        np.asarray(post.mu),
        np.asarray(post.cov) * float(post.beta / post.alpha),
        df=2 * float(post.alpha),
        size=num,
        random_state=5,
    )
    best = np.bincount(np.argmax(draws @ ACTIONS.T, 1), minlength=5) / num
    error = np.sqrt((best * (1 - best) + taken * (1 - taken)) / num)
    assert (abs(taken - best) <= 5 * error + 1e-12).all()
    assert (best > 0.01).sum() >= 2


def _law(key):
    return jr.normal(key, (4, 3))


def test_simulator_against_a_loop():
    """LinUCB, one instance and one round at a time, on a tape of features and no noise."""
    rng = np.random.default_rng(6)
    tape, truth = rng.normal(size=(120, 4, 3, 2)), rng.normal(size=(3, 2))
    environment = ContextualLinear(truth, 1e-9, tape)
    assert (environment.arms, environment.instances, environment.rounds) == (4, 2, 120)
    policies = {"x": POLICIES["LinUCB"], "arms": UCB1(4)}
    runs = simulate_contextual(policies, environment, horizon=120, key=jr.key(7))
    assert runs["arms"].regret.shape == (100, 2)
    for instance in range(2):
        gram, moment = 2.0 * np.eye(3), np.zeros(3)
        regret, curve, pulls = 0.0, [], np.zeros(4)
        for x in tape[..., instance]:
            inverse = np.linalg.inv(gram)
            width = np.sqrt(np.einsum("ai,ij,aj->a", x, inverse, x))
            arm = np.argmax(x @ inverse @ moment + 0.7 * width)
            means = x @ truth[:, instance]
            regret += means.max() - means[arm]
            gram, moment = gram + np.outer(x[arm], x[arm]), moment + x[arm] * means[arm]
            pulls[arm] += 1
            curve.append(regret)
        run = runs["x"]
        assert_array_equal(run.pulls[:, instance], pulls)
        assert_allclose(run.regret[:, instance], np.array(curve)[run.rounds - 1], rtol=1e-6)


# The expected maximum of four normals, times the expected length of the coefficients, which
# is that of three normals times the expected root of an inverse gamma variate.
GUESS = 1.029375 * np.sqrt(8 / np.pi) * np.sqrt(2.0) * gamma(2.5) / gamma(3)


ZERO = LinearGaussian(np.zeros(3), np.eye(3), 3.0, 2.0)
PLAYED = {
    "TS": LinearTS(ZERO),
    "again": LinUCB(3),
    "Bayes": LinearBayesUCB(ZERO),
    "UCB": LinUCB(3),
    "arms": VarTS(NormalGamma(0.0, 1.0, 3.0, 2.0, arms=4)),
}


def _runs(*names):
    environment = ContextualLinear.from_prior(ZERO, _law, instances=300, key=jr.key(8))
    policies = {name: PLAYED[name] for name in names}
    return simulate_contextual(policies, environment, horizon=400, key=jr.key(9))


@pytest.mark.parametrize(
    "names",
    [("UCB", "again"), pytest.param(("TS", "Bayes"), marks=pytest.mark.slow)],
    ids=lambda names: names[0],
)
def test_regret_is_sublinear(names):
    """The first half costs more than three times what the second half does."""
    runs = _runs(*names)
    for run in runs.values():
        assert run.rounds[49] == 200
        gap = run.regret[49] - 3 * (run.regret[-1] - run.regret[49])
        assert gap.mean() > 4 * gap.std(ddof=1) / np.sqrt(300)
        # A guess would lose `GUESS` per round, and one that has learned little of it.
        assert run.bayes_regret().mean[-1] < 0.05 * GUESS * 400
        assert (run.pulls.sum(0) == 400).all()
        assert run.regret[0].mean() < run.rounds[0] * GUESS
    if "again" in names:
        assert_array_equal(runs["UCB"].regret, runs["again"].regret)


@pytest.mark.slow
def test_a_policy_that_sees_no_features_guesses():
    """In this law no arm is better than another on average."""
    arms = _runs("arms")["arms"].bayes_regret()
    assert abs(arms.mean[-1] / 400 - GUESS) < 4.5 * arms.standard_error[-1] / 400


@pytest.mark.slow
def test_instances_come_from_the_prior():
    environment = ContextualLinear.from_prior(PRIOR, _law, instances=20_000, key=jr.key(10))
    variance = np.asarray(environment.scale) ** 2
    assert stats.kstest(variance, stats.invgamma(2.0, scale=1.5).cdf).pvalue > 1e-4
    along = np.array([1.0, -2.0, 0.5])
    scale = np.sqrt(1.5 / 2.0 * along @ COV @ along)
    t = stats.t(4.0, along @ np.asarray(PRIOR.mu), scale)
    assert stats.kstest(along @ np.asarray(environment.coefficients), t.cdf).pvalue > 1e-4


def test_features_may_come_from_a_distribution():
    law = dist.Uniform(0.0, 1.0).expand((4, 3))
    environment = ContextualLinear(np.ones((3, 2)), [1.0, 2.0], law.sample)
    x = environment.draw_features(jnp.asarray(0), key=jr.key(0))
    assert x.shape == (4, 3, 2)
    assert not np.allclose(x[..., 0], x[..., 1])
    assert (environment.arms, environment.rounds) == (4, None)


def test_coefficients_of_its_own_for_each_arm():
    z = np.array([1.0, 2.0])
    x = own_coefficients(z, arms=3)
    assert_array_equal(x @ np.arange(6.0), [0 * 1 + 1 * 2, 2 * 1 + 3 * 2, 4 * 1 + 5 * 2])


def test_states_survive_files(tmp_path):
    policy = POLICIES["LinearTS"]
    state = _after(policy)
    save_state(state, tmp_path / "state.npz")
    loaded = load_state(tmp_path / "state.npz", policy.init())
    jax.tree.map(assert_array_equal, loaded, state)


def _linear(**kwargs):
    given = {"coefficients": np.ones((3, 2)), "scale": 1.0, "contexts": _law, **kwargs}
    return ContextualLinear(**given)


def _simulate(policies, environment=None, horizon=4):
    environment = environment or _linear()
    return simulate_contextual(policies, environment, horizon=horizon, key=jr.key(0))


TS = POLICIES["LinearTS"]
BAD = {
    "`features` must have shape (action, 3); got (3,)": lambda: TS.act(
        TS.init(), np.ones(3), key=jr.key(0)
    ),
    "`features` must be finite; got nan": lambda: TS.act(
        TS.init(), np.full((2, 3), np.nan), key=jr.key(0)
    ),
    "`features` must have shape (action, 3, 2)": lambda: TS.act(
        TS.init((2,)), ACTIONS, key=jr.key(0)
    ),
    "must have shape (3,) and `reward` (); got (2,)": lambda: TS.update(TS.init(), [1, 2], 1.0),
    "`reward` must be finite; got inf": lambda: TS.update(TS.init(), [1, 2, 3], np.inf),
    "it has (2,)": lambda: TS.init((2,)).belief(),
    "`width` must be positive": lambda: LinUCB(3, width=0.0),
    "`ridge` must be positive": lambda: LinUCB(3, ridge=-1.0),
    "`prior.alpha` must be between 1 and inf; got 0.5": lambda: LinearBayesUCB(
        LinearGaussian([0.0], [[1.0]], 0.5, 1.0)
    ),
    "`contexts` must draw an array of shape (arm, 2)": lambda: _linear(
        coefficients=np.ones((2, 2))
    ),
    "`contexts` must be a function of a key, or have shape": lambda: _linear(
        contexts=np.ones((5, 4, 2))
    ),
    "`contexts` must be finite": lambda: _linear(contexts=np.full((5, 4, 3), np.inf)),
    "`scale` must be a scalar or have shape (2,)": lambda: _linear(scale=[1.0, 1.0, 1.0]),
    "`scale` must be positive": lambda: _linear(scale=0.0),
    "`coefficients` must have shape": lambda: _linear(coefficients=[1.0, 1.0, 1.0]),
    "`context` must be a vector": lambda: own_coefficients(1.0, arms=2),
    "at least one policy": lambda: _simulate({}),
    "'x' must be one that is for the environment's 3 features; it is for 2": lambda: _simulate(
        {"x": LinUCB(2)}
    ),
    "is for the environment's 4 arms; it is for 2": lambda: _simulate({"x": UCB1(2)}),
    "chooses one of several actions; it is a TopK": lambda: _simulate({"x": TopK(2)}),
    "`horizon` must be at most 3": lambda: _simulate(
        {"x": LinUCB(3)}, _linear(contexts=np.ones((3, 4, 3)))
    ),
    "is not finite": lambda: _simulate(
        {"x": LinUCB(3)}, _linear(contexts=lambda key: jnp.full((4, 3), jnp.nan))
    ),
}


@pytest.mark.parametrize("rule", BAD)
def test_bad_input_is_refused(rule):
    with pytest.raises(ValueError) as error:
        BAD[rule]()
    assert rule in str(error.value)
