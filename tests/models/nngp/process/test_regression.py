"""Scale mixtures as models: hyper-parameters by several engines, data that depend."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpyro.distributions import constraints
from scipy import stats

import whence as wh
from whence.models import nngp
from whence.models.nngp import Dense, Erf, InverseGamma, Regression, ScaleMixture, Serial
from whence.testing import check_model

FLAT = dist.ImproperUniform(constraints.positive, (), ())
WEIGHT, NOISE = "network.layers.0.weight_variance", "noise"
RANDOM = np.random.default_rng(20)
X = RANDOM.normal(size=(10, 2))
Y = np.sin(2 * X[:, 0]) + 0.2 * RANDOM.normal(size=10)
NEW = RANDOM.normal(size=(3, 2))


PROPER, NOISY = dist.LogNormal(0.0, 1.0), dist.LogNormal(-2.0, 1.0)


def _model(noise=NOISY, **options):
    net = Serial(Dense(dist.LogNormal(0.0, 1.0)), Erf(), Dense())
    return Regression(net, InverseGamma(2.0, 1.0), noise, **options)


def _erf_kernel(x1, x2, weight):
    """One hidden layer of erf without biases, written anew (Williams 1996)."""
    c = weight * x1 @ x2.T / x1.shape[1]
    one, two = (1 + 2 * weight * np.sum(x**2, 1) / x.shape[1] for x in (x1, x2))
    return 2 / np.pi * np.arcsin(2 * c / np.sqrt(np.outer(one, two)))


@pytest.fixture(scope="module")
def grid():
    """The posterior of both logarithms on a grid: points, weights and log evidence."""
    log_weight, log_noise = np.linspace(-5, 7, 161), np.linspace(-8, 4, 161)
    log_density = np.empty((161, 161))
    for i, u in enumerate(log_weight):
        values, vectors = np.linalg.eigh(_erf_kernel(X, X, np.exp(u)))
        spectrum = values + np.exp(log_noise)[:, None]
        q = np.sum((vectors.T @ Y) ** 2 / spectrum, axis=1)
        # Student's t with 4 degrees of freedom and scale matrix A / 2.
        log_t = stats.multivariate_t(np.zeros(10), np.eye(10) / 2, df=4).logpdf(np.zeros(10))
        log_t = log_t - np.log(spectrum).sum(1) / 2 - 7 * np.log1p(q / 2)
        log_density[i] = (
            log_t + stats.norm(0, 1).logpdf(u) + stats.norm(-2, 1).logpdf(log_noise)
        )
    area = (log_weight[1] - log_weight[0]) * (log_noise[1] - log_noise[0])
    top = log_density.max()
    weights = np.exp(log_density - top)
    log_evidence = top + np.log(weights.sum() * area)
    return log_weight, log_noise, weights / weights.sum(), log_evidence


def _moments(grid):
    u, w, weights, _ = grid
    both = []
    for points, mass in ((u, weights.sum(1)), (w, weights.sum(0))):
        mean = mass @ points
        both.append((mean, np.sqrt(mass @ (points - mean) ** 2)))
    return both


@pytest.fixture(scope="module")
def target():
    return wh.condition(_model(), Y, X)


@pytest.fixture(scope="module")
def posterior(target):
    return wh.infer(target, wh.NUTS(chains=4, draws=600), key=jr.key(1))


@pytest.mark.slow
def test_nuts_against_a_grid(posterior, grid):
    for name, (mean, deviation) in zip((WEIGHT, NOISE), _moments(grid)):
        draws = np.log(posterior[name])
        # Standard errors from an effective sample size that is a tenth of the draws or more.
        found = wh.diagnostics.convergence(draws)
        assert found.ess_bulk > 240
        assert abs(draws.mean() - mean) < 4.5 * deviation / np.sqrt(found.ess_bulk)
        spread = draws.std() / deviation
        assert abs(spread - 1) < 4.5 / np.sqrt(found.ess_bulk)


@pytest.mark.slow
def test_tempering_against_a_grid(target, grid):
    posterior = wh.infer(target, wh.TemperedSMC(particles=2000), key=jr.key(2))
    weights = np.exp(posterior.log_weights.ravel())
    weights = weights / weights.sum()
    ess = 1 / np.sum(weights**2)
    for name, (mean, deviation) in zip((WEIGHT, NOISE), _moments(grid)):
        draws = np.log(posterior[name]).ravel()
        # Particles that were copied and moved are worth less than independent ones.
        assert abs(weights @ draws - mean) < 4.5 * deviation / np.sqrt(ess / 4)
    assert abs(posterior.log_evidence - grid[3]) < 4.5 * posterior.log_evidence_error
    assert posterior.log_evidence_error < 0.1


@pytest.mark.slow
def test_variational_against_a_grid(target, grid):
    """A Gaussian in the logarithms: means within a quarter of a deviation, no more claimed."""
    engine = wh.BBVI(family=wh.FullRank(), steps=3000)
    posterior = wh.infer(target, engine, key=jr.key(3))
    for name, (mean, deviation) in zip((WEIGHT, NOISE), _moments(grid)):
        draws = np.log(posterior[name])
        assert abs(draws.mean() - mean) < 0.25 * deviation
        assert 0.7 < draws.std() / deviation < 1.1
    # The ELBO is a lower bound; the Gaussian misses little here.
    gap = grid[3] - posterior.sample.record.elbo_final
    assert -4.5 * posterior.sample.record.elbo_final_error < gap < 0.3


def test_log_density_is_prior_plus_evidence(target):
    position = target.init(key=jr.key(4))
    draw = target.constrain(position)
    weight, noise = draw.values[WEIGHT], draw.values[NOISE]
    process = ScaleMixture(Serial(Dense(weight), Erf(), Dense()), InverseGamma(2.0, 1.0), noise)
    log_prior = stats.norm(0, 1).logpdf(np.log(weight))
    log_prior += stats.norm(-2, 1).logpdf(np.log(noise))
    evidence = process.condition(X, Y).log_evidence
    assert_allclose(target.log_density(position), log_prior + evidence, rtol=1e-10)
    assert_allclose(draw.process().log_evidence(X, Y), evidence, rtol=1e-12)


def test_predictions_are_given_the_data(target):
    """Given one draw, `predict` draws from the closed form, jointly over new inputs."""
    draw = target.constrain(target.init(key=jr.key(4)))
    given = draw.given(Y, X).observation(NEW)

    @jax.jit
    @jax.vmap
    def predict(key):
        return target.predict_given(draw, (NEW,), key=key)["y"]

    drawn = np.asarray(predict(jr.split(jr.key(5), 4000)))
    scale = np.asarray(given.scale_tril @ given.scale_tril.T)
    for mix in (np.array([1.0, 0, 0]), np.array([1.0, -1.0, 0.5])):
        law = stats.t(given.df, mix @ given.loc, np.sqrt(mix @ scale @ mix))
        assert stats.kstest(drawn @ mix, law.cdf).pvalue > 1e-4
    # Prior predictive draws, of which calibration is made, are not given the data.
    prior = target.predict(draw, None, key=jr.key(0))["y"]
    assert_array_equal(prior, draw.predict(X, key=jr.key(0)))


@pytest.mark.slow
def test_posterior_predictive_follows_the_data(target):
    values = {WEIGHT: np.full((1, 400), 1.5), NOISE: np.full((1, 400), 0.05)}
    posterior = wh.Posterior.from_draws(target, values)
    # Fitted values lie nearer to the data than zero, where predictions would be without them.
    mean = posterior.predict(key=jr.key(6)).mean((0, 1))
    assert np.mean((mean - Y) ** 2) < 0.5 * np.mean(Y**2)
    latent = posterior.map(lambda m: m.process().condition(X, Y).latent(NEW).mean)
    new = posterior.predict(NEW, key=jr.key(7))
    assert new.shape == latent.shape == (1, 400, 3)
    error = new.std((0, 1)) / np.sqrt(400)
    assert np.all(np.abs(new.mean((0, 1)) - latent[0, 0]) < 5 * error)


LAWS = [InverseGamma(2.0, 1.0), nngp.BurrXII(2.0, 1.0)]


@pytest.mark.parametrize("outputs", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("law", [LAWS[0], pytest.param(LAWS[1], marks=pytest.mark.slow)])
def test_leave_one_out_is_that_of_refits(law, outputs):
    y = Y if outputs == 1 else np.stack([Y, Y[::-1]], 1)
    process = ScaleMixture(Serial(Dense(1.5, 0.1), Erf(), Dense()), law, 0.1)
    found = process.condition(X, y).leave_one_out
    for i in (0, 7):
        rest = process.condition(np.delete(X, i, 0), np.delete(y, i, 0))
        one = rest.observation(X[i : i + 1])
        assert_allclose(found.log_density[i], one.log_prob(y[i : i + 1].T.ravel()), rtol=1e-8)
        assert_allclose(np.ravel(found.loc[i]), one.loc, rtol=1e-9)
        assert_allclose(found.quadratic[i], rest.quadratic, rtol=1e-9)


@pytest.mark.slow
def test_arviz_gets_leave_one_out_densities(posterior):
    from arviz_stats import loo

    tree = posterior.to_datatree(groups=("posterior", "log_likelihood"))
    terms = tree["log_likelihood"]["y"].values
    assert terms.shape == (4, 600, 10)
    draw = jax.tree.map(lambda v: jnp.asarray(v[1, 5]), posterior.draws)
    assert_allclose(terms[1, 5], draw.given(Y, X).leave_one_out.log_density, rtol=1e-9)
    # By weights of 1 / p(y_i | rest), as for independent data: against the mean of them.
    found = loo(tree, pointwise=True)
    harmonic = -np.log(np.mean(np.exp(-terms.reshape(-1, 10)), axis=0))
    assert np.all(found.pareto_k < 0.7)
    assert_allclose(found.elpd_i, harmonic, atol=0.05)


@pytest.mark.slow
def test_outputs_share_the_scale():
    y = np.stack([Y, Y[::-1], -Y], 1)
    target = wh.condition(_model(outputs=3), y, X)
    draw = target.constrain(target.init(key=jr.key(4)))
    assert_allclose(draw.likelihood(X).log_prob(y), draw.given(y, X).log_evidence)
    drawn = target.predict_given(draw, (NEW,), key=jr.key(0))["y"]
    assert drawn.shape == (3, 3)
    flat = draw.given(y, X).observation(NEW).sample(jr.key(0))
    assert_array_equal(drawn.T.ravel(), flat)


@pytest.mark.slow
def test_density_far_from_the_nodes_of_the_prior():
    """Laws by quadrature: many rows say more of the scale than the prior's nodes can."""
    y, tril = 5 * RANDOM.normal(size=150), jnp.eye(150)
    closed, law = InverseGamma(2.5, 1.5), nngp.FromDistribution(dist.InverseGamma(2.5, 1.5))
    truth = stats.multivariate_t(np.zeros(150), 1.5 / 2.5 * np.eye(150), df=5).logpdf(y)
    for joint in (closed, law):
        found = nngp.Joint(joint, tril, jnp.zeros(())).log_prob(y)
        assert_allclose(found, truth, rtol=1e-9)
    q, loc = jnp.asarray(4.0), jnp.zeros(150)
    given = [one.mixture(3, q, loc, tril).log_prob(y) for one in (law, closed)]
    assert_allclose(*given, rtol=1e-9)


