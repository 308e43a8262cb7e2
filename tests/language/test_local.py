"""Latents with one value per data row: shapes, the split of the density, minibatches."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

import whence as wh
from whence.core import HasLocals, check_rows, log_density_estimate


class Effects(wh.Model):
    """Two numbers for each row, one of them positive, and global latents."""

    mean: Array = wh.latent(dist.Normal(0.0, 2.0))
    spread: Array = wh.latent(dist.HalfNormal(1.0))
    effect: Array = wh.latent(lambda m: dist.Normal(m.mean, m.spread), local=True)
    scale: Array = wh.latent(dist.Gamma(3.0, 2.0), shape=2, dims="patient", local=True)

    def likelihood(self, x):
        return dist.Normal(self.effect[:, None] + x, self.scale).to_event(1)


def _data(rows=5):
    x, y = jr.normal(jr.key(0), (2, rows, 2))
    return y, x


def _by_hand(target, position, rows, weight):
    """The estimate of the log density, term by term."""
    mean, spread = position["mean"], jnp.exp(position["spread"])
    total = dist.Normal(0.0, 2.0).log_prob(mean)
    total += dist.HalfNormal(1.0).log_prob(spread) + position["spread"]
    for i in rows:
        effect, log_scale = position["effect"][i], position["scale"][i]
        scale = jnp.exp(log_scale)
        row = dist.Normal(mean, spread).log_prob(effect)
        row += jnp.sum(dist.Gamma(3.0, 2.0).log_prob(scale) + log_scale)
        row += jnp.sum(dist.Normal(effect + target.inputs[0][i], scale).log_prob(target.y[i]))
        total += weight * row
    return total


def test_shapes_names_and_labels_follow_the_data():
    target = wh.condition(Effects(), *_data())
    assert [(s.name, s.shape, s.local) for s in target.sites] == [
        ("mean", (), False),
        ("spread", (), False),
        ("effect", (5,), True),
        ("scale", (5, 2), True),
    ]
    assert target.dims["effect"] == ("row",)
    assert target.dims["scale"] == ("patient", "scale_dim_1")
    labelled = Effects(coords={"patient": list("abcde")})
    assert list(wh.condition(labelled, *_data()).coords["patient"]) == list("abcde")
    assert isinstance(target, HasLocals)
    assert target.local == ("effect", "scale")


@pytest.mark.parametrize("rows", [[3, 1], [2, 2], [0, 1, 2, 3, 4]])
def test_density_of_a_batch_counts_prior_and_likelihood_of_its_rows(rows):
    target = wh.condition(Effects(), *_data())
    position = target.init(key=jr.key(1))
    got = log_density_estimate(target, position, jnp.asarray(rows, jnp.int32))
    np.testing.assert_allclose(got, _by_hand(target, position, rows, 5 / len(rows)), rtol=1e-5)


def test_whole_density_and_gradient_are_the_mean_over_batches():
    target = wh.condition(Effects(), *_data())
    position = target.init(key=jr.key(1))
    np.testing.assert_allclose(
        target.log_density(position), _by_hand(target, position, range(5), 1.0), rtol=1e-5
    )
    flat, form = ravel_pytree(position)
    pairs = jnp.asarray([(i, j) for i in range(5) for j in range(i)], jnp.int32)
    estimate = lambda x, rows: log_density_estimate(target, form(x), rows)
    gradients = jax.vmap(lambda rows: jax.grad(estimate)(flat, rows))(pairs)
    whole = jax.grad(lambda x: target.log_density(form(x)))(flat)
    np.testing.assert_allclose(gradients.mean(0), whole, rtol=1e-4, atol=1e-4)
    # A row that is not in the batch has no part in the gradient of the batch.
    effect = jax.vmap(form)(gradients)["effect"]
    inside = (np.asarray(pairs)[:, :, None] == np.arange(5)).any(1)
    assert np.array_equal(np.asarray(effect != 0), inside)


def test_fixed_local_values_are_those_of_the_rows():
    effect = jnp.arange(5.0)
    target = wh.condition(Effects(effect=effect), *_data())
    assert target.local == ("scale",)
    position = target.init(key=jr.key(1))
    full = position | {"effect": effect}
    got = log_density_estimate(target, position, jnp.asarray([4, 1], jnp.int32))
    np.testing.assert_allclose(got, _by_hand(target, full, [4, 1], 2.5), rtol=1e-5)


def test_prior_draws_need_the_number_of_rows():
    with pytest.raises(ValueError, match="`effect` is local.*coords=\\{'row': 100\\}"):
        Effects().sample_prior(key=0)
    draw = Effects(coords={"row": 7, "patient": 7}).sample_prior(key=0)
    assert draw.effect.shape == (7,)
    assert draw.scale.shape == (7, 2)


def test_labels_must_be_as_many_as_rows():
    model = Effects(coords={"patient": ["a", "b"]})
    with pytest.raises(ValueError, match="'patient', the axis of local latents: 5; got 2"):
        wh.condition(model, *_data())


def test_likelihood_must_have_an_entry_per_row():
    class Total(Effects):
        def log_likelihood(self, y, x):
            return jnp.sum(dist.Normal(self.effect[:, None] + x, 1.0).log_prob(y))

    with pytest.raises(ValueError, match="one entry per row"):
        wh.condition(Total(), *_data())


def test_rows_that_depend_on_each_other_are_refused():
    class Walk(wh.Model):
        """A local latent whose prior couples the rows."""

        step: Array = wh.latent(dist.Normal(0.0, 1.0), local=True)
        level: Array = wh.latent(lambda m: dist.Normal(jnp.cumsum(m.step), 1.0), local=True)

        def likelihood(self):
            return dist.Normal(self.level, 1.0)

    target = wh.condition(Walk(), jr.normal(jr.key(0), (20,)))
    with pytest.raises(ValueError, match="prior of local latents"):
        check_rows(target, 4)
    check_rows(wh.condition(Effects(), *_data()), 2)


def test_prior_with_an_entry_per_row_is_taken_as_it_is():
    class Chain(wh.Model):
        a: Array = wh.latent(dist.Normal(0.0, 1.0), local=True)
        b: Array = wh.latent(lambda m: dist.Normal(m.a, 1.0), local=True, noncentered=True)

        def likelihood(self):
            return dist.Normal(self.b, 1.0)

    target = wh.condition(Chain(), jnp.arange(6.0))
    assert [s.shape for s in target.sites] == [(6,), (6,)]
    check_rows(target, 3)


def test_new_rows_get_values_from_their_prior():
    target = wh.condition(Effects(), *_data())
    draw = dataclasses.replace(
        target.sample_prior(key=jr.key(3)),
        mean=jnp.asarray(3.0),
        spread=jnp.asarray(0.5),
    )
    drawn = target.predict(draw, (jnp.zeros((4_000, 2)),), key=jr.key(4))["y"]
    assert drawn.shape == (4_000, 2)
    # Columns share the effect of their row: its variance is the covariance.
    covariance = np.cov(np.asarray(drawn).T)[0, 1]
    # Columns have variance 0.25 + E scale^2 = 0.25 + 3, and tails heavier than Gaussian ones.
    error = 1.5 * np.sqrt((3.25**2 + 0.25**2) / 4_000)
    assert abs(covariance - 0.25) < 4 * error
    assert abs(drawn.mean() - 3.0) < 4 * np.sqrt((0.25 + 3.0 / 2) / 4_000)


def test_a_posterior_predicts_any_number_of_new_rows():
    target = wh.condition(Effects(), *_data())
    posterior = wh.infer(target, wh.NUTS(chains=2, warmup=100, draws=50), key=0)
    for rows in (1, 3, 5, 8):
        drawn = posterior.predict(jnp.zeros((rows, 2)), key=1)
        assert drawn.shape == (2, 50, rows, 2)
        assert np.isfinite(drawn).all()


def test_stochastic_gradients_and_nuts_agree_on_conjugate_rows():
    class Rows(wh.Model):
        """Exact: mean given y is N(n ybar / (n + 2), 2 / (n + 2)), as y_i ~ N(mean, 2)."""

        mean: Array = wh.latent(dist.Normal(0.0, 1.0))
        effect: Array = wh.latent(lambda m: dist.Normal(m.mean, 1.0), local=True)

        def likelihood(self):
            return dist.Normal(self.effect, 1.0)

    y = 1.0 + 1.4 * jr.normal(jr.key(5), (6,))
    target = wh.condition(Rows(), y)
    exact = y.sum() / 8, jnp.sqrt(2 / 8)
    posterior = wh.infer(target, wh.NUTS(draws=1_500, warmup=500), key=jr.key(6))
    error = posterior.summary().loc["mean", "mcse_mean"]
    assert abs(posterior["mean"].mean() - exact[0]) < 4 * float(error)
    assert abs(posterior["mean"].std() / exact[1] - 1) < 0.1
    # Effects: E[effect_i | y] = (y_i + E mean) / 2.
    np.testing.assert_allclose(posterior["effect"].mean((0, 1)), (y + exact[0]) / 2, atol=0.1)
    engine = wh.SGLD(batch_size=3, step_size=0.02, steps=60_000, chains=2)
    rough = wh.infer(target, engine, key=jr.key(7))
    assert rough["effect"].shape[2:] == (6,)
    assert abs(rough["mean"].mean() - exact[0]) < 0.15
    # With V the variance of the noise, h (1 + h V / 2) / 2 too wide: V is at most 20 here.
    assert 0.9 < rough["mean"].std() / exact[1] < 1.3
