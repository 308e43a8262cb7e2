"""The simulator against a loop in Python, exact regrets, equivariance and proved bounds."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from whence.models.bandit import (
    UCB1,
    AbstractPolicy,
    BernoulliArms,
    BetaArms,
    GaussianArms,
    KnownVariance,
    KnownVarianceTS,
    NormalGamma,
    PolicyRun,
    UniformArms,
    VarTS,
    bayes_regret_bound,
    sample_instances,
    simulate,
)
from whence.models.bandit._simulate import _keys


def _environments():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.2, 0.9, (2, 3, 4))
    return {
        "gaussian": (GaussianArms(5 * a, b), b**2),
        "bernoulli": (BernoulliArms(a), a * (1 - a)),
        "beta": (BetaArms(3 * a, 2 * b), stats.beta.var(3 * a, 2 * b)),
        "uniform": (UniformArms(a, b), b**2 / 3),
    }


@pytest.mark.parametrize(
    "name", ["gaussian", "bernoulli", "uniform", pytest.param("beta", marks=pytest.mark.slow)]
)
def test_rewards_have_the_moments_they_say(name):
    environment, variance = _environments()[name]
    assert (environment.arms, environment.instances) == (3, 4)
    x = np.asarray(environment.sample((4_000,), key=jr.key(1)))
    error = np.sqrt(variance / 4_000)
    assert (abs(x.mean(0) - environment.means) < 5 * error).all()
    squares = (x - environment.means) ** 2
    assert (abs(squares.mean(0) - variance) < 5 * squares.std(0) / np.sqrt(4_000)).all()
    arm = jnp.array([2, 0, 1, 1])
    wide = jax.tree.map(lambda x: jnp.tile(x, 4_000), environment)  # more instances
    pulled = wide.pull(jnp.tile(arm, 4_000), key=jr.key(2)).reshape(4_000, 4)
    at = (np.asarray(arm), np.arange(4))
    assert (abs(pulled.mean(0) - environment.means[at]) < 5 * error[at]).all()


def test_instances_come_from_the_prior():
    prior = NormalGamma([0.0, 2.0], [1.0, 3.0], [2.0, 4.0], [1.0, 5.0])
    environment = sample_instances(prior, instances=20_000, key=jr.key(3))
    for arm in range(2):
        alpha, beta = float(prior.alpha[arm]), float(prior.beta[arm])
        marginal = stats.t(2 * alpha, float(prior.mu[arm]), float(prior.scale[arm]))
        assert stats.kstest(environment.loc[arm], marginal.cdf).pvalue > 1e-4
        variances = np.asarray(environment.scale[arm]) ** 2
        assert stats.kstest(variances, stats.invgamma(alpha, scale=beta).cdf).pvalue > 1e-4
    # Given the precision, means are normal with a precision `kappa` times as large.
    ratio = (environment.loc - prior.mu[:, None]) / environment.scale
    assert_allclose(ratio.var(1) * prior.kappa, 1, rtol=5 * np.sqrt(2 / 20_000))


@pytest.mark.parametrize("common", [True, False])
def test_simulator_against_a_loop(common):
    """UCB1, one instance and one round at a time, on rewards that do not vary."""
    rng = np.random.default_rng(4)
    loc = rng.normal(size=(3, 4))
    environment = GaussianArms(loc, np.full((3, 4), 1e-9))
    runs = simulate(
        {"UCB1": UCB1(3)}, environment, horizon=250, key=jr.key(5), common_random_numbers=common
    )
    run = runs["UCB1"]
    assert len(run.rounds) == 100
    assert run.rounds[-1] == 250
    assert run.regret.shape == (100, 4)
    for instance in range(4):
        means = loc[:, instance]
        pulls, regret, curve = np.zeros(3), 0.0, []
        for t in range(1, 251):
            index = np.where(
                pulls == 0, np.inf, means + np.sqrt(2 * np.log(t) / np.fmax(pulls, 1))
            )
            arm = np.argmax(index)
            pulls[arm] += 1
            regret += means.max() - means[arm]
            curve.append(regret)
        assert_array_equal(run.pulls[:, instance], pulls)
        assert_allclose(run.regret[:, instance], np.array(curve)[run.rounds - 1], rtol=1e-9)


def test_common_random_numbers():
    """The n-th pull of an arm gives the same reward, whenever it comes."""
    prior = NormalGamma(0.0, 1.0, 4.0, 1.0, arms=5)
    environment = sample_instances(prior, instances=300, key=jr.key(6))
    policies = {"a": UCB1(5), "b": UCB1(5, scale=0.9), "c": UCB1(5)}
    runs = simulate(policies, environment, horizon=200, key=jr.key(7))
    assert_array_equal(runs["a"].regret, runs["c"].regret)
    paired = runs.difference("a", "b").standard_error[-1]
    errors = [runs[name].bayes_regret().standard_error[-1] for name in "ab"]
    assert 0 < paired < 0.5 * np.hypot(*errors)


class _ComparesOnce(AbstractPolicy):
    """Pulls both arms, `first` before the other, and from then on the one that gave more."""

    arms: int
    first: int

    def init(self, batch=()):
        return jnp.zeros((2, *batch)), jnp.zeros((), int)

    def act(self, state, *, key):
        rewards, t = state
        early = jnp.where(t == 0, self.first, 1 - self.first)
        return jnp.where(t < 2, early, jnp.argmax(rewards, 0))

    def update(self, state, arm, reward):
        rewards, t = state
        new = (jnp.arange(2)[:, None] == arm) & (t < 2)
        return jnp.where(new, jnp.asarray(reward), rewards), t + 1


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_the_nth_reward_of_an_arm_does_not_depend_on_when_it_comes(impl):
    environment = GaussianArms(np.zeros((2, 400)), np.ones((2, 400)))
    policies = {"a": _ComparesOnce(2, 0), "b": _ComparesOnce(2, 1)}
    for common in (True, False):
        a, b = (
            run.pulls
            for run in simulate(
                policies,
                environment,
                horizon=10,
                key=jr.key(20, impl=impl),
                common_random_numbers=common,
            ).values()
        )
        agree = np.mean(a[0] == b[0])
        # Either arm is better in half of the instances, independently of the others.
        assert abs(np.mean(a[0] == 9) - 0.5) < 5 * np.sqrt(0.25 / 400)
        assert agree == 1 if common else agree < 0.7


@pytest.mark.parametrize("neighbours", [False, True])
def test_rewards_of_a_simulation_are_independent(neighbours):
    """With a key each: of other instances, arms and pulls; here by correlations."""
    environment = GaussianArms(np.zeros((3, 2_000)), np.ones((3, 2_000)))
    keys = _keys(environment, jr.key(21))
    columns = []
    for arm in range(3):
        for n in range(2):
            at = jax.vmap(jr.fold_in)(keys[arm], jnp.full(2_000, n))
            columns.append(environment.pull_keyed(jnp.full(2_000, arm), keys=at))
    x = np.asarray(columns)
    if neighbours:
        x = np.stack([x[:, :-1].ravel(), x[:, 1:].ravel()])
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-4
    off = np.corrcoef(x) - np.eye(len(x))
    assert (abs(off) < 4.5 / np.sqrt(x[0].size)).all()


@pytest.mark.parametrize(
    ("arms", "alpha", "exact"),
    [
        (10, 4.0, 0.897758),
        (10, 2.0, 1.535819),
        pytest.param(2, 4.0, 0.318098, marks=pytest.mark.slow),
        pytest.param(2, 2.0, 0.520651, marks=pytest.mark.slow),
    ],
)
def test_regret_of_the_first_round_is_exact(arms, alpha, exact):
    """The expected maximum of t variables, by quadrature: nothing is known in round one."""
    prior = NormalGamma(0.0, 1.0, alpha, 1.0, arms=arms)
    environment = sample_instances(prior, instances=20_000, key=jr.key(8))
    run = simulate({"VarTS": VarTS(prior)}, environment, horizon=arms, key=jr.key(9))["VarTS"]
    assert run.rounds[0] == 1
    estimate = run.bayes_regret()
    assert abs(estimate.mean[0] - exact) < 4.5 * estimate.standard_error[0]


def test_one_arm_has_no_regret():
    prior = NormalGamma(0.0, 1.0, 4.0, 1.0, arms=1)
    environment = GaussianArms(np.ones((1, 5)), np.ones((1, 5)))
    run = simulate({"VarTS": VarTS(prior)}, environment, horizon=20, key=jr.key(1))["VarTS"]
    assert_array_equal(run.regret, 0)
    assert_array_equal(run.pulls, 20)


def test_change_of_units():
    """Rewards `a + c x`, with the prior to match: the same actions, regret times c."""
    prior = NormalGamma([0.0, 0.3, -0.2, 0.1, 0.0], 1.0, 4.0, 1.0)
    environment = sample_instances(prior, instances=300, key=jr.key(2))
    moved = GaussianArms(7 + 3 * environment.loc, 3 * environment.scale)
    policy = VarTS(NormalGamma(7 + 3 * prior.mu, 1.0, 4.0, 9.0))
    run = simulate({"x": VarTS(prior)}, environment, horizon=200, key=jr.key(3))["x"]
    other = simulate({"x": policy}, moved, horizon=200, key=jr.key(3))["x"]
    assert_array_equal(run.pulls, other.pulls)
    assert_allclose(other.regret, 3 * run.regret, atol=1e-9)


def test_order_of_the_arms_does_not_matter():
    mu, kappa, beta = [0, 0.5, -0.5, 0.2, 0.3], [1, 2, 4, 1, 1], [1, 0.5, 3, 1, 0.2]
    prior = NormalGamma(mu, kappa, 3.0, beta)
    order = np.array([2, 0, 1, 4, 3])
    other = jax.tree.map(lambda x: x[order], prior)
    runs = [
        simulate(
            {"x": VarTS(p)},
            sample_instances(p, instances=300, key=jr.key(4)),
            horizon=200,
            key=jr.key(5 + i),
        )["x"]
        for i, p in enumerate([prior, other])
    ]
    shares = [run.pulls.mean(1) / 200 for run in runs]
    errors = [run.pulls.std(1) / 200 / np.sqrt(300) for run in runs]
    assert (
        abs(shares[0][order] - shares[1]) < 4.5 * np.hypot(errors[0][order], errors[1])
    ).all()
    ends = [run.bayes_regret() for run in runs]
    gap = ends[0].mean[-1] - ends[1].mean[-1]
    assert abs(gap) < 4.5 * np.hypot(ends[0].standard_error[-1], ends[1].standard_error[-1])


def test_bounds_have_their_reference_values():
    p1, p2 = (NormalGamma(0.0, 1.0, alpha, 1.0, arms=10) for alpha in (4.0, 2.0))
    values = [bayes_regret_bound(p, horizon=n) for p, n in [(p1, 2_000), (p2, 2_000)]]
    assert_allclose(values, [741, 1752], atol=1)
    assert_allclose(bayes_regret_bound(p1, horizon=125), 114, atol=1)
    assert_allclose(bayes_regret_bound(p1, horizon=4_000), 1162, atol=1)
    for variance, bound in [(1 / 3, 397.6), (1.0, 688.6)]:
        prior = KnownVariance(0.0, variance, variance, arms=10)
        assert_allclose(bayes_regret_bound(prior, horizon=2_000), bound, atol=0.1)


@pytest.mark.parametrize("arms", [5, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kappa", "alpha", "beta"), [(1, 4, 1), (0.1, 1.5, 2), (10, 3, 0.1)])
def test_bounds_are_above_regret(arms, kappa, alpha, beta):
    prior = NormalGamma(0.0, kappa, alpha, beta, arms=arms)
    environment = sample_instances(prior, instances=300, key=jr.key(10))
    runs = simulate({"VarTS": VarTS(prior)}, environment, horizon=200, key=jr.key(11))
    estimate = runs["VarTS"].bayes_regret()
    for i in (0, 9, 99):
        bound = bayes_regret_bound(prior, horizon=int(runs["VarTS"].rounds[i]))
        assert estimate.mean[i] + 4 * estimate.standard_error[i] < bound


def test_bounds_are_above_regret_for_known_variances():
    noise = np.array([0.05, 4.0, 0.3, 1.0])
    prior = KnownVariance(0.0, 1.0, noise)
    rng = np.random.default_rng(12)
    environment = GaussianArms(rng.normal(size=(4, 400)), np.tile(np.sqrt(noise)[:, None], 400))
    policy = KnownVarianceTS(prior)
    run = simulate({"TS": policy}, environment, horizon=400, key=jr.key(13))["TS"]
    estimate = run.bayes_regret()
    assert estimate.mean[-1] > 0
    bound = bayes_regret_bound(prior, horizon=400)
    assert estimate.mean[-1] + 4 * estimate.standard_error[-1] < bound


def test_less_uncertainty_costs_less():
    """A smaller `beta` or a far larger `kappa` lowers both the bound and the regret.

    A somewhat larger `kappa` need not: arms that differ less are harder to tell apart.
    """
    ends, bounds = [], []
    for kappa, beta in [(1.0, 4.0), (1.0, 1.0), (2_500.0, 1.0)]:
        prior = NormalGamma(0.0, kappa, 4.0, beta, arms=5)
        environment = sample_instances(prior, instances=300, key=jr.key(14))
        run = simulate({"x": VarTS(prior)}, environment, horizon=200, key=jr.key(15))["x"]
        ends.append(run.bayes_regret())
        bounds.append(bayes_regret_bound(prior, horizon=200))
    for a, b in [(0, 1), (1, 2)]:
        gap = ends[a].mean[-1] - ends[b].mean[-1]
        assert gap > 4 * np.hypot(ends[a].standard_error[-1], ends[b].standard_error[-1])
        assert bounds[a] > bounds[b]


def test_summaries():
    regret = np.random.default_rng(0).gamma(2.0, size=(3, 50)).cumsum(0)
    run = PolicyRun(np.array([1, 2, 3]), regret, np.ones((2, 50)))
    estimate = run.bayes_regret(ci=0.9)
    assert_allclose(estimate.mean, regret.mean(1))
    assert_allclose(estimate.standard_error, stats.sem(regret, axis=1))
    low, high = stats.norm.interval(0.9, estimate.mean, estimate.standard_error)
    assert_allclose([estimate.low, estimate.high], [low, high])
    assert_allclose(run.quantiles((0.25,)), np.quantile(regret, [0.25], axis=1))
    assert_array_equal(run.final, regret[-1])


def test_float32_and_the_table():
    one = np.float32(1)
    prior = NormalGamma(0 * one, one, 4 * one, one, arms=3)
    loc = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32)
    environment = GaussianArms(loc, np.ones_like(loc))
    assert environment.loc.dtype == np.float32
    runs = simulate({"VarTS": VarTS(prior)}, environment, horizon=150, key=jr.key(1))
    assert runs["VarTS"].regret.dtype == np.float32
    table = str(runs).splitlines()
    assert len(table) == 2
    assert table[1].split()[0] == "VarTS"
    assert_allclose(float(table[1].split()[1]), runs["VarTS"].final.mean(), rtol=1e-3)


def _gaussian():
    return GaussianArms(np.zeros((2, 3)), np.ones((2, 3)))


def _simulate(policies, horizon=10):
    return simulate(policies, _gaussian(), horizon=horizon, key=jr.key(0))


BAD = {
    "`scale` must be positive and finite; got 0.0": lambda: GaussianArms([[1.0]], [[0.0]]),
    "one shape (arm, instance)": lambda: GaussianArms([1.0], [1.0]),
    "`probs` must be between 0 and 1; got 1.5": lambda: BernoulliArms([[1.5]]),
    "`beta` must be positive": lambda: BetaArms([[1.0]], [[-1.0]]),
    "`half_width` must be positive": lambda: UniformArms([[1.0]], [[np.nan]]),
    "at least one policy": lambda: _simulate({}),
    "'x' must be for the 2 arms": lambda: _simulate({"x": UCB1(3)}),
    "`horizon` must be at least 2; got 1": lambda: _simulate({"x": UCB1(2)}, 1),
    "`instances`": lambda: sample_instances(
        NormalGamma(0.0, 1.0, 1.0, 1.0, arms=2), instances=0, key=jr.key(0)
    ),
    "`alpha` of the prior must be above 1; got 1": lambda: bayes_regret_bound(
        NormalGamma(0.0, 1.0, 1.0, 1.0, arms=2), horizon=10
    ),
    "`ci` must be at least 0 and at most 1; got 95.0": lambda: _simulate({"x": UCB1(2)})[
        "x"
    ].bayes_regret(ci=95.0),
}


@pytest.mark.parametrize("rule", BAD)
def test_bad_input_is_refused(rule):
    with pytest.raises(ValueError) as error:
        BAD[rule]()
    assert rule in str(error.value)
