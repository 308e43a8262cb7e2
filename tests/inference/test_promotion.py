"""Every engine runs where JAX may neither mix types nor ranks, as strict users have it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import whence as wh


class Line(wh.Model):
    slope: Any = wh.latent(dist.Normal(0.0, 1.0), shape=3)
    sd: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self, x):
        return dist.Normal(x @ self.slope, self.sd)


SHORT = {"chains": 2, "warmup": 30, "draws": 5}
ENGINES = {
    "NUTS": lambda: wh.NUTS(**SHORT),
    "NUTS-low-rank": lambda: wh.NUTS(metric="low_rank", **SHORT),
    "NUTS-numpyro": lambda: wh.NUTS(backend="numpyro", **SHORT),
    "NUTS-blackjax": lambda: wh.NUTS(backend="blackjax", **SHORT),
    "NUTS-tfp": lambda: wh.NUTS(backend="tfp", **SHORT),
    "HMC": lambda: wh.HMC(**SHORT),
    "ChEES": lambda: wh.ChEES(chains=4, warmup=20, draws=5),
    "MCLMC": lambda: wh.MCLMC(**SHORT),
    "SGLD": lambda: wh.SGLD(steps=40, step_size=1e-6, batch_size=8),
    "SGHMC": lambda: wh.SGHMC(steps=40, batch_size=8),
    "FederatedSGLD": lambda: wh.FederatedSGLD(steps=40, shards=3),
    "StructuredSGMCMC": lambda: wh.StructuredSGMCMC(steps=40, batch_size=8),
    "BBVI": lambda: wh.BBVI(steps=100, draws=20, batch_size=8),
    "BBVI-full-rank": lambda: wh.BBVI(family=wh.FullRank(), steps=100, draws=20),
    "TemperedSMC": lambda: wh.TemperedSMC(particles=32),
    "DataTemperedSMC": lambda: wh.DataTemperedSMC(particles=32),
    "MAP": lambda: wh.MAP(objective="unconstrained", draws=10),
}


# Those whose own tests do not run strictly, and one for what is made of draws: the others
# repeat here what their own tests look at.
ALONE = {"NUTS", "BBVI", "BBVI-full-rank"}


@pytest.fixture(
    params=[pytest.param(False, marks=pytest.mark.slow), True], ids=["float32", "float64"]
)
def strict(request):
    with (
        jax.enable_x64(request.param),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        yield


def _line():
    x = np.random.default_rng(0).normal(size=(24, 3))
    return wh.condition(Line(), jnp.asarray(x @ [1.0, -1.0, 0.5] + 0.1), jnp.asarray(x))


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ALONE else pytest.mark.slow) for n in ENGINES],
)
def test_engine_mixes_neither_types_nor_ranks(name):
    posterior = wh.infer(_line(), ENGINES[name](), key=jax.random.key(0), throw=False)
    posterior.summary()
    posterior.diagnose()
    posterior.predict(key=jax.random.key(1))
    posterior.to_datatree()


def test_numpyro_model():
    def model(x, y):
        slope = numpyro.sample("slope", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=x @ slope), obs=y)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(24, 3)))
    target = wh.from_numpyro(model, x, (x[:, 0] > 0).astype(jnp.int32))
    posterior = wh.infer(target, wh.NUTS(**SHORT), key=jax.random.key(0), throw=False)
    posterior.predict(key=jax.random.key(1))
