"""Feynman-Kac correctors against quadrature in one dimension, and closed forms in two."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import whence as wh
from whence.models import diffusion

# Ornstein and Uhlenbeck: dx = -x dt + sqrt(2) dW, long enough to forget.
NOISE = diffusion.VariancePreserving(2.0, 2.0, horizon=4.0)
GRID = np.linspace(-12.0, 12.0, 20_001)
ENGINE = wh.FeynmanKacSMC(particles=4_000)


def _mixture(weights, means, variance):
    means = np.asarray(means, float)[:, None]
    return diffusion.GaussianMixture(NOISE, weights, means, variance)


LEFT = _mixture([0.5, 0.5], [-1.0, 1.0], 0.1)
RIGHT = _mixture([0.3, 0.7], [0.5, 2.0], 0.3)


def _log_density(mixture, grid=GRID):
    log_prob = jax.jit(jax.vmap(lambda x: mixture.log_prob(jnp.zeros(()), x[None])))
    return np.asarray(log_prob(jnp.asarray(grid)))


def _truth(log_density):
    """Log integral, mean and variance by the trapezoidal rule."""
    density = np.exp(log_density)
    total = np.trapezoid(density, GRID)
    mean = np.trapezoid(GRID * density, GRID) / total
    return np.log(total), mean, np.trapezoid((GRID - mean) ** 2 * density, GRID) / total


REWARD = lambda x: 0.8 * jnp.sin(2.0 * x[0]) - 0.3 * x[0]
CASES = {
    "hot": (
        lambda **o: diffusion.annealed(NOISE, LEFT, 0.5, 1, **o),
        lambda: 0.5 * _log_density(LEFT),
    ),
    "cold": (
        lambda **o: diffusion.annealed(NOISE, LEFT, 2.0, 1, **o),
        lambda: 2.0 * _log_density(LEFT),
    ),
    "product": (
        lambda **o: diffusion.product(NOISE, (LEFT, RIGHT), 1, **o),
        lambda: _log_density(LEFT) + _log_density(RIGHT),
    ),
    "geometric": (
        lambda **o: diffusion.geometric(NOISE, (LEFT, RIGHT), 0.4, 1, **o),
        lambda: 0.6 * _log_density(LEFT) + 0.4 * _log_density(RIGHT),
    ),
    "guidance 1.5": (
        lambda **o: diffusion.geometric(NOISE, (RIGHT, LEFT), 1.5, 1, **o),
        lambda: -0.5 * _log_density(RIGHT) + 1.5 * _log_density(LEFT),
    ),
    "reward": (
        lambda **o: diffusion.tilted(NOISE, LEFT, REWARD, 2.0, 1, **o),
        lambda: _log_density(LEFT) + 2.0 * (0.8 * np.sin(2.0 * GRID) - 0.3 * GRID),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_law_and_normaliser(case):
    make, log_density = CASES[case]
    log_z, mean, variance = _truth(log_density())
    posterior = wh.infer(make(steps=600), ENGINE, key=1)
    weights = np.exp(posterior.log_weights.ravel())
    x = posterior["x"].reshape(-1)
    error = posterior.log_evidence_error
    # Euler steps leave an error that falls with their number: 0.07 with 400, guided.
    assert abs(posterior.log_evidence - log_z) < 4 * error + 0.03
    assert 0.0 < error < 0.2
    got = (weights * x).sum()
    copies = 4_000 * (weights**2).sum()
    spread = np.sqrt(variance * copies / 4_000)
    assert abs(got - mean) < 6 * spread + 0.02
    assert (weights * (x - got) ** 2).sum() == pytest.approx(variance, rel=0.2, abs=0.02)


def _unweighted(target, num):
    """Particles that were moved and never weighed."""
    model = target.feynman_kac(num)
    state = model.initial(key=jr.key(0))
    step = lambda s, k: (model.mutate(s[0], jnp.zeros(num), s[1], key=k), None)
    keys = jr.split(jr.key(1), target.num_steps)
    (moved, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, keys))(state)
    return moved.x


def test_guidance_in_closed_form():
    """Variances of the law that is meant, and of what simulation gives (arXiv:2408.09000)."""
    noise = diffusion.VarianceExploding(0.01, 40.0)
    wide = diffusion.GaussianMixture(noise, [1.0], [[0.0]], 2.0)
    narrow = diffusion.GaussianMixture(noise, [1.0], [[0.0]], 1.0)
    for eta, alone in ((0.501, 0.25), (1.0, 0.3875)):
        target = diffusion.geometric(noise, (wide, narrow), 3.0, 1, eta=eta, steps=400)
        x = _unweighted(target, 4_000)
        # 4,000 draws: a standard error of 2.2%; steps of time leave about 2%.
        assert float(x.var()) == pytest.approx(alone, rel=0.12)
    posterior = wh.infer(target, ENGINE, key=6)
    weights = np.exp(posterior.log_weights.ravel())
    assert weights @ posterior["x"].ravel() ** 2 == pytest.approx(0.5, rel=0.12)


def test_any_eta_gives_the_same_law():
    log_z, *_ = _truth(CASES["hot"][1]())
    for eta in (0.5, 1.5):
        found = wh.infer(CASES["hot"][0](steps=300, eta=eta), ENGINE, key=2)
        assert abs(found.log_evidence - log_z) < 4 * found.log_evidence_error + 0.03


def test_matrix_noise_and_correlated_law_in_two_dimensions():
    noise = diffusion.LinearNoise(
        jnp.asarray([[-1.0, 0.3], [0.0, -0.7]]), jnp.asarray([[1.0, 0.0], [0.4, 1.2]]), 6.0
    )
    covariance = np.asarray([[1.0, 0.6], [0.6, 0.8]])
    law = diffusion.GaussianMixture(noise, [1.0], [[0.5, -1.0]], covariance[None])
    target = diffusion.annealed(noise, law, 1.5, 2, steps=500)
    posterior = wh.infer(target, ENGINE, key=3)
    weights = np.exp(posterior.log_weights.ravel())
    x = posterior["x"].reshape(-1, 2)
    mean = weights @ x
    np.testing.assert_allclose(mean, [0.5, -1.0], atol=0.1)
    got = (weights[:, None] * (x - mean)).T @ (x - mean)
    np.testing.assert_allclose(got, covariance / 1.5, atol=0.08)
    # int N(x; m, S)^b dx = (2 pi)^(d (1 - b) / 2) |S|^((1 - b) / 2) b^(-d / 2)
    log_z = -0.5 * (2 * np.log(2 * np.pi) + np.log(np.linalg.det(covariance))) * 0.5
    log_z -= np.log(1.5)
    assert abs(posterior.log_evidence - log_z) < 4 * posterior.log_evidence_error + 0.05


def test_moments_of_noise_solve_their_equations():
    noise = diffusion.LinearNoise(
        jnp.asarray([[-1.0, 0.3], [0.2, -0.7]]), jnp.asarray([[1.0, 0.0], [0.4, 1.2]])
    )
    t = jnp.asarray(0.6)
    a, q = noise.matrix, noise.factor @ noise.factor.T
    slope = jax.jacfwd(noise.covariance)(t)
    v = noise.covariance(t)
    np.testing.assert_allclose(slope, a @ v + v @ a.T + q, rtol=1e-8)
    np.testing.assert_allclose(jax.jacfwd(noise.mean)(t), a @ noise.mean(t), rtol=1e-8)
    for scalar in (NOISE, diffusion.VariancePreserving(), diffusion.VarianceExploding()):
        slope = jax.jacfwd(scalar.covariance)(t)
        rate = 2 * scalar.drift(t) * scalar.covariance(t) + scalar.diffusion(t) ** 2
        np.testing.assert_allclose(slope, rate, rtol=1e-8)
        slope = jax.jacfwd(scalar.mean)(t)
        np.testing.assert_allclose(slope, scalar.drift(t) * scalar.mean(t), atol=1e-12)
        times = scalar.times(10)
        assert (times[0], times[-1]) == (scalar.horizon, 0.0)
        np.testing.assert_allclose(scalar.covariance(jnp.zeros(())), 0.0, atol=1e-12)


def test_below_the_limit_of_eta_it_is_refused():
    with pytest.raises(ValueError, match=r"`eta` must be above .* = 0.833333.* got 0.6"):
        diffusion.annealed(NOISE, LEFT, 3.0, 1, eta=0.6)
    diffusion.annealed(NOISE, LEFT, 3.0, 1)


def test_clipping_is_reported():
    posterior = wh.infer(CASES["product"][0](steps=100, clip=0.01), ENGINE, key=4)
    finding = next(f for f in posterior.diagnose().findings if f.code == "clipped")
    assert finding.severity == "warning"
    assert finding.value > 0.1


def test_resume_is_bit_for_bit(tmp_path):
    target = CASES["geometric"][0](steps=60)
    engine = wh.FeynmanKacSMC(particles=100)
    whole = wh.infer(target, engine, key=5)
    wh.infer(target, engine, key=5, store=tmp_path / "run", chunk_steps=7)
    again = wh.resume(tmp_path / "run", target)
    assert np.array_equal(again["x"], whole["x"])
    assert again.log_evidence == whole.log_evidence


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: diffusion.Corrected(NOISE, (LEFT,), (1.0, 2.0), 1),
            "`exponents` must have one",
        ),
        (lambda: diffusion.product(NOISE, (), 1), "`exponents` must have one"),
        (lambda: diffusion.annealed(NOISE, LEFT, -1.0, 1), "must be positive"),
        (lambda: diffusion.annealed(NOISE, LEFT, 1.0, 0), "`dim` must be"),
        (lambda: diffusion.annealed(NOISE, lambda t, x: x[0], 1.0, 2), "must return shape"),
        (lambda: diffusion.tilted(NOISE, LEFT, lambda x: x, 1.0, 1), "`reward` must return"),
        (lambda: diffusion.geometric(NOISE, (LEFT,), 0.5, 1), "`scores` must be two; got 1"),
        (lambda: diffusion.VarianceExploding(2.0, 1.0), "`largest` must be above"),
        (lambda: _mixture([1.0], [0.0, 1.0], 1.0), "`means` must have shape"),
        (lambda: _mixture([0.5, 0.5], [0.0, 1.0], -1.0), "must be positive"),
        (lambda: diffusion.LinearNoise(jnp.eye(2), jnp.eye(3)), "square and of one shape"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_engines_of_densities_say_what_to_use():
    target = CASES["hot"][0](steps=10)
    with pytest.raises((ValueError, NotImplementedError), match="FeynmanKacSMC"):
        wh.infer(target, wh.NUTS(), key=0)
    with pytest.raises(ValueError, match="needs a target that is a Feynman-Kac model"):
        wh.infer(wh.from_log_density(lambda x: -(x**2).sum(), jnp.zeros(2)), ENGINE, key=0)
    with pytest.raises(ValueError, match="`max_steps` must be at least the 11 steps"):
        wh.infer(target, wh.FeynmanKacSMC(max_steps=5), key=0)


NOISES = (diffusion.VariancePreserving(), diffusion.VarianceExploding(0.02, 15.0))
CENTRE, SCALE = np.array([3e4, 1e-3]), np.array([5e3, 1e-6])


@pytest.mark.parametrize("noise", NOISES, ids=["preserving", "exploding"])
@pytest.mark.parametrize("kind", ["powers", "reward"])
def test_units_change_nothing(noise, kind):
    """What is made of data in dollars and millionths is what is made of standard ones."""
    rows = np.random.default_rng(0).normal(size=(50, 2)) * [1.5, 0.5] + [1.0, 0.0]
    fitted = noise.fitted(CENTRE + SCALE * rows)
    plain = noise.fitted(rows)
    np.testing.assert_allclose(fitted.centre, CENTRE + SCALE * np.asarray(plain.centre))
    np.testing.assert_allclose(fitted.scale, SCALE * np.asarray(plain.scale))

    def made(noise, centre, scale):
        laws = [
            diffusion.GaussianMixture(
                noise,
                [0.3, 0.7],
                centre + scale * np.array([[-1.0, 0.2], [1.0, shift]]),
                np.array(0.1 * np.outer(scale, scale) * [[1.0, 0.3], [0.3, 1.0]])[None]
                * np.ones((2, 1, 1)),
            )
            for shift in (0.0, 0.5)
        ]
        if kind == "reward":
            reward = lambda x: jnp.sin((x[0] - centre[0]) / scale[0])
            return diffusion.tilted(noise, laws[0], reward, 0.7, 2, steps=20)
        return diffusion.geometric(noise, laws, 1.5, 2, steps=20)

    one, other = made(plain, np.zeros(2), np.ones(2)), made(fitted, CENTRE, SCALE)
    for t in (jnp.asarray(0.05), jnp.asarray(0.6)):
        z = jnp.asarray([0.4, -0.3])
        x = jnp.asarray(CENTRE + SCALE * np.asarray(z))
        (drift, rate), (moved, grown) = one.rates(t, z), other.rates(t, x)
        np.testing.assert_allclose(moved / SCALE, drift, rtol=1e-8)
        assert float(grown) == pytest.approx(float(rate), rel=1e-8)
    want, got = (t.feynman_kac(5).initial(key=jr.key(3))[0].x for t in (one, other))
    np.testing.assert_allclose((got - CENTRE) / SCALE, want, rtol=1e-8)
    np.testing.assert_allclose(
        jax.vmap(other.log_start)(got),
        jax.vmap(one.log_start)(want) - (sum(one.exponents) - 1) * np.log(SCALE).sum(),
        rtol=1e-8,
    )


def test_scores_of_another_noise_are_refused():
    law = diffusion.GaussianMixture(NOISES[0], [1.0], [[0.0]], 1.0)
    with pytest.raises(ValueError, match=r"`noise` must be that of `scores\[0\]`"):
        diffusion.annealed(diffusion.VariancePreserving(scale=2.0), law, 2.0, 1)


def test_a_target_may_be_made_inside_a_program():
    noise = diffusion.LinearNoise(-jnp.eye(2), jnp.eye(2))
    law = diffusion.GaussianMixture(noise, [1.0], [[0.0, 0.0]], 1.0)
    start = lambda x: diffusion.annealed(noise, law, 2.0, 2).log_start(x)
    x = jnp.asarray([0.3, -0.2])
    assert float(jax.jit(start)(x)) == pytest.approx(float(start(x)))


@pytest.mark.parametrize(("mean", "variance"), [(3e4, 1.0), (0.0, 1e-10), (0.0, 1e10)])
def test_mixtures_far_from_the_units_of_the_noise_are_told(mean, variance):
    noise = diffusion.VariancePreserving()
    places = [[0.0, mean], [0.0, mean + np.sqrt(variance)]]
    spread = np.diag([1.0, variance])[None] * np.ones((2, 1, 1))
    with pytest.warns(UserWarning, match="Column 1 of `means`.*`noise.fitted"):
        diffusion.GaussianMixture(noise, [1.0, 1.0], places, spread)
    units = {"centre": [0.0, mean], "scale": [1.0, np.sqrt(variance)]}
    diffusion.GaussianMixture(diffusion.VariancePreserving(**units), [1.0, 1.0], places, spread)


@pytest.mark.parametrize("bad", [0.0, [1.0, -1.0], np.nan, [[1.0]]])
def test_a_scale_is_positive(bad):
    with pytest.raises(ValueError, match="`scale` must be positive and finite"):
        diffusion.VarianceExploding(scale=bad)
