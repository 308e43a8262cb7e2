"""Learning from tasks: oracles of quadratic tasks, gradients, memory, the loop."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from linear_tasks import NOISE, gibbs, model, quadratics, tasks, type_two
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.special import logsumexp

import whence as wh
from whence.models import niw
from whence.models.niw._covariance import full
from whence.models.niw._meta import TaskLoss
from whence.models.niw._objective import local_posterior, task_objective
from whence.models.niw._tasks import subset

X, Y, _ = tasks(40)
B, A = quadratics(X, Y)
ONCE = niw.GGNLaplace(steps=0)


def _at(meta, mean, sigma):
    covariance = jax.tree.map(lambda a: a[None], full(jnp.asarray(sigma)))
    population = niw.Population(jnp.zeros(1), jnp.asarray(mean)[None], covariance)
    return eqx.tree_at(lambda m: m.population, meta, population)


def _evidence(meta, x, y, mask=None):
    mask = jnp.ones(len(y), bool) if mask is None else mask
    return _evidence_of(TaskLoss(meta, jnp.asarray(x), jnp.asarray(y), mask))


@eqx.filter_jit
def _evidence_of(loss):
    meta = loss.meta
    found = local_posterior(loss, meta.population, meta.scales, ONCE, jr.key(0))
    return jax.nn.logsumexp(found.log_prior - found.combined.energy)


def test_the_bound_of_a_linear_task_is_its_evidence():
    meta = _at(model(), [0.3, 0.1], [[0.5, 0.1], [0.1, 0.4]])
    covariance = X[0] @ np.array([[0.5, 0.1], [0.1, 0.4]]) @ X[0].T + NOISE**2 * np.eye(5)
    want = stats.multivariate_normal(X[0] @ [0.3, 0.1], covariance).logpdf(Y[0])
    assert_allclose(_evidence(meta, X[0], Y[0]), want, rtol=1e-8)
    # The reparameterised objective has it for its mean, in a mixture with tails, too.
    mixed = model(components=2, tails=4.0)
    covariance = jax.tree.map(lambda a: a + 0.2, mixed.population.covariance)
    population = niw.Population(
        jnp.array([0.0, 1.0]), jnp.array([[0.3, 0.1], [1.0, -1.0]]), covariance
    )
    mixed = eqx.tree_at(lambda m: m.population, mixed, population)
    task = niw.Batch(jnp.asarray(X[0]), jnp.asarray(Y[0]), jnp.ones(5, bool))
    for one in (meta, mixed):
        objective = jax.vmap(lambda k: task_objective(one, ONCE, task, None, 2, k)[0])
        each = jax.jit(objective)(jr.split(jr.key(1), 2_000))
        assert abs(each.mean() + _evidence(one, X[0], Y[0])) < 4.5 * each.std() / 2_000**0.5


def test_type_two_maximum_likelihood_is_where_the_gradient_vanishes():
    mu, sigma = type_two(B, A)

    def mean_evidence(population, meta):
        meta = eqx.tree_at(lambda m: m.population, meta, population)
        return jnp.mean(jax.vmap(lambda x, y: _evidence(meta, x, y))(X, Y))

    gradient = jax.jit(jax.grad(mean_evidence))
    for mean, matrix, is_optimum in ((mu, sigma, True), (mu + 0.1, sigma, False)):
        meta = _at(model(), mean, matrix)
        slope = gradient(meta.population, meta)
        size = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(slope))
        assert (size < 1e-6) == is_optimum


def test_stochastic_optimum_is_type_two_maximum_likelihood():
    mu, sigma = type_two(B, A)
    procedure = niw.OneTimeIterates(
        local=ONCE, steps=3_000, batch=40, learning_rate=0.03, pairs=4, clip=1e3
    )
    problem = model(precision=1.0).on(niw.Tasks(X, Y))
    trained = wh.train(problem, procedure, key=0, progress=False)
    population = trained.state.model.population
    assert_allclose(population.mean[0], mu, atol=0.01)
    tril = niw.Full(jnp.asarray(population.covariance.lower[0])).tril
    assert_allclose(tril @ tril.T, sigma, atol=0.015)


# A prior that counts: another mean, worth five tasks.
PRIOR = niw.NIW([2.0, 0.5], 5.0, 0.5 * np.eye(2), 4.0)


def test_coordinate_ascent_against_gibbs():
    found = niw.coordinate_ascent(B, A, PRIOR, rounds=60)
    assert np.all(np.diff(found.elbo) > -1e-8)
    assert_allclose(found.elbo[-1], found.elbo[-2], rtol=1e-12)
    mu, sigma = gibbs(B, A, PRIOR, 4_000)
    law = found.law
    expected = law.scale / (law.df - 3)
    # Means agree to the order of the factorisation, 1 / tasks; the trial had 2% and 6%.
    assert_allclose(expected, sigma[200:].mean(0), rtol=0.04)
    assert_allclose(law.mean, mu[200:].mean(0), atol=0.02)
    deviation = np.sqrt(np.diag(expected) / law.strength)
    assert_allclose(deviation, mu[200:].std(0), rtol=0.1)
    # Of the exact evidence it is a lower bound: that by draws of the prior, for two tasks.
    few = niw.coordinate_ascent(B[:2], A[:2], PRIOR, rounds=60)
    keys = jr.split(jr.key(1), 40_000)
    inverse = np.linalg.inv(A[:2])

    def log_prob(mu, sigma):
        one = lambda b, v: jax.scipy.stats.multivariate_normal.logpdf(b, mu, sigma + v)
        # Losses have no normalising constant: that of N(b; theta, A^-1) is taken out.
        constants = jnp.linalg.slogdet(2 * jnp.pi * inverse)[1] / 2
        return jnp.sum(jax.vmap(one)(B[:2], inverse) + constants)

    values = np.asarray(jax.jit(jax.vmap(lambda k: log_prob(*PRIOR.sample(key=k))))(keys))
    log_evidence = logsumexp(values) - np.log(len(keys))
    weights = np.exp(values - values.max())
    error = weights.std() / weights.mean() / len(weights) ** 0.5
    assert few.elbo[-1] < log_evidence + 4 * error
    assert few.elbo[-1] > log_evidence - 1.5


def test_coordinate_ascent_of_many_tasks_is_type_two_maximum_likelihood():
    b, a = quadratics(*tasks(4_000, seed=3)[:2])
    mu, sigma = type_two(b, a, 200)
    law = niw.coordinate_ascent(b, a, PRIOR, rounds=200).law
    assert_allclose(law.mean, mu, atol=3e-3)
    assert_allclose(jnp.linalg.inv(law.expected_precision), sigma, rtol=0.01, atol=4e-3)
    # The product, on curvatures without correlations, is the same for each weight.
    variance = np.stack([np.diag(m) for m in a])
    prior = niw.ProductNIW(np.zeros(2), 0.1, np.full(2, 0.5), 4.0)
    both = niw.coordinate_ascent(b, variance, prior, rounds=50)
    for i in range(2):
        one = niw.NIW([0.0], 0.1, [[0.5]], 4.0)
        alone = niw.coordinate_ascent(
            b[:, i : i + 1], variance[:, i, None, None], one, rounds=50
        )
        assert_allclose(both.law.scale[i], alone.law.scale[0, 0], rtol=1e-8)
        assert_allclose(both.means[:, i], alone.means[:, 0], rtol=1e-8)


def _network(**settings):
    net = eqx.nn.MLP(1, 1, 5, 1, activation=jnp.tanh, key=jr.key(2))
    return niw.NIWMeta(net, niw.Gaussian(0.3), precision=10.0, **settings)


def _sines(number=6, points=7, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, size=(number, points, 1))
    phase = rng.uniform(0, 3, size=(number, 1))
    return x, np.sin(x[..., 0] + phase) + 0.1 * rng.normal(size=(number, points))


@pytest.mark.parametrize(
    "covariance", ["low_rank", pytest.param("diagonal", marks=pytest.mark.slow)]
)
def test_gradient_with_the_surrogate_held_fixed(covariance):
    x, y = map(jnp.asarray, _sines())
    meta = _network(covariance=covariance, rank=2)
    local, mask, key = niw.GGNLaplace(steps=4), jnp.ones(7, bool), jr.key(5)
    loss = TaskLoss(meta, x[0], y[0], mask)
    held = local_posterior(loss, meta.population, meta.scales, local, key).surrogates

    class Held(niw.AbstractLocal):
        def fit(self, loss, mean, covariance, *, key):
            return jax.tree.map(lambda a: a[0], held)

        def check(self, covariance):
            pass

    def value(population, local):
        new = eqx.tree_at(lambda m: m.population, meta, population)
        return task_objective(new, local, niw.Batch(x[0], y[0], mask), None, 1, key)[0]

    gradient = jax.jit(jax.grad(lambda p: value(p, local)))(meta.population)
    fixed = jax.jit(lambda p: value(p, Held()))
    rng = np.random.default_rng(0)
    for _ in range(3):
        move = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), meta.population)
        step = lambda t: jax.tree.map(lambda a, b: a + t * b, meta.population, move)
        want = (fixed(step(1e-5)) - fixed(step(-1e-5))) / 2e-5
        got = sum(jnp.vdot(g, m) for g, m in zip(*map(jax.tree.leaves, (gradient, move))))
        assert_allclose(got, want, rtol=1e-5)


def test_held_out_points_are_predicted():
    """Many draws: the log predictive density of a linear task, in a mixture, too."""
    task = niw.Batch(jnp.asarray(X[0]), jnp.asarray(Y[0]), jnp.array([1, 1, 1, 1, 0], bool))
    support = jnp.array([1, 1, 0, 0, 0], bool)
    mixed = model(components=2, precision=2.0)
    means = jnp.array([[0.3, 0.1], [1.0, -1.0]])
    mixed = eqx.tree_at(lambda m: m.population.mean, mixed, means)
    for meta in (_at(model(), [0.3, 0.1], [[0.5, 0.1], [0.1, 0.4]]), mixed):
        predicted = niw.adapt(meta, X[0][:2], Y[0][:2], local=ONCE).predict(X[0][2:4])
        want = -predicted.log_prob(Y[0][2:4]).sum()
        one = lambda k: task_objective(meta, ONCE, task, support, 500, k)[0]
        each = jax.jit(jax.vmap(one))(jr.split(jr.key(2), 40))
        # The logarithm of a mean of 1000 draws is off by less than a thousandth here.
        assert abs(each.mean() - want) < 2e-3 + 4.5 * each.std() / 40**0.5


def test_held_out_points_are_learned_from_without_the_search():
    """The derivative is that of the whole computation, iterations included, by differences."""
    rng = np.random.default_rng(3)
    x, y = jnp.asarray(rng.normal(size=(9, 2))), jnp.asarray(np.arange(9) % 3)
    net = eqx.nn.MLP(2, 3, 4, 1, activation=jnp.tanh, key=jr.key(6))
    meta = niw.NIWMeta(net, niw.Categorical(3), random=lambda n: n.layers[-1], precision=0.5)
    task, local = niw.Batch(x, y, jnp.ones(9, bool)), niw.GGNLaplace(steps=0, newton=12)
    support, key = jnp.arange(9) >= 4, jr.key(1)
    parts = lambda m: (m.shared, m.population)
    learned = parts(meta)

    @jax.jit
    def value(learned):
        new = eqx.tree_at(parts, meta, learned)
        return task_objective(new, local, task, support, 2, key, 5)[0]

    gradient = jax.jit(jax.grad(value))(learned)
    move = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), learned)
    step = lambda t: value(jax.tree.map(lambda a, b: a + t * b, learned, move))
    got = sum(jnp.vdot(g, m) for g, m in zip(*map(jax.tree.leaves, (gradient, move))))
    assert_allclose(got, (step(1e-5) - step(-1e-5)) / 2e-5, rtol=1e-5)


def test_tasks_one_by_one_are_those_of_a_batch():
    x, y = map(jnp.asarray, _sines())
    meta, mask = _network(components=2, tails=4.0), jnp.ones((6, 7), bool)
    keys = jr.split(jr.key(0), 6)
    local, support = niw.SGLDMoments(), mask.at[:, 4:].set(False)

    def one(most, x, y, mask, support, key):
        args = meta, local, niw.Batch(x, y, mask)
        value = task_objective(*args, None, 1, key)[0]
        return value, task_objective(*args, support, 1, key, most)[0]

    args = x, y, mask, support, keys
    single = jax.jit(partial(one, 4))  # of no more than the points that there are
    alone = [single(*args) for args in zip(*args)]
    for together, each in zip(jax.jit(jax.vmap(partial(one, None)))(*args), zip(*alone)):
        assert_allclose(together, jnp.stack(each), rtol=1e-9)


@pytest.mark.parametrize("local", [niw.GGNLaplace(29, 29), niw.SGLDMoments(29, 3)])
@pytest.mark.parametrize("support", [None, jnp.arange(7) < 3])
def test_nothing_of_the_inner_steps_is_stored(local, support):
    """Residuals of a scan are arrays with an axis of its length."""
    x, y = map(jnp.asarray, _sines())
    meta = _network()
    arrays, rest = eqx.partition(meta, eqx.is_inexact_array)

    def loss(arrays):
        task = niw.Batch(x[0], y[0], jnp.ones(7, bool))
        meta = eqx.combine(arrays, rest)
        return task_objective(meta, local, task, support, 1, jr.key(0))[0]

    def shapes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape"))
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(inner):
                    yield from shapes(getattr(inner, "jaxpr", inner))

    stored = {s for s in shapes(jax.make_jaxpr(jax.grad(loss))(arrays).jaxpr) if 29 in s}
    size = meta.num_weights
    assert not any(size in s for s in stored), stored

    def unrolled(arrays):  # the same search, differentiated through, does store them
        meta = eqx.combine(arrays, rest)
        task = TaskLoss(meta, x[0], y[0], jnp.ones(7, bool))
        mean = meta.population.mean[0]
        step = lambda w, _: (w - 0.1 * jax.grad(task)(w), None)
        return task(jax.lax.scan(step, mean, None, length=29)[0])

    found = shapes(jax.make_jaxpr(jax.grad(unrolled))(arrays).jaxpr)
    assert any(29 in s for s in found)


def test_eigenvectors_of_a_surrogate_are_not_differentiated():
    """At inputs of 0 the first layer's curvature is 0: all of its eigenvalues are equal."""
    x, y = map(jnp.asarray, _sines())
    task, local = (
        niw.Batch(0 * x[0], y[0], jnp.ones(7, bool)),
        niw.GGNLaplace(0, 0, 0.1, "kronecker"),
    )
    loss = lambda m: task_objective(m, local, task, jnp.arange(7) < 3, 1, jr.key(0))[0]
    gradient = eqx.filter_jit(eqx.filter_grad(loss))(_network())
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def _is_jaxpr(value):
    return isinstance(value, Jaxpr | ClosedJaxpr)


