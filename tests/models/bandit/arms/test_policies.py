"""Policies: indices against formulas in NumPy, choices, limits, states in files."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from whence.models import bandit
from whence.models.bandit import (
    CHKUCB,
    MVTS,
    UCB1,
    UCBV,
    BayesUCB,
    BernoulliTS,
    BetaBernoulli,
    GaussianTS,
    HondaTakemura,
    KnownVariance,
    KnownVarianceTS,
    NormalGamma,
    UCB1Normal,
    UCB1Tuned,
    VarTS,
    act_many,
    load_state,
    save_state,
    update_many,
)

PRIOR = NormalGamma(0.0, 1.0, 4.0, 1.0, arms=4)
POLICIES = {
    "VarTS": VarTS(PRIOR),
    "GaussianTS": GaussianTS(0.3, arms=4),
    "KnownVarianceTS": KnownVarianceTS(KnownVariance(0.0, [1.0, 2.0, 3.0, 4.0], 0.5)),
    "BernoulliTS": BernoulliTS(BetaBernoulli(arms=4)),
    "UCB1": UCB1(4, scale=0.5),
    "UCB1Tuned": UCB1Tuned(4),
    "UCBV": UCBV(4, range=2.0),
    "UCB1Normal": UCB1Normal(4),
    "CHKUCB": CHKUCB(4),
    "BayesUCB": BayesUCB(PRIOR),
    "HondaTakemura": HondaTakemura(4),
    "MVTS": MVTS(4),
}
ARMS = np.random.default_rng(0).integers(0, 4, 120)
REWARDS = np.random.default_rng(1).normal(ARMS * 0.5, 1 + ARMS)


def _history(policy):
    """Return the state after a fixed history; compiled once for policies of one state."""
    leaves = [np.asarray(x).tolist() for x in jax.tree.leaves(policy.init())]
    kind = (type(policy.init()), str(leaves))
    if kind not in HISTORIES:
        HISTORIES[kind] = _played(policy)
    return HISTORIES[kind]


HISTORIES = {}


def _played(policy):
    rewards = (REWARDS > 1) * 1.0 if isinstance(policy, BernoulliTS) else REWARDS

    def step(state, pair):
        return policy.update(state, *pair), None

    return jax.lax.scan(step, policy.init(), (jnp.asarray(ARMS), jnp.asarray(rewards)))[0]


def _play(policy):
    def play(key):
        def step(state, key):
            key_act, key_reward = jr.split(key)
            arm = policy.act(state, key=key_act)
            reward = jr.bernoulli(key_reward, 0.2 + 0.15 * arm).astype(float)
            return policy.update(state, arm, reward), arm

        return jax.lax.scan(step, policy.init((3,)), jr.split(key, 160))

    return jax.vmap(play)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_compiled_and_vectorised(name):
    keys = jr.split(jr.key(1), 2)
    state, arms = jax.eval_shape(_play(POLICIES[name]), keys)
    assert arms.shape == (2, 160, 3)
    assert {x.shape for x in jax.tree.leaves(state)} == {(2, 4, 3)}


# The others are played in other tests.
@pytest.mark.parametrize("name", ["UCB1Tuned", "UCB1Normal", "CHKUCB", "BayesUCB"])
def test_every_arm_is_tried(name):
    state, arms = jax.jit(_play(POLICIES[name]))(jr.split(jr.key(1), 2))
    assert np.unique(arms).tolist() == [0, 1, 2, 3]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def _reference(name):
    """Return indices by their formulas, arm by arm."""
    t, index = len(ARMS) + 1, []
    for arm in range(4):
        x = REWARDS[arm == ARMS]
        n, mean, v = len(x), x.mean(), x.var()
        log = np.log(t)
        if name == "UCB1":
            width = 0.5 * np.sqrt(2 * log / n)
        elif name == "UCB1Tuned":
            width = np.sqrt(log / n * min(0.25, v + np.sqrt(2 * log / n)))
        elif name == "UCBV":
            width = np.sqrt(2 * v * log / n) + 3 * 2.0 * log / n
        elif name == "UCB1Normal":
            s2 = (np.sum(x**2) - n * mean**2) / (n - 1)
            width = np.inf if n < np.ceil(8 * log) else np.sqrt(16 * s2 * np.log(t - 1) / n)
        else:
            width = np.sqrt(v) * np.sqrt(t ** (2 / (n - 2)) - 1)
        index.append(mean + width)
    return index


@pytest.mark.parametrize("name", ["UCB1", "UCB1Tuned", "UCBV", "UCB1Normal", "CHKUCB"])
def test_indices(name):
    policy = POLICIES[name]
    assert_allclose(policy.index(_history(policy)), _reference(name))


def test_ucb1_normal_of_arms_with_many_rewards():
    """Below `8 log(round)` rewards an arm has no index, as all have in the history above."""
    policy, rewards = UCB1Normal(2), np.random.default_rng(3).normal(size=(2, 100))
    moments = np.full(2, 100.0), rewards.mean(1), 100 * rewards.var(1)
    state = type(policy.init())(*map(jnp.asarray, moments))
    width = np.sqrt(16 * rewards.var(1, ddof=1) * np.log(200) / 100)
    assert_allclose(policy.index(state), rewards.mean(1) + width)


def test_the_cap_of_ucb1_tuned_binds():
    state = UCB1Tuned(4).init()
    state = update_many(UCB1Tuned(4), state, [0, 1, 2, 3, 0], [0.0, 0.5, 0.5, 0.5, 100.0])
    width = UCB1Tuned(4).index(state) - state.mean
    assert_allclose(width[0], np.sqrt(np.log(6) / 2 * 0.25))


def test_bayes_ucb():
    state = _history(POLICIES["BayesUCB"])
    quantile = stats.t.isf(1 / 121.5, 2 * np.asarray(state.alpha))
    best = np.argmax(state.mu + state.scale * quantile)
    assert POLICIES["BayesUCB"].act(state, key=jr.key(0)) == best


@pytest.mark.parametrize(("name", "pulls"), [("UCB1", 1), ("CHKUCB", 3), ("HondaTakemura", 4)])
def test_first_rounds_go_round(name, pulls):
    policy = POLICIES[name]
    state, seen = policy.init(), []
    for i in range(4 * pulls):
        seen.append(int(policy.act(state, key=jr.key(i))))
        state = policy.update(state, seen[-1], 1.0 + 0.1 * i)
    assert np.bincount(seen).tolist() == [pulls] * 4
    assert HondaTakemura(4, a=-1.0).first_pulls == 5
    assert HondaTakemura(4, a=0.5).first_pulls == 2


def test_honda_takemura_draws_from_its_posterior():
    """Two arms: the frequency of choices against a simulation of the two t variables."""
    policy = HondaTakemura(2, a=-0.5)
    x = [np.array([0.0, 1.0, 2.5, 0.4]), np.array([0.5, 1.5, 0.7, 2.0, 1.1])]
    state = update_many(policy, policy.init(), np.repeat([0, 1], [4, 5]), np.concatenate(x))
    arms = act_many(policy, state, 40_000, key=jr.key(4))
    rng = np.random.default_rng(5)
    draws = []
    for y in x:
        n, squares = len(y), np.sum((y - y.mean()) ** 2)
        scale = np.sqrt(squares / (n * (n - 2)))
        draws.append(y.mean() + scale * rng.standard_t(n - 2, 40_000))
    p, q = np.mean(arms), np.mean(draws[1] > draws[0])
    assert abs(p - q) < 5 * np.sqrt(p * (1 - p) * 2 / 40_000)


def test_mean_variance_trade_off():
    """With `rho = 0` only the variance counts: the gamma draws against NumPy's."""
    policy = MVTS(2, rho=0.0)
    x = [np.array([0.0, 3.0, 1.5]), np.array([5.0, 5.5, 4.0, 6.5])]
    state = update_many(policy, policy.init(), np.repeat([0, 1], [3, 4]), np.concatenate(x))
    arms = act_many(policy, state, 40_000, key=jr.key(6))
    rng = np.random.default_rng(7)
    precisions = [
        rng.gamma(0.5 + len(y) / 2, 1 / (0.5 + np.sum((y - y.mean()) ** 2) / 2), 40_000)
        for y in x
    ]
    p, q = np.mean(arms), np.mean(precisions[1] > precisions[0])
    assert abs(p - q) < 5 * np.sqrt(p * (1 - p) * 2 / 40_000)


