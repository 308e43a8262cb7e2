"""Whole numbers where keys are asked for: the same draws as of `jax.random.key` of them."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_array_equal

import whence as wh
from whence.core import as_key
from whence.models import bandit, nngp


class One(wh.Model):
    a: Any = wh.latent(dist.Normal(0.0, 1.0))

    def likelihood(self):
        return dist.Normal(self.a, 1.0)


def _numpyro(y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a, 1.0).expand([3]), obs=y)


ENGINE = wh.SGLD(steps=10, step_size=1e-2, warmup=0)
Y = np.zeros(3)


@pytest.fixture(scope="module")
def things():
    target = wh.condition(One(), Y)
    posterior = wh.Posterior.from_draws(target, {"a": np.ones((1, 4))})
    return {"target": target, "posterior": posterior, "numpyro": wh.from_numpyro(_numpyro, Y)}


NETWORK = nngp.Serial(nngp.Dense(), nngp.ReLU(), nngp.Dense())


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Standard: networks and bandits mix types."""


def _given():
    process = nngp.ScaleMixture(NETWORK, nngp.InverseGamma(2.0, 2.0), noise=0.1)
    return process.condition(np.eye(3), Y)


ARMS = bandit.GaussianArms(np.array([[0.0], [1.0]]), np.ones((2, 1)))
TAKERS = {
    "infer": lambda t, key: wh.infer(t["target"], ENGINE, key=key, throw=False)["a"],
    "sbc": lambda t, key: wh.sbc(
        t["target"], ENGINE, key=key, simulations=10, num_draws=5
    ).ranks["a"],
    "check": lambda t, key: wh.check(t["target"], key=key).log_density,
    "sample_prior": lambda t, key: One().sample_prior(key=key).a,
    "predict": lambda t, key: t["posterior"].predict(key=key),
    "resample": lambda t, key: t["posterior"].resample(2, key=key)["a"],
    "to_datatree": lambda t, key: t["posterior"].to_datatree(groups=("prior",), key=key)[
        "prior"
    ]["a"],
    "model.predict": lambda t, key: One(a=0.0).predict(key=key),
    "numpyro prior": lambda t, key: t["numpyro"].sample_prior(key=key)["a"],
    "simulate": lambda t, key: (
        bandit.simulate({"UCB": bandit.UCB1Normal(2)}, ARMS, horizon=20, key=key)["UCB"].regret
    ),
    "pull": lambda t, key: ARMS.pull(jnp.zeros(1, int), key=key),
    "network": lambda t, key: NETWORK.network(4, inputs=3, key=key)(np.ones(3)),
    "from_conditioned": lambda t, key: wh.Posterior.from_conditioned(
        _given(), np.eye(3), draws=5, key=key
    )["latent"],
    "rows": lambda t, key: nngp.stratified_rows(np.arange(9) % 2, 4, key=key),
    "target prior": lambda t, key: t["target"].sample_prior(key=key).a,
    "target start": lambda t, key: t["target"].init(key=key)["a"],
    "numpyro predict": lambda t, key: t["numpyro"].predict({"a": 0.0}, None, key=key)["y"],
}


@pytest.mark.parametrize("name", TAKERS)
def test_a_number_is_the_key_of_it(things, name):
    assert_array_equal(TAKERS[name](things, 3), TAKERS[name](things, jr.key(3)))


# The types of what `infer` takes are checked before it looks, here.
@pytest.mark.parametrize("name", sorted(TAKERS.keys() - {"infer"}))
def test_what_is_no_key_is_refused_wherever_one_is_asked_for(things, name):
    for bad in ("0", 0.5):
        with pytest.raises(ValueError, match="`key` must be"):
            TAKERS[name](things, bad)


@pytest.mark.parametrize("bad", [True, -1, 2**32, 0.5, None, "0", jr.split(jr.key(0))])
def test_what_is_no_key_is_refused(bad):
    with pytest.raises(ValueError, match="`key` must be"):
        as_key(bad)


def test_numpys_numbers_are_numbers():
    assert_array_equal(jr.key_data(as_key(np.int64(7))), jr.key_data(jr.key(7)))
    assert as_key(2**32 - 1).shape == ()
    with jax.enable_x64(False):
        assert_array_equal(jr.key_data(as_key(2**32 - 1)), [0, 2**32 - 1])


def test_none_is_no_key(things):
    posterior = things["posterior"]
    for call in (posterior.predict, lambda key: posterior.resample(3, key=key)):
        with pytest.raises(
            ValueError, match="`key` must be a typed key.*or a whole number; got None"
        ):
            call(key=None)
