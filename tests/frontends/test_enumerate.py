"""Discrete latents of numpyro models summed out: truth in closed form or by recursion."""

import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.funsor import markov
from numpyro.ops.indexing import Vindex

import whence as wh
from whence.frontends import _enumerate
from whence.testing import compare_moments

pytest.importorskip("funsor")
RNG = np.random.default_rng(20261120)
Y = np.concatenate([RNG.normal(-2.0, 1.0, size=8), RNG.normal(2.0, 1.0, size=5)])


def _mixture_prior():
    weight = numpyro.sample("weight", dist.Dirichlet(jnp.ones(2)))
    loc = numpyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    return weight, loc, scale


def mixture(y):
    weight, loc, scale = _mixture_prior()
    with numpyro.plate("row", len(y)):
        kind = numpyro.sample("kind", dist.Categorical(weight))
        numpyro.deterministic("center", loc[kind])
        numpyro.sample("y", dist.Normal(loc[kind], scale), obs=y)
    numpyro.deterministic("gap", loc[1] - loc[0])


def mixture_by_hand(y):
    weight, loc, scale = _mixture_prior()
    components = dist.Normal(loc, scale)
    with numpyro.plate("row", len(y)):
        d = dist.MixtureSameFamily(dist.Categorical(weight), components)
        numpyro.sample("y", d, obs=y)


def hidden_markov(y):
    stay = numpyro.sample("stay", dist.Beta(2.0, 1.0))
    loc = numpyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    transition = jnp.array([[stay, 1 - stay], [1 - stay, stay]])

    def step(state, current):
        state = numpyro.sample("state", dist.Categorical(transition[state]))
        numpyro.sample("y", dist.Normal(loc[state], 1.0), obs=current)
        return state, None

    scan(step, 0, y)


def hidden_markov_loop(y):
    """The same as a loop, with names of its own for each step."""
    stay = numpyro.sample("stay", dist.Beta(2.0, 1.0))
    loc = numpyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    transition = jnp.array([[stay, 1 - stay], [1 - stay, stay]])
    state = 0
    for t in markov(range(len(y))):
        state = numpyro.sample(f"state_{t}", dist.Categorical(transition[state]))
        numpyro.sample(f"y_{t}", dist.Normal(loc[state], 1.0), obs=y[t])


def _forward(y, stay, loc):
    log_transition = np.log([[stay, 1 - stay], [1 - stay, stay]])
    emission = np.asarray(dist.Normal(loc, 1.0).log_prob(y[:, None]))
    alpha = log_transition[0] + emission[0]
    for row in emission[1:]:
        alpha = logsumexp(alpha[:, None] + log_transition, axis=0) + row
    return float(logsumexp(alpha))


def crossed(y, x):
    """Two discrete latents in a plate of two axes, one over both, and data without any."""
    rate = numpyro.sample("rate", dist.HalfNormal(1.0))
    table = numpyro.sample("table", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    numpyro.sample("x", dist.Normal(rate, 1.0).expand(x.shape).to_event(1), obs=x)
    with numpyro.plate("row", y.shape[0], dim=-2), numpyro.plate("column", y.shape[1], dim=-1):
        a = numpyro.sample("a", dist.Bernoulli(0.3))
        b = numpyro.sample(
            "b", dist.Categorical(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])[a])
        )
        numpyro.sample("y", dist.Normal(Vindex(table)[a, b], rate), obs=y)


def test_mixture_is_that_summed_by_hand(key):
    target, by_hand = wh.from_numpyro(mixture, Y), wh.from_numpyro(mixture_by_hand, Y)
    assert [site.name for site in target.sites] == ["weight", "loc", "scale"]
    assert target.dims["y"] == ("row",)

    @jax.jit
    def at(position):
        value = jax.value_and_grad(target.log_density)(position)
        split = target.log_prior(position), target.log_likelihood(position)
        rows = target.pointwise(target.constrain(position))["y"]
        back = target.unconstrain(target.constrain(position))
        expected = jax.value_and_grad(by_hand.log_density)(position)
        hand = by_hand.log_prior(position), by_hand.pointwise(by_hand.constrain(position))["y"]
        return value, split, rows, back, expected, hand

    for k in jr.split(key, 3):
        position = target.init(key=k)
        value, split, rows, back, expected, (prior, their_rows) = at(position)
        for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(expected), strict=True):
            assert_allclose(a, b, rtol=1e-9, atol=1e-9)
        assert_allclose(sum(split), value[0], rtol=1e-10)
        assert_allclose(split[0], prior, rtol=1e-10)
        assert_allclose(rows, their_rows, rtol=1e-9)
        assert_allclose(back["scale"], position["scale"], rtol=1e-6)


