"""Particle Gibbs against the exact smoother and against quadrature over parameters."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hidden_models import LEVEL_Y, Level, Regimes, dense_level, level_posterior, mean_path

import whence as wh
from whence.diagnostics import mcse
from whence.inference.smc._particle_gibbs import conditional_path

Y = np.where(np.arange(8) == 4, np.nan, LEVEL_Y)  # one of them is missing
RUNS = 4_000


def _kernel(sweeps, particles):
    target = wh.condition(Level(s=0.7, r=0.5), Y)
    sequence = target.sequence
    draw = sequence.constrain({})

    def several(path, key):
        step = lambda p, k: (conditional_path(sequence, draw, p, particles, key=k), None)
        return jax.lax.scan(step, path, jr.split(key, sweeps))[0]

    return jax.jit(jax.vmap(several))


def _check(paths):
    _, mean, cov = dense_level(0.7, 0.5, Y)
    centred = paths - mean
    # 8 means, 8 variances and 7 covariances of neighbours: beyond 4.5 is one in 6,000 keys.
    for each, truth in (
        (centred, 0.0),
        (centred**2, np.diag(cov)),
        (centred[:, 1:] * centred[:, :-1], np.diag(cov, 1)),
    ):
        error = each.std(0) / RUNS**0.5
        assert np.all(np.abs(each.mean(0) - truth) < 4.5 * error)


def test_exact_paths_stay_exact_and_are_renewed_everywhere(key):
    target = wh.condition(Level(s=0.7, r=0.5), Y)
    exact = np.moveaxis(wh.smooth(target, paths=RUNS, key=key).points[0], 1, 0)
    moved = np.asarray(_kernel(1, 10)(jnp.asarray(exact), jr.split(key, RUNS)))
    _check(moved)
    # Without ancestor sampling the beginnings of paths hardly ever change.
    assert np.all((moved != exact).mean(0) > 0.3)


def test_paths_reach_the_law_from_far_away(key):
    far = jnp.full((RUNS, 8), 6.0)
    _check(np.asarray(_kernel(40, 5)(far, jr.split(key, RUNS))))


def test_parameters_and_states_have_the_joint_posterior(key):
    target = wh.condition(Level(exact=False), LEVEL_Y)
    engine = wh.ParticleGibbs(particles=10, chains=4, warmup=500, draws=4_000)
    posterior = wh.infer(target, engine, key=key)
    for name, truth in zip("sr", level_posterior(LEVEL_Y)[1]):
        found = mcse(posterior[name])
        assert abs(posterior[name].mean() - truth) < 4.5 * found.mean
        assert found.mean < 0.05
    path = posterior["states"].reshape(-1, 8)
    error = np.array([float(mcse(posterior["states"][..., t]).mean) for t in range(8)])
    assert np.all(np.abs(path.mean(0) - mean_path(LEVEL_Y)) < 4.5 * error)
    assert 0.1 < posterior.stats["acceptance_rate"].mean() < 0.6
    assert posterior.stats["renewed"].mean() > 0.3


def test_states_must_be_latents():
    counts = np.array([1.0, 2.0])
    with pytest.raises(ValueError, match="`exact=False`"):
        wh.ParticleGibbs().validate(wh.condition(Level(), LEVEL_Y))
    with pytest.raises(ValueError, match="at least one unconstrained dimension"):
        wh.ParticleGibbs().validate(wh.condition(Regimes(), counts))
    with pytest.raises(ValueError, match="`particles` must be at least 2; got 1"):
        wh.ParticleGibbs(particles=1)