@pytest.mark.parametrize("name", ["VarTS", "KnownVarianceTS", "BernoulliTS"])
def test_thompson_sampling_matches_probabilities(name):
    """An arm is chosen as often as it is the best in the posterior, drawn by scipy."""
    policy, num = POLICIES[name], 40_000
    state = _history(policy)
    chosen = np.bincount(act_many(policy, state, num, key=jr.key(8)), minlength=4) / num
    rng = np.random.default_rng(9)
    if name == "VarTS":
        precision = rng.gamma(state.alpha, 1 / np.asarray(state.beta), (num, 4))
        means = rng.normal(state.mu, 1 / np.sqrt(state.kappa * precision))
    elif name == "KnownVarianceTS":
        means = rng.normal(state.mu, np.sqrt(state.variance), (num, 4))
    else:
        means = rng.beta(state.alpha, state.beta, (num, 4))
    best = np.bincount(np.argmax(means, 1), minlength=4) / num
    error = np.sqrt((best * (1 - best) + chosen * (1 - chosen)) / num)
    assert (abs(chosen - best) <= 5 * error + 1e-12).all()
    assert (best > 0.01).sum() >= 2  # not decided yet, or there were nothing to test


def test_certain_variance_is_a_fixed_variance():
    """With a very large `alpha` the same keys lead to the same actions."""
    alpha = 1e10
    unsure = VarTS(NormalGamma(0.0, 1.0, alpha, 0.3 * alpha, arms=4))
    fixed = GaussianTS(0.3, arms=4)

    def play(policy):
        def step(state, key):
            arm = policy.act(state, key=key)
            reward = arm * 0.3 + jr.normal(jr.fold_in(key, 1))
            return policy.update(state, arm, reward), arm

        return jax.lax.scan(step, policy.init(), jr.split(jr.key(3), 300))[1]

    arms = play(unsure)
    assert_array_equal(arms, play(fixed))
    assert len(np.unique(arms)) > 1


