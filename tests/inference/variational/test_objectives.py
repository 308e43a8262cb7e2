"""Objectives and estimators against closed forms: bounds, slopes, signal to noise."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import whence as wh
from whence.core._json import from_json, to_json
from whence.inference.variational import (
    BBVI,
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    AbstractFamily,
    Blocks,
    ClosedFormEntropy,
    Factors,
    Flow,
    ForwardKL,
    FullRank,
    LogVariance,
    LowRank,
    MeanField,
    PathDerivative,
    Point,
    Proximal,
    RejectionSampling,
    Renyi,
    ScoreFunction,
    TotalDerivative,
)
from whence.inference.variational._objective import path_slopes, score_slopes, slopes
from whence.testing import Gaussian

# An estimate off by a share `SHARE` of the gradient is seen with a probability of 99.9% if the
# gradient is so many standard errors long that this share of it passes the alarm by three.
ALARM, SHARE = 4.5, 0.5
POWER = (ALARM + 3) / SHARE
SPREAD = 1.2  # standard deviation of log weights; with mean -SPREAD**2 / 2 the evidence is 1
OBJECTIVES = [ELBO(), IWAE(), MIWAE(2), PIWAE(2), CIWAE(0.3), Renyi(0.4), Renyi(-1.0)]


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard: the closed forms here broadcast over samples."""


def log_weights(key, number, samples):
    return SPREAD * jr.normal(key, (number, samples)) - SPREAD**2 / 2


