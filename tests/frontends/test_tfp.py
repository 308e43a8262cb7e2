"""Targets of joint distributions: parity with TensorFlow Probability, and what they offer."""

import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import whence as wh
from whence.core import _cache
from whence.testing import compare_moments

pytest.importorskip("tensorflow_probability")
sys.path.insert(0, str(Path(__file__).parent))
import _joints as joints  # noqa: E402
from _joints import f, tfd  # noqa: E402

# What JAX says to TensorFlow Probability about names that it has deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _pinned_density(joint, observed, derived):
    """Return the log density of position by the joint's own pins and bijectors."""
    names = joint._flat_resolve_names()
    pinned = joint.experimental_pin(**observed)
    bijector = pinned.experimental_default_event_space_bijector()
    empty = {x.name: jnp.zeros(x.unconstrained_shape) for x in derived}
    example = pinned.sample_unpinned(seed=jr.key(0))

    def density(position):
        free = {n: (position | empty)[n] for n in names if n not in observed}
        if isinstance(example, dict):
            point = free
        elif isinstance(example, list):
            point = list(free.values())
        else:
            point = type(example)(*free.values())
        value = bijector.forward(point)
        parts = dict(zip(pinned._flat_resolve_names(), pinned._model_flatten(value)))
        everything = {**parts, **{k: jnp.asarray(v) for k, v in observed.items()}}
        log_prob = joint.log_prob(**everything)
        return log_prob + bijector.forward_log_det_jacobian(point)

    return density


@pytest.mark.parametrize("name", joints.JOINTS)
def test_parity_with_tfp(name, key):
    joint, observed = joints.JOINTS[name]()
    target = wh.from_tfp(joint, observed)

    @jax.jit
    def at(position):
        theirs = _pinned_density(joint, observed, target.structure.derived)
        draw = target.constrain(position)
        split = target.log_prior(position), target.log_likelihood(position)
        rows = sum(jnp.sum(x) for x in target.pointwise(draw).values())
        ours = jax.value_and_grad(target.log_density)(position)
        return ours, jax.value_and_grad(theirs)(position), split, rows, target.unconstrain(draw)

    for k in jr.split(key, 3):
        position = target.init(key=k)
        got, expected, split, rows, back = at(position)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert_allclose(a, b, rtol=1e-9, atol=1e-9)
        assert_allclose(sum(split), got[0], rtol=1e-10)
        assert_allclose(rows, split[1], rtol=1e-10)
        for site in position:
            assert_allclose(back[site], position[site], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["named", "sequential_auto"])
def test_jacobian_is_that_of_constrain(name, key):
    """Truth by automatic differentiation, where value and position have one size."""
    joint, observed = joints.JOINTS[name]()
    target = wh.from_tfp(joint, observed)
    data = {k: jnp.asarray(v) for k, v in observed.items()}

    @jax.jit
    def at(key):
        position, unravel = ravel_pytree(target.init(key=key))
        matrix = jax.jacobian(lambda x: ravel_pytree(target.constrain(unravel(x)))[0])(position)
        log_prob = joint.log_prob(**target.constrain(unravel(position)), **data)
        return target.log_density(unravel(position)), log_prob, matrix

    got, log_prob, matrix = at(key)
    assert_allclose(got, log_prob + np.linalg.slogdet(matrix)[1], rtol=1e-9)


def test_pointwise_undoes_independent_and_sample(key):
    joint, observed = joints.named()
    target = wh.from_tfp(joint, observed)
    draw = target.constrain(target.init(key=key))
    got = target.pointwise(draw)
    y = stats.norm(draw["mu"], draw["sigma"]).logpdf(observed["y"])
    assert_allclose(got["y"], y, rtol=1e-10)
    assert_allclose(got["z"], stats.norm(draw["weights"]).logpdf(observed["z"]), rtol=1e-10)

    # `Sample` of a batch, with an event: its axes follow those of the batch
    loc = jnp.arange(6.0).reshape(3, 2)
    rows = tfd.Sample(tfd.Independent(tfd.Normal(loc, f(1)), 1), (4,))
    auto = tfd.JointDistributionSequentialAutoBatched([tfd.Normal(f(0), f(1)), lambda _: rows])
    value = np.random.default_rng(0).normal(size=(3, 4, 2))
    target = wh.from_tfp(auto, {1: value})
    got = target.pointwise(target.constrain(target.init(key=key)))["x"]
    assert_allclose(got, stats.norm(loc[:, None]).logpdf(value), rtol=1e-10)


