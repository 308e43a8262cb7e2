"""Estimators of the gradient: unbiased, and as noisy as they should be."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh
from whence.core._data import Minibatches
from whence.core._target import AbstractDataTarget
from whence.inference.sgmcmc import (
    ControlVariate,
    FederatedGradient,
    MinibatchGradient,
    StructuredGradient,
)
from whence.inference.sgmcmc._gradient import Space
from whence.inference.sgmcmc._structured import History
from whence.testing import ConjugateRegression, GaussianMean

SHARDS = (4, 7, 9)


class Quadratic(AbstractDataTarget):
    """A Gaussian with correlations, and rows that share its log density in uneven parts."""

    precision: jax.Array
    share: jax.Array  # of the rows, with a sum of one

    @property
    def num_data(self):
        return len(self.share)

    def init(self, *, key):
        return jr.normal(key, (3,))

    def log_prior(self, position):
        return jnp.zeros(())

    def log_likelihood(self, position, rows=None):
        share = self.share if rows is None else self.share[rows]
        return -0.5 * share * (position @ self.precision @ position)

    def log_density(self, position):
        return self.log_likelihood(position).sum()

    def constrain(self, position):
        return position


PRECISION = np.array([[2.0, 1.2, 0.5], [1.2, 1.5, 0.3], [0.5, 0.3, 1.0]])


def quadratic(rows=20):
    share = np.linspace(0.5, 1.5, rows)
    return Quadratic(jnp.asarray(PRECISION), jnp.asarray(share / share.sum()))


LOCAL = {
    "all rows": MinibatchGradient(),
    "iid": MinibatchGradient(5, "iid"),
    "reshuffle": MinibatchGradient(5),
    "symmetric": MinibatchGradient(7, "symmetric"),
    "leaves rows out": MinibatchGradient(7),
    "control variate": ControlVariate(5),
    "control variate, iid": ControlVariate(5, "iid"),
    "SVRG": ControlVariate(5, refresh=3),
    "DSGLD": FederatedGradient(SHARDS, 3, surrogate="none"),
    "FSGLD": FederatedGradient(SHARDS, 3),
    "FSGLD, local": FederatedGradient(SHARDS, 3, surrogate="local"),
    "FSGLD, odd probabilities": FederatedGradient(SHARDS, 3, 1, (0.5, 0.3, 0.2)),
    "structured, all of one group": StructuredGradient(5, groups=1),
    "dropout, nothing dropped": StructuredGradient(5, keep=1.0, copies=2),
}
STEPS = 12  # one more evaluation than this, so that batches and shards have moved on
KEYS = 4_000


def many(gradient, target, point, key, steps=STEPS):
    """Log densities and gradients of the last of some evaluations, for many keys."""
    position = target.init(key=jr.key(5))
    flat, form = ravel_pytree(position)
    space = Space(target, form)
    init = jax.jit(lambda key: gradient.init(space, flat, key=key))(key)

    def one(key):
        def go(state, i):
            at = jnp.where(i < steps, flat, point)
            found = gradient.estimate(space, at, state, i, key=jr.fold_in(key, i))
            return found[2], found[:2]

        numbers = jnp.arange(steps + 1, dtype=jnp.int32)
        _, found = jax.lax.scan(go, init, numbers)
        return jax.tree.map(lambda x: x[-1], found)

    values, gradients = jax.jit(jax.vmap(one))(jr.split(key, KEYS))
    exact = jax.value_and_grad(space.log_density)(point)
    return np.asarray(values), np.asarray(gradients), exact


@pytest.mark.parametrize("name", LOCAL)
def test_every_estimate_is_unbiased(name, key):
    target = ConjugateRegression.simulate(20, key=jr.key(3))
    point = ravel_pytree(target.init(key=jr.key(4)))[0]
    values, gradients, (value, gradient) = many(LOCAL[name], target, point, key)
    # 5 numbers for each of 13 estimators: 4.5 standard errors is 5e-4 in all.
    errors = gradients.std(0) / KEYS**0.5 + 1e-8 * np.abs(gradient)
    assert np.all(np.abs(gradients.mean(0) - gradient) < 4.5 * errors), gradients.mean(0)
    error = values.std() / KEYS**0.5 + 1e-8 * abs(value)
    assert abs(values.mean() - value) < 4.5 * error
    if name not in ("all rows",):
        assert gradients.std(0).max() > 0 or "control" in name


class Effects(wh.Model):
    """A number for each row, and a global latent."""

    mean: jax.Array = wh.latent(dist.Normal(0.0, 2.0))
    effect: jax.Array = wh.latent(lambda m: dist.Normal(m.mean, 0.7), local=True)

    def likelihood(self):
        return dist.Normal(self.effect, 0.5)


@pytest.mark.parametrize("name", ["reshuffle", "SVRG", "DSGLD", "structured, all of one group"])
def test_estimates_are_unbiased_with_local_latents(name, key):
    """The prior of a row's own latents is scaled as its likelihood is."""
    target = wh.condition(Effects(), jr.normal(jr.key(3), (20,)))
    point = ravel_pytree(target.init(key=jr.key(4)))[0]
    assert point.shape == (21,)
    _, gradients, (_, gradient) = many(LOCAL[name], target, point, key)
    errors = gradients.std(0) / KEYS**0.5 + 1e-8 * np.abs(gradient)
    assert np.all(np.abs(gradients.mean(0) - gradient) < 4.5 * errors)
    with pytest.raises(ValueError, match="With local latents `surrogate` must be 'none'"):
        FederatedGradient(SHARDS).validate(target)


