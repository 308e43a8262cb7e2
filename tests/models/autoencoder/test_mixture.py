"""The Dirichlet-process mixture against conjugate updates, enumeration and scikit-learn."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from whence.models.autoencoder import DirichletMixture
from whence.models.autoencoder.density._gibbs import sweep
from whence.models.autoencoder.density._variational import (
    Prior,
    expect,
    kmeans,
    lower_bound,
    maximise,
)


def _two_groups(n=60, dim=2):
    rng = np.random.default_rng(0)
    group = np.arange(n) % 3 == 0
    return rng.normal(size=(n, dim)) + 8.0 * group[:, None], group


def _predictive(z, others, prior):
    """Law of one point given others of a normal-inverse-Wishart cluster, by the textbook."""
    dim, n = z.shape[-1], len(others)
    beta, nu = float(prior.precision) + n, float(prior.dof) + n
    mean, scatter = np.asarray(prior.mean), np.asarray(prior.covariance)
    if n:
        centre = others.mean(0)
        gap = centre - mean
        shrunk = float(prior.precision) * n / beta
        scatter = scatter + (others - centre).T @ (others - centre)
        scatter = scatter + shrunk * np.outer(gap, gap)
        mean = (float(prior.precision) * mean + n * centre) / beta
    free = nu + 1 - dim
    shape = scatter * (1 + beta) / (beta * free)
    return multivariate_t(mean, shape, df=free).logpdf(z)


def test_one_component_is_the_conjugate_update():
    codes, _ = _two_groups(12, 3)
    fitted = DirichletMixture(1, reg=0).fit(codes)
    prior = Prior.of(jnp.asarray(codes), jnp.asarray(1.0))
    chain = sum(_predictive(codes[i], codes[:i], prior) for i in range(len(codes)))
    # The stick of one component adds B(1 + n, c) / B(1, c), with c = 1 here.
    stick = np.log(1 / (len(codes) + 1))
    assert_allclose(fitted.bound, chain + stick, rtol=1e-10)
    new = codes[:4] + 0.3
    assert_allclose(fitted.log_prob(new), _predictive(new, codes, prior), rtol=1e-10)


def test_the_bound_never_falls(key):
    codes, _ = _two_groups()
    codes = jnp.asarray(codes)
    prior = Prior.of(codes, jnp.asarray(0.2))
    resp = kmeans(codes, 5, key=key)
    bounds = []
    for _ in range(40):
        factors = maximise(codes, resp, prior, 0.0)
        bounds.append(float(lower_bound(jnp.log(resp + 1e-300), factors, prior)))
        log_resp, _ = expect(codes, factors)
        resp = jnp.exp(log_resp)
        bounds.append(float(lower_bound(log_resp, factors, prior)))
        # After a new responsibility the factors are not the best: only whole steps count.
        bounds.pop()
    assert np.diff(bounds).min() > -1e-8
    assert bounds[-1] > bounds[0] + 1


def test_two_groups_are_found():
    codes, group = _two_groups()
    fitted = DirichletMixture(8).fit(codes)
    weights = np.sort(np.asarray(fitted.weights))[::-1]
    assert fitted.good
    assert_allclose(weights[:2], [2 / 3, 1 / 3], atol=0.05)
    assert weights[2:].sum() < 0.05
    assert_allclose(fitted.weights.sum(), 1, rtol=1e-12)
    assert str(fitted).startswith("A mixture with")
    top = np.argsort(-np.asarray(fitted.weights))[:2]
    means = np.sort(np.asarray(fitted.factors.means)[top, 0])
    assert_allclose(means, [codes[~group, 0].mean(), codes[group, 0].mean()], atol=0.4)


def test_density_integrates_to_one_and_draws_are_of_it(key):
    codes, _ = _two_groups(40, 1)
    fitted = DirichletMixture(4).fit(codes)
    # Components without data are Cauchy laws, with most of their mass far away.
    grid = np.sinh(np.linspace(-20, 20, 200_001))
    density = np.exp(np.asarray(fitted.log_prob(grid[:, None])))
    below = np.concatenate([[0], np.cumsum(np.diff(grid) * (density[1:] + density[:-1]) / 2)])
    assert_allclose(below[-1], 1, atol=1e-6)
    drawn = np.asarray(fitted.sample(20_000, key=key))[:, 0]
    for edge in (-1.0, 0.5, 4.0, 8.0):
        exact = np.interp(edge, grid, below)
        error = np.sqrt(exact * (1 - exact) / 20_000)
        assert abs((drawn < edge).mean() - exact) < 4.5 * error


def test_one_mixture_for_each_draw_is_each_by_itself(key):
    codes, _ = _two_groups(30)
    many = np.stack([codes, 2 * codes + 1])[None]
    fitted = DirichletMixture(3).fit(many, key=key)
    assert fitted.batched
    assert fitted.sample(5, key=key).shape == (1, 2, 5, 2)
    keys = jr.split(key, 2)
    for i in range(2):
        start = kmeans(jnp.asarray(many[0, i]), 3, key=keys[i])
        alone = DirichletMixture(3).fit(many[0, i], responsibilities=start)
        assert_allclose(fitted.bound[0, i], alone.bound, rtol=1e-9)
        assert_allclose(fitted.log_prob(codes[:3])[0, i], alone.log_prob(codes[:3]), rtol=1e-6)


def test_gibbs_visits_partitions_as_enumerated():
    """Four points: the probabilities of all 15 partitions are known."""
    codes = np.array([[0.0], [0.4], [3.0], [3.3]])
    prior = Prior.of(jnp.asarray(codes), jnp.asarray(0.7))
    labels = {(0,) * 4}
    for _ in range(3):
        labels |= {
            (*row[:i], k, *row[i + 1 :]) for row in labels for i in range(4) for k in range(4)
        }
    canonical = {_canonical(row) for row in labels}
    assert len(canonical) == 15
    scores = {}
    for row in canonical:
        score = 0.0
        for i in range(4):
            same = [j for j in range(i) if row[j] == row[i]]
            score += np.log(len(same) if same else 0.7)
            score += _predictive(codes[i], codes[same], prior)
        scores[row] = score
    total = logsumexp(list(scores.values()))
    sweeps = 20_000
    step = lambda row, key: (new := sweep(jnp.asarray(codes), row, 4, prior, key=key), new)
    _, rows = jax.jit(lambda keys: jax.lax.scan(step, jnp.zeros(4, int), keys))(
        jr.split(jr.key(0), sweeps)
    )
    found = [_canonical(row) for row in np.asarray(rows).tolist()]
    for row, score in scores.items():
        exact = np.exp(score - total)
        share = np.mean([f == row for f in found])
        # Sweeps of four points are nearly independent: twice their error, for safety.
        assert abs(share - exact) < 4 * 2 * np.sqrt(exact / sweeps) + 1e-4, row


def _canonical(row):
    names = {}
    return tuple(names.setdefault(k, len(names)) for k in row)


def test_gibbs_finds_the_groups(key):
    codes, _ = _two_groups(30)
    fitted = DirichletMixture(6, method="gibbs", steps=30).fit(codes, key=key)
    weights = np.sort(np.asarray(fitted.weights))[::-1]
    assert weights[:2].sum() > 0.9
    assert_allclose(fitted.weights.sum(), 1, rtol=1e-12)


def test_parity_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.mixture")
    codes, _ = _two_groups()
    resp = np.random.default_rng(1).dirichlet(np.ones(4), size=len(codes))
    theirs = sklearn.BayesianGaussianMixture(
        4, weight_concentration_prior=0.25, max_iter=7, tol=0
    )
    theirs._check_parameters(codes)
    theirs._initialize(codes, resp)
    for _ in range(7):
        _, log_resp = theirs._e_step(codes)
        theirs._m_step(codes, log_resp)
    ours = DirichletMixture(4, steps=7, tolerance=1e-300).fit(codes, responsibilities=resp)
    assert_allclose(ours.factors.means, theirs.means_, atol=1e-8)
    assert_allclose(ours.covariances, theirs.covariances_, atol=1e-8)
    assert_allclose(ours.weights, theirs.weights_ / theirs.weights_.sum(), atol=1e-8)


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (np.ones((3, 2)), "as many rows as `components`, 5; got 3"),
        (np.full((9, 2), np.nan), "`codes` must be finite"),
        (np.ones((9, 2)) * np.arange(9.0)[:, None], "covariance is singular"),
        (np.ones((9, 0)), "at least one latent number"),
        (np.ones(9), r"must have shape \(row, latent\)"),
    ],
)
def test_wrong_codes_are_named(codes, says):
    with pytest.raises(ValueError, match=says):
        DirichletMixture(5).fit(codes)
