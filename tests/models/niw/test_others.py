"""The twin of Gaussian processes, learners of initial weights, plates, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.infer
import pytest
from linear_tasks import gibbs, model, quadratics, tasks
from numpy.testing import assert_allclose

import whence as wh
from whence.diagnostics import ess_bulk
from whence.models import niw
from whence.models.niw._meta import TaskLoss
from whence.models.nngp import Dense, Erf, InverseGamma, ScaleMixture, Serial

WIDE = Serial(Dense(2.0, 0.3), Erf(), Dense())


def test_evidence_of_the_twin():
    x, y, _ = tasks(1, points=6)
    twin = niw.Twin(WIDE, InverseGamma(3.0, 2.0), 0.1)
    want = ScaleMixture(WIDE, InverseGamma(3.0, 2.0), 0.1).log_evidence(x[0][:4], y[0][:4])
    mask = jnp.arange(6) < 4
    found = twin.log_evidence(jnp.asarray(x[0]), jnp.asarray(y[0]), mask)
    assert_allclose(found, want, rtol=1e-6)
    assert float(twin.process.network.layers[-1].bias_variance) == 0


def test_the_twin_learns_law_and_noise_from_many_tasks():
    """Data of the model itself: scale law and noise come back."""
    truth, rng = ScaleMixture(WIDE, InverseGamma(3.0, 6.0), 0.05), np.random.default_rng(0)
    x = rng.normal(size=(400, 8, 1))
    kernels = np.stack([np.asarray(WIDE.nngp(row)) for row in x[:1]])
    roots = np.linalg.cholesky(kernels[0] + 0.05 * np.eye(8))
    x = np.repeat(x[:1], 400, axis=0)
    v = 6.0 / rng.gamma(3.0, size=400)
    y = np.sqrt(v)[:, None] * (rng.normal(size=(400, 8)) @ roots.T)
    start = niw.Twin(WIDE, InverseGamma(1.0, 1.0), 0.5)
    # Only the law and the noise are learned here: the kernel is not told apart by 8 inputs.
    problem = start.on(niw.Tasks(x, y))
    trained = wh.train(problem, niw.SummedEvidence(steps=400, batch=50), key=0, progress=False)
    found = trained.state.model.process
    every = jax.jit(
        lambda twin: jnp.mean(jax.vmap(twin.log_evidence)(x, y, np.ones((400, 8), bool)))
    )
    known = niw.Twin(truth.network, truth.scale, 0.05)
    gap = every(known) - every(jax.tree.map(jnp.asarray, trained.state.model))
    assert abs(gap) < 0.05  # nats a task; the start is off by more than ten times that
    assert every(known) - every(start) > 0.5
    assert 1.8 < float(found.scale.shape) < 5.0
    assert float(found.network.layers[-1].bias_variance) == 0  # zeros stay


def _network(outputs=1, likelihood=None, random=eqx.is_inexact_array):
    net = eqx.nn.MLP(2, outputs, 4, 1, activation=jnp.tanh, key=jr.key(0))
    return niw.NIWMeta(net, likelihood or niw.Gaussian(0.3), random=random)


X, Y, _ = tasks(4, points=8)
BATCH = niw.Batch(jnp.asarray(X), jnp.asarray(Y), jnp.ones((4, 8), bool))


def _gradient(rule, meta, **settings):
    procedure = niw.PointMeta(rule=rule, support=4, batch=4, **settings)

    def loss(mean):
        new = eqx.tree_at(lambda m: m.population.mean, meta, mean[None])
        return procedure.losses(new, BATCH, key=jr.key(0))[0]

    mean = meta.population.mean[0]
    return jax.jit(loss), jax.jit(jax.grad(loss))(mean), mean


def test_maml_is_differentiated_through_its_steps():
    loss, gradient, mean = _gradient("maml", _network(), inner_steps=3, inner_rate=0.05)
    for i in (0, 5, 12):
        step = 1e-5 * jnp.eye(len(mean))[i]
        assert_allclose(gradient[i], (loss(mean + step) - loss(mean - step)) / 2e-5, rtol=1e-4)
    _, first, _ = _gradient("first_order", _network(), inner_steps=3, inner_rate=0.05)
    assert np.abs(first - gradient).max() > 1e-3 * np.abs(gradient).max()


def test_imaml_has_the_gradient_of_a_minimum():
    """On linear tasks the minimum and its derivative are in closed form."""
    _, gradient, mean = _gradient(
        "imaml", model(), inner_steps=400, inner_rate=0.02, proximity=2.0
    )
    from whence.models.niw._tasks import subset

    want = np.zeros(2)
    for x, y, k in zip(X, Y, jr.split(jr.key(0), 4)):
        held = np.asarray(subset(jnp.asarray(y), jnp.ones(8, bool), 4, key=k))
        h = x[held].T @ x[held] / 0.09 / 4
        pull = x[held].T @ y[held] / 0.09 / 4
        inverse = np.linalg.inv(h + 2 * np.eye(2))
        theta = inverse @ (pull + 2 * np.asarray(mean))
        query = x[~held].T @ (x[~held] @ theta - y[~held]) / 0.09 / 4
        want += 2 * inverse @ query / 4
    assert_allclose(gradient, want, rtol=1e-4)


def test_reptile_moves_towards_adapted_weights():
    meta = model()
    procedure = niw.PointMeta(rule="reptile", inner_steps=3, inner_rate=0.02, batch=4)
    _, gradient, mean = _gradient("reptile", meta, inner_steps=3, inner_rate=0.02)
    own = [procedure.descend(TaskLoss(meta, *one), mean) for one in zip(*BATCH)]
    assert_allclose(gradient, np.mean([mean - w for w in own], axis=0), rtol=1e-6)
    # The hierarchy with its posterior held fixed: the same direction, times the precision.
    law = niw.ProductNIW(mean, 1e9, jnp.full(2, 0.5), 1.0)
    divergence = lambda m: eqx.tree_at(lambda p: p.mean, law, m).expected_kl(
        own[0], jnp.ones(2)
    )
    assert_allclose(jax.grad(divergence)(mean), 2 * (mean - own[0]), rtol=1e-6)


def test_prototype_networks_and_adapting_by_gradients():
    rng = np.random.default_rng(0)
    y = np.tile(np.repeat(np.arange(3), 5), (30, 1))
    # Classes are told by the angle alone: an embedding has to be learned.
    angle = 2.1 * y + rng.uniform(0, 6.3, (30, 1)) + 0.1 * rng.normal(size=y.shape)
    radius = rng.uniform(0.2, 3.0, y.shape)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    meta = _network(2, niw.Prototypes(3))
    rule = niw.PointMeta(rule="prototypes", support=2, steps=400, batch=10, learning_rate=0.02)
    trained = wh.train(meta.on(niw.Tasks(x, y)), rule, key=0, progress=False)

    def accuracy(fit):
        right = []
        for a, b in zip(x[:10], y[:10]):
            chosen = np.array([0, 5, 10])
            predicted = rule.adapt(fit, a[chosen], b[chosen]).predict(a, draws=1)
            right.append(np.mean(predicted.mean.argmax(1) == b))
        return np.mean(right)

    assert accuracy(trained) > accuracy(meta) + 0.03
    with pytest.raises(ValueError, match="`rule` must be one of"):
        niw.PointMeta(rule="sgd")


def test_plates_sampled_by_nuts_agree_with_gibbs():
    """The same hierarchy with every theta sampled: an independent route to (mu, Sigma)."""
    x, y, _ = tasks(12)
    b, a = quadratics(x, y)
    prior = niw.NIW(np.zeros(2), 0.5, 0.5 * np.eye(2), 5.0)
    target = wh.from_numpyro(niw.plates(model(), prior, x, y))
    posterior = wh.infer(
        target, wh.NUTS(chains=2, draws=500, warmup=400), key=0, progress=False
    )
    mu, sigma = gibbs(b, a, prior, 4_000)
    found = np.linalg.inv(posterior["precision"])
    for drawn, want in (
        (posterior["mu"], mu[200:]),
        (found, sigma[200:]),
    ):
        ess = np.asarray(ess_bulk(drawn))
        assert ess.min() > 100
        error = want.std(0) * np.sqrt(1 / ess + 1 / 1_500)
        assert np.all(np.abs(np.mean(drawn, axis=(0, 1)) - want.mean(0)) < 5 * error)


def test_plates_of_a_product_have_its_law():
    """Draws that know no data: moments of precisions, of mu and of weights, in 5 errors."""
    law = niw.ProductNIW(np.array([1.0, -2.0]), 4.0, np.array([3.0, 0.5]), 6.0)
    program = niw.plates(model("diagonal"), law, X, Y)
    number = 4_000
    drawn = numpyro.infer.Predictive(program, num_samples=number)(jr.key(0))
    found = {name: np.asarray(drawn[name]) for name in ("precision", "mu", "theta")}
    exact = law.df / law.scale  # of a Gamma(3, scale / 2) law, whose deviation is mean / 3^0.5
    error = np.asarray(exact) / np.sqrt(3 * number)
    assert np.all(np.abs(found["precision"].mean(0) - exact) < 5 * error)
    white = (found["mu"] - law.mean) * np.sqrt(4 * found["precision"])
    assert np.all(np.abs(white.var(0) - 1) < 5 * np.sqrt(2 / number))
    white = (found["theta"] - found["mu"][:, None]) * np.sqrt(found["precision"])[:, None]
    assert np.all(np.abs(white.var(0) - 1) < 5 * np.sqrt(2 / number))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_outputs_vary_between_tasks_by_a_known_size_at_the_start(covariance):
    """A linear network: the mean of x'Sx over the inputs."""
    found = model(covariance, components=2).on(niw.Tasks(X, Y)).model
    given = model(covariance, components=2, precision=4.0).on(niw.Tasks(X, Y)).model
    size = {}
    for name, meta in (("found", found), ("given", given)):
        law = jax.tree.map(lambda a: a[1], meta.population.covariance)
        size[name] = np.mean([x @ law.times(x) for x in X.reshape(-1, 2)])
    assert_allclose(size["found"], 1)
    assert_allclose(size["given"], np.mean(np.sum(X**2, -1)) / 4)
    # Components begin as far apart as tasks are.
    apart = [np.linalg.norm(np.diff(m.population.mean, axis=0)) for m in (found, given)]
    assert_allclose(apart[0] / apart[1], (size["found"] / size["given"]) ** 0.5)