def test_singular_covariance_is_minus_infinity():
    x, y = jnp.ones((3, 2)), jnp.array([1.0, 0.5, 0.2])

    def evidence(noise):
        return ScaleMixture(Serial(Dense()), InverseGamma(2.0, 1.0), noise).log_evidence(x, y)

    value, slope = jax.jit(jax.value_and_grad(evidence))(0.0)
    assert value == -jnp.inf
    assert slope == 0
    assert np.isfinite(evidence(0.1))
    process = ScaleMixture(Serial(Dense()), InverseGamma(2.0, 1.0))
    assert np.all(np.isnan(process.prior(x, noisy=True).sample(jr.key(0))))
    assert np.isnan(jax.jit(lambda x: process.condition(x, y).latent(x).mean)(x)).all()


def test_gradient_of_the_factor():
    """The derivative of the Cholesky factor by its own rule, against JAX's."""
    from whence.models.nngp.process._cholesky import factor_or_penalty

    matrix = jnp.asarray(_erf_kernel(X, X, 1.0) + 0.1 * np.eye(10))
    weights = jnp.asarray(RANDOM.normal(size=(10, 10)))
    ours = jax.grad(lambda a: jnp.sum(weights * factor_or_penalty(a)[0]))(matrix)
    theirs = jax.grad(lambda a: jnp.sum(weights * jnp.linalg.cholesky(a)))(matrix)
    # Only symmetric changes count: theirs are symmetric already.
    assert_allclose(ours + ours.T, theirs + theirs.T, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_check_explains_a_singular_kernel():
    x = np.linspace(0, 1, 40)[:, None]
    model = _model(noise=dist.LogNormal(-45.0, 0.1))
    target = wh.condition(model, np.sin(x[:, 0]), x)
    report = wh.check(target)
    assert not report.ok
    said = str(report)
    assert "remark" not in said
    assert "not positive definite with noise" in said
    assert "more on its diagonal" in said
    with pytest.raises(wh.InferenceError, match="whence.check"):
        wh.infer(target, wh.NUTS(chains=1, warmup=5, draws=5), key=jr.key(0))


@pytest.mark.slow
def test_model_conforms(key):
    check_model(_model(), Y, X, key=key)


@pytest.mark.slow
@pytest.mark.parametrize(
    "law",
    [
        InverseGamma(2.0, dist.LogNormal(0.0, 1.0)),
        nngp.BurrXII(2.0, dist.LogNormal(0.0, 0.5)),
        nngp.HalfCauchy(dist.HalfNormal(1.0)),
        nngp.GIG(dist.Normal(0.0, 1.0), 1.0, 1.0),
        nngp.PointMass(dist.LogNormal(0.0, 1.0)),
        dist.LogNormal(0.0, 1.0),
    ],
    ids=lambda law: type(law).__name__,
)
def test_every_law_conforms(law, key):
    net = Serial(Dense(1.0, dist.HalfNormal(1.0)), Erf(), Dense())
    check_model(Regression(net, law, 0.1), Y, X, key=key)


@pytest.mark.slow
def test_new_data_and_new_priors_compile_nothing(target):
    engine = wh.NUTS(chains=1, warmup=20, draws=20)
    wh.infer(target, engine, key=jr.key(0))
    traces = wh.core._cache.traces
    again = wh.condition(_model(noise=dist.LogNormal(-1.0, 2.0)), Y[::-1], X + 1.0)
    one = wh.infer(again, engine, key=jr.key(0))
    assert wh.core._cache.traces == traces
    two = wh.infer(again, engine, key=jr.key(0))
    assert_array_equal(one.sample.positions[WEIGHT], two.sample.positions[WEIGHT])


@pytest.mark.slow
def test_resume(target, tmp_path):
    engine, key = wh.NUTS(chains=2, warmup=50, draws=50), jr.key(8)
    whole = wh.infer(target, engine, key=key)
    wh.infer(target, wh.NUTS(chains=2, warmup=50, draws=30), key=key, store=tmp_path / "a")
    longer = wh.extend(tmp_path / "a", target, draws=20)
    for name in (WEIGHT, NOISE):
        assert_array_equal(longer[name], whole[name])
    assert_allclose(longer.predict(NEW, key=key), whole.predict(NEW, key=key))


@pytest.mark.slow
def test_calibration(key):
    """Simulated data sets of 8 rows: ranks of both hyper-parameters are uniform."""
    target = wh.condition(_model(), Y[:8], X[:8])
    engine = wh.NUTS(chains=1, warmup=300, draws=600)
    found = wh.sbc(target, engine, key=key, simulations=120)
    assert found.ok, str(found)
    assert not found.failures


# -- a law of the scale that is part of a larger model ------------------------------------


class Counts(wh.Model):
    """Poisson counts whose log rate is `sqrt(v) L z`: the scale v is a latent."""

    net: nngp.AbstractLayer
    x: jax.Array
    v: jax.Array = wh.latent(dist.InverseGamma(3.0, 2.0))
    z: jax.Array = wh.latent(dist.Normal(), shape=lambda m: m.x.shape[:1])

    @wh.derived
    def f(self):
        covariance = self.net.nngp(self.x) + 1e-6 * jnp.eye(len(self.x))
        return jnp.sqrt(self.v) * (jnp.linalg.cholesky(covariance) @ self.z)

    def likelihood(self):
        return dist.Poisson(jnp.exp(self.f))


@pytest.mark.slow
def test_counts_with_the_scale_explicit():
    """HMC on z and v against importance sampling from the prior of f."""
    net = Serial(Dense(2.0, 0.1), Erf(), Dense())
    x, y = jnp.asarray(X[:3]), np.array([3, 0, 1])
    target = wh.condition(Counts(net, x), y)
    posterior = wh.infer(target, wh.NUTS(chains=4, draws=1000), key=jr.key(9))
    prior = ScaleMixture(net, InverseGamma(3.0, 2.0), 1e-6).prior(x, noisy=True)
    f = np.asarray(prior.sample(jr.key(10), (400_000,)))
    weights = np.exp(stats.poisson(np.exp(f)).logpmf(y).sum(1))
    weights = weights / weights.sum()
    truth = weights @ f
    found = posterior["f"]
    ess = min(wh.diagnostics.convergence(found[..., i]).ess_bulk for i in range(3))
    assert ess > 400
    error = found.std((0, 1)) * np.sqrt(1 / ess + np.sum(weights**2))
    assert np.all(np.abs(found.mean((0, 1)) - truth) < 4.5 * error)


class Handwritten(wh.Model):
    """A user's own model around the closed forms."""

    weight: jax.Array = wh.latent(dist.LogNormal(0.0, 1.0))
    noise: jax.Array = wh.latent(dist.LogNormal(-2.0, 1.0))

    def likelihood(self, x):
        net = Serial(Dense(self.weight), Erf(), Dense())
        return ScaleMixture(net, InverseGamma(2.0, 1.0), self.noise).prior(x, noisy=True)


def test_a_model_written_by_hand_is_the_same(target):
    by_hand = wh.condition(Handwritten(), Y, X)
    position = target.init(key=jr.key(4))
    same = {"weight": position[WEIGHT], "noise": position[NOISE]}
    assert_allclose(by_hand.log_density(same), target.log_density(position), rtol=1e-12)


# -- what is refused, and what is said ----------------------------------------------------


def _relu(first, readout, law, noise=0.1, bias=0.0):
    return Regression(Serial(Dense(first, bias), nngp.ReLU(), Dense(readout)), law, noise)


REFUSED = {
    "no posterior: `scale` and `shape` of": lambda: _relu(1.0, 1.0, InverseGamma(FLAT, FLAT)),
    "no posterior: `c` of `Burr": lambda: _relu(1.0, 1.0, nngp.BurrXII(FLAT, 1.0)),
    "layers.0.weight_variance` and `scale.scale": lambda: _relu(
        FLAT, 1.0, InverseGamma(2.0, FLAT)
    ),
    "layers.2.weight_variance` and `scale.value": lambda: _relu(
        1.0, FLAT, nngp.PointMass(FLAT), bias=0.3
    ),
    "of `noise` and `scale.scale` at most one": lambda: _relu(
        1.0, 1.0, InverseGamma(2.0, FLAT), FLAT
    ),
}
SAID = {
    "`scale` and `shape` of `InverseGamma` are known": lambda: _relu(
        1.0, 1.0, InverseGamma(PROPER, PROPER)
    ),
    "product of `network.layers.0.weight_variance` and `scale.scale`": lambda: _relu(
        PROPER, 1.0, InverseGamma(2.0, PROPER)
    ),
    "product of `network.layers.2.weight_variance` and `scale.scale`": lambda: _relu(
        1.0, PROPER, InverseGamma(2.0, PROPER), bias=0.3
    ),
}
FINE = [
    lambda: _relu(PROPER, 1.0, InverseGamma(2.0, PROPER), bias=0.3),
    lambda: _relu(FLAT, 1.0, InverseGamma(2.0, 1.0)),
    lambda: _model(),
]


@pytest.mark.parametrize("words", REFUSED)
def test_no_posterior_is_refused(words):
    with pytest.raises(ValueError, match=words):
        wh.condition(REFUSED[words](), Y, X)


@pytest.mark.parametrize("words", SAID)
def test_what_priors_alone_tell_apart_is_said(words):
    with pytest.warns(wh.InferenceWarning, match=words):
        target = wh.condition(SAID[words](), Y, X)
    assert words in target.model.review(Y, X)[0]


@pytest.mark.parametrize("number", range(len(FINE)))
def test_nothing_is_said_of_other_models(number):
    assert FINE[number]().review(Y, X) == ()


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_product_is_all_that_data_see(factor):
    """What the refusals say: along `weight * scale = constant` nothing changes."""

    def evidence(weight, scale, noise):
        net = Serial(Dense(weight), nngp.ReLU(), Dense())
        return ScaleMixture(net, InverseGamma(2.0, scale), noise).log_evidence(X, Y)

    truth = evidence(1.0, 1.0, 0.1)
    assert_allclose(evidence(factor, 1 / factor, 0.1 * factor), truth, rtol=1e-10)


WRONG = {
    "prior of `weight_variance` must be on the positive": lambda: Dense(dist.Normal()),
    "prior of `shape` must be of one number": lambda: InverseGamma(
        dist.LogNormal(jnp.zeros(2)), 1.0
    ),
    "`A kernel` needs|A kernel needs numbers; `weight_variance`": lambda: Dense(PROPER).nngp(X),
    "A finite network needs numbers": lambda: Dense(PROPER).network(4, 2, key=jr.key(0)),
    "ScaleMixture` needs numbers; `scale.shape`": lambda: ScaleMixture(
        Dense(), InverseGamma(PROPER, 1.0)
    ),
    "have no values yet": lambda: _model().process(),
    "outputs. must be at least 1": lambda: _model(outputs=0),
    r"outputs=2": lambda: wh.condition(_model(), np.stack([Y, Y], 1), X),
    r"must have shape \(9,\)": lambda: wh.condition(_model(), Y, X[:9]),
    "Labels are no numbers": lambda: wh.condition(_model(), (Y > 0).astype(int), X),
    "must (not contain NaN|be finite; 7)": lambda: wh.condition(
        _model(), np.where(Y > 0, Y, np.nan), X
    ),
    "must be finite; 1 are not": lambda: wh.condition(_model(), np.append(Y[1:], np.inf), X),
    "reads vectors": lambda: wh.condition(_model(), Y, X[:, None, :]),
    "noise. must be above 0.*got 0, and 1 of 11": lambda: wh.condition(
        _model(0.0), np.append(Y, 0.3), np.concatenate([X, X[:1]])
    ),
    "batch_size. needs a target whose likelihood is a product": lambda: wh.infer(
        wh.condition(_model(), Y, X), wh.SGLD(batch_size=2, step_size=1e-3), key=jr.key(0)
    ),
    "at least 2 rows": lambda: (
        ScaleMixture(Dense(), InverseGamma(2.0, 1.0), 0.1).condition(X[:1], Y[:1]).leave_one_out
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input(words):
    with pytest.raises(ValueError, match=words):
        WRONG[words]()


def test_a_column_that_never_varies_is_said():
    with pytest.warns(wh.InferenceWarning, match=r"never vary \(1: 2\)"):
        wh.condition(_model(), Y, np.column_stack([X, np.ones(10)]))


def test_moments_that_do_not_exist_are_said():
    model = Regression(Serial(Dense(PROPER), Erf(), Dense()), nngp.HalfCauchy(1.0), 0.1)
    assert "infinite variance" in model.review(Y[:1], X[:1])[0]
    assert model.review(Y[:2], X[:2]) == ()


@pytest.mark.slow
def test_jeffreys_needs_no_parameter():
    model = Regression(Serial(Dense(PROPER), Erf(), Dense()), nngp.Jeffreys(), 0.1)
    target = wh.condition(model, Y, X)
    assert wh.check(target).ok
    draw = target.constrain(target.init(key=jr.key(4)))
    assert np.all(np.isfinite(target.predict_given(draw, (NEW,), key=jr.key(0))["y"]))
    with pytest.raises(ValueError, match="improper"):
        draw.predict(X, key=jr.key(0))
