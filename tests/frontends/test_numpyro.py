"""Targets of numpyro models: parity with numpyro, and all that a described target offers."""

import sys
from pathlib import Path

import arviz_stats
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, util

import whence as wh
from whence.core import _cache
from whence.testing import compare_moments, compare_reference
from whence.testing._compare import scalars

sys.path.insert(0, str(Path(__file__).parent))
import _models as models  # noqa: E402


def _make(name):
    fn, args = models.MODELS[name]
    args = tuple(v if isinstance(v, int) else jnp.asarray(v) for v in args)
    return wh.from_numpyro(fn, *args), fn, args


@pytest.mark.parametrize("name", models.MODELS)
def test_parity_with_numpyro(name, key):
    target, fn, args = _make(name)

    def ours(position):
        split = target.log_prior(position) + target.log_likelihood(position)
        draw = target.constrain(position)
        back = target.unconstrain(draw)
        return jax.value_and_grad(target.log_density)(position), split, draw, back

    def theirs(position):
        density = lambda p: -util.potential_energy(fn, args, {}, p)
        draw = util.constrain_fn(fn, args, {}, position, return_deterministic=True)
        return jax.value_and_grad(density)(position), draw

    positions = jax.vmap(lambda k: target.init(key=k))(jr.split(key, 3))
    (got, split, draw, back), (expected, their_draw) = jax.jit(
        lambda p: (jax.lax.map(ours, p), jax.lax.map(theirs, p))
    )(positions)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    assert_allclose(split, got[0], rtol=1e-10)
    assert set(draw) == set(their_draw)
    for site in draw:
        assert_allclose(draw[site], their_draw[site], rtol=1e-10)
    for site in positions:
        assert_allclose(back[site], positions[site], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["hierarchical", "masked", "state_space", "covariance"])
def test_pointwise_is_numpyros(name, key):
    target, fn, args = _make(name)
    draw = target.constrain(target.init(key=key))
    latents = {site.name: draw[site.name] for site in target.sites}
    expected = util.log_likelihood(fn, latents, *args, batch_ndims=0)
    got = target.pointwise(draw)
    assert set(got) == set(expected) == set(target.observed_data)
    for site in got:
        assert_allclose(got[site], expected[site], rtol=1e-10)
    # `dims` fit what they name, events included
    for site, axes in target.dims.items():
        if site in got:
            assert len(axes) == jnp.ndim(target.observed_data[site])


def test_pointwise_counts_scales(key):
    target, _, (y, weight) = _make("weighted")
    draw = target.constrain(target.init(key=key))
    expected = weight * dist.Normal(draw["mu"], draw["sigma"]).log_prob(y)
    assert_allclose(target.pointwise(draw)["y"], expected, rtol=1e-12)


def test_scale_and_mask_leave_the_jacobian_alone():
    """Density of a scaled latent on its own space: exp(-x / 2), whatever the bijection."""

    def model():
        with handlers.scale(scale=0.5):
            numpyro.sample("x", dist.Exponential(1.0))
        with handlers.mask(mask=jnp.array([True, False])):
            numpyro.sample("z", dist.Uniform(0.0, jnp.array([1.0, 4.0])))

    target = wh.from_numpyro(model)
    u, v = 0.3, np.array([0.2, -1.0])
    s = 1 / (1 + np.exp(-v))
    z = np.log(np.array([1.0, 4.0]) * s * (1 - s)).sum()  # masked or not: flat, log-Jacobian
    expected = 0.5 * -np.exp(u) + u + z
    position = {"x": jnp.asarray(u), "z": jnp.asarray(v)}
    assert_allclose(target.log_density(position), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="'x' is under a `mask` or `scale`"):
        target.sample_prior(key=jr.key(0))


@pytest.mark.slow
def test_posterior_is_that_of_numpyros_nuts(key):
    target, fn, args = _make("eight_schools_noncentered")
    posterior = wh.infer(target, wh.NUTS(draws=1500, target_accept=0.95), key=key)
    assert list(posterior)[:3] == ["mu", "tau", "theta_decentered"]
    mcmc = MCMC(
        NUTS(fn, target_accept_prob=0.95),
        num_warmup=1000,
        num_samples=1500,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(1), *args)
    reference = {k: mcmc.get_samples(group_by_chain=True)[k] for k in ("mu", "tau", "theta")}
    compare_reference(posterior.variables, scalars(reference, batch_ndim=2)).check()