@pytest.mark.parametrize("model", [hidden_markov, hidden_markov_loop])
def test_hidden_markov_model_is_the_forward_recursion(model, key):
    target = wh.from_numpyro(model, Y[:5])
    position = target.init(key=key)
    got, draw, rows = jax.jit(
        lambda p: (
            target.log_likelihood(p),
            target.constrain(p),
            target.pointwise(target.constrain(p)),
        )
    )(position)
    assert_allclose(got, _forward(Y[:5], draw["stay"], draw["loc"]), rtol=1e-9)
    assert rows == {}  # all data in one term


def test_pointwise_by_site(key):
    y, x = RNG.normal(size=(4, 3)), RNG.normal(size=6)
    target = wh.from_numpyro(crossed, y, x)
    draw = target.constrain(target.init(key=key))
    got = jax.jit(lambda draw: target.pointwise(draw))(draw)
    first = np.array([0.7, 0.3])[:, None] * np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    terms = np.log(first) + dist.Normal(draw["table"], draw["rate"]).log_prob(
        y[..., None, None]
    )
    assert_allclose(got["y"], logsumexp(terms, axis=(-2, -1)), rtol=1e-9)
    assert_allclose(got["x"], dist.Normal(draw["rate"]).log_prob(x).sum(), rtol=1e-9)


def test_pointwise_under_a_scale(key):
    """A tempered likelihood: its power is taken before the sum over what is discrete."""

    def model(y):
        loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with numpyro.plate("row", len(y)):
            kind = numpyro.sample("kind", dist.Categorical(jnp.array([0.3, 0.7])))
            with handlers.scale(scale=0.5):
                numpyro.sample("y", dist.Normal(loc[kind], 1.0), obs=y)

    target = wh.from_numpyro(model, Y)
    draw = target.constrain(target.init(key=key))
    terms = 0.5 * dist.Normal(draw["loc"], 1.0).log_prob(Y[:, None])
    want = logsumexp(np.log([0.3, 0.7]) + terms, axis=-1)
    assert_allclose(target.pointwise(draw)["y"], want, rtol=1e-9)


def switched(y):
    """The prior of a continuous latent depends on a discrete one."""
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    x = numpyro.sample("x", dist.Normal(4.0 * z, 1.0))
    numpyro.deterministic("parity", 1 - 2 * z)
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def _switched_truth(y):
    """Return evidence, mean and sd of x, and the probability of z = 1."""
    log_joint = np.log([0.7, 0.3]) + dist.Normal(np.array([0.0, 4.0]), 2**0.5).log_prob(y)
    evidence = logsumexp(log_joint)
    weight = np.exp(log_joint - evidence)
    means = (np.array([0.0, 4.0]) + y) / 2
    mean = float(weight @ means)
    return float(evidence), mean, float(np.sqrt(0.5 + weight @ (means - mean) ** 2)), weight[1]


def test_posterior_and_evidence(key):
    y = np.float64(1.7)
    evidence, mean, sd, _ = _switched_truth(y)
    target = wh.from_numpyro(switched, y)
    assert [site.name for site in target.sites] == ["x"]
    posterior = wh.infer(target, wh.NUTS(chains=2, draws=3000), key=key)
    assert list(posterior) == ["x"]
    compare_moments(posterior.variables, {"x": (mean, sd)}).check()
    groups = ("prior_predictive", "posterior_predictive", "observed_data")
    assert set(groups) < set(posterior.to_datatree(groups=("posterior", *groups)).children)
    grid = {"x": jnp.linspace(-12.0, 16.0, 2000)}
    step = grid["x"][1] - grid["x"][0]
    density, prior = jax.jit(jax.vmap(lambda p: (target.log_density(p), target.log_prior(p))))(
        grid
    )
    assert_allclose(logsumexp(density) + np.log(step), evidence, rtol=1e-9)
    assert_allclose(logsumexp(prior) + np.log(step), 0.0, atol=1e-9)