def _episodes(key):
    key_x, key_phase, key_noise = jr.split(key, 3)
    x = jr.uniform(key_x, (5, 7, 1), minval=-2, maxval=2)
    y = jnp.sin(x[..., 0] + jr.uniform(key_phase, (5, 1)) * 3)
    return x, y + 0.1 * jr.normal(key_noise, y.shape)


def test_endless_episodes_resumed_bit_for_bit(tmp_path):
    problem = _network(tails=5.0).on(niw.Episodes(_episodes))
    procedure = niw.OneTimeIterates(
        local=niw.GGNLaplace(steps=2), steps=60, batch=5, points=(3, 6), learning_rate=0.01
    )
    whole = wh.train(problem, procedure, key=1, chunk_steps=20, progress=False)
    assert whole.stats["loss"].shape == (1, 60)
    early, late = whole.stats["loss"][0, :10].mean(), whole.stats["loss"][0, -10:].mean()
    assert late < early
    from whence.running import _loop

    calls, advance = [], _loop.Worker.advance

    def interrupted(self, stop):
        calls.append(stop)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return advance(self, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_loop.Worker, "advance", interrupted)
        with pytest.raises(RuntimeError, match="killed"):
            wh.train(problem, procedure, key=1, chunk_steps=20, store=tmp_path / "a")
    again = wh.resume(tmp_path / "a", problem, engine=procedure)
    same = zip(
        *(jax.tree.leaves(eqx.filter(t.state, eqx.is_array_like)) for t in (whole, again))
    )
    for one, other in same:
        assert_array_equal(one, other)
    assert_array_equal(whole.stats["loss"], again.stats["loss"])


