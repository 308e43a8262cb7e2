"""Kernels: golden values, quadrature, brute force over pixels, gradients, tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.models.nngp import (
    GELU,
    Activation,
    Conv,
    Dense,
    Erf,
    Flatten,
    GlobalAveragePooling,
    LeakyReLU,
    Rbf,
    ReLU,
    Residual,
    Serial,
    Sin,
)
from whence.models.nngp.network import _tiles
from whence.models.nngp.network._arc_cosine import apart

ROWS = np.array([[1.0, 0.0], [0.5, -1.0], [-2.0, 0.3]])
# Upper triangles, made with neural-tangents 0.6.5 (two hidden layers, variances 2 and 0.1).
GOLDEN = {
    "erf": (
        Erf(),
        [0.4765141643, 0.2244902212, -0.3291014066, 0.4895323162, -0.1538129792, 0.5406994359],
        [1.7369667628, 0.6592870157, -1.1976005304, 1.8389443434, -0.5158802115, 2.4804823659],
    ),
    "relu": (
        ReLU(),
        [0.6, 0.4627014029, 0.3929775524, 0.725, 0.489897658, 2.145],
        [1.75, 0.9060935637, 0.3496005768, 2.125, 0.4783442296, 6.385],
    ),
    "gelu": (
        GELU(),
        [0.4486609417, 0.3023855544, 0.1942848539, 0.5699032326, 0.281861463, 2.0061386304],
        [1.395157651, 0.6908305041, 0.1181988196, 1.7794684622, 0.2201671063, 6.2596319507],
    ),
}
SMOOTH = [Erf(), GELU(), Sin(0.7), Rbf(0.4)]
ALL = [*SMOOTH, ReLU(), LeakyReLU(0.2)]


def _mlp(activation, readout=1.0):
    hidden = (Dense(2.0, 0.1), activation, Dense(2.0, 0.1), activation)
    return Serial(*hidden, Dense(readout))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    activation, nngp, ntk = GOLDEN[name]
    upper = np.triu_indices(3)
    kernels = _mlp(activation).kernel(ROWS)
    assert_allclose(kernels.nngp[upper], nngp, atol=2e-10)
    assert_allclose(kernels.ntk[upper], ntk, atol=2e-10)
    assert_allclose(kernels.ntk, kernels.ntk.T)
    assert_allclose(_mlp(activation).nngp(ROWS, ROWS[:2]), kernels.nngp[:, :2], atol=1e-14)
    assert_allclose(_mlp(activation).diagonal(ROWS).ntk, np.diagonal(kernels.ntk), rtol=1e-14)


@pytest.mark.parametrize("activation", SMOOTH, ids=repr)
def test_closed_form_is_gauss_hermite(activation):
    q1, q2, c = (
        jnp.array([0.5, 1.5, 0.8]),
        jnp.array([1.0, 1.5, 0.1]),
        jnp.array([-0.6, 1.2, 0.0]),
    )
    slow = Activation(activation.__call__, num_nodes=128)
    for fast, rule in zip(activation.pair(q1, q2, c), slow.pair(q1, q2, c)):
        assert_allclose(fast, rule, rtol=1e-7, atol=1e-9)
    for fast, rule in zip(activation.single(q1), slow.single(q1)):
        assert_allclose(fast, rule, rtol=1e-7)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_leaky_relu_is_its_integral(slope):
    from scipy.integrate import quad

    q1, q2, c = 1.3, 0.8, 0.5
    activation = LeakyReLU(slope)
    k, kdot = activation.pair(*(jnp.asarray(x) for x in (q1, q2, c)))

    def given(u):  # E[f(w) | u] of a leaky ReLU, in closed form
        mean, sd = c / q1 * u, np.sqrt(q2 - c**2 / q1)
        z = mean / sd
        phi = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        up = float(jax.scipy.special.ndtr(z))
        return mean * (up + slope * (1 - up)) + (1 - slope) * sd * phi, up + slope * (1 - up)

    def density(u):
        return np.exp(-(u**2) / (2 * q1)) / np.sqrt(2 * np.pi * q1)

    for value, part in ((k, 0), (kdot, 1)):
        weight = [lambda u, s=s: s * u if part == 0 else s for s in (slope, 1.0)]
        low = quad(lambda u: weight[0](u) * given(u)[part] * density(u), -12, 0)[0]
        high = quad(lambda u: weight[1](u) * given(u)[part] * density(u), 0, 12)[0]
        assert_allclose(value, low + high, rtol=1e-8)


@pytest.mark.parametrize("activation", [*ALL, Activation(jnp.tanh, 128)])
def test_kdot_is_the_derivative_of_k(activation):
    q1, q2, c, h = jnp.array(1.3), jnp.array(0.7), jnp.array(0.4), 1e-5
    up, down = (activation.pair(q1, q2, c + s * h)[0] for s in (1, -1))
    slope = jax.grad(lambda c: activation.pair(q1, q2, c)[0])(c)
    # tanh has poles near the axis: 128 nodes give its derivative to 9 digits.
    assert_allclose(activation.pair(q1, q2, c)[1], (up - down) / (2 * h), rtol=1e-8)
    assert_allclose(activation.pair(q1, q2, c)[1], slope, rtol=1e-8)


@pytest.mark.parametrize("activation", [Erf(), LeakyReLU(0.2), Activation(jnp.tanh, 8)])
def test_gradients_where_inputs_coincide(activation):
    x = jnp.array([[0.3, -0.2], [0.3, -0.2], [1.0, 0.4]])
    direction, h = jnp.array([[1.0, 0.5], [-0.3, 0.2], [0.1, 0.7]]), 1e-5

    @jax.jit
    def totals(variance, step):
        layers = Dense(variance, 0.1), activation, Dense(variance, 0.2), activation, Dense()
        kernels = Serial(*layers).kernel(x + step * direction)
        return jnp.stack([jnp.vdot(k, jnp.arange(9.0).reshape(3, 3)) for k in kernels])

    variance, step = jnp.array(1.7), jnp.array(0.0)
    by_variance, by_step = jax.jit(jax.jacobian(totals, argnums=(0, 1)))(variance, step)
    up, down = (totals(variance + s * h, step) for s in (1, -1))
    assert_allclose(by_variance, (up - down) / (2 * h), rtol=1e-6)
    up, down = (totals(variance, step + s * h) for s in (1, -1))
    assert_allclose(by_step[0], (up - down)[0] / (2 * h), rtol=1e-4)
    # The tangent kernel of a kinked function has a cusp there, and no derivative.
    assert np.isfinite(by_step[1])


def _brute_force(x, windows, weight, bias, pool):
    """Return both kernels of a ReLU network over all pairs of pixels, by loops."""
    k = np.einsum("muvc,nxyc->mnuvxy", x, x) / x.shape[-1]
    t = np.zeros_like(k)
    for window, stride in windows:
        k, t = (_loop_average(a, window, stride) for a in (k, t))
        k = bias + weight * k
        t = k + weight * t
        q = np.einsum("mmuvuv->muv", k)
        q1, q2 = q[:, None, :, :, None, None], q[None, :, None, None]
        angle = np.arccos(np.clip(k / np.sqrt(q1 * q2), -1, 1))
        t = t * (np.pi - angle) / (2 * np.pi)
        k = np.sqrt(q1 * q2) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    average = "mnuvxy->mn" if pool else "mnuvuv->mn"
    count = np.prod(k.shape[2:]) if pool else np.prod(k.shape[2:4])
    k, t = (np.einsum(average, a) / count for a in (k, t))
    return k, k + t


def _loop_average(k, window, stride):
    size = k.shape[2:4]
    out = [-(-s // d) for s, d in zip(size, stride)]
    low = [max((o - 1) * d + w - s, 0) // 2 for o, d, w, s in zip(out, stride, window, size)]
    new = np.zeros((*k.shape[:2], *out, *out))
    for u, v, x, y in np.ndindex(*out, *out):
        for a, b in np.ndindex(*window):
            one = u * stride[0] + a - low[0], v * stride[1] + b - low[1]
            two = x * stride[0] + a - low[0], y * stride[1] + b - low[1]
            if all(0 <= p < s for p, s in zip((*one, *two), (*size, *size))):
                new[:, :, u, v, x, y] += k[(slice(None), slice(None), *one, *two)]
    return new / np.prod(window)


@pytest.mark.parametrize("pool", [pytest.param(False, marks=pytest.mark.slow), True])
def test_convolutions_against_loops(pool):
    x = np.random.default_rng(3).normal(size=(3, 5, 4, 2))
    windows = [((3, 3), (1, 1)), ((3, 2), (2, 1))]
    layers = [layer for w, s in windows for layer in (Conv(w, s, 1.8, 0.2), ReLU())]
    net = Serial(*layers, GlobalAveragePooling() if pool else Flatten(), Dense())
    nngp, ntk = _brute_force(x, windows, 1.8, 0.2, pool)
    assert_allclose(net.kernel(x).nngp, nngp, rtol=1e-9)
    # The loops have the angle of an input with itself to rounding only.
    assert_allclose(net.kernel(x[:2], x[1:]).nngp, nngp[:2, 1:], rtol=1e-7)
    assert_allclose(net.kernel(x).ntk, ntk, rtol=1e-7)
    assert_allclose(net.diagonal(x).ntk, np.diagonal(ntk), rtol=1e-7)


def test_convolution_over_one_axis_is_dense_for_one_pixel():
    x = ROWS[:, None, :]
    one = Serial(Conv((1,), (1,), 2.0, 0.1), Erf(), Flatten(), Dense())
    two = Serial(Dense(2.0, 0.1), Erf(), Dense())
    assert_allclose(one.kernel(x).ntk, two.kernel(ROWS).ntk, rtol=1e-14)


def test_residual_adds_its_branch():
    first, act = Dense(2.0, 0.1), Erf()
    net = Serial(first, Residual(Serial(act, Dense(1.5, 0.3))), Dense())
    k0 = np.asarray(first.kernel(ROWS).nngp)
    k1, kdot = act.pair(jnp.diagonal(k0)[:, None], jnp.diagonal(k0)[None], jnp.asarray(k0))
    branch = 0.3 + 1.5 * k1
    assert_allclose(net.nngp(ROWS), k0 + branch, rtol=1e-13)
    ntk = k0 + branch + 1.5 * kdot * k0
    assert_allclose(net.kernel(ROWS).ntk, k0 + branch + ntk, rtol=1e-13)


@pytest.mark.parametrize("tile", [9])
def test_tiles_are_the_whole(monkeypatch, tile):
    x = np.random.default_rng(4).normal(size=(11, 2))
    # A function of its own: the compiled program knows nothing of the size of tiles.
    whole = _mlp(LeakyReLU(0.11)).kernel(x)
    across = _mlp(LeakyReLU(0.11)).kernel(x, x[:7])
    monkeypatch.setattr(_tiles, "VECTOR_TILE", tile)
    jax.clear_caches()

    def total(variance):
        kernels = _mlp(LeakyReLU(0.11), variance).kernel(jnp.asarray(x))
        return jnp.sum(kernels.nngp * whole.nngp) + jnp.sum(kernels.ntk)

    for part in (0, 1):
        assert_allclose(_mlp(LeakyReLU(0.11)).kernel(x)[part], whole[part], rtol=1e-13)
        assert_allclose(_mlp(LeakyReLU(0.11)).kernel(x, x[:7])[part], across[part], rtol=1e-13)
    truth = jnp.sum(whole.nngp**2) + jnp.sum(whole.ntk)  # the readout only scales them
    assert_allclose(jax.grad(total)(jnp.array(1.0)), truth, rtol=1e-12)
    jax.clear_caches()


def test_float32():
    net = _mlp(ReLU())
    x = np.random.default_rng(5).normal(size=(20, 3))
    x[1] = x[0]
    small = net.kernel(x.astype(np.float32))
    assert small.nngp.dtype == small.ntk.dtype == np.float32
    assert_allclose(small.nngp, net.kernel(x).nngp, rtol=5e-6)
    assert_allclose(small.ntk, net.kernel(x).ntk, rtol=2e-5)  # a row seen twice included


def test_zero_inputs():
    x = jnp.zeros((2, 3))
    for activation in (Erf(), ReLU()):
        net = Serial(Dense(), activation, Dense())
        assert np.all(np.isfinite(jax.grad(lambda x: net.kernel(x).ntk.sum())(x)))


IMAGES = np.ones((2, 4, 4, 1))
WRONG = {
    "`x` must have shape": lambda: Dense().kernel(np.ones(3)),
    "one shape": lambda: Dense().kernel(np.ones((2, 3)), np.ones((2, 2))),
    "must be finite": lambda: Dense().kernel(np.array([[np.nan]])),
    "Dense. reads vectors": lambda: Dense().kernel(IMAGES),
    "must end with vectors": lambda: Conv().kernel(IMAGES),
    "got 0 axes of pixels": lambda: Serial(Conv(), Flatten()).kernel(np.ones((2, 3))),
    "Flatten. reads images": lambda: Flatten().kernel(np.ones((2, 3))),
    "Pooling. reads images": lambda: GlobalAveragePooling().kernel(np.ones((2, 3))),
    "keep the number of pixels": lambda: Serial(
        Residual(Conv((3, 3), (2, 2))), Flatten()
    ).kernel(IMAGES),
    "ReLU. must read Gaussian": lambda: Serial(
        Dense(), Erf(), Residual(Dense()), ReLU()
    ).kernel(ROWS),
    "weight_variance. must be": lambda: Dense(-1.0),
    "stride. must be as long": lambda: Conv((3, 3), (1,)),
    "window. must be at least 1; got 0": lambda: Conv((3, 0)),
    "at least one layer": lambda: Serial(),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input(words):
    with pytest.raises(ValueError, match=words):
        WRONG[words]()


@pytest.mark.parametrize("size", [1.0, 1e8])
@pytest.mark.parametrize("activation", [ReLU, Erf, GELU, Sin, Rbf])
def test_inputs_far_from_the_origin_coincide_with_themselves(activation, size):
    x = size * (1 + 0.1 * np.random.default_rng(0).normal(size=(12, 2)))
    net = Serial(Dense(1.0, 0.1), activation(), Dense())
    whole, cross = net.nngp(x), net.nngp(x, x.copy())
    scale = np.sqrt(np.diag(whole))
    assert_allclose(np.diag(cross), np.diag(whole), rtol=1e-12)
    assert np.all(np.abs(cross / scale / scale[:, None]) < 1 + 1e-12)


def test_a_difference_that_is_rounding_is_none():
    size = jnp.asarray(1e16)
    one = jnp.spacing(size)  # the least by which such numbers differ
    found = apart(jnp.stack([-8 * one, one, 8 * one]), size)
    assert_allclose(found, [0, 0, 8 * one], rtol=0)