def test_discrete_latents_given_the_rest(key):
    y = jnp.asarray(1.7)
    target = wh.from_numpyro(switched, y)
    keys = jr.split(key, 4000)
    draw = {"x": jnp.asarray(2.2)}
    z = jax.jit(jax.vmap(lambda k: target.sample_discrete(draw, key=k)["z"]))(keys)
    terms = np.log([0.7, 0.3]) + dist.Normal(np.array([0.0, 4.0])).log_prob(2.2)
    truth = float(jax.nn.softmax(terms)[1])
    assert abs(z.mean() - truth) < 5 * (truth * (1 - truth) / 4000) ** 0.5
    hidden = wh.from_numpyro(hidden_markov, Y[:3])
    draw = {"stay": jnp.asarray(0.5), "loc": jnp.zeros(2)}
    with pytest.raises(NotImplementedError, match="inside `scan`"):
        hidden.sample_discrete(draw, key=key)
    by_hand = wh.from_numpyro(mixture_by_hand, Y)
    with pytest.raises(ValueError, match="no discrete latents"):
        by_hand.sample_discrete({}, key=key)


def test_predictions_draw_discrete_latents_anew(key):
    """A data set given a draw has the density that `log_likelihood` gives it."""
    target = wh.from_numpyro(mixture, Y)
    draw = {
        "weight": jnp.array([0.25, 0.75]),
        "loc": jnp.array([-2.0, 2.0]),
        "scale": jnp.asarray(0.1),
    }
    drawn = jax.jit(jax.vmap(lambda k: target.predict(draw, None, key=k)["y"]))(
        jr.split(key, 800)
    )
    assert drawn.shape == (800, 13)
    high = np.asarray(drawn) > 0
    assert abs(high.mean() - 0.75) < 5 * (0.75 * 0.25 / high.size) ** 0.5
    assert 0 < high[0].sum() < 13  # rows have latents of their own
    prior = jax.jit(jax.vmap(lambda k: target.sample_prior(key=k)))(jr.split(key, 4))
    assert set(prior) == {"weight", "loc", "scale", "gap"}
    chain = wh.from_numpyro(hidden_markov, Y[:6])
    sure = {"stay": jnp.asarray(0.5), "loc": jnp.array([-50.0, 50.0])}
    signs = jax.jit(jax.vmap(lambda k: chain.predict(sure, None, key=k)["y"] > 0))(
        jr.split(key, 400)
    )
    assert_allclose(np.asarray(signs).mean(0), 0.5, atol=5 * 0.5 / 400**0.5)


def poisson():
    numpyro.sample("k", dist.Poisson(3.0))
    numpyro.sample("x", dist.Normal())


def sequential():
    numpyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "sequential"})
    numpyro.sample("x", dist.Normal())


def bounded():
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Uniform(0.0, 1.0 + k))


def without_plate(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    x = numpyro.sample("x", dist.Normal())
    numpyro.sample("y", dist.Normal(x + k, 1.0), obs=y)


def summed_over(y):
    x = numpyro.sample("x", dist.Normal())
    other = numpyro.sample("other", dist.Bernoulli(0.5))
    with numpyro.plate("item", 3):
        k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(x + other + jnp.sum(k), 1.0), obs=y)


def counted(total):
    numpyro.sample("k", dist.Binomial(total, 0.5))
    numpyro.sample("x", dist.Normal())


def discrete_only():
    numpyro.sample("k", dist.Bernoulli(0.5))


@pytest.mark.parametrize(
    ("fn", "args", "message"),
    [
        (poisson, (), r"'k' is a discrete latent \(Poisson\) without a list of its values"),
        (sequential, (), "'sequential'}`; it can only be summed out"),
        (bounded, (), "support of site 'x' must not depend on discrete latents.*'k'"),
        (without_plate, (Y,), "cannot sum the discrete latents.*must be that of a `plate`"),
        (summed_over, (0.0,), "site 'y' depends on 'k'.*does it sum over all axes"),
        (counted, (jnp.array(4),), "values of a discrete latent.*'k'.*as Python numbers"),
        (discrete_only, (), "at least one continuous latent"),
    ],
)
def test_what_cannot_be_summed_out_is_refused(fn, args, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        wh.from_numpyro(fn, *args)


def test_priors_of_weighted_discrete_latents_are_not_sampled(key):
    target = wh.from_numpyro(handlers.scale(switched, scale=0.5), np.float64(1.0))
    with pytest.raises(ValueError, match="'z' is under a `mask` or `scale`"):
        target.sample_prior(key=key)


def test_without_funsor(monkeypatch):
    _enumerate.library.cache_clear()
    monkeypatch.setitem(sys.modules, "funsor", None)
    for name in [n for n in sys.modules if n.startswith("numpyro.contrib.funsor")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(numpyro.contrib, "funsor", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'whence\[enum\]'"):
        wh.from_numpyro(mixture, Y)
