"""`check_target` accepts what the front ends make, and refuses planted faults."""

import dataclasses
import sys
from pathlib import Path

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import whence as wh
from whence.testing import check_target

sys.path.insert(0, str(Path(__file__).parent))
from _mutants_targets import Blind, Noise, mean_model  # noqa: E402

Y = jnp.linspace(-1.0, 3.0, 8)


def mixture(y):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    numpyro.deterministic("widest", mean.max())
    with numpyro.plate("row", len(y)):
        numpyro.sample(
            "y",
            dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(mean, 1.0)),
            obs=y,
        )


def test_targets_of_front_ends_pass(key):
    check_target(wh.from_numpyro(mixture, Y), key=key)
    check_target(wh.condition(Noise(), Y, dims="row"), key=key)


class Faulty(Blind):
    """A correct target, but for one thing."""

    fault: str = ""

    @property
    def observed_data(self):
        return self.inner.observed_data

    def log_density(self, position):
        twice = self.inner.log_prior(position) if self.fault == "prior twice" else 0.0
        return self.inner.log_density(position) + twice

    @property
    def dims(self):
        return {"y": ("row", "column")} if self.fault == "dims" else self.inner.dims

    @property
    def coords(self):
        return {"row": list("abc")} if self.fault == "coords" else self.inner.coords

    def log_likelihood(self, position, rows=None):
        return jnp.zeros(()) if self.fault == "no data" else self.inner.log_likelihood(position)

    def log_prior(self, position):
        right = self.inner.log_prior(position)
        return self.inner.log_density(position) if self.fault == "no data" else right


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("prior twice", "`log_density` is .* but log prior"),
        ("dims", r"`dims\['y'\]` names 2 axes"),
        ("coords", r"`coords\['row'\]` has 3 labels, but 'y' has 8"),
        ("no data", "the data do not count"),
    ],
)
def test_planted_faults(fault, match, key):
    right = Faulty(wh.from_numpyro(mean_model, y=Y), Y)
    check_target(right, key=key)
    with pytest.raises(AssertionError, match=match):
        check_target(dataclasses.replace(right, fault=fault), key=key)


def test_one_point_is_not_enough(key):
    with pytest.raises(ValueError, match="`points` must be at least 2; got 1"):
        check_target(wh.condition(Noise(), Y), key=key, points=1)