@pytest.mark.parametrize("name", ["VarTS", "UCB1Normal"])
def test_states_survive_files(name, tmp_path):
    policy = POLICIES[name]
    state = _history(policy)
    save_state(state, tmp_path / "state.npz")
    loaded = load_state(tmp_path / "state.npz", policy.init())
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    jax.tree.map(assert_array_equal, loaded, state)
    assert jax.tree.leaves(loaded)[0].dtype == jax.tree.leaves(state)[0].dtype
    assert policy.act(loaded, key=jr.key(0)) == policy.act(state, key=jr.key(0))
    with pytest.raises(ValueError, match=r"`\w+` is float64 of shape \(4, 2\), in the file"):
        load_state(tmp_path / "state.npz", policy.init((2,)))
    with pytest.raises(
        ValueError, match=r"`like` must .* of type (\w+); got one of type BetaB"
    ):
        load_state(tmp_path / "state.npz", BetaBernoulli(arms=5))
    content = (tmp_path / "state.npz").read_bytes()
    for other in (content[: len(content) // 2], b"notes", b""):
        (tmp_path / "state.npz").write_bytes(other)
        with pytest.raises(ValueError, match="state.npz is damaged, or not of whence"):
            load_state(tmp_path / "state.npz", policy.init())


def in_float32(call):
    with jax.enable_x64(False):
        return call()


BAD = {
    "`arms` must be at least 1; got 0": lambda: UCB1(0),
    "`scale` must be positive and finite; got -1.0": lambda: UCB1(2, scale=-1.0),
    "`range`": lambda: UCBV(2, range=0.0),
    "`rho` must be at least 0": lambda: MVTS(2, rho=-1.0),
    "`a` must be finite": lambda: HondaTakemura(2, a=np.inf),
    "`prior.alpha` must be between 1 and inf; got 0.5": lambda: BayesUCB(
        NormalGamma(0.0, 1.0, 0.5, 1.0, arms=2)
    ),
    "`variance` must be positive": lambda: GaussianTS(-1.0, arms=2),
    "`kappa` must be positive": lambda: GaussianTS(1.0, arms=2, kappa=0.0),
    "`arm` must be from 0 to 3": lambda: UCB1(4).update(UCB1(4).init(), 4, 0.0),
    "`reward` must be finite": lambda: UCB1(4).update(UCB1(4).init(), 0, np.inf),
    "`reward` must be finite in float32": lambda: in_float32(
        lambda: UCB1(4).update(UCB1(4).init(), 0, 1e300)
    ),
    "shape of the batch": lambda: UCB1(4).update(UCB1(4).init((2,)), 0, 1.0),
    "`reward` must be 0 or 1; got 2.0": lambda: POLICIES["BernoulliTS"].update(
        BetaBernoulli(arms=4), 0, 2.0
    ),
    "`num` must be": lambda: act_many(UCB1(4), UCB1(4).init(), 0, key=jr.key(0)),
    "must have one shape": lambda: update_many(UCB1(4), UCB1(4).init(), [0, 1], [1.0]),
    "`arms` must be a whole number; got 2.5": lambda: UCB1(2.5),
    "`scale` must be a number; got 'wide'": lambda: UCB1(2, scale="wide"),
    "`prior` must be an instance of NormalGamma; got 3": lambda: VarTS(3),
    "`mu` must be numbers; got 'low'": lambda: NormalGamma("low", 1.0, 1.0, 1.0, arms=2),
}


def test_numpy_scalars_are_numbers():
    assert UCB1(np.int64(4), scale=np.float32(2.0)) == UCB1(4, scale=2.0)


@pytest.mark.parametrize("rule", BAD)
def test_bad_input_is_refused(rule):
    with pytest.raises(ValueError) as error:
        BAD[rule]()
    assert rule in str(error.value)


def test_many_rewards_in_one_loop(key):
    """As one by one; impossible ones are refused; methods can be compiled as they are."""
    policy = VarTS(NormalGamma(0.0, 1.0, 2.0, 1.0, arms=3))
    arms, rewards = np.array([0, 2, 2, 1, 0]), np.array([1.0, -0.5, 2.0, 0.3, 0.1])
    one_by_one, update = policy.init(), jax.jit(policy.update)
    for arm, reward in zip(arms, rewards):
        one_by_one = update(one_by_one, arm, reward)
    together = bandit.update_many(policy, policy.init(), arms, rewards)
    for ours, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(one_by_one)):
        assert_allclose(ours, theirs, rtol=1e-12)
    with pytest.raises(ValueError, match="arm. must be from 0 to 2"):
        bandit.update_many(policy, policy.init(), arms + 1, rewards)
    with pytest.raises(ValueError, match="reward. must be finite"):
        bandit.update_many(policy, policy.init(), arms, rewards * np.nan)


def test_index_of_bayes_ucb_is_a_quantile():
    """The quantile of the second arm lies below or above that of the first by a hair."""
    prior = NormalGamma(np.zeros(2), np.ones(2), np.array([2.0, 5.0]), np.array([2.0, 5.0]))
    policy = bandit.BayesUCB(prior)
    state = prior
    for reward in (0.1, 0.4, -0.2):
        state = state.update(0, reward)
    round = 4
    top = stats.t.ppf(1 - 1 / (round + 0.5), 2 * np.asarray(state.alpha))
    index = np.asarray(state.mu) + np.sqrt(state.beta / (state.alpha * state.kappa)) * top
    for shift, best in ((-1e-4, 0), (1e-4, 1)):
        moved = state.mu.at[1].add(index[0] - index[1] + shift)
        assert (
            policy.act(eqx.tree_at(lambda s: s.mu, state, moved), key=jax.random.key(0)) == best
        )