def test_deterministic_components_are_derived(key):
    target = wh.from_tfp(*joints.coroutine_auto())
    position = target.init(key=key)
    assert set(position) == {"mu", "tau", "z"}
    draw = target.constrain(position)
    assert_allclose(draw["theta"], draw["mu"] + draw["tau"] * draw["z"], rtol=1e-12)
    assert_allclose(target.unconstrain(draw)["z"], position["z"])


def _mean_of(mu):
    return tfd.Sample(tfd.Normal(mu, f(1)), 15)


def _conjugate(scale=2.0):
    return tfd.JointDistributionNamed({"mu": tfd.Normal(f(0), f(scale)), "y": _mean_of})


def _truth(y, scale=2.0):
    precision = scale**-2 + len(y)
    return y.sum() / precision, precision**-0.5


def test_new_data_and_new_priors_compile_nothing(key):
    counts = []
    for shift, scale in ((0.0, 2.0), (3.0, 2.0), (3.0, 0.1)):
        y = shift + np.random.default_rng(1).normal(size=15)
        target = wh.from_tfp(_conjugate(scale), {"y": y}).with_coords(
            {"row": [f"{shift}/{i}" for i in range(15)]}, dims={"y": "row"}
        )
        posterior = wh.infer(target, wh.NUTS(chains=2, draws=1000), key=key)
        compare_moments(posterior.variables, {"mu": _truth(y, scale)}).check()
        counts.append(_cache.traces)
    assert counts[0] == counts[1] == counts[2]

    tree = posterior.to_datatree()
    assert_array_equal(tree["observed_data"]["y"], y)
    assert "constant_data" not in tree
    for group in ("posterior_predictive", "log_likelihood", "prior_predictive"):
        assert tree[group]["y"].dims == ("chain", "draw", "row")
        assert tree[group]["row"].values[0] == "3.0/0"
    # Given the draws, predictions are standard normal around them.
    z = np.asarray(tree["posterior_predictive"]["y"]) - posterior["mu"][..., None]
    compare_moments({"z": z}, {"z": (np.zeros(15), np.ones(15))}).check()
    prior = np.asarray(tree["prior"]["mu"]).ravel()
    assert abs(prior.mean()) < 5 * scale / len(prior) ** 0.5
    with pytest.raises(ValueError, match="takes no new inputs.*from_tfp"):
        posterior.predict(np.ones(3), key=key)


def test_constant_jacobian_counts_for_each_element():
    """x = 2 z has the log-Jacobian log 2 for each of its three elements."""
    tfb = wh.frontends._joint.library().bijectors

    @tfd.JointDistributionCoroutineAutoBatched
    def joint():
        scaled = tfd.TransformedDistribution(
            tfd.Normal(jnp.zeros(3), f(1.0)), tfb.Scale(f(2.0))
        )
        x = yield tfd.JointDistributionCoroutine.Root(scaled)
        yield tfd.Normal(jnp.sum(x), f(1.0), name="y")

    target = wh.from_tfp(joint, {"y": f(0.5)})
    (name,) = target.init(key=jr.key(0))
    z = np.array([0.3, -1.0, 0.2])
    x = np.asarray(target.constrain({name: jnp.asarray(z)})[name])
    want = stats.norm(0, 2).logpdf(x).sum() + stats.norm(x.sum(), 1).logpdf(0.5)
    want += np.log(np.abs(x / z)).sum()  # the bijection is linear
    assert_allclose(target.log_density({name: jnp.asarray(z)}), want, rtol=1e-9)


