"""Numbers that float32 cannot tell apart are refused; those of everyday units are not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import whence as wh
from whence.core._dtype import check_resolution

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=500)
SINGLE = np.float32(0.1) * (1 + np.finfo(np.float32).eps * np.arange(3, dtype=np.float32))
TOO_FINE = {
    "days with a fraction": 20240101 + 0.3 * NORMAL,
    "many days": 20240101 + 30 * NORMAL,
    "seconds since 1970": 1.7e9 + RNG.integers(0, 86_400, 500),
    "whole numbers": 20240101 + RNG.integers(0, 20, 500),
    "hours in seconds since 1970": 1.7e9 + 3600 * np.arange(500),
    "one column": np.stack([NORMAL, 1e9 + NORMAL], axis=1),
    "made in float32": (16_000_000 + 20 * NORMAL).astype(np.float32),
}
EVERYDAY = {
    "incomes": 30_000 + 9_000 * NORMAL,
    "years": RNG.integers(1950, 2020, 500),
    "years with a fraction": 2016 + 3 * NORMAL,
    "pressures": 101_325 + NORMAL,
    "small": 1e-6 * NORMAL,
    "counts": RNG.poisson(3e6, 500),
    "days in seconds since 1970": 1.7e9 + 86_400 * np.arange(500),
    "sorted currency": np.sort(5e8 + 2e8 * NORMAL),
    "constant": np.full((500, 2), 1e9 + 0.1),
    "constant to rounding": 0.1
    + 1e-17 * NORMAL
    + np.where(NORMAL > 0, 0.2, 0.2000000000000001),
    "constant to rounding in float32": SINGLE,
    "one number": np.array([20240101.3]),
    "infinite": np.array([1.0, 2.0, np.inf]),
    "none": np.zeros((0, 3)),
}


@pytest.mark.parametrize("name", TOO_FINE)
def test_numbers_that_float32_cannot_tell_apart(name):
    with jax.enable_x64(False), pytest.raises(ValueError, match="`a` has numbers up to .*x64"):
        check_resolution(TOO_FINE[name], "`a`")
    check_resolution(TOO_FINE[name], "`a`")  # in float64 they are fine


@pytest.mark.parametrize("name", EVERYDAY)
def test_everyday_units_are_fine(name):
    with jax.enable_x64(False):
        check_resolution(EVERYDAY[name], "`a`")


def test_arrays_in_models_and_functions_are_looked_at():
    """They are converted as data are, where NumPy would have kept their digits."""

    class Since(wh.Model):
        days: np.ndarray
        a: jax.Array = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self):
            return dist.Normal(self.a * (self.days - 20240101), 1.0)

    days = TOO_FINE["days with a fraction"]
    density = jax.tree_util.Partial(lambda days, x: -(x["a"] ** 2) * days.sum(), days)
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match="`days` of Since has numbers up to 20240"):
            wh.condition(Since(days), NORMAL)
        with pytest.raises(ValueError, match="of `fn` has numbers up to 20240"):
            wh.from_log_density(density, {"a": 0.0})
        with pytest.raises(ValueError, match="`days` of Since has values that do not fit"):
            wh.condition(Since(np.array([3_000_000_000, 1])), NORMAL[:2])


def test_every_front_end_looks():
    class Line(wh.Model):
        a: jax.Array = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self, x):
            return dist.Normal(self.a + 0 * x, 1.0)

    def model(x, y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a + 0 * x, 1.0), obs=y)

    days = TOO_FINE["days with a fraction"]
    with jax.enable_x64(False):
        for name, make in {
            "`y`": lambda: wh.condition(Line(), days, NORMAL),
            r"`inputs\[0\]`": lambda: wh.condition(Line(), NORMAL, days),
            "`args` at '0'": lambda: wh.from_numpyro(model, days, NORMAL),
            "`kwargs` at 'y'": lambda: wh.from_numpyro(model, jnp.asarray(NORMAL), y=days),
        }.items():
            with pytest.raises(ValueError, match=f"{name} has numbers up to 20240"):
                make()


def test_large_counts_are_told():
    class Counts(wh.Model):
        a: jax.Array = wh.latent(dist.Normal(10.0, 5.0))

        def likelihood(self):
            return dist.Poisson(jnp.exp(self.a))

    def model(y):
        a = numpyro.sample("a", dist.Normal(10.0, 5.0))
        numpyro.sample("y", dist.Poisson(jnp.exp(a)), obs=y)

    many = RNG.poisson(3e6, 50)
    with jax.enable_x64(False):
        wh.condition(Counts(), many // 100)
        for make in (
            lambda: wh.condition(Counts(), many),
            lambda: wh.from_numpyro(model, many),
        ):
            with pytest.warns(wh.InferenceWarning, match="'y', counts up to 3e.06, .* 12 nats"):
                make()
    wh.condition(Counts(), many)