def test_symmetric_batches_go_there_and_back(key):
    batches = Minibatches(20, 6, "symmetric")
    epoch, seen = batches.init(), []
    for i in range(18):
        counter = jnp.asarray(i, jnp.int32)
        rows, epoch = batches.next(epoch, counter, key=jr.fold_in(key, i))
        seen.append(np.asarray(rows))
    for sweep in (seen[:6], seen[6:12], seen[12:]):
        assert_array_equal(sweep[:3], sweep[:2:-1])
        assert len(set(np.concatenate(sweep[:3]).tolist())) == 18
    assert not np.array_equal(seen[0], seen[6])


def test_structured_estimate_is_that_of_independent_groups(key):
    """Coordinate `i` sees `-P_ii x_i - sum_j P_ij E[past x_j]`."""
    target, point = quadratic(), jnp.asarray([1.0, -2.0, 0.5])
    gradient = StructuredGradient(5, groups="coordinates", history=8, every=1)
    space = Space(target, lambda x: x)
    past = jr.normal(jr.key(1), (8, 3)) + 1.0
    state = History(gradient.init(space, point, key=key).epoch, past)
    counter = jnp.asarray(100, jnp.int32)  # written at place 4: not yet past
    estimate = lambda k: gradient.estimate(space, point, state, counter, key=k)
    # At this counter an epoch of four batches begins, so that its order is drawn.
    _, gradients, new = jax.jit(jax.vmap(estimate))(jr.split(key, KEYS))
    mean = np.delete(np.asarray(past), 4, axis=0).mean(0)
    off = PRECISION - np.diag(np.diag(PRECISION))
    expected = -(np.diag(PRECISION) * np.asarray(point) + off @ mean)
    error = gradients.std(0) / KEYS**0.5
    assert np.all(np.abs(gradients.mean(0) - expected) < 4.5 * error)
    assert_allclose(new.past[0][4], point)
    # The dropout variant: others are the present ones with probability `keep`.
    gradient = StructuredGradient(
        5, groups="coordinates", keep=0.7, copies=2, history=8, every=1
    )
    gradients = jax.jit(jax.vmap(estimate))(jr.split(key, KEYS))[1]
    mixed = 0.7 * np.asarray(point) + 0.3 * mean
    expected = -(np.diag(PRECISION) * np.asarray(point) + off @ mixed)
    error = gradients.std(0) / KEYS**0.5
    assert np.all(np.abs(gradients.mean(0) - expected) < 4.5 * error)


def test_history_remembers_the_past_and_not_the_present():
    target = quadratic()
    gradient = StructuredGradient(groups=3, history=3, every=2)
    space, point = Space(target, lambda x: x), jnp.zeros(3)
    state = gradient.init(space, point, key=jr.key(0))
    for i in range(5):
        at, counter = jnp.full(3, float(i)), jnp.asarray(i, jnp.int32)
        found = gradient.estimate(space, at, state, counter, key=jr.key(i))
        if i < 4:  # all that is past is the start, and then also the second position
            expected = -np.diag(PRECISION) * i
            off = (PRECISION - np.diag(np.diag(PRECISION))).sum(1)
            options = [expected - off * old for old in ((0.0,) if i < 2 else (1.0,))]
            assert min(np.abs(found[1] - o).max() for o in options) < 1e-9
        state = found[2]
    assert_allclose(state.past[:, 0], [1.0, 3.0, 4.0])


def test_groups():
    space = Space(quadratic(), lambda x: {"a": x[:2], "b": x[2:]})
    labels = lambda groups: StructuredGradient(groups=groups).labels(space, jnp.zeros(5))
    assert labels("latents").tolist() == [0, 0, 1, 1, 1]
    assert labels("coordinates").tolist() == [0, 1, 2, 3, 4]
    assert labels(2).tolist() == [0, 0, 0, 1, 1]


def test_noise_of_control_variates(key):
    """None where all rows have equal curvature; none at the centre; else that of a batch."""
    equal = GaussianMean.simulate(20, key=key)
    point = jnp.asarray([0.7, -3.0])
    for estimator in (ControlVariate(5), ControlVariate(5, refresh=STEPS + 100)):
        _, gradients, (_, exact) = many(estimator, equal, point, key)
        assert_allclose(gradients, np.broadcast_to(exact, gradients.shape), atol=1e-8)
    # With uneven curvatures it is that of the differences from the centre, here the mode.
    target, at = quadratic(), jnp.asarray([1.0, -2.0, 0.5])
    _, gradients, _ = many(ControlVariate(5, "iid"), target, at, key)
    share = np.asarray(target.share)
    variance = 20**2 / 5 * share.var() * (PRECISION @ np.asarray(at)) ** 2
    assert_allclose(gradients.var(0), variance, rtol=5 * np.sqrt(2 / KEYS))