def test_evidence_by_quadrature():
    y = np.random.default_rng(2).normal(size=15) + 1.0
    target = wh.from_tfp(_conjugate(), {"y": y})
    grid = jnp.linspace(-20.0, 20.0, 4001)
    density = jax.vmap(lambda x: target.log_density({"mu": x}))(grid)
    truth = stats.multivariate_normal(np.zeros(15), np.eye(15) + 4.0).logpdf(y)
    assert_allclose(jax.nn.logsumexp(density) + np.log(0.01), truth, rtol=1e-9)


def test_bounds_that_depend_on_another_latent(key):
    """low ~ U(0, 1), x ~ U(low, 1): E x = 3/4, sd of x = sqrt(7) / 12, skewed."""
    joint = tfd.JointDistributionSequential(
        [
            tfd.Uniform(f(0), f(1)),
            lambda low: tfd.Uniform(low, f(1)),
            lambda x: tfd.Normal(f(0) * x, f(1)),
        ]
    )
    target = wh.from_tfp(joint, {2: 0.0})
    posterior = wh.infer(target, wh.NUTS(chains=2, draws=2000), key=key)
    assert (posterior["x"] > posterior["low"]).all()
    truth = {"x": (0.75, 7**0.5 / 12), "low": (0.5, 12**-0.5)}
    compare_moments(posterior.variables, truth).check()


def test_predictions_follow_from_predictions(key):
    """A random walk without noise stays where it starts; data would pull it elsewhere."""

    def model():
        start = yield tfd.JointDistributionCoroutine.Root(tfd.Normal(f(0), f(1), name="start"))
        first = yield tfd.Normal(start, f(1e-9), name="first")
        yield tfd.Normal(first, f(1e-9), name="second")

    joint = tfd.JointDistributionCoroutine(model)
    target = wh.from_tfp(joint, {"first": 5.0, 2: 7.0})
    drawn = target.predict({"start": jnp.asarray(1.0)}, None, key=key)
    assert_allclose([drawn["first"], drawn["second"]], [1.0, 1.0], atol=1e-7)
    # A prior draw takes data upstream of a latent as they are.
    target = wh.from_tfp(joint, {"first": 5.0})
    assert_allclose(target.sample_prior(key=key)["second"], 5.0, atol=1e-7)
    position = target.sample_prior_position(key=key)
    assert_allclose(position["second"], 5.0, atol=1e-7)


def test_single_precision_joints(key):
    """Python's numbers are float32 to TensorFlow Probability, whatever JAX's precision."""
    joint = tfd.JointDistributionNamed(
        {"mu": tfd.Normal(0.0, 2.0), "y": lambda mu: tfd.Sample(tfd.Normal(mu, 1.0), 15)}
    )
    y = np.random.default_rng(1).normal(size=15)
    target = wh.from_tfp(joint, {"y": y})
    posterior = wh.infer(target, wh.NUTS(chains=2, draws=1000), key=key)
    assert posterior["mu"].dtype == np.float32
    compare_moments(posterior.variables, {"mu": _truth(y)}).check()


def test_pins_are_observed():
    y = np.random.default_rng(1).normal(size=15)
    target = wh.from_tfp(_conjugate().experimental_pin(y=y))
    assert_array_equal(target.observed_data["y"], y)
    assert [site.name for site in target.sites] == ["mu"]


def test_counts_and_switches():
    joint = tfd.JointDistributionNamed(
        {
            "p": tfd.Beta(f(1.0), f(1.0)),
            "k": lambda p: tfd.Sample(tfd.Bernoulli(probs=p), 3),
            "n": lambda p: tfd.Binomial(f(10.0), probs=p),
        }
    )
    target = wh.from_tfp(joint, {"k": [True, False, True], "n": 4})
    density = target.pointwise({"p": jnp.asarray(0.25)})
    assert_allclose(density["k"], np.log([0.25, 0.75, 0.25]))
    assert_allclose(density["n"], stats.binom(10, 0.25).logpmf(4))
    with pytest.raises(ValueError, match=r"'k'.*must fit int32.*got 0.5"):
        wh.from_tfp(joint, {"k": [0.5, 0.0, 1.0], "n": 4})


