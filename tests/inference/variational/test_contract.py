"""Every part of BBVI keeps the contract of engines, strict types and float32 included."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import whence as wh
from whence.testing import GaussianMean, check_engine

ABSTRACT = ("configuration", "state", "float32")  # nothing is compiled for these
PARTS = {
    "softplus": {"family": wh.MeanField(scale="softplus")},
    "low rank": {"family": wh.LowRank(2)},
    "planar": {"family": wh.Flow(depth=2)},
    "radial": {"family": wh.Flow(wh.Radial(), depth=2)},
    "coupling": {"family": wh.Flow(wh.Coupling(), depth=2)},
    "spline": {"family": wh.Flow(wh.Coupling("spline"), depth=1)},
    "autoregressive": {"family": wh.Flow(wh.Autoregressive(), depth=1)},
    "gamma": {"family": wh.Gamma(), "estimator": wh.RejectionSampling()},
    "iwae": {"objective": wh.IWAE(), "estimator": wh.TotalDerivative()},
    "miwae": {"objective": wh.MIWAE(5)},
    "renyi": {"objective": wh.Renyi(0.3), "estimator": wh.ScoreFunction()},
    "log variance": {"objective": wh.LogVariance(), "estimator": wh.ScoreFunction()},
    "forward": {"objective": wh.ForwardKL(), "estimator": wh.ScoreFunction()},
    "proximal": {"update": wh.Proximal(0.01), "batch_size": 5},
    "forward-backward": {"update": wh.BuresWasserstein(), "family": wh.FullRank()},
    "stein": {"update": wh.BuresWasserstein(hessian="stein"), "family": wh.FullRank()},
    "own optimiser": {"optimizer": optax.adam(0.01), "average": True, "batch_size": 5},
}


class Rows(wh.Model):
    """A number for each row, around one of all."""

    mean: jax.Array = wh.latent(dist.Normal(0.0, 1.0))
    z: jax.Array = wh.latent(lambda m: dist.Normal(m.mean, 1.0), local=True)

    def likelihood(self, x):
        return dist.Normal(self.z * x, 1.0)


class Both(eqx.Module):
    """An encoder of data and input."""

    network: eqx.nn.MLP

    def __call__(self, y, x):
        return self.network(jnp.stack([y, x]))


LOCAL = {
    "table": (wh.Factors({"z": wh.Local()}), wh.ELBO()),
    "encoder": (
        wh.Factors({"z": wh.Amortised(lambda key: Both(eqx.nn.MLP(2, 2, 4, 1, key=key)))}),
        wh.ELBO(),
    ),
    "bound of rows": (wh.Factors({"z": wh.Local()}, rest=wh.Point()), wh.PIWAE(5)),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_keep_the_contract(name, key):
    engine = wh.BBVI(steps=60, draws=20, **PARTS[name])
    target = GaussianMean.simulate(key=key)
    assert check_engine(engine, target, key=key, only=ABSTRACT) == ABSTRACT


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("batch_size", [None, 5])
def test_local_parts_keep_the_contract(name, batch_size, key):
    family, objective = LOCAL[name]
    optimizer = optax.adam(0.01) if name == "encoder" else None
    engine = wh.BBVI(
        family=family,
        objective=objective,
        batch_size=batch_size,
        optimizer=optimizer,
        steps=60,
        draws=20,
    )
    target = wh.condition(Rows(), np.arange(12.0), np.linspace(-1, 1, 12))
    checks = ABSTRACT[:2]  # positions of a model have the default precision
    assert check_engine(engine, target, key=key, only=checks) == checks


def test_a_run_of_local_parts(key):
    """Compiled and run, with draws of all rows; the record can be saved and read."""
    family, _ = LOCAL["encoder"]
    engine = wh.BBVI(family=family, batch_size=5, steps=200, draws=30)
    target = wh.condition(Rows(), np.arange(12.0), np.linspace(-1, 1, 12))
    posterior = wh.infer(target, engine, key=key)
    assert posterior["z"].shape == (1, 30, 12)
    assert np.isfinite(posterior.record.elbo_final)
    fitted = jr.normal(key, (2,)), posterior.record.fitted
    assert len(jax.tree.leaves(fitted)) > 4
