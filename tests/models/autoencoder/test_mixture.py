"""The Dirichlet-process mixture against conjugate updates, enumeration and scikit-learn."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import digamma, logsumexp
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


def test_the_bound_never_falls():
    codes, _ = _two_groups()
    codes = jnp.asarray(codes)
    prior = Prior.of(codes, jnp.asarray(0.2))
    resp = jnp.asarray(kmeans(np.asarray(codes), 5, seed=0))
    bounds = []
    for _ in range(40):
        factors = maximise(codes, resp, prior, 0.0)
        bounds.append(float(lower_bound(jnp.log(resp + 1e-300), factors, prior)))
        log_resp = expect(codes, factors)
        resp = jnp.exp(log_resp)
        bounds.append(float(lower_bound(log_resp, factors, prior)))
        # After a new responsibility the factors are not the best: only whole steps count.
        bounds.pop()
    assert np.diff(bounds).min() > -1e-8
    assert bounds[-1] > bounds[0] + 1


def test_two_groups_are_found():
    codes, group = _two_groups()
    fitted = DirichletMixture(8).fit(codes)
    weights, means = np.asarray(fitted.weights), np.asarray(fitted.factors.means)
    assert fitted.good
    assert_allclose(weights.sum(), 1, rtol=1e-12)
    assert str(fitted).startswith("A mixture with")
    # However many components share a group, together they have its data and its mean.
    counts = np.asarray(fitted.factors.a) - 1
    for side, own in ((means[:, 0] > 4, group), (means[:, 0] <= 4, ~group)):
        assert_allclose(counts[side].sum(), own.sum(), atol=0.5)
        # Means of components are shrunk to that of all codes, which counts as one more.
        sums = (1 + counts[:, None]) * means - codes.mean(axis=0)
        mean = sums[side].sum(axis=0) / counts[side].sum()
        assert_allclose(mean, codes[own].mean(axis=0), atol=0.1)
    assert weights[counts > 1].sum() > 0.85


def test_codes_may_be_in_fewer_places_than_components():
    places = np.array([[0.0, 0.0], [3.0, 1.0], [1.0, 4.0]])
    fitted = DirichletMixture(6).fit(np.repeat(places, 5, axis=0))
    assert np.isfinite(fitted.log_prob(places)).all()
    assert np.isfinite(fitted.bound)


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
    seeds = np.asarray(jr.bits(key, (2,)))
    for i in range(2):
        start = kmeans(many[0, i], 3, seed=int(seeds[i]))
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
    assert fitted.steps == np.sum(np.asarray(fitted.factors.a) > 1.5)  # clusters with data
    assert_allclose(fitted.weights.sum(), 1, rtol=1e-12)


def _reference(codes, resp, c, updates):
    """Bishop (2006), equations 10.58 to 10.67, with a stick of weights, by component.

    Its numbers are those of scikit-learn's `BayesianGaussianMixture` to 1e-8.
    """
    n, d = codes.shape
    m0, w0, eps = codes.mean(0), np.cov(codes.T), 10 * np.finfo(float).eps
    for update in range(updates + 1):
        factors = []
        for k in range(resp.shape[1]):
            count = resp[:, k].sum() + eps
            centre = resp[:, k] @ codes / count
            gap = codes - centre
            scatter = (resp[:, k, None] * gap).T @ gap / count + 1e-6 * np.eye(d)
            shift = np.outer(centre - m0, centre - m0)
            matrix = w0 + count * scatter + count / (1 + count) * shift
            mean = (m0 + count * centre) / (1 + count)
            later = sum(resp[:, j].sum() + eps for j in range(k + 1, resp.shape[1]))
            factors.append((1 + count, c + later, mean, 1 + count, d + count, matrix))
        if update == updates:
            break
        logs, before = np.empty_like(resp), 0.0
        for k, (a, b, mean, beta, nu, matrix) in enumerate(factors):
            log_det = sum(digamma((nu + 1 - i) / 2) for i in range(1, d + 1))
            log_det += d * np.log(2) - np.linalg.slogdet(matrix)[1]
            gap = codes - mean
            square = nu * np.einsum("ni,ij,nj->n", gap, np.linalg.inv(matrix), gap)
            weight = digamma(a) - digamma(a + b) + before
            before += digamma(b) - digamma(a + b)
            logs[:, k] = weight + 0.5 * (log_det - d / beta - square)
        resp = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    rest, weights = 1.0, []
    for a, b, *_ in factors:
        weights.append(rest * a / (a + b))
        rest *= b / (a + b)
    means = np.array([f[2] for f in factors])
    covariances = np.array([f[5] / f[4] for f in factors])
    return np.array(weights) / sum(weights), means, covariances


@pytest.mark.parametrize("unit", [1e-5, 1e4])
def test_the_fit_is_the_same_in_any_unit(unit):
    codes, _ = _two_groups()
    mixture, change = DirichletMixture(4), 2 * np.log(unit)
    here, there = mixture.fit(codes), mixture.fit(codes * unit)
    assert_allclose(there.log_prob(codes * unit) + change, here.log_prob(codes), atol=0.05)


@pytest.mark.parametrize("updates", [1, 7])
def test_updates_are_those_of_the_textbook(updates):
    codes, _ = _two_groups()
    resp = np.random.default_rng(1).dirichlet(np.ones(4), size=len(codes))
    fit = DirichletMixture(4, steps=updates, tolerance=1e-300)
    ours = fit.fit(codes, responsibilities=resp)
    weights, means, covariances = _reference(codes, resp, 0.25, updates)
    assert_allclose(ours.weights, weights, atol=1e-8)
    assert_allclose(ours.factors.means, means, atol=1e-8)
    assert_allclose(ours.covariances, covariances, atol=1e-8)


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
