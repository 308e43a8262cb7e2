"""Local latents: tables and encoders on probabilistic PCA, whose posterior is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.special import logsumexp

import whence as wh
from whence.inference.variational import (
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    PathDerivative,
    Point,
    TotalDerivative,
)
from whence.inference.variational._batch import Batch
from whence.inference.variational._terms import Terms, entropy_total, evaluate
from whence.testing import GaussianMean

# Columns that are orthogonal make posterior latents independent: a mean field is exact.
W = np.array([[1.0, 0.5], [1.0, -0.5], [-1.0, 0.5], [1.0, 0.5]])
NOISE = 0.7
ROWS = 60
PLAIN, PATH = ELBO(), PathDerivative()


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard: the closed forms here broadcast over samples."""


class PPCA(wh.Model):
    """`y ~ N(W z, NOISE^2)`, `z ~ N(0, 1)` (Tipping and Bishop, 1999)."""

    w: jax.Array = wh.latent(dist.Normal(0.0, 10.0), shape=(4, 2))
    z: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=2, local=True)

    def likelihood(self):
        return dist.Normal(self.z @ self.w.T, NOISE)


def data(rows=ROWS, seed=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 2)) @ W.T + NOISE * rng.normal(size=(rows, 4))


def fixed(y):
    return wh.condition(PPCA(w=W), y)


def truth(y):
    """Means and standard deviations by row, and the log evidence of each row."""
    precision = np.eye(2) + W.T @ W / NOISE**2
    mean = y @ W @ np.linalg.inv(precision) / NOISE**2
    evidence = stats.multivariate_normal(np.zeros(4), W @ W.T + NOISE**2 * np.eye(4))
    return mean, np.diag(precision) ** -0.5, evidence.logpdf(y)


def linear(key):
    return eqx.nn.Linear(4, 4, key=key)


def exact_encoder():
    """Parameters with which a linear encoder is the posterior."""
    precision = np.eye(2) + W.T @ W / NOISE**2
    weight = np.concatenate([np.linalg.inv(precision) @ W.T / NOISE**2, np.zeros((2, 4))])
    bias = np.concatenate([np.zeros(2), -0.5 * np.log(np.diag(precision))])
    return {"encoder": (jnp.asarray(weight), jnp.asarray(bias))}


def at(target, family, params, rows, samples, key, objective=PLAIN, estimator=PATH):
    """Log weights and gradient of a batch."""

    @jax.jit
    def estimate(params, rows, key):
        batch = Batch.of(target, family, params, rows)
        noise = batch.family.noise(batch.view[0], samples, key=key)
        return estimator.estimate(
            batch.family, batch.params, batch.log_densities, noise, objective, batch.mask
        )

    return estimate(params, rows, key)


@pytest.mark.parametrize("objective", [ELBO(), IWAE(), MIWAE(2)], ids=str)
def test_exact_encoder_and_table_have_no_variance(objective, key):
    """Each draw's weight is the row's evidence, and the path derivative is zero."""
    y = data()
    target, (mean, sd, evidence) = fixed(y), truth(y)
    rows = jnp.asarray([5, 1, 40], jnp.int32)
    scales = jnp.broadcast_to(jnp.log(jnp.asarray(sd)), mean.shape)
    table = {"loc": jnp.asarray(mean), "log_scale": scales}
    for family, params in (
        (wh.Amortised(linear), exact_encoder()),
        (wh.Local(), table),
    ):
        weights, gradient = at(target, family, params, rows, 4, key, objective)
        assert weights.scale == ROWS / 3
        assert_allclose(weights.shared, stats.norm.logpdf(W, 0, 10).sum())  # w is given
        exact = np.broadcast_to(evidence[np.asarray(rows)], (4, 3))
        assert_allclose(weights.rows, exact, rtol=1e-9)
        for leaf in jax.tree.leaves(gradient):
            assert_allclose(leaf, 0, atol=1e-8)