@pytest.mark.parametrize("likelihood", [niw.Categorical(3), niw.Prototypes(3)])
def test_where_scores_are_not_linear_tasks_begin_close(likelihood):
    meta = _network(3, likelihood)
    if not likelihood.separable:
        meta = niw.NIWMeta(eqx.nn.Linear(2, 3, key=jr.key(0)), likelihood)
    law = meta.on(niw.Tasks(X, LABELS)).model.population.covariance
    assert_allclose(law.log_precision, np.log(100))
    if not likelihood.separable:  # where inputs are large, embeddings vary by 1 in length
        law = meta.on(niw.Tasks(10 * X, LABELS)).model.population.covariance
        square = 3 * np.mean(1 + np.sum((10 * X) ** 2, axis=-1))
        assert_allclose(law.log_precision, np.log(square), rtol=1e-6)


TASKS, PRODUCT = niw.Tasks(X, Y), niw.ProductNIW([0, 0], 1, [1, 1], 1)
WRONG = niw.OneTimeIterates(batch=4, points=(5, 2))
LABELS = np.tile([0, 1, 2, 0, 1, 2, 0, 1], (4, 1))


def _lacking():
    labels = LABELS.copy()
    labels[2] = labels[2] % 2
    return labels


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: model(df=1.0), r"`df` must be above d - 1 = 1 with `covariance='full'`"),
        (lambda: niw.Tasks([X[0], X[1][:3]], [Y[0], Y[1][:3]]), "need a mask"),
        (lambda: niw.Tasks(X, Y[:, :5]), "must have shapes .task, point"),
        (lambda: niw.Tasks(X, Y, np.zeros((4, 8), bool)), "task 0 has none"),
        (
            lambda: niw.Tasks(X, Y, np.ones((4, 7), bool)),
            "`mask` must be of booleans, of shape",
        ),
        (lambda: niw.Tasks(X, np.where(Y[1, 2] == Y, np.nan, Y)), "point 2 of task 1 is not"),
        (lambda: niw.Tasks.ragged([X[0]], [Y[0][:2]]), "`y` must have a row for each row"),
        (lambda: niw.Episodes(3), "`sample` must be a function of a key"),
        (lambda: niw.adapt(model(), X[0][:0], Y[0][:0]), "at least one support point"),
        (
            lambda: niw.adapt(model(), X[0], Y[0], mask=np.zeros(8, bool)),
            "at least one support",
        ),
        (lambda: niw.adapt(model(), X[0], Y[0], method="map"), "`method` must be one of"),
        (lambda: niw.adapt(model(), X[0], Y[0], prior="mode"), "needs the degrees of freedom"),
        (lambda: niw.adapt(3, X[0], Y[0]), "`fit` must be what `whence.train"),
        (lambda: niw.adapt(model(), X[0], Y[0]).predict(X[0][:, :1]), "`x` must have shape"),
        (
            lambda: niw.adapt(model(), X[0], Y[0], local=niw.GGNLaplace(structure="kronecker")),
            "needs a model with `covariance='diagonal'`",
        ),
        (lambda: _network(random=lambda leaf: False), "`random` must select arrays"),
        (lambda: _network(random=lambda net: net.nothing), "`random` must select arrays"),
        (lambda: _network(random=3), "`random` must be a filter of leaves"),
        (lambda: model(covariance="wide"), "`covariance` must be one of"),
        (lambda: model(tails=-1.0), "`tails` must be positive"),
        (lambda: niw.Gaussian(0.0), "`scale` must be positive"),
        (lambda: niw.Categorical(1), "`classes` must be at least 2"),
        (lambda: model().on((X, Y)), "`tasks` must be `niw.Tasks` or `niw.Episodes`"),
        (lambda: model().on(niw.Tasks(X[..., :1], Y)), "`x` must hold inputs of the network"),
        (
            lambda: model().on(niw.Tasks(X, Y[..., None].repeat(2, 2))),
            "`y` must have 1 numbers",
        ),
        (lambda: model().on(niw.Tasks(X, LABELS)), "`y` must be floating-point numbers"),
        (
            lambda: _network(3, niw.Categorical(3)).on(niw.Tasks(X, _lacking())),
            "task 2 lacks label 2",
        ),
        (lambda: _network(3, niw.Categorical(2)).on(niw.Tasks(X, LABELS)), "outputs, 3; got 2"),
        (
            lambda: _network(3, niw.Prototypes(2)).on(niw.Tasks(X, LABELS)),
            "labels 0 to 1; got 2",
        ),
        (lambda: niw.SGLDMoments(steps=5, warmup=4), "`warmup` must be at most"),
        (lambda: niw.SGLDMoments(clip=(2.0, 1.0)), "`clip` must be a least and a larger"),
        (lambda: niw.plates(model(), niw.NIW([0.0], 1.0, [[1.0]], 3.0), X, Y), "over the 2"),
        (
            lambda: wh.train(model().on(TASKS), niw.OneTimeIterates(batch=9), key=0),
            "`batch` must be at most the number of tasks, 4; got 9",
        ),
        (
            lambda: wh.train(
                model().on(TASKS), niw.OneTimeIterates(batch=4, points=(5, 2)), key=0
            ),
            "`points` must be at least 5; got 2",
        ),
        (
            lambda: wh.train(
                model().on(TASKS), niw.OneTimeIterates(batch=4, support=(8, 8)), key=0
            ),
            "`support` must leave points to predict, of 8",
        ),
        (
            lambda: wh.train(model().on(TASKS), niw.OneTimeIterates(batch=4, support=3), key=0),
            "`support` must be two numbers",
        ),
        (lambda: niw.Tasks.ragged([], []), "at least one task"),
        (lambda: wh.train(TASKS, niw.OneTimeIterates(), key=0), "must be a model on tasks"),
        (
            lambda: niw.coordinate_ascent(
                X[:, 0], X[:, :2], niw.ProductNIW([0, 0], 1, [1, 1], 1)
            ),
            "`centres` must have shape",
        ),
    ],
)
def test_bad_input_is_named_before_compiling(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("name", ["x", "y"])
def test_units_that_networks_are_not_made_for_are_told(name):
    tasks = niw.Tasks(*(1e4 * a if n == name else a for n, a in (("x", X), ("y", Y))))
    with pytest.warns(wh.InferenceWarning, match=f"`{name}` is of size .*e\\+04"):
        model().on(tasks)
