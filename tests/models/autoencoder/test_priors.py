"""Laws of weights, their selection by DSWD and their match to Gaussian processes."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import linear_sum_assignment
from scipy.stats import invgamma, norm

import whence as wh
from whence.models import autoencoder, nngp
from whence.models.autoencoder.priors._match import (
    FunctionalFit,
    Process,
    bures_power,
    critic_distance,
    sliced_power,
)
from whence.models.autoencoder.priors._problem import Reconstruction, images_of


def _networks():
    return autoencoder.dense((4,), 2, (3,), key=jr.key(0))


def _many(prior, draws=4_000):
    return jax.jit(jax.vmap(lambda k: prior.sample(key=k)))(jr.split(jr.key(1), draws))


@pytest.mark.parametrize("per", ["net", "layer", "tensor", "weight"])
def test_scales_are_those_of_fan_in(per):
    networks = _networks()
    prior = autoencoder.GaussianPrior.fan_in(networks, per=per, scale=2.0)
    count = {"net": 1, "layer": 4, "tensor": 8, "weight": 8}[per]
    assert len(prior.log_scales) == count
    drawn = _many(prior)
    weight = drawn["encoder.layers.1.weight"]
    assert weight.shape == (4_000, 3, 4)
    assert_allclose(weight.std(), 2 / np.sqrt(4), rtol=4 * np.sqrt(1 / (2 * weight.size)))
    law = prior.weights({})["decoder.layers.2.weight"].prior
    assert_allclose(law.scale * np.ones((4, 3)), 2 / np.sqrt(3))


def test_around_a_network_and_hierarchical_and_flow():
    networks = _networks()
    around = autoencoder.GaussianPrior.around(networks)
    drawn = _many(around)["encoder.layers.1.weight"]
    error = np.exp(-3) / np.sqrt(4_000)
    assert np.abs(drawn.mean(0) - networks.encoder.layers[1].weight).max() < 5 * error
    assert_allclose(drawn.std(0), np.exp(-3), rtol=0.06)
    own = autoencoder.HierarchicalPrior.fan_in(networks, concentration=6.0, rate=10.0)
    drawn = _many(own)["encoder.layers.1.weight"].reshape(4_000, -1)
    square = (drawn**2).mean(1) * 4  # one variance for all twelve weights of a draw
    exact = invgamma(6, scale=10)
    spread = np.sqrt((exact.var() * (1 + 2 / 12) + 2 / 12 * exact.mean() ** 2) / 4_000)
    assert abs(square.mean() - exact.mean()) < 5 * spread
    flow = autoencoder.FlowPrior.fan_in(networks, key=jr.key(0))
    drawn = _many(flow)["encoder.layers.1.weight"]
    assert_allclose(drawn.std(), 0.5, rtol=4 * np.sqrt(1 / (2 * drawn.size)))


def test_a_flow_moves_and_engines_see_standard_numbers():
    networks = _networks()
    flow = autoencoder.FlowPrior.fan_in(networks, key=jr.key(0))
    bent = jax.tree.map(lambda v: v + 0.3 if eqx.is_inexact_array(v) else v, flow)
    z = bent.weights({})
    values = {n: jr.normal(jr.key(3), latent.shape) for n, latent in z.items()}
    arrays = bent.arrays(values)
    assert np.abs(arrays["encoder.layers.1.bias"]).max() > 0
    # A map of z with a triangular Jacobian of full rank: distinct z, distinct weights.
    flat = lambda v: bent.flows["encoder.layers.1"](v)
    jacobian = jax.jacobian(flat)(values["encoder.layers.1"])
    assert np.linalg.matrix_rank(jacobian) == len(jacobian)
    # It is more than a shift: its determinant is not that of the common scale alone.
    layer = bent.flows["encoder.layers.1"]
    log_det = np.linalg.slogdet(jacobian)[1] - len(jacobian) * layer.log_scale
    assert abs(log_det) > 0.1
    network = autoencoder.RandomNetwork(networks, bent)
    drawn = network.sample_prior(key=jr.key(0))
    made = bent.arrays(drawn.values)
    assert_allclose(drawn.module.encoder.layers[1].weight, made["encoder.layers.1.weight"])


class Line(wh.Model):
    """A regression by a random network."""

    network: autoencoder.RandomNetwork

    def likelihood(self, x):
        return dist.Normal(self.network(x)[:, 0], 0.3)


def test_hierarchical_variances_are_latents_of_the_target():
    mlp = eqx.nn.MLP(1, 1, 3, 1, key=jr.key(0))
    own = autoencoder.HierarchicalPrior.fan_in(mlp)
    x = np.linspace(-1, 1, 6)[:, None]
    target = wh.condition(Line(autoencoder.RandomNetwork(mlp, own, start="prior")), x[:, 0], x)
    position = target.init(key=jr.key(0))
    draw = target.constrain(position)
    log_prior = 0.0
    for name, variance in draw.network.scales.items():
        law = invgamma(3, scale=3)
        log_prior += law.logpdf(variance) + np.log(variance)  # the Jacobian of its log
        layer = name.removeprefix("variance.")
        for kind, fan in (("weight", {"layers.0": 1, "layers.1": 3}[layer]), ("bias", 1)):
            value = draw.network.values[f"{layer}.{kind}"]
            log_prior += norm(0, np.sqrt(variance / fan)).logpdf(value).sum()
    assert_allclose(target.log_prior(position), log_prior, rtol=1e-9)


@pytest.fixture(scope="module")
def selection():
    """Data of which a linear autoencoder of one scale is to make the like."""
    x = np.random.default_rng(0).normal(size=(64, 2))
    encoder, decoder = autoencoder.dense((2,), 2, (), key=jr.key(0))
    model = autoencoder.BayesianAutoencoder(
        encoder, decoder, likelihood=autoencoder.Gaussian(0.1)
    )
    return model, x


@pytest.mark.parametrize(
    "metric", ["distributional", pytest.param("sliced", marks=pytest.mark.slow)]
)
def test_selection_comes_to_the_best_scale(selection, metric):
    model, x = selection
    networks = model.networks()
    far = autoencoder.GaussianPrior.fan_in(networks, per="net", scale=2.5)
    procedure = autoencoder.DSWD(
        steps=100, metric=metric, draws=8, batch_size=32, projections=20, learning_rate=0.04
    )
    found = autoencoder.select_prior(model, x, key=jr.key(1), start=far, procedure=procedure)
    problem = autoencoder.PriorProblem(model, x, start=far)

    seen = jax.jit(lambda params: procedure._look(problem, params)[0])

    def look(scale):
        prior = autoencoder.GaussianPrior.fan_in(networks, per="net", scale=scale)
        return float(seen(prior.params))

    scales = np.exp(np.linspace(np.log(0.4), np.log(2.5), 15))
    distances = [look(s) for s in scales]
    got = float(np.exp(found.prior.log_scales["all"]))
    assert look(got) < min(distances) + 0.15 * (distances[-1] - min(distances))
    assert found.distances["selected"][0] < 0.8 * found.distances["start"][0]
    assert "off the SW2 of the start" in str(found)
    assert found.trace["sw2"][-1] < found.trace["sw2"][0]
    assert np.all(found.trace["max_sw2"] >= found.trace["sw2"] * (1 - 1e-9))


def test_selection_around_a_trained_network(selection):
    model, x = selection
    networks = model.networks()
    found = autoencoder.select_prior(
        model,
        x,
        key=jr.key(1),
        fit=autoencoder.Adam(400, 0.01),
        procedure=autoencoder.DSWD(steps=3, draws=4, batch_size=32, projections=10, warmup=3),
    )
    assert found.pretrained < 0.2  # of data with deviation 1: a linear map of rank 2 copies
    assert_allclose(found.prior.means["encoder.layers.1.weight"].shape, (2, 2))
    assert "trained on the same data" in str(found)
    assert "next to nothing" in str(found)  # nothing but warm-up
    changed = model.with_prior(found)
    assert changed.prior is not model.prior
    target = wh.condition(changed, x)
    assert np.isfinite(target.log_density(target.init(key=jr.key(0))))
    # The networks of this prior copy, those of the prior before do not.
    for prior, copies in (
        (found.prior, True),
        (autoencoder.GaussianPrior.fan_in(networks), False),
    ):
        problem = autoencoder.PriorProblem(model, x, start=prior)
        draw = jax.jit(
            lambda p, problem=problem: problem.made(p, jnp.asarray(x), 5, key=jr.key(0))
        )
        made = draw(prior.params)
        error = np.mean((made.reshape(5, *x.shape) - x) ** 2)
        assert error < 0.1 if copies else error > 0.5


def test_selection_by_train(selection):
    """The prior stays in warm-up; steps so large overshoot, and the best look is selected."""
    model, x = selection
    problem = autoencoder.PriorProblem(
        model, x, start=autoencoder.GaussianPrior.fan_in(model.networks(), per="net", scale=3.0)
    )
    procedure = autoencoder.DSWD(
        steps=8, draws=2, batch_size=8, projections=5, warmup=2, look_every=1, learning_rate=0.7
    )
    trained = wh.train(problem, procedure, key=jr.key(0), progress=False)
    (looks,) = trained.stats["sw2"]
    assert looks.shape == (8,)
    assert looks[0] == looks[1] != looks[2]
    assert 2 <= np.argmin(looks) < 7
    found = autoencoder.selected(problem, trained.state, key=jr.key(0))
    seen = jax.jit(lambda params: procedure._look(problem, params)[0])
    assert_allclose(seen(found.prior.params), looks.min(), rtol=1e-9)


def _sliced(a, b, rng):
    along = rng.normal(size=(400, a.shape[1]))
    along /= np.linalg.norm(along, axis=1)[:, None]
    return np.sqrt(np.mean((np.sort(a @ along.T, 0) - np.sort(b @ along.T, 0)) ** 2))


def test_what_cannot_be_told_from_data(selection):
    """The floor is a distance of halves, a root of 2 more than one of as many as there are."""
    model, x = selection
    start = autoencoder.GaussianPrior.fan_in(model.networks(), per="net")
    problem = autoencoder.PriorProblem(model, x, start=start)
    state = autoencoder.DSWD().init(problem, key=jr.key(0))
    found = autoencoder.selected(problem, state, key=jr.key(0))
    assert found.distances["selected"] == found.distances["start"]
    rng = np.random.default_rng(1)
    splits = [rng.permutation(x).reshape(2, 32, 2) for _ in range(200)]
    splits = [_sliced(a, b, rng) for a, b in splits]
    assert min(splits) < found.floor[0] < max(splits)
    assert found.floor[0] < found.floor[1]

    def said(after, rival):
        distances = {"start": (1.0, 2.0), "selected": (after, 2.0), "FanIn()": (rival, 2.0)}
        return str(dataclasses.replace(found, distances=distances, floor=(0.8, 2.0)))

    assert "cannot be told from data" in said(0.79 / 2**0.5, 2.0)
    assert "cannot be told from data" not in said(0.81 / 2**0.5, 2.0)
    assert "took 30% off" in said(0.7, 2.0)
    assert "changed next to nothing" in said(0.99, 2.0)
    assert "FanIn() is as near" in said(0.7, 0.69)
    assert "FanIn() is as near" not in said(0.7, 0.71)


def test_every_datum_is_seen_by_a_network_of_its_own(selection):
    """Images of one datum 400 times, and plain networks as layers usually begin."""
    model, x = selection
    start = autoencoder.GaussianPrior.fan_in(model.networks(), per="net")
    problem = autoencoder.PriorProblem(model, np.tile(x[:1], (400, 1)), start=start)
    made = np.asarray(images_of(model, start, problem.x, jr.key(0)))
    # Codes A x + a, images B z + b, entries of variance 1 / 2 or, of biases, 1.
    code = (x[0] @ x[0]) / 2 + 1
    variance = code + 1
    error = np.sqrt((2 * variance**2 + code**2 * 3) / 400)  # of a normal with random variance
    assert np.all(np.abs((made**2).mean(0) - variance) < 5 * error)
    plain = Reconstruction(problem)
    drawn = jax.vmap(lambda k: plain.start(key=k))(jr.split(jr.key(1), 4_000))
    weight = drawn["encoder.layers.1.weight"]
    assert_allclose(weight.var(), 1 / (3 * 2), rtol=5 * np.sqrt(2 / weight.size))
    assert np.all(drawn["encoder.layers.1.bias"] == 0)


def test_what_cannot_be_selected_is_named(selection):
    model, x = selection
    with pytest.raises(ValueError, match="at least 2 data.* got 1"):
        autoencoder.select_prior(model, x[:1], key=jr.key(0))
    with pytest.raises(ValueError, match="`start` must be a prior with something to select"):
        autoencoder.PriorProblem(model, x)
    with pytest.raises(ValueError, match="`family` must be one of"):
        autoencoder.select_prior(model, x, key=jr.key(0), family="all")
    with pytest.raises(ValueError, match="`problem` must be an instance of PriorProblem"):
        wh.train(x, autoencoder.DSWD(), key=jr.key(0))


# -- functions -------------------------------------------------------------------


def test_distances_of_functions_in_one_dimension():
    """Along one point all three have closed forms."""
    n, s1, s2 = 400, 0.7, 1.9
    quantiles = norm.ppf((np.arange(n) + 0.5) / n)
    functions = jnp.asarray(s1 * quantiles)[:, None]
    matrix = jnp.array([[s2**2]])
    u = (np.arange(200_000) + 0.5) / 200_000
    steps = np.repeat(s1 * quantiles, 500)
    exact = np.mean((steps - s2 * norm.ppf(u)) ** 2)
    process = Process(matrix, None)
    assert_allclose(sliced_power(functions, process, key=jr.key(0)), exact, rtol=1e-3)
    own = np.sqrt(np.mean((s1 * quantiles) ** 2))
    assert_allclose(bures_power(functions, matrix), (own - s2) ** 2, rtol=1e-9)


def test_the_metric_of_gaussians(key):
    """Bures of the moments of a sample and of a matrix, by its formula with square roots."""
    rng = np.random.default_rng(0)
    functions = rng.normal(size=(30, 3)) @ np.diag([1.0, 2.0, 0.5]) + 0.2
    root = rng.normal(size=(3, 3))
    matrix = root @ root.T
    values, vectors = np.linalg.eigh(matrix)
    half = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    own = np.cov(functions.T, bias=True)
    fidelity = np.sqrt(np.linalg.eigvalsh(half @ own @ half)).sum()
    exact = np.sum(functions.mean(0) ** 2) + np.trace(own) + np.trace(matrix) - 2 * fidelity
    assert_allclose(bures_power(jnp.asarray(functions), jnp.asarray(matrix)), exact, rtol=1e-9)


def test_the_critic_stays_below_the_exact_distance():
    rng = np.random.default_rng(0)
    functions, drawn = 2.0 * rng.normal(size=(64, 3)), rng.normal(size=(64, 3))
    found = float(
        critic_distance(jnp.asarray(functions), jnp.asarray(drawn), 300, key=jr.key(0))
    )
    cost = np.linalg.norm(functions[:, None] - drawn[None], axis=-1)
    exact = cost[linear_sum_assignment(cost)].mean()
    assert 0.5 * exact < found < 1.1 * exact


@pytest.mark.parametrize(
    "metric", ["sliced", "bures", pytest.param("critic", marks=pytest.mark.slow)]
)
def test_a_linear_network_recovers_its_scales(metric):
    """`f = x'W / sqrt(D) + b` is a GP with kernel `s_w^2 x'x / D + s_b^2`."""
    linear = eqx.nn.Linear(3, 1, key=jr.key(0))
    truth = 1.8, 0.4
    kernel = lambda x: truth[0] ** 2 * x @ x.T / 3 + truth[1] ** 2
    x = np.random.default_rng(0).normal(size=(40, 3))
    steps = 150 if metric == "critic" else 300
    found = autoencoder.match_prior(
        linear,
        kernel,
        x,
        key=jr.key(0),
        metric=metric,
        draws=256,
        jitter=1e-4,
        critic_steps=60,
        fit=autoencoder.Adam(steps, 0.03, 8),
    )
    scales = [np.exp(float(found.prior.log_scales[name])) for name in ("weight", "bias")]
    loose = 0.3 if metric == "critic" else 0.08
    assert_allclose(scales[0], truth[0], rtol=loose)
    assert_allclose(scales[1], truth[1], atol=loose)
    assert found.after < found.before
    if metric == "sliced":
        assert "cannot be told" in str(found)


def test_a_wide_network_matches_its_own_limit():
    """A network that starts elsewhere comes to the kernel of the description."""
    limit = nngp.Serial(nngp.Dense(2.0, 0.5), nngp.Erf(), nngp.Dense(1.5, 0.1))
    mlp = eqx.nn.MLP(2, 1, 64, 1, jax.scipy.special.erf, key=jr.key(0))
    x = np.random.default_rng(0).normal(size=(40, 2))
    found = autoencoder.match_prior(
        mlp, limit, x, key=jr.key(0), draws=256, fit=autoencoder.Adam(150, 0.04, 12)
    )
    own = {n: float(jnp.exp(2 * v)) for n, v in found.prior.log_scales.items()}
    learned = nngp.Serial(
        nngp.Dense(own["layers.0.weight"], own["layers.0.bias"]),
        nngp.Erf(),
        nngp.Dense(own["layers.1.weight"], own["layers.1.bias"]),
    )
    goal, got = limit.nngp(x), learned.nngp(x)
    before = nngp.Serial(nngp.Dense(1.0, 1.0), nngp.Erf(), nngp.Dense(1.0, 1.0)).nngp(x)
    off = lambda k: np.linalg.norm(k - goal) / np.linalg.norm(goal)
    assert off(before) > 0.25
    # Variances of 256 draws have an error of 9%.
    assert off(got) < 0.15
    assert found.after < 0.5 * found.before


def _problem(kernel, x, metric, draws):
    linear = eqx.nn.Linear(1, 1, key=jr.key(0))
    prior = autoencoder.GaussianPrior.fan_in(linear)
    network = autoencoder.RandomNetwork(linear, prior, start="prior")
    return FunctionalFit(network, prior, kernel, jnp.asarray(x), draws, metric, 1e-6, 1)


def test_functions_of_a_hierarchical_process_have_their_own_scales():
    """Covariances are those of a mean over hyper-parameters; functions are no Gaussian ones."""
    x = np.array([[0.0, 0.0], [0.5, -1.0], [3.0, 1.0]])
    fixed = autoencoder.HierarchicalKernel(dist.Delta(0.7), dist.Delta(2.0))
    gap = ((x[:, None] - x[None]) ** 2).sum(-1)
    assert_allclose(fixed(jnp.asarray(x), key=jr.key(0)), 2 * np.exp(-gap / (2 * 0.7**2)))
    kernel = autoencoder.HierarchicalKernel(variance=dist.InverseGamma(6.0, 5.0))
    draws = 100_000
    process = _problem(kernel, x, "bures", draws).process(jnp.asarray(x), key=jr.key(1))
    law = invgamma(6, scale=5)
    error = 4.5 * law.std() / np.sqrt(draws)
    assert_allclose(jnp.diagonal(process.matrix), law.mean(), atol=error)
    square = np.asarray(process.draws) ** 2
    second = law.var() + law.mean() ** 2
    assert_allclose(square.mean(0), law.mean(), atol=4.5 * np.sqrt(3 * second / draws))
    # The fourth moment is 3 E v^2, that of a Gaussian process would be 3 (E v)^2, 20% less.
    fourth = (square**2).mean(0)
    assert_allclose(fourth, 3 * second, atol=4.5 * np.max((square**2).std(0)) / np.sqrt(draws))
    # Length scales: the mean correlation of two points by quadrature over one of each feature.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    scale = np.exp(0.5 * np.log(4) + nodes)
    each = lambda d: weights @ np.exp(-(d**2) / (2 * scale**2)) / weights.sum()
    exact = law.mean() * each(0.5) * each(1.0)
    assert_allclose(process.matrix[0, 1], exact, atol=error)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["sliced", "bures"])
def test_a_scale_is_matched_to_a_hierarchical_process(metric):
    """Functions b + 0 x with b Gaussian, of a process of random constants, at one scale."""
    kernel = autoencoder.HierarchicalKernel(dist.Delta(1e3), dist.LogNormal(0.1, 1.0))
    found = autoencoder.match_prior(
        eqx.nn.Linear(1, 1, key=jr.key(0)),
        kernel,
        np.array([[0.0], [1e-3]]),
        key=jr.key(0),
        metric=metric,
        draws=1_024,
        jitter=1e-6,
        fit=autoencoder.Adam(400, 0.02),
    )
    rng = np.random.default_rng(0)
    sample = np.sqrt(rng.lognormal(0.1, 1.0, 10**6)) * rng.normal(size=10**6)
    # Of Gaussians with W2 along a line: the covariance of quantiles; with moments: the spread.
    quantiles = norm.ppf((np.arange(10**6) + 0.5) / 10**6)
    best = {"sliced": np.mean(quantiles * np.sort(sample)), "bures": sample.std()}[metric]
    assert_allclose(np.exp(float(found.prior.log_scales["bias"])), best, rtol=0.08)


def test_what_matching_says_and_jitter_of_a_kernel():
    prior = autoencoder.GaussianPrior.fan_in(eqx.nn.Linear(1, 1, key=jr.key(0)))
    said = lambda *v: str(autoencoder.MatchedPrior(prior, *v, np.zeros(1)))
    assert "cannot be told" in said(1.0, 0.29, 0.2)
    assert "cannot be told" not in said(1.0, 0.31, 0.2)
    assert "next to nothing" in said(1.0, 0.96, 0.2)
    assert "next to nothing" not in said(1.0, 0.94, 0.2)
    x = jnp.array([[1.0], [3.0]])
    found = _problem(lambda x: x @ x.T, x, "bures", 2).covariance(x, key=jr.key(0))
    assert_allclose(found - x @ x.T, 1e-6 * 5.0 * np.eye(2), rtol=1e-6, atol=1e-15)


def test_what_cannot_be_matched_is_named():
    mlp = eqx.nn.MLP(1, 1, 4, 1, key=jr.key(0))
    x = np.array([[0.0], [0.0], [1.0]])
    kernel = lambda x: jnp.exp(-((x - x.T) ** 2))
    with pytest.raises(ValueError, match="smallest eigenvalue is .* Inputs may be alike"):
        autoencoder.match_prior(mlp, kernel, x, key=jr.key(0), jitter=1e-20)
    with pytest.raises(ValueError, match=r"matrix of shape \(3, 3\); got \(3, 1\)"):
        autoencoder.match_prior(mlp, lambda x: x, x, key=jr.key(0), jitter=1e-20)
    with pytest.raises(ValueError, match="at least 2 finite inputs"):
        autoencoder.match_prior(mlp, kernel, x[:1], key=jr.key(0))
    with pytest.raises(ValueError, match="`metric` must be one of"):
        autoencoder.match_prior(mlp, kernel, x, key=jr.key(0), metric="w1")