def conjugate(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def _conjugate_truth(y):
    precision = 1 / 4 + len(y)
    covariance = np.eye(len(y)) + 4.0
    evidence = dist.MultivariateNormal(jnp.zeros(len(y)), covariance).log_prob(y)
    return y.sum() / precision, precision**-0.5, float(evidence)


def test_new_data_compile_nothing_and_reach_every_group(key):
    engine = wh.NUTS(chains=2, draws=1000)
    counts = []
    for shift in (0.0, 3.0):
        y = shift + np.random.default_rng(1).normal(size=15)
        target = wh.from_numpyro(conjugate, y)
        posterior = wh.infer(target, engine, key=key)
        mean, sd, _ = _conjugate_truth(y)
        compare_moments(posterior.variables, {"mu": (mean, sd)}).check()
        tree = posterior.to_datatree()
        assert_array_equal(tree["observed_data"]["y"], y)
        counts.append(_cache.traces)
    assert counts[0] == counts[1]
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "row")
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    assert "prior_predictive" in tree
    assert posterior.diagnose().ok
    # The leave-one-out predictive density of a conjugate model has a closed form.
    precision = 1 / 4 + len(y) - 1
    predictive = dist.Normal((y.sum() - y) / precision, np.sqrt(1 + 1 / precision))
    assert_allclose(arviz_stats.loo(tree).elpd, predictive.log_prob(y).sum(), atol=0.2)


@pytest.mark.slow
def test_evidence_by_tempering(key):
    y = np.random.default_rng(2).normal(size=8) + 1.0
    target = wh.from_numpyro(conjugate, y)
    posterior = wh.infer(target, wh.TemperedSMC(particles=1024), key=key)
    error = max(float(posterior.log_evidence_error or 0.0), 0.02)
    assert abs(posterior.log_evidence - _conjugate_truth(y)[2]) < 5 * error


def test_prior_draws(key):
    target, *_ = _make("hierarchical")
    draws = jax.jit(jax.vmap(lambda k: target.sample_prior(key=k)))(jr.split(key, 4000))
    # HalfNormal(1): mean sqrt(2 / pi); Normal(0, 1); tolerance five standard errors
    assert_allclose(draws["sigma"].mean(), np.sqrt(2 / np.pi), atol=5 * 0.603 / 4000**0.5)
    assert_allclose(draws["mu"].mean(0), 0.0, atol=5 / 4000**0.5)
    assert_allclose(draws["mu"].std(0), 1.0, atol=5 / 8000**0.5)
    correlation = np.corrcoef(
        np.asarray(draws["mu"][:, 0, 0]), np.asarray(draws["mu"][:, 1, 0])
    )
    assert abs(correlation[0, 1]) < 5 / 4000**0.5
    position = target.sample_prior_position(key=key)
    same = target.constrain(position)
    assert_allclose(same["a"], target.sample_prior(key=key)["a"], rtol=1e-10)


def test_prior_of_states_in_a_scan_differs_by_step(key):
    target, *_ = _make("state_space")
    draw = jax.jit(jax.vmap(lambda k: target.sample_prior(key=k)["state"]))
    states = draw(jr.split(key, 500))
    assert states.shape == (500, 10)
    assert len(np.unique(np.asarray(states))) == states.size
    with pytest.raises(ValueError, match="prior of site 'rate' is improper"):
        _make("dynamic")[0].sample_prior(key=key)


def test_predictions_follow_from_predictions_in_a_scan(key):
    """A random walk without noise stays where it starts; data would pull it elsewhere."""
    target, _, (y,) = _make("autoregression")
    draw = {"phi": jnp.asarray(1.0), "sigma": jnp.asarray(1e-9)}
    drawn = target.predict(draw, None, key=key)["y"]
    assert_allclose(drawn, np.full(9, y[0]), atol=1e-7)
    noisy = target.predict(draw | {"sigma": jnp.asarray(1.0)}, None, key=key)["y"]
    steps = np.diff(np.asarray(noisy))
    assert len(np.unique(steps.round(9))) == 8  # each step has noise of its own


