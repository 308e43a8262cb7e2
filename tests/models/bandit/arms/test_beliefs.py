"""Beliefs against brute force, scipy and each other."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import betaln, logsumexp

from whence.models.bandit import BetaBernoulli, KnownVariance, LinearGaussian, NormalGamma
from whence.models.bandit._student_t import standard_t, t_upper_quantile

REWARDS = np.array([1.2, -0.7, 0.4, 2.9, 0.1])
ARMS = np.array([0, 2, 0, 2, 0])


def _prior(**kwargs):
    return NormalGamma(0.3, 1.5, 2.5, 0.8, arms=3, **kwargs)


def _sequential(belief, arms, rewards):
    for arm, reward in zip(arms, rewards):
        belief = belief.update(arm, reward)
    return belief


def _assert_same(a, b, **kwargs):
    jax.tree.map(lambda x, y: assert_allclose(x, y, **kwargs), a, b)


def test_vector_worked_by_hand():
    belief = NormalGamma(0.0, 1.0, 4.0, 1.0, arms=1).update(0, 2.0)
    _assert_same(belief, NormalGamma(1.0, 2.0, 4.5, 2.0, arms=1))
    _assert_same(belief.update(0, -1.0), NormalGamma(1 / 3, 3.0, 5.0, 10 / 3, arms=1))


def test_normal_gamma_against_a_grid():
    x = REWARDS[ARMS == 0]
    post = _prior().update_batch(ARMS, REWARDS)
    mu, log_precision = np.meshgrid(np.linspace(-8, 9, 400), np.linspace(-7, 4.5, 400))
    precision = np.exp(log_precision)
    log_joint = stats.gamma.logpdf(precision, 2.5, scale=1 / 0.8) + log_precision
    log_joint += stats.norm.logpdf(mu, 0.3, 1 / np.sqrt(1.5 * precision))
    for value in x:
        log_joint += stats.norm.logpdf(value, mu, 1 / np.sqrt(precision))
    cell = (17 / 399) * (11.5 / 399)
    evidence = logsumexp(log_joint) + np.log(cell)
    weights = np.exp(log_joint - evidence) * cell
    mean = np.sum(weights * mu)
    assert_allclose(post.mean[0], mean, rtol=1e-4)
    variance = np.sum(weights * (mu - mean) ** 2)
    assert_allclose(post.mean_distribution().variance[0], variance, rtol=1e-3)
    assert_allclose(post.alpha[0] / post.beta[0], np.sum(weights * precision), rtol=1e-4)
    assert_allclose(post.expected_variance[0], np.sum(weights / precision), rtol=1e-4)
    assert_allclose(_prior().log_evidence(ARMS, REWARDS)[0], evidence, atol=1e-4)
    assert_allclose(post.mean[1], 0.3)  # the arm not pulled
    assert_allclose(_prior().log_evidence(ARMS, REWARDS)[1], 0.0, atol=1e-12)


BELIEFS = {
    "normal_gamma": (_prior(), REWARDS),
    "known_variance": (KnownVariance([0.0, 1.0, 2.0], 0.5, 2.0), REWARDS),
    "beta_bernoulli": (BetaBernoulli(0.5, [1.0, 2.0, 3.0]), (REWARDS > 0.3) * 1.0),
}


@pytest.mark.parametrize("name", BELIEFS)
def test_sequential_is_batch_in_any_order(name):
    prior, rewards = BELIEFS[name]
    batch = prior.update_batch(ARMS, rewards)
    _assert_same(_sequential(prior, ARMS, rewards), batch, rtol=1e-12)
    _assert_same(_sequential(prior, ARMS[::-1], rewards[::-1]), batch, rtol=1e-12)


@pytest.mark.parametrize("name", BELIEFS)
def test_evidence_is_the_product_of_predictions(name):
    prior, rewards = BELIEFS[name]
    total, belief = np.zeros(3), prior
    for arm, reward in zip(ARMS, rewards):
        total[arm] += belief.predictive().log_prob(jnp.full(3, reward))[arm]
        belief = belief.update(arm, reward)
    assert_allclose(prior.log_evidence(ARMS, rewards), total, atol=1e-10)


@pytest.mark.parametrize("name", BELIEFS)
def test_batch_axes_are_problems_of_their_own(name):
    prior, rewards = BELIEFS[name]
    arms = np.stack([ARMS, ARMS[::-1]], 1)
    both = np.stack([rewards, 1 - rewards], 1)
    wide = prior.expand((2,))
    assert wide.batch_shape == (2,)
    assert wide.arms == 3
    many, step = wide.update_batch(arms, both), wide.update(arms[0], both[0])
    vmapped = jax.vmap(lambda a, r: prior.update(a, r))(arms[0], both[0])
    for i in range(2):
        alone = prior.update_batch(arms[:, i], both[:, i])
        _assert_same(jax.tree.map(lambda x: x[:, i], many), alone, rtol=1e-12)
        alone = prior.update(arms[0, i], both[0, i])
        _assert_same(jax.tree.map(lambda x: x[:, i], step), alone, rtol=1e-12)
        _assert_same(jax.tree.map(lambda x: x[i], vmapped), alone, rtol=1e-12)


@pytest.mark.parametrize("name", ["normal_gamma", "known_variance"])
def test_float32_stays(name):  # the other tests are in float64
    prior = jax.tree.map(lambda x: x.astype(np.float32), BELIEFS[name][0])
    post = jax.jit(lambda p: p.update(1, 1.0))(prior)
    draws = post.sample((4,), key=jr.key(0))
    assert draws.shape == (4, 3)
    assert {x.dtype for x in jax.tree.leaves((post, draws))} == {np.dtype(np.float32)}


def test_float32_does_not_cancel():
    x = 10_000 + np.random.default_rng(0).normal(size=2_000)
    prior = NormalGamma(*(np.float32(v) for v in (10_000, 1, 4, 3)), arms=1)

    def step(belief, reward):
        return belief.update(0, reward), None

    post, _ = jax.lax.scan(step, prior, jnp.asarray(x, jnp.float32))
    assert post.mu.dtype == np.float32
    # Rewards near 1e4 are rounded to 1e-3 in float32; the variance here is 1.
    assert_allclose(
        post.expected_variance[0], (6 + np.sum((x - x.mean()) ** 2)) / 2_006, rtol=0.01
    )


@pytest.mark.parametrize("alpha", [0.5, 2.0, 50.0])
def test_draws_have_the_t_distribution(alpha):
    belief = NormalGamma(1.0, 2.0, alpha, 3.0, arms=1)
    draws = np.asarray(belief.sample((20_000,), key=jr.key(11)))[:, 0]
    t = stats.t(2 * alpha, 1.0, np.sqrt(3.0 / (alpha * 2.0)))
    assert stats.kstest(draws, t.cdf).pvalue > 1e-4
    rng = np.random.default_rng(3)  # first the precision, then the mean given it
    precision = rng.gamma(alpha, 1 / 3.0, 20_000)
    two_stage = rng.normal(1.0, 1 / np.sqrt(2.0 * precision))
    assert stats.ks_2samp(draws, two_stage).pvalue > 1e-4


def test_extreme_t_draws_are_finite():
    draws = standard_t(jr.key(0), jnp.asarray(0.5, jnp.float32), (100_000,))
    assert np.isfinite(draws).all()


@pytest.mark.parametrize(("degrees", "rtol"), [(2.0, 2e-3), (2.5, 4e-5), (3.0, 2e-6)])
def test_t_quantiles(degrees, rtol):
    degrees, tail = np.meshgrid(
        degrees + np.array([0, 1.9, 5, 37, 3_997]), [0.3, 0.1, 0.01, 1e-4]
    )
    got = jax.jit(t_upper_quantile)(jnp.asarray(tail), jnp.asarray(degrees))
    assert_allclose(got, stats.t.isf(tail, degrees), rtol=rtol)


def test_known_variance_is_the_limit_of_certain_variance():
    alpha, noise = 1e9, 0.4
    unsure = NormalGamma(0.0, 2.0, alpha, alpha * noise, arms=3).update_batch(ARMS, REWARDS)
    sure = KnownVariance(0.0, noise / 2, noise, arms=3).update_batch(ARMS, REWARDS)
    same = {"key": jr.key(5)}
    assert_allclose(unsure.sample((9,), **same), sure.sample((9,), **same), rtol=1e-6)


def test_known_variance_evidence_is_a_multivariate_normal():
    prior = KnownVariance(0.7, 0.5, 2.0, arms=3)
    x = REWARDS[ARMS == 0]
    exact = stats.multivariate_normal(np.full(3, 0.7), 0.5 + 2.0 * np.eye(3)).logpdf(x)
    assert_allclose(prior.log_evidence(ARMS, REWARDS)[0], exact)


def test_beta_bernoulli_evidence():
    prior = BetaBernoulli(2.0, 3.0, arms=1)
    x = np.array([1, 0, 1, 1])
    got = prior.log_evidence(np.zeros(4, int), x)
    assert_allclose(got, [betaln(5.0, 4.0) - betaln(2.0, 3.0)])


def test_prior_from_moments():
    rng = np.random.default_rng(0)
    means, variances = rng.normal(2, 3, 50), rng.gamma(3, 1, 50)
    prior = NormalGamma.from_moments(means, variances, arms=4)
    assert prior.arms == 4
    assert_allclose(prior.expected_variance, variances.mean())
    spread = prior.beta**2 / ((prior.alpha - 1) ** 2 * (prior.alpha - 2))
    assert_allclose(spread, variances.var(ddof=1))
    assert_allclose(prior.mean_distribution().mean, means.mean())
    assert_allclose(prior.mean_distribution().variance, means.var(ddof=1))


def test_prior_by_evidence():
    rng = np.random.default_rng(1)
    mu, kappa, alpha, beta = 500.0, 0.5, 3.0, 2e4
    precision = rng.gamma(alpha, 1 / beta, 2_000)
    means = rng.normal(mu, 1 / np.sqrt(kappa * precision))
    past = [rng.normal(m, 1 / np.sqrt(p), 12) for m, p in zip(means, precision)]
    fitted = NormalGamma.fit_evidence(past, arms=1)
    truth = NormalGamma(mu, kappa, alpha, beta, arms=1)

    def evidence(prior):
        one = lambda x: prior.log_evidence(jnp.zeros(12, int), x)[0]
        return jnp.sum(jax.vmap(one)(jnp.asarray(past)))

    assert evidence(fitted) >= evidence(truth)
    # Twice the difference is chi-squared with 4 degrees of freedom: 20 is beyond 99.9%.
    assert 2 * (evidence(fitted) - evidence(truth)) < 20
    for name in ("mu", "kappa", "alpha", "beta"):
        step = 0.01 * getattr(fitted, name)  # a maximum: no neighbour is better
        for sign in (-1, 1):
            parts = {n: getattr(fitted, n) for n in ("mu", "kappa", "alpha", "beta")}
            parts[name] = parts[name] + sign * step
            assert evidence(NormalGamma(**parts)) <= evidence(fitted)


def _linear_data(num=7):
    rng = np.random.default_rng(2)
    return rng.normal(size=(num, 3)), rng.normal(size=num)


def _linear_prior():
    cov = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])
    return LinearGaussian([0.1, -0.4, 1.0], cov, 2.0, 1.5)


def test_linear_with_one_constant_feature_is_an_arm():
    arm = NormalGamma(0.3, 1.5, 2.5, 0.8, arms=1)
    line = LinearGaussian([0.3], [[1 / 1.5]], 2.5, 0.8)
    for reward in REWARDS:
        arm, line = arm.update(0, reward), line.update([1.0], reward)
    assert_allclose(line.mu, arm.mu)
    assert_allclose(1 / line.cov[0], arm.kappa)
    assert_allclose([line.alpha, line.beta], [arm.alpha[0], arm.beta[0]])
    assert_allclose(line.predictive([1.0]).scale, arm.predictive().scale[0])


def test_linear_sequential_is_batch_is_ridge_regression():
    x, y = _linear_data()
    prior = _linear_prior()
    step = prior
    for row, reward in zip(x, y):
        step = step.update(row, reward)
    batch = prior.update_batch(x, y)
    _assert_same(step, batch, rtol=1e-10, atol=1e-12)
    precision = np.linalg.inv(prior.cov)
    after = precision + x.T @ x
    mu = np.linalg.solve(after, precision @ prior.mu + x.T @ y)
    assert_allclose(batch.mu, mu)
    assert_allclose(batch.cov, np.linalg.inv(after))
    beta = 1.5 + (y @ y + prior.mu @ precision @ prior.mu - mu @ after @ mu) / 2
    assert_allclose(batch.beta, beta)


def test_linear_evidence_is_a_multivariate_t():
    x, y = _linear_data()
    prior = _linear_prior()
    shape = 1.5 / 2.0 * (np.eye(7) + x @ prior.cov @ x.T)
    exact = stats.multivariate_t(x @ np.asarray(prior.mu), shape, df=4).logpdf(y)
    assert_allclose(prior.log_evidence(x, y), exact)


def test_linear_draws():
    x, y = _linear_data()
    post = _linear_prior().update_batch(x, y)
    draws = np.asarray(post.sample((20_000,), key=jr.key(2)))
    along = np.array([1.0, -2.0, 0.5])
    scale = np.sqrt(post.beta / post.alpha * along @ post.cov @ along)
    t = stats.t(2 * float(post.alpha), along @ np.asarray(post.mu), float(scale))
    assert stats.kstest(draws @ along, t.cdf).pvalue > 1e-4


BAD = {
    "kappa": lambda: NormalGamma(0.0, 0.0, 1.0, 1.0, arms=2),
    "beta": lambda: NormalGamma(0.0, 1.0, 1.0, [1.0, -1.0]),
    "mu": lambda: NormalGamma(np.nan, 1.0, 1.0, 1.0, arms=2),
    "arms` must be given": lambda: NormalGamma(0.0, 1.0, 1.0, 1.0),
    "arms` must be at least 1": lambda: NormalGamma(0.0, 1.0, 1.0, 1.0, arms=0),
    "one length": lambda: NormalGamma([0.0, 1.0], [1.0, 1.0, 1.0], 1.0, 1.0),
    "3 arms": lambda: NormalGamma([0.0, 1.0], 1.0, 1.0, 1.0, arms=3),
    "noise": lambda: KnownVariance(0.0, 1.0, -1.0, arms=2),
    "alpha": lambda: BetaBernoulli(0.0, 1.0, arms=2),
    "`arm` must be from 0 to 2": lambda: _prior().update(3, 0.0),
    "`arm` must be from": lambda: _prior().update(-1, 0.0),
    "`arm` must be an integer": lambda: _prior().update(1.0, 0.0),
    "`reward` must be finite": lambda: _prior().update(0, np.nan),
    "`rewards` must be finite": lambda: _prior().update_batch([0, 1], [0.0, np.inf]),
    "`reward` must have the shape": lambda: _prior().update(0, [1.0, 2.0]),
    "`batch` must be a shape": lambda: _prior().expand((2,)).expand((3,)),
    "must have one shape": lambda: _prior().update_batch([0, 1], [1.0]),
    "must be 0 or 1; got 0.5": lambda: BetaBernoulli(arms=2).update(0, 0.5),
    "at least 2": lambda: NormalGamma.from_moments([1.0], [1.0], arms=1),
    "KnownVariance": lambda: NormalGamma.from_moments([1.0, 2.0], [3.0, 3.0], arms=1),
    "`means` must differ": lambda: NormalGamma.from_moments([1.0, 1.0], [3.0, 2.0], arms=1),
    "at least two arms": lambda: NormalGamma.fit_evidence([[1.0, 2.0], []], arms=1),
    "all be equal": lambda: NormalGamma.fit_evidence([[1.0, 1.0], [1.0]], arms=1),
    "symmetric": lambda: LinearGaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]], 1.0, 1.0),
    "positive definite": lambda: LinearGaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], 1.0, 1.0),
    "square matrix": lambda: LinearGaussian([0.0, 0.0], [[1.0]], 1.0, 1.0),
    "`features` must have shape": lambda: _linear_prior().update([1.0], 1.0),
}


@pytest.mark.parametrize("rule", BAD)
def test_bad_input_is_refused(rule):
    with pytest.raises(ValueError) as error:
        BAD[rule]()
    assert rule in str(error.value)
