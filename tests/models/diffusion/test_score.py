"""Denoising score matching recovers the score of a normal law."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import whence as wh
from whence.models import diffusion


def test_the_loss_is_smallest_at_the_true_score():
    noise = diffusion.VariancePreserving()
    data = 0.5 + 0.6 * jr.normal(jr.key(0), (20_000, 1))

    def scaled(factor):
        law = diffusion.GaussianMixture(noise, [1.0], [[0.5]], 0.36)
        return lambda t, x: factor * law(t, x)

    losses = [
        float(
            diffusion.ScoreMatching(scaled(factor), noise, data).loss(None, None, key=jr.key(1))
        )
        for factor in (0.9, 1.0, 1.1)
    ]
    assert losses[1] < min(losses[0], losses[2])
    # At the optimum the loss is E[1 - V(t) / (M^2 0.36 + V)], the variance of z given x_t.
    t = jnp.linspace(1e-3, 1.0, 2_001)
    v, m = jax.vmap(noise.covariance)(t), jax.vmap(noise.mean)(t)
    want = float((1 - v / (0.36 * m**2 + v)).mean())
    assert losses[1] == pytest.approx(want, rel=0.05)


def test_a_trained_network_is_the_score():
    noise = diffusion.VariancePreserving()
    data = 1.0 + 0.5 * jr.normal(jr.key(0), (2_000, 1))
    network = diffusion.ScoreNetwork(noise, 1, width=32, depth=2, key=jr.key(1))
    problem = diffusion.ScoreMatching(network, noise, data)
    adam = diffusion.Adam(steps=3_000, batch_size=128, learning_rate=3e-3)
    trained = wh.train(problem, adam, key=2)
    score = problem.score(trained.state.params)
    law = diffusion.GaussianMixture(noise, [1.0], [[float(data.mean())]], float(data.var()))
    for time in (0.1, 0.3, 0.7):
        t = jnp.asarray(time)
        spread = float(jnp.sqrt(noise.mean(t) ** 2 * 0.25 + noise.covariance(t)))
        centre = float(noise.mean(t))
        for place in (centre - spread, centre, centre + spread):
            x = jnp.asarray([place])
            assert float((score(t, x) - law(t, x))[0] * spread) == pytest.approx(0, abs=0.15)


def test_units_change_nothing():
    """A fit to data in dollars and millionths is that to standard ones."""
    rows = np.random.default_rng(0).normal(size=(200, 2)) * [1.5, 0.5] + [1.0, 0.0]
    scale = np.array([5e3, 1e-6])
    found = []
    for data, unit in ((rows, 1.0), (rows * scale + [3e4, 1e-3], scale)):
        noise = diffusion.VariancePreserving().fitted(data)
        network = diffusion.ScoreNetwork(noise, 2, width=8, depth=1, key=jr.key(1))
        problem = diffusion.ScoreMatching(network, noise, data)
        trained = wh.train(problem, diffusion.Adam(steps=20, batch_size=50), key=2)
        score = problem.score(trained.state.params)
        place = jnp.asarray(data[0])
        found.append(
            (
                problem.loss(trained.state.params, None, key=jr.key(3)),
                score(jnp.asarray(0.3), place) * unit,
            )
        )
        assert score.noise == noise
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-5)


@pytest.mark.parametrize(("centre", "scale"), [(3e4, 1.0), (0.0, 1e-5), (0.0, 1e5)])
def test_data_far_from_the_units_of_the_noise_are_told(centre, scale):
    noise = diffusion.VariancePreserving()
    network = diffusion.ScoreNetwork(noise, 1, width=8, depth=1, key=jr.key(1))
    data = centre + scale * np.random.default_rng(0).normal(size=(50, 1))
    with pytest.warns(UserWarning, match="Column 0 of `data`.*`noise.fitted"):
        diffusion.ScoreMatching(network, noise, data)
    with pytest.raises(ValueError, match="`noise` must be that of `network`"):
        diffusion.ScoreMatching(network, noise.fitted(data), data)
    other = diffusion.ScoreNetwork(noise.fitted(data), 1, width=8, depth=1, key=jr.key(1))
    diffusion.ScoreMatching(other, noise.fitted(data), data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda n, k: diffusion.ScoreMatching(lambda t, x: x, n, np.zeros(3)),
            "`data` must",
        ),
        (
            lambda n, k: diffusion.ScoreMatching(lambda t, x: x, n, np.full((3, 1), np.nan)),
            "in row 0",
        ),
        (
            lambda n, k: diffusion.ScoreMatching(lambda t, x: x[0], n, np.zeros((3, 1))),
            "must return the shape of a row",
        ),
        (lambda n, k: diffusion.ScoreNetwork(n, 0, key=k), "`dim` must be"),
        (
            lambda n, k: diffusion.ScoreNetwork(
                diffusion.LinearNoise(-jnp.eye(2), jnp.eye(2)), 2, key=k
            ),
            "must be the same in all directions",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(diffusion.VariancePreserving(), jr.key(0))