def test_predictions_at_new_inputs(key):
    target = wh.from_numpyro(models.linear, models.X, y=models.Y)
    posterior = wh.infer(target, wh.NUTS(chains=2, draws=1500), key=key)
    new = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    drawn = posterior.predict(new, key=jr.key(5))
    assert drawn.shape == (2, 1500, 4)
    mean = posterior["alpha"][..., None] + posterior["beta"] @ new.T
    noise = drawn - mean
    # Given the draws, predictions are normal with scale sigma.
    z = noise / posterior["sigma"][..., None]
    compare_moments({"z": z}, {"z": (np.zeros(4), np.ones(4))}).check()
    assert posterior.predict(key=jr.key(5)).shape == (2, 1500, 12)


def test_latents_of_old_rows_do_not_fit_new_ones(key):
    target, *_ = _make("eight_schools")
    draw = target.constrain(target.init(key=key))
    with pytest.raises(ValueError, match=r"Latent 'theta' has shape \(8,\).* asks for \(3,\)"):
        target.predict(draw, (jnp.ones(3),), key=key)


def test_predictions_have_the_shape_of_the_data(key):
    def one_parameter(y):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        numpyro.sample("y", dist.Poisson(rate), obs=y)

    target = wh.from_numpyro(one_parameter, np.arange(200))
    drawn = target.predict({"rate": jnp.asarray(50.0)}, None, key=key)["y"]
    assert drawn.shape == (200,)
    assert abs(drawn.mean() - 50.0) < 5 * (50 / 200) ** 0.5
    assert len(np.unique(np.asarray(drawn))) > 5


def test_only_data_are_observed_data():
    target, *_ = _make("ordered_logistic")
    assert set(target.observed_data) == {"y"}  # `prior` is a term of the density
    assert set(_make("dynamic")[0].observed_data) == {"y"}  # `penalty` is a factor
    assert_array_equal(_make("conditioned")[0].observed_data["y"], models.Y)


def test_dims_come_from_plates(key):
    assert _make("hierarchical")[0].dims == {
        "mu": ("side", "mu_dim_1"),
        "a": ("side", "group"),
        "y": ("data",),
    }
    assert _make("eight_schools_noncentered")[0].dims["theta"] == ("school",)
    assert _make("dirichlet_multinomial")[0].dims["counts"] == ("data", "counts_dim_1")

    def two_lengths():
        with numpyro.plate("row", 2):
            numpyro.sample("a", dist.Normal())
        with numpyro.plate("row", 3):
            numpyro.sample("b", dist.Normal())

    assert wh.from_numpyro(two_lengths).dims == {}


def test_array_arguments_are_constant_data():
    target, _, (sigma, y) = _make("eight_schools")
    assert set(target.constant_data) == {"sigma"}  # `y` is what was observed
    assert_array_equal(target.constant_data["sigma"], sigma)
    # under handlers, and by keyword
    target = wh.from_numpyro(models.eight_schools_noncentered, sigma=sigma, y=y)
    assert set(target.constant_data) == {"sigma"}
    assert set(_make("hierarchical")[0].constant_data) == {"group"}
    assert set(_make("partial")[0].constant_data) == {"x"}
    assert set(target.with_data({"obs": y + 1.0}).constant_data) == {"sigma", "y"}

    def nested(data, *more, theta=None, **options):
        theta = numpyro.sample("theta", dist.Normal(theta, more[0]))
        numpyro.sample("y", dist.Normal(theta, options["noise"]), obs=data["y"])

    data = {"y": jnp.ones(2), "weight": jnp.zeros(3)}
    one = jnp.ones(())
    target = wh.from_numpyro(nested, data, 2 * one, theta=3 * one, noise=4 * one)
    # `theta` is a site, whose axes may have names
    assert set(target.constant_data) == {"data.weight", "more.0", "noise"}