def test_gradient_by_the_model_is_that_of_the_evidence(key):
    """Fisher's identity at the posterior: batches and scale as they must be, on average."""
    y = data()
    target = wh.condition(PPCA(), y)
    family = wh.Factors({"w": Point(), "z": wh.Amortised(linear)})
    params = (
        {"loc": jnp.asarray(W).ravel()},
        exact_encoder(),
        wh.MeanField().init(jnp.zeros(0)),
    )

    def log_joint(w):
        w = w.reshape(4, 2)
        covariance = w @ w.T + NOISE**2 * jnp.eye(4)
        own = jax.scipy.stats.multivariate_normal.logpdf(
            jnp.asarray(y), jnp.zeros(4), covariance
        )
        return own.sum() + jax.scipy.stats.norm.logpdf(w, 0, 10).sum()

    exact = jax.grad(log_joint)(params[0]["loc"])

    @jax.jit
    @jax.vmap
    def one(key):
        first, second = jr.split(key)
        rows = jr.permutation(first, ROWS)[:15].astype(jnp.int32)
        return at(target, family, params, rows, 2, second)[1][0]["loc"]

    found = one(jr.split(key, 4_000))
    error = found.std(0) / np.sqrt(4_000)
    assert_allclose((found.mean(0) - exact) / error, 0, atol=4.5)
    assert (np.abs(exact) > 10 * error).sum() >= 4


def test_model_and_encoder_follow_their_own_bounds(key):
    """PIWAE by row: the model that of all draws, the encoder that of groups."""
    target = wh.condition(PPCA(), data())
    family = wh.Factors({"w": Point(), "z": wh.Amortised(linear)})
    encoder = jax.tree.map(lambda x: 0.8 * x, exact_encoder())
    params = ({"loc": jnp.asarray(W).ravel()}, encoder, wh.MeanField().init(jnp.zeros(0)))
    rows = jnp.arange(7, dtype=jnp.int32)
    gradient = lambda o: at(target, family, params, rows, 6, key, o, TotalDerivative())[1]
    both, groups, all_ = (gradient(o) for o in (PIWAE(3), MIWAE(3), IWAE()))
    assert_allclose(both[0]["loc"], all_[0]["loc"], rtol=1e-9)
    assert_allclose(both[1]["encoder"][0], groups[1]["encoder"][0], rtol=1e-9)
    assert np.abs(groups[0]["loc"] / all_[0]["loc"] - 1).max() > 1e-3


def test_an_encoder_learns_the_posterior(key):
    """With batches; then it serves rows that it has not seen."""
    y = data(200)
    engine = wh.BBVI(family=wh.Amortised(linear), batch_size=25, steps=2_000, draws=300)
    posterior = wh.infer(fixed(y), engine, key=key)
    mean, sd, evidence = truth(y)
    assert_allclose((posterior["z"].mean((0, 1)) - mean) / sd, 0, atol=0.4)  # of 300 draws
    bound = engine.bound(fixed(y), posterior.record, key=key, samples=100)
    assert bound.shape == (200,)
    assert_allclose(bound.sum(), evidence.sum(), atol=0.5)
    assert posterior.record.objective == "ELBO"
    new = data(30, seed=4)
    _, _, evidence = truth(new)
    bound = engine.bound(fixed(new), posterior.record, key=key, samples=100)
    assert_allclose(bound, evidence, atol=0.15)
    tight = engine.bound(fixed(new), posterior.record, objective=IWAE(), key=key, samples=100)
    assert_allclose(tight, evidence, atol=0.05)


def test_a_table_learns_the_posterior(key):
    y = data(40)
    engine = wh.BBVI(family=wh.Local(), batch_size=10, steps=4_000, draws=300)
    posterior = wh.infer(fixed(y), engine, key=key)
    mean, sd, evidence = truth(y)
    found = posterior.record.parameters
    assert_allclose((found["loc"] - mean) / sd, 0, atol=0.05)
    assert_allclose(found["scale"], np.broadcast_to(sd, mean.shape), rtol=0.05)
    bound = engine.bound(fixed(y), posterior.record, key=key)
    assert_allclose(bound, evidence, atol=0.02)


def test_a_batch_changes_its_own_rows_only(key):
    target = fixed(data())
    engine = wh.BBVI(family=wh.Local(), batch_size=7, steps=100)
    state = engine.init(target, key=key)
    step = jax.jit(lambda s, i: engine.step(target, s, i, key=key)[0])
    state = step(state, jnp.int32(0))
    new = step(state, jnp.int32(1))
    changed = np.unique(np.nonzero(np.asarray(new.params["loc"] != state.params["loc"]))[0])
    assert len(changed) == 7
    moments = [x for x in jax.tree.leaves(new.optimizer[1]) if x.ndim == 2]
    earlier = [x for x in jax.tree.leaves(state.optimizer[1]) if x.ndim == 2]
    assert any((m[changed] != b[changed]).any() for m, b in zip(moments, earlier))
    for moment, before in zip(moments, earlier):
        rest = np.delete(np.arange(ROWS), changed)
        assert_array_equal(moment[rest], before[rest])