def test_masked_points_do_not_count():
    meta = _at(model(), [0.3, 0.1], np.eye(2))
    x = np.concatenate([X[0], 9 * np.ones((3, 2))])
    y = np.concatenate([Y[0], -50 * np.ones(3)])
    mask = jnp.arange(8) < 5
    assert_allclose(_evidence(meta, x, y, mask), _evidence(meta, X[0], Y[0]), rtol=1e-9)
    ragged = niw.Tasks.ragged([X[0], X[1][:2]], [Y[0], Y[1][:2]])
    assert_array_equal(ragged.mask.sum(1), [5, 2])
    assert_array_equal(ragged.x[1, :2], X[1][:2])


def test_some_points_at_random():
    mask = jnp.arange(9) < 7
    y = jnp.array([0, 0, 0, 1, 1, 2, 2, 2, 1])
    keys = jr.split(jr.key(0), 300)
    pick = lambda y, size: jax.vmap(lambda k: subset(y, mask, size, key=k))(keys)
    for size in (2, 5, 9):
        assert_array_equal(pick(1.0 * y, size).sum(1), min(size, 7))
    chosen = pick(y, 2)
    counts = jnp.stack([(chosen & (y == c)).sum(1) for c in range(3)], 1)
    assert_array_equal(counts, np.tile([2, 2, 2], (300, 1)))
    assert not chosen[:, 7:].any()
    share = chosen[:, :3].mean(0)  # each of the three, two times of three
    assert np.all(np.abs(share - 2 / 3) < 4.5 * np.sqrt(2 / 9 / 300))