def test_labels(key):
    target, _, (sigma, y) = _make("eight_schools")
    labels = list("abcdefgh")
    named = target.with_coords({"school": labels}, dims={"sigma": "school"})
    engine = wh.NUTS(chains=1, warmup=20, draws=20)
    tree = wh.infer(named, engine, key=key).to_datatree()
    for group, name in (("posterior", "theta"), ("observed_data", "obs")):
        assert list(tree[group][name].coords["school"].values) == labels
    assert tree["constant_data"]["sigma"].dims == ("school",)
    before = _cache.traces
    other = target.with_coords({"school": range(8)}, dims={"sigma": "school"})
    wh.infer(other, engine, key=key)
    assert _cache.traces == before
    # axes without a plate
    target = _make("linear")[0].with_coords(
        {"feature": ["p", "q", "r"]}, dims={"beta": "feature"}
    )
    assert target.dims["beta"] == ("feature",)
    assert target.dims["y"] == ("data",)


@pytest.mark.parametrize(
    ("coords", "dims", "message"),
    [
        ({"School": 8}, {}, r"must name axes of the target \(school\); got 'School'"),
        ({"school": 7}, {}, "must have 8 labels.*got 7"),
        ({"school": ["a"] * 8}, {}, "must not repeat a label"),
        ({}, {"mu": "school"}, r"must name each of its 0 axes"),
        ({}, {"nu": "school"}, "must name variables of the target.*got 'nu'"),
        ({}, {"sigma": "draw"}, "other than 'chain' and 'draw'"),
        ({}, {"theta": "mu"}, "must not be the name of a variable; got 'mu'"),
        ({}, {"sigma": ""}, "got ''"),
    ],
)
def test_labels_that_do_not_fit_are_refused(coords, dims, message):
    target, *_ = _make("eight_schools")
    with pytest.raises(ValueError, match=message):
        target.with_coords(coords, dims=dims)


def test_runs_resume(tmp_path, key):
    target = wh.from_numpyro(conjugate, np.ones(4))
    engine = wh.NUTS(chains=1, warmup=50, draws=50)
    whole = wh.infer(target, engine, key=key, store=tmp_path / "run")
    again = wh.resume(tmp_path / "run", target)
    assert_array_equal(whole["mu"], again["mu"])


def test_minibatches_are_refused(key):
    target = wh.from_numpyro(conjugate, np.ones(4))
    assert target.num_data is None
    with pytest.raises(ValueError, match="product over data rows"):
        wh.infer(target, wh.SGLD(batch_size=2, steps=10), key=key)
    with pytest.raises(ValueError, match="with all observed sites inside"):
        target.log_likelihood(target.init(key=key), jnp.array([0]))


def parametric():
    numpyro.param("p", 1.0)
    numpyro.sample("x", dist.Normal())


def counting(group):
    with numpyro.plate("group", len(np.unique(group))):
        numpyro.sample("a", dist.Normal())


def branching(x):
    scale = 1.0 if x.max() > 0 else 2.0
    a = numpyro.sample("a", dist.Normal(0.0, scale))
    numpyro.sample("b", dist.Normal(0.0, 1.0 if a > 0 else 2.0))


@pytest.mark.parametrize(
    ("fn", "args", "message"),
    [
        (parametric, (), "'p' of the model is a `numpyro.param`.*Give it a prior"),
        (lambda: None, (), "at least one continuous latent"),
        (branching, (np.ones(2),), "must not need numbers of latents.*jnp.where"),
        (conjugate, (np.array([1.0, np.nan]),), "`y` must not contain NaN; got 1"),
        (
            conjugate,
            (np.array(["a", "b"]),),
            "`args` at '0' must be real numbers; got dtype <U1",
        ),
    ],
)
def test_what_cannot_be_a_target_is_refused(fn, args, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        wh.from_numpyro(fn, *args)


def test_models_that_count_may_hold_the_array():
    import functools

    target = wh.from_numpyro(functools.partial(counting, group=models.GROUP))
    assert target.sites[0].shape == (4,)
    # NumPy's integers are lengths, not data
    length = np.int64(3)
    model = lambda n: numpyro.sample("a", dist.Normal().expand([n]))
    assert wh.from_numpyro(model, length).sites[0].shape == (3,)


def test_a_likelihood_without_latents_is_told():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(jax.lax.stop_gradient(mu), 1.0), obs=y)

    def forgot(y):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.warns(wh.InferenceWarning, match="no slope along 'mu'"):
        wh.from_numpyro(model, np.ones(3))
    with pytest.warns(wh.InferenceWarning, match="none of its latents"):
        wh.from_numpyro(forgot, np.ones(3))