def expected_bound(inner):
    """The importance weighted bound of lognormal weights, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    grid = np.stack(np.meshgrid(*[SPREAD * nodes - SPREAD**2 / 2] * inner), -1)
    mass = np.prod(np.stack(np.meshgrid(*[weights] * inner), -1), -1)
    return np.sum(mass * np.log(np.mean(np.exp(grid), -1)))


def test_bounds_are_what_they_are_and_in_order(key):
    """Expectations by quadrature; M and K swapped would be off by many standard errors."""
    draws = log_weights(key, 40_000, 6)
    value = lambda o: jax.vmap(lambda w: o.value(o.arrange(w)))(draws)
    found = [value(o) for o in (ELBO(), MIWAE(3), MIWAE(2), IWAE())]
    means = np.array([v.mean() for v in found])
    errors = np.array([v.std() / np.sqrt(len(v)) for v in found])
    # Groups: six of one, three of two, two of three, one of six.
    exact = np.array([-(SPREAD**2) / 2, expected_bound(2), expected_bound(3)])
    assert_allclose((means[:3] - exact) / errors[:3], 0, atol=4.5)
    assert abs(means[1] - exact[2]) > 10 * errors[1]
    assert (np.diff(means) > 10 * errors[1:]).all()
    assert means[-1] < -10 * errors[-1]  # the evidence
    both = value(CIWAE(0.3))
    assert_allclose(both, 0.3 * found[0] + 0.7 * found[3], rtol=1e-12)
    assert_allclose(value(PIWAE(3)), found[1])


def test_renyi_bound(key):
    """Of lognormal weights it is -alpha SPREAD**2 / 2, given draws enough."""
    draws = log_weights(key, 1, 1_000_000)[0]
    for alpha in (0.5, -0.5, 2.0):
        objective = Renyi(alpha)
        value = objective.value(objective.arrange(draws))
        power = np.exp((1 - alpha) * draws)
        error = power.std() / power.mean() / 1_000 / abs(1 - alpha)
        assert_allclose((value + alpha * SPREAD**2 / 2) / error, 0, atol=4.5)


def test_slopes_in_closed_form(key):
    draws = log_weights(key, 1, 6)[0]
    share, tilted = jax.nn.softmax(draws), jax.nn.softmax(0.6 * draws)
    groups = jax.nn.softmax(draws.reshape(2, 3), axis=1)
    others = (draws.sum() - draws) / 5
    closed = (
        (slopes, IWAE(), 6 * share),
        (path_slopes, IWAE(), 6 * share**2),
        (path_slopes, CIWAE(0.3), 0.3 + 0.7 * 6 * share**2),
        (path_slopes, Renyi(0.4), 6 * (0.4 * tilted + 0.6 * tilted**2)),
        (path_slopes, MIWAE(2), 3 * groups.ravel() ** 2),
        # Of the wake phase the scores are weighted by the weights themselves.
        (score_slopes, ForwardKL(), 6 * share),
        # The log variance has the gradient of the ELBO with the mean of others for control.
        (score_slopes, ELBO(), draws - others),
        (score_slopes, LogVariance(), draws - others),
    )
    found = jax.jit(lambda w: [function(o, w) for function, o, _ in closed])(draws)
    for got, (*_, exact) in zip(found, closed, strict=True):
        assert_allclose(got, exact)


GAUSSIANS = [MeanField(), FullRank(), LowRank(2), Blocks(2, FullRank())]


def covariance(family, params):
    found = family.describe(params)
    if isinstance(family, Blocks):
        return jax.scipy.linalg.block_diag(*(root @ root.T for root in found["scale_tril"]))
    if "scale_tril" in found:
        return found["scale_tril"] @ found["scale_tril"].T
    rest = found["columns"] @ found["columns"].T if "columns" in found else 0
    return jnp.diag(found["scale"] ** 2) + rest


@pytest.mark.parametrize("family", GAUSSIANS, ids=lambda f: type(f).__name__)
def test_gradient_at_given_draws(family, key):
    """That of the mean log density of a Gaussian, by autodiff, away from the best fit."""
    draws = np.asarray(jr.normal(key, (6, 4))) * np.arange(1, 5)
    start = family.init(jnp.ones(4))
    noisy = jax.tree.map(lambda x: 0.3 * jr.normal(key, x.shape), family.no_step(start))
    params = family.move(start, noisy)
    noise = jax.vmap(lambda x: family.inverse(params, x))(jnp.asarray(draws))
    assert_allclose(jax.vmap(lambda n: family.transform(params, n))(noise), draws)
    log_densities = lambda x: -0.5 * jnp.sum(x**2, axis=1)
    objective = ForwardKL(draws=draws)

    def mean_log_prob(step):
        moved = family.move(params, step)
        law = dist.MultivariateNormal(family.location(moved), covariance(family, moved))
        return law.log_prob(draws).mean()

    estimate = lambda n: ScoreFunction().estimate(family, params, log_densities, n, objective)
    weights, found = jax.jit(estimate)(noise)
    value, exact = jax.jit(jax.value_and_grad(mean_log_prob))(family.no_step(params))
    assert_allclose(
        objective.value(objective.arrange(weights)), value + 0.5 * (draws**2).sum() / 6
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_fit_to_given_draws(key):
    """All of them at each update: their moments, whatever the target; and so by random ones."""
    target = Gaussian(3, condition_number=10.0, correlated=True)
    draws = np.asarray(jr.normal(key, (60, 3))) @ np.array([[2, 1, 0], [0, 1, 1], [0, 0, 0.5]])
    given = wh.Posterior.from_draws(target, draws[None], unconstrained=True)
    objective = ForwardKL(draws=given)
    assert objective == ForwardKL(draws=draws)
    parts = {"objective": objective, "estimator": ScoreFunction(), "draws": 200}
    engine = BBVI(family=FullRank(), steps=3_000, samples=60, **parts)
    assert from_json(to_json(engine)) == engine
    record = wh.infer(target, engine, key=key).record
    mean, spread = draws.mean(0), np.cov(draws.T, ddof=0)
    scale = np.sqrt(np.diag(spread))
    root = record.parameters["scale_tril"]
    assert_allclose((record.parameters["loc"] - mean) / scale, 0, atol=0.01)
    assert_allclose((root @ root.T - spread) / np.outer(scale, scale), 0, atol=0.01)
    cross = -0.5 * (3 * np.log(2 * np.pi) + np.linalg.slogdet(spread)[1] + 3)
    law = dist.MultivariateNormal(target.mean, target.covariance)
    assert_allclose(record.elbo[-1], cross - law.log_prob(draws).mean(), rtol=1e-3)
    # Some at random; a diagonal has the variances of the draws, not those given the rest.
    engine = BBVI(family=MeanField(), steps=6_000, samples=20, **parts)
    found = wh.infer(target, engine, key=key).record.parameters
    assert_allclose((found["loc"] - mean) / scale, 0, atol=0.1)
    assert_allclose(found["scale"] / scale, 1, atol=0.1)


def log_density(x):
    """Correlated and skewed."""
    z = x[:, 0] + 0.5 * x[:, 1] ** 2
    return -0.5 * z**2 - 0.5 * (x[:, 1] - 1) ** 2


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_estimators_agree(objective, key):
    """In expectation, and with the derivative of the expected objective."""
    family, samples, number = FullRank(), 4, 40_000
    params = family.init(jnp.asarray([1.0, -0.5]))  # where the gradient is large
    params |= {
        "log_scale": jnp.asarray([0.1, -0.4]),
        "lower": jnp.asarray([[0.0, 0], [-0.4, 0]]),
    }
    noise = jr.normal(key, (number, samples, 2))
    direction = {
        "loc": jnp.asarray([-1.0, 1.0]),
        "whitened": jnp.zeros(2),
        "log_scale": jnp.asarray([1.0, -0.5]),
        "lower": jnp.asarray([[0.0, 0.0], [1.0, 0.0]]),
    }

    def along(estimator, noise):
        _, gradient = estimator.estimate(family, params, log_density, noise, objective)
        return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, direction))))

    def value(size, noise):
        step = jax.tree.map(lambda x: size * x, direction)
        moved = family.move(params, step)
        x = jax.vmap(lambda n: family.transform(moved, n))(noise)
        weights = log_density(x) - jax.vmap(lambda n: family.log_prob(moved, n))(noise)
        return objective.value(objective.arrange(weights))

    @jax.jit
    @jax.vmap
    def evaluate(noise):
        truth = jax.grad(value)(jnp.zeros(()), noise)
        others = PathDerivative(), TotalDerivative(), ScoreFunction()
        return truth, jnp.stack([along(e, noise) for e in others])

    truth, found = evaluate(noise)
    # The same noise moved along is the total derivative, draw by draw.
    assert_allclose(found[:, 1], truth, rtol=1e-8, atol=1e-10)
    for other in (found[:, 0], found[:, 2]):
        difference = other - truth
        error = difference.std() / np.sqrt(number)
        assert abs(truth.mean()) > POWER * error
        assert abs(difference.mean()) < ALARM * error


class Tied(AbstractFamily):
    """A point, and a normal number around it, whose law depends on what draws share."""

    def bind(self, layout):
        return self

    def shared(self, layout):
        return (True, False)

    def noise(self, like, num, *, key):
        return jr.normal(key, (num, 1))

    def init(self, location):
        return {"theta": location[:1], "log_scale": jnp.zeros(1)}

    def no_step(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def move(self, params, step):
        return jax.tree.map(jnp.add, params, step)

    def transform(self, params, noise):
        theta = params["theta"]
        return jnp.concatenate([theta, theta + jnp.exp(params["log_scale"]) * noise])

    def log_prob(self, params, noise):
        return jnp.sum(jax.scipy.stats.norm.logpdf(noise) - params["log_scale"])

    def score(self, params, noise):
        score = noise * jnp.exp(-params["log_scale"])
        return jnp.concatenate([score, -score])

    def entropy(self, params):
        return jnp.sum(params["log_scale"])

    def describe(self, params):
        return params


@pytest.mark.parametrize("objective", [ELBO(), IWAE()], ids=str)
def test_points_that_the_law_of_others_depends_on(objective, key):
    """Estimators agree with the total derivative, which knows nothing of scores."""
    family, number = Tied(), 40_000
    params = {"theta": jnp.asarray([0.4]), "log_scale": jnp.asarray([-0.3])}
    noise = jr.normal(key, (number, 4, 1))
    target = lambda x: log_density(x[:, ::-1]) - 0.5 * (x[:, 0] + 1) ** 2
    mask = np.array([True, False])

    @jax.jit
    @jax.vmap
    def gradients(noise):
        kinds = TotalDerivative(), PathDerivative(), ScoreFunction()
        found = [e.estimate(family, params, target, noise, objective, mask)[1] for e in kinds]
        return jnp.stack([jnp.concatenate([g["theta"], g["log_scale"]]) for g in found])

    found = np.asarray(gradients(noise))
    truth = found[:, 0]
    for other in (found[:, 1], found[:, 2]):
        difference = other - truth
        error = difference.std(0) / np.sqrt(number)
        assert np.all(np.abs(truth.mean(0)) > POWER * error)
        assert np.all(np.abs(difference.mean(0)) < ALARM * error)


def snr(estimator, objective, samples, key, number=15_000):
    """Signal to noise of the gradients by model and family: Rainforth and others (2018)."""
    family = Factors({"theta": Point()}, MeanField()).bind((("theta", 5), ("z", 5)))
    theta, x = 0.1 * jnp.arange(5.0), 1 + 0.2 * jnp.arange(5.0)
    off = 0.05 * jnp.asarray([1.0, -1.0, 1.0, 1.0, -1.0])

    def target(position):
        theta, z = position[:, :5], position[:, 5:]
        return -0.5 * jnp.sum((z - theta) ** 2 + (x - z) ** 2, axis=1)

    params = family.init(jnp.concatenate([theta, (theta + x) / 2 + off]))
    scale = jnp.full(5, 0.5 * jnp.log(2 / 3))
    params = (params[0], params[1] | {"log_scale": scale})

    @jax.jit
    def gradients(key):
        def one(key):
            noise = family.noise(jnp.zeros(10), samples, key=key)
            mask = np.arange(10) < 5
            gradient = estimator.estimate(family, params, target, noise, objective, mask)[1]
            return gradient[0]["loc"], gradient[1]["loc"]

        return jax.lax.map(one, jr.split(key, number), batch_size=2_500)

    def ratio(g):
        variance = g.var(0)
        square = np.maximum(g.mean(0) ** 2 - variance / number, 0)
        return np.sqrt(square.sum() / variance.sum())

    return np.array([ratio(np.asarray(g)) for g in gradients(key)])


def test_signal_to_noise(key):
    """By the number of inner draws: 1/2 for the model, -1/2 for the family, 1/2 with DReG."""
    inner = np.array([4, 16, 64])
    slope = lambda y: np.polyfit(np.log(inner), np.log(y), 1)[0]
    plain = np.array([snr(TotalDerivative(), IWAE(), int(k), key) for k in inner])
    double = np.array([snr(PathDerivative(), IWAE(), int(k), key) for k in inner])
    assert_allclose(slope(plain[:, 0]), 0.5, atol=0.1)
    assert_allclose(slope(plain[:, 1]), -0.5, atol=0.15)
    assert_allclose(slope(double[:, 1]), 0.5, atol=0.1)
    # Four times the groups: twice the signal to noise, of both.
    grouped = snr(TotalDerivative(), MIWAE(4), 16, key)
    assert_allclose(grouped / plain[0], 2, rtol=0.2)
    # Model as `IWAE` of all draws, family as `MIWAE`: each its own.
    parts = snr(TotalDerivative(), PIWAE(4), 16, key)
    assert_allclose(parts[0], plain[1, 0], rtol=1e-6)
    assert_allclose(parts[1], grouped[1], rtol=1e-6)


def test_parts_that_do_not_go_together():
    for objective in (LogVariance(), ForwardKL()):
        with pytest.raises(ValueError, match=r"use `estimator=ScoreFunction\(\)`"):
            PathDerivative().check(objective, MeanField(), 4)
    with pytest.raises(ValueError, match="ClosedFormEntropy is for the `ELBO` alone"):
        ClosedFormEntropy().check(IWAE(), MeanField(), 4)
    with pytest.raises(ValueError, match="entropy in closed form, which `Flow`"):
        ClosedFormEntropy().check(ELBO(), Flow(), 4)
    with pytest.raises(ValueError, match="needs a family with a rejection sampler"):
        RejectionSampling().check(ELBO(), MeanField(), 4)
    with pytest.raises(ValueError, match="at least 2 `samples`"):
        ScoreFunction().check(ELBO(), MeanField(), 1)
    with pytest.raises(ValueError, match="`samples` must be a multiple of `outer` of MIWAE, 8"):
        BBVI(objective=MIWAE(8), samples=10)
    with pytest.raises(ValueError, match="`outer` must be at least 1; got 0"):
        MIWAE(0)
    with pytest.raises(ValueError, match="`samples` must be at least 1; got 0"):
        BBVI(objective=IWAE(), samples=0)
    with pytest.raises(ValueError, match="LogVariance needs at least 2 draws"):
        BBVI(objective=LogVariance(), samples=1)
    with pytest.raises(ValueError, match="`alpha` must not be 1"):
        Renyi(1.0)
    with pytest.raises(ValueError, match="`update` has steps of its own"):
        BBVI(update=Proximal(0.1), objective=IWAE())


def test_draws_that_cannot_be_fitted():
    target, draws = Gaussian(2), np.arange(12.0).reshape(6, 2)
    fit = lambda family=MeanField(), draws=draws, **more: BBVI(  # noqa: B008
        family=family, objective=ForwardKL(draws=draws), estimator=ScoreFunction(), **more
    )
    with pytest.raises(ValueError, match="positions of the 2 unconstrained .*; got 3 and"):
        fit(draws=draws.reshape(4, 3), samples=4).validate(target)
    with pytest.raises(ValueError, match="got 2 and Flow"):
        fit(Flow(), samples=4).validate(target)
    with pytest.raises(ValueError, match="`samples` must be at most the number of `draws`"):
        fit(samples=7)
    for wrong in (draws[0], draws[:1], draws * np.nan, "posterior", [[1.0], "x"]):
        with pytest.raises(ValueError, match="`draws` must be a posterior, or finite"):
            ForwardKL(draws=wrong)
    weighted = wh.Posterior.from_draws(
        target, draws[None], unconstrained=True, log_weights=np.arange(6.0)[None]
    )
    with pytest.raises(ValueError, match="`draws` must be equally weighted"):
        ForwardKL(draws=weighted)