def test_likelihood_scale_tempers():
    """1 / n on the sum is a task of noise larger by the root of n, apart from a constant."""
    cold = _at(model(likelihood_scale=0.25), [0.3, 0.1], np.eye(2))
    ordinary = _at(model(), [0.3, 0.1], np.eye(2))
    wide = eqx.tree_at(lambda m: m.likelihood, ordinary, niw.Gaussian(2 * NOISE))
    constant = 5 * np.log(2 * NOISE) - 1.25 * np.log(NOISE) + 3.75 * np.log(2 * np.pi) / 2
    assert_allclose(
        _evidence(cold, X[0], Y[0]), _evidence(wide, X[0], Y[0]) + constant, rtol=1e-8
    )


def test_sgd_learns_shared_arrays_and_noise():
    """Only the last layer varies; hidden features and the noise are found for all tasks."""
    x, y = _sines(60, 12)
    net = eqx.nn.MLP(1, 1, 8, 1, activation=jnp.tanh, key=jr.key(2))
    meta = niw.NIWMeta(
        net,
        niw.Gaussian(1.0, learn=True),
        random=lambda n: n.layers[-1],
        covariance="full",
        precision=1.0,
    )
    assert meta.num_weights == 9
    procedure = niw.OneTimeIterates(
        local=ONCE, steps=1_500, batch=20, learning_rate=0.02, pairs=2
    )
    trained = wh.train(meta.on(niw.Tasks(x, y)), procedure, key=0, progress=False)
    learned = trained.state.model
    assert abs(np.exp(learned.likelihood.log_scale) - 0.1) < 0.02
    hidden = lambda m: np.asarray(m.network(jnp.asarray(m.population.mean[0])).layers[0].weight)
    assert np.abs(hidden(learned) - hidden(meta)).max() > 0.05
    # What other tasks taught makes two points enough.
    x_new, y_new = _sines(40, 12, seed=9)
    predict = lambda x, y: (
        niw.adapt(trained, x[:2], y[:2], local=ONCE).predict(x[2:]).mean[:, 0]
    )
    error = np.asarray(jax.vmap(predict)(x_new, y_new)) - y_new[:, 2:]
    assert np.mean(error**2) < 0.1


def test_three_tasks_are_a_batch_by_default():
    few = niw.Tasks(X[:3], Y[:3])
    rule = partial(niw.OneTimeIterates, local=ONCE, steps=2)
    run = lambda **batch: wh.train(model().on(few), rule(**batch), key=0, progress=False)
    assert_allclose(run().stats["loss"], run(batch=3).stats["loss"], rtol=1e-6)