def test_svrg_takes_the_centre_anew(key):
    target, at = quadratic(), jnp.asarray([1.0, -2.0, 0.5])
    # The last evaluation, number 12, is one at which the centre is taken: it is exact.
    _, gradients, (_, exact) = many(ControlVariate(5, refresh=4), target, at, key)
    assert_allclose(gradients, np.broadcast_to(exact, gradients.shape), atol=1e-8)
    _, gradients, _ = many(ControlVariate(5, "iid", refresh=5), target, at, key)
    away = np.asarray(at - target.init(key=jr.key(5)))
    variance = 20**2 / 5 * np.asarray(target.share).var() * (PRECISION @ away) ** 2
    assert_allclose(gradients.var(0), variance, rtol=5 * np.sqrt(2 / KEYS))


@pytest.mark.parametrize("kind", ["laplace", "local"])
def test_conducive_gradient_takes_the_noise_between_shards_away(kind, key):
    """Rows alike within a shard and not between: all noise is between shards."""
    y = np.repeat([-3.0, 0.0, 4.0], SHARDS)[:, None] * np.ones((1, 2))
    target = GaussianMean(jnp.asarray(y))
    point = jnp.asarray([0.3, -0.6])
    noise = {}
    for surrogate in ("none", kind):
        estimator = FederatedGradient(SHARDS, 3, surrogate=surrogate)
        noise[surrogate] = many(estimator, target, point, key)[1].var(0)
    means = np.asarray([-3.0, 0.0, 4.0])
    share = np.asarray(SHARDS) / 20
    between = 20**2 * (share * (means - share @ means) ** 2).sum()
    assert_allclose(noise["none"], between, rtol=5 * np.sqrt(2 / KEYS))
    # The surrogate of a Gaussian likelihood is exact by expansion, and about so by a chain.
    assert noise[kind].max() < {"laplace": 1e-12, "local": 0.1}[kind] * between


def test_local_steps_stay_in_a_shard(key):
    y = np.repeat([-3.0, 0.0, 4.0], SHARDS)[:, None]
    space = Space(GaussianMean(jnp.asarray(y)), lambda x: x)
    estimator = FederatedGradient(SHARDS, 3, local_steps=5, surrogate="none")
    point = jnp.zeros(1)

    def go(state, i):
        _, gradient, state = estimator.estimate(space, point, state, i, key=jr.fold_in(key, i))
        return state, (gradient, state.shard)

    start = estimator.init(space, point, key=key)
    _, (gradients, shards) = jax.lax.scan(go, start, jnp.arange(300, dtype=jnp.int32))
    shards = np.asarray(shards).reshape(60, 5)
    assert (shards == shards[:, :1]).all()
    assert set(shards[:, 0].tolist()) == {0, 1, 2}
    rows = np.repeat([-3.0, 0.0, 4.0], SHARDS)
    expected = 20 * np.asarray([-3.0, 0.0, 4.0])[shards.ravel()]
    assert_allclose(gradients[:, 0], expected, atol=1e-9)
    assert len(rows) == 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FederatedGradient(0), "`shards` must be at least 1; got 0"),
        (lambda: FederatedGradient((3, 0)), "`shards` must be at least 1; got 0"),
        (
            lambda: FederatedGradient(2, probabilities=(0.5, 0.4)),
            "`probabilities` must have a sum of 1",
        ),
        (
            lambda: FederatedGradient(3, probabilities=(0.5, 0.5)),
            "`probabilities` must have one entry for each of the 3 shards",
        ),
        (lambda: FederatedGradient(surrogate="exact"), "`surrogate` must be one of 'laplace'"),
        (lambda: StructuredGradient(groups="all"), "`groups` must be 'latents', 'coordinates'"),
        (lambda: StructuredGradient(keep=1.1), "`keep` must be at least 0 and at most 1"),
        (lambda: StructuredGradient(history=1), "`history` must be at least 2; got 1"),
        (lambda: ControlVariate(refresh=0), "`refresh` must be at least 1, or None; got 0"),
    ],
)
def test_invalid_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_invalid_targets():
    target = GaussianMean(jnp.zeros((20, 1)))
    for gradient, message in [
        (FederatedGradient((4, 5)), "`shards` must divide the 20 data rows"),
        (FederatedGradient(21), "`shards` must divide the 20 data rows"),
        (FederatedGradient(4, 6), "rows of the smallest shard, 5; got 6"),
        (ControlVariate(21), "at most the number of data rows, 20; got 21"),
        (StructuredGradient(21), "at most the number of data rows, 20; got 21"),
    ]:
        with pytest.raises(ValueError, match=message):
            gradient.validate(target)