def test_what_a_row_stands_for():
    """Rows of a batch count as often as all do: in bounds that are shown, and in entropies."""
    rng = np.random.default_rng(0)
    shared, rows = rng.normal(size=4), rng.normal(size=(4, 3))
    weights = Terms(jnp.asarray(shared), jnp.asarray(rows), 20.0)
    for objective, of_row in (
        (ELBO(), rows.mean(0)),
        (IWAE(), logsumexp(rows, axis=0) - np.log(4)),
    ):
        exact = shared.mean() + 20 * of_row.sum()
        assert_allclose(evaluate(objective, weights), exact)
    family = wh.Factors({"z": wh.Local()}, rest=wh.MeanField())
    family = family.bind((("w", 2), ("z", 6, 3)))
    params = family.init(jnp.zeros(8))
    local, rest = (f.entropy(p) for f, p in zip(family.families, params, strict=True))
    assert_allclose(entropy_total(family, params, 20.0), 20 * local + rest)


class TwoParts(wh.Model):
    """Two local latents of different widths."""

    a: jax.Array = wh.latent(dist.Normal(0.0, 1.0), local=True)
    b: jax.Array = wh.latent(dist.Normal(0.0, 1.0), shape=2, local=True)

    def likelihood(self):
        return dist.Normal(self.a[:, None] + 2 * self.b, 0.5)


def test_rows_of_several_latents_stay_together(key):
    """The exact posterior of a row, coordinates a, b[0], b[1], by one full-rank family."""
    y = np.random.default_rng(0).normal(size=(6, 2))
    target = wh.condition(TwoParts(), y)
    design = np.array([[1.0, 2, 0], [1, 0, 2]])
    precision = np.eye(3) + design.T @ design / 0.25
    root = np.linalg.cholesky(np.linalg.inv(precision))
    mean = y @ design @ np.linalg.inv(precision) / 0.25
    covariance = design @ design.T + 0.25 * np.eye(2)
    evidence = stats.multivariate_normal(np.zeros(2), covariance).logpdf(y)
    scale = np.diag(root)
    stack = lambda x: jnp.asarray(np.broadcast_to(x, (6, *np.shape(x))))
    params = {
        "loc": jnp.asarray(mean),
        "log_scale": stack(np.log(scale)),
        "lower": stack(np.tril(root / scale[:, None], -1)),
    }
    rows = jnp.asarray([4, 0], jnp.int32)
    weights, _ = at(target, wh.Local(wh.FullRank()), params, rows, 3, key)
    exact = np.broadcast_to(evidence[np.asarray(rows)], (3, 2))
    assert_allclose(weights.rows, exact, rtol=1e-9)


def test_parts_that_do_not_fit():
    y = data()

    def bad(family, model=None, **kwargs):
        target = model
        if not isinstance(model, GaussianMean):
            target = wh.condition(model or PPCA(w=W), y)
        wh.BBVI(family=family, **kwargs).validate(target)

    with pytest.raises(ValueError, match="must return the 4 parameters of MeanField.*got .3,"):
        bad(wh.Amortised(lambda key: eqx.nn.Linear(4, 3, key=key)))
    with pytest.raises(ValueError, match="must take the data of one row"):
        bad(wh.Amortised(lambda key: eqx.nn.Linear(5, 4, key=key)))
    with pytest.raises(ValueError, match="`encoder` must be a function of a key"):
        wh.Amortised(linear(jr.key(0)))
    with pytest.raises(ValueError, match="`z` has one value per data row.*got MeanField"):
        bad(wh.MeanField(), batch_size=5)
    with pytest.raises(ValueError, match=r"by `latent\(prior, local=True\)`; got 'w'"):
        bad(wh.Local(), PPCA())
    with pytest.raises(ValueError, match="IWAE is a bound of each data row.*got MeanField"):
        bad(wh.Factors({"z": wh.Local()}), PPCA(), objective=IWAE())
    with pytest.raises(ValueError, match="IWAE is not linear.*use `batch_size=None`"):
        bad(
            wh.MeanField(), GaussianMean.simulate(key=jr.key(0)), objective=IWAE(), batch_size=5
        )
    wh.BBVI(family=wh.Factors({"z": wh.Local()}, rest=Point()), objective=IWAE()).validate(
        wh.condition(PPCA(), y)
    )