NORMAL = tfd.Normal(f(0), f(1))
CHAIN = [NORMAL, lambda mu: tfd.Normal(mu, f(1))]


@pytest.mark.parametrize(
    ("joint", "observed", "message"),
    [
        (_conjugate(), {"w": 1.0}, r"must name components of `joint` \(mu, y\); got 'w'"),
        (_conjugate(), {0: 1.0}, "must name components.*got 0"),
        (_conjugate(), [1.0], "must be a dict"),
        (_conjugate(), {"y": np.ones(3)}, r"have the shape.*\(15,\); got \(3,\)"),
        (_conjugate(), {"y": np.full(15, np.nan)}, "must not contain NaN; got 15"),
        (_conjugate(), {"y": []}, "must not be empty"),
        (_conjugate(), {"y": "text"}, "must be numbers"),
        (_conjugate(), {"y": np.ones(15), "mu": 0.0}, "at least one latent component"),
        (tfd.JointDistributionSequential(CHAIN), {1: np.ones(4)}, r"tfd.Sample\(..., \(4,\)\)"),
        (tfd.JointDistributionSequential(CHAIN), {5: 1.0}, "positions up to 1.*got 5"),
        (tfd.JointDistributionSequential(CHAIN), {0: 1.0, "mu": 1.0}, "'mu' twice"),
        (
            tfd.JointDistributionSequential([NORMAL, tfd.Normal(jnp.zeros(8), f(1))]),
            {},
            r"batch shape \(8,\).*tfd.Independent.*AutoBatched",
        ),
        (
            tfd.JointDistributionSequentialAutoBatched([NORMAL], batch_ndims=1),
            {},
            "must be one density",
        ),
        (
            tfd.JointDistributionNamed({"n": tfd.Poisson(f(3)), "x": NORMAL}),
            {"x": 1.0},
            r"'n'.*Poisson, not observed.*it is discrete",
        ),
        (
            tfd.JointDistributionNamed({"in": tfd.JointDistributionNamed({"x": NORMAL})}),
            {},
            "'in' of `joint` must be a distribution of arrays",
        ),
        (
            tfd.JointDistributionSequential(
                [tfd.Normal(0.0, 1.0), lambda mu: tfd.Normal(mu, np.ones(3))]
            ),
            {},
            "must not mix float32 and float64",
        ),
        (NORMAL, {}, "must be a joint distribution.*got .*Normal"),
    ],
)
def test_what_cannot_be_a_target_is_refused(joint, observed, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        wh.from_tfp(joint, observed)


@pytest.mark.parametrize(
    ("coords", "dims", "message"),
    [
        ({"row": 15}, {}, r"must name axes of the target \(none\); got 'row'"),
        ({"row": 3}, {"y": "row"}, "must have 15 labels.*got 3"),
        ({}, {"w": "row"}, "must name variables of the target.*got 'w'"),
        ({}, {"y": ("a", "b")}, "must name each of its 1 axes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(coords, dims, message):
    target = wh.from_tfp(_conjugate(), {"y": np.ones(15)})
    with pytest.raises(ValueError, match=message):
        target.with_coords(coords, dims=dims)


def test_rows_are_refused(key):
    target = wh.from_tfp(_conjugate(), {"y": np.ones(15)})
    assert target.num_data is None
    with pytest.raises(ValueError, match="no rows"):
        target.log_likelihood(target.init(key=key), jnp.array([0]))


def test_without_tensorflow_probability(monkeypatch):
    from whence.frontends import _joint

    _joint.library.cache_clear()
    for name in [n for n in sys.modules if n.startswith("tensorflow_probability")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'whence\[tfp\]'"):
        wh.from_tfp(None)


def test_nothing_is_said_about_deprecated_names(key):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = wh.from_tfp(_conjugate(), {"y": np.ones(15)})
        position = target.sample_prior_position(key=key)
        target.log_density(position)
        draw = target.constrain(position)
        target.pointwise(draw)
        target.predict(draw, None, key=key)
