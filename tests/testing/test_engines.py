"""Every engine of the package keeps the contract that `check_engine` states."""

import importlib
import inspect
import pkgutil

import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from hidden_models import LEVEL_Y, Level
from numpyro.distributions import constraints

import whence as wh
from whence.cli._engines import other_engines, own_engines
from whence.core import AbstractEngine
from whence.models import diffusion
from whence.testing import Gaussian, GaussianMean, LogGamma, check_engine
from whence.testing._conformance_engine import CHECKS

SLOW = pytest.mark.slow

# Every engine by name, as short as its schedule allows: the contract needs no long runs.
SHORT = {
    "BBVI": lambda: wh.BBVI(steps=300, draws=50),
    "ChEES": lambda: wh.ChEES(chains=4, warmup=20, draws=10),
    "DataTemperedSMC": lambda: wh.DataTemperedSMC(particles=32),
    "FeynmanKacSMC": lambda: wh.FeynmanKacSMC(particles=16),
    "HMC": lambda: wh.HMC(chains=2, warmup=20, draws=10),
    "Laplace": lambda: wh.Laplace(draws=100, starts=3),
    "MAP": lambda: wh.MAP(objective="unconstrained"),
    "MCLMC": lambda: wh.MCLMC(chains=2, warmup=30, draws=10),
    "NUTS": lambda: wh.NUTS(chains=2, warmup=20, draws=10),
    "ParticleGibbs": lambda: wh.ParticleGibbs(particles=8, chains=2, warmup=10, draws=10),
    "ParticleMH": lambda: wh.ParticleMH(particles=8, chains=2, warmup=10, draws=10),
    "Pathfinder": lambda: wh.Pathfinder(paths=2, draws=50, steps=20),
    "CyclicalSGLD": lambda: wh.CyclicalSGLD(steps=60, cycles=5),
    "FederatedSGLD": lambda: wh.FederatedSGLD(steps=60),
    "SGHMC": lambda: wh.SGHMC(steps=60),
    "SGLD": lambda: wh.SGLD(steps=60),
    "SGMCMC": lambda: wh.SGMCMC("BAOAB", steps=60),
    "SGNHT": lambda: wh.SGNHT(steps=60),
    "SMC2": lambda: wh.SMC2(parameters=16, particles=8, threshold=0.9),
    "StructuredSGMCMC": lambda: wh.StructuredSGMCMC(steps=60),
    "SVGD": lambda: wh.SVGD(particles=20, steps=30),
    "TemperedSMC": lambda: wh.TemperedSMC(particles=32),
    "BlackjaxNUTS": lambda: wh.NUTS(chains=2, warmup=20, draws=10, backend="blackjax"),
    "NumpyroNUTS": lambda: wh.NUTS(chains=2, warmup=20, draws=10, backend="numpyro"),
    # Its windows of adaptation need more steps than 40, or every trajectory diverges.
    "TFPNUTS": lambda: wh.NUTS(chains=2, warmup=100, draws=10, backend="tfp"),
}
# What NUTS is when whence itself runs it: the entry of NUTS is about this.
INSIDE = {"TreeSampler"}
ABSTRACT = ("configuration", "state", "float32")  # nothing is compiled for these
QUICK = {"BBVI", "MAP", "SGLD", "SGMCMC", "CyclicalSGLD"}


def _engines():
    """Return all concrete engines of the package, public or not, and those of others."""
    for module in pkgutil.walk_packages(wh.__path__, "whence."):
        if not module.name.startswith("whence.testing") and "__main__" not in module.name:
            importlib.import_module(module.name)
    open_, found = [AbstractEngine], set()
    while open_:
        open_ += (classes := open_.pop().__subclasses__())
        found |= {
            cls.__name__
            for cls in classes
            if not inspect.isabstract(cls)
            and cls.__module__.startswith("whence.")
            and not cls.__module__.startswith("whence.testing")
        }
    return found | {entry.load().__name__ for entry in other_engines().values()}


def test_no_engine_is_left_out():
    assert _engines() == {*SHORT, *INSIDE}
    assert set(own_engines()) <= set(SHORT)


def _target(name, key):
    """Return what an engine is run on: hidden states for those with particle filters."""
    if name == "FeynmanKacSMC":
        noise = diffusion.VariancePreserving()
        score = diffusion.GaussianMixture(noise, [1.0], [[0.5, 0.0]], 1.0)
        return diffusion.annealed(noise, score, 2.0, dim=2, steps=10)
    if name in ("ParticleGibbs", "ParticleMH", "SMC2"):
        return wh.condition(Level(exact=False), LEVEL_Y[:4])
    return GaussianMean.simulate(key=key)


@pytest.mark.parametrize("name", SHORT)
def test_contract_of_shapes_and_types(name, key):
    assert check_engine(SHORT[name](), _target(name, key), key=key, only=ABSTRACT) == ABSTRACT


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [SLOW]) for n in SHORT]
)
def test_contract_of_runs(name, key):
    names = tuple(check for check in CHECKS if check not in (*ABSTRACT, "truth"))
    assert check_engine(SHORT[name](), _target(name, key), key=key, only=names) == names


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: wh.NUTS(), marks=SLOW),  # in `tests/inference/hmc` too
        pytest.param(lambda: wh.NUTS(metric="diag"), marks=SLOW),
        pytest.param(lambda: wh.NUTS(metric="fisher"), marks=SLOW),
        pytest.param(lambda: wh.NUTS(metric="dense"), marks=SLOW),
        pytest.param(lambda: wh.NUTS(backend="numpyro"), marks=SLOW),
        pytest.param(lambda: wh.NUTS(backend="blackjax"), marks=SLOW),
        pytest.param(lambda: wh.NUTS(backend="tfp"), marks=SLOW),
        pytest.param(lambda: wh.HMC(), marks=SLOW),
        pytest.param(lambda: wh.ChEES(), marks=SLOW),
        pytest.param(lambda: wh.MCLMC(), marks=SLOW),
        pytest.param(lambda: wh.SGLD(), marks=SLOW),
        pytest.param(lambda: wh.TemperedSMC(), marks=SLOW),
        pytest.param(lambda: wh.DataTemperedSMC(), marks=SLOW),
    ],
    ids=["NUTS", "diag", "fisher", "dense", "numpyro", "blackjax", "tfp"]
    + ["HMC", "ChEES", "MCLMC", "SGLD", "TemperedSMC", "DataTemperedSMC"],
)
def test_engine(make, key):
    check_engine(make(), key=key)


def test_point_estimate(key):
    # A point has no moments to be held to: a target that knows none.
    density = lambda x: dist.Gamma(3.0, 2.0).log_prob(x["a"]).sum() - (x["b"] - x["a"][0]) ** 2
    example, support = {"a": jnp.ones(2), "b": jnp.ones(())}, {"a": constraints.positive}
    check_engine(wh.MAP(), wh.from_log_density(density, example, support), key=key)


@SLOW
def test_laplace_approximation(key):
    engine = wh.MAP(objective="unconstrained", draws=4_000)
    check_engine(engine, Gaussian(3, condition_number=10.0, correlated=True), key=key)
    # At the mode of the logarithm of Gamma(1) the curvature is 1: the exponential has
    # standard deviation sqrt(e^2 - e) = 2.16 where the truth is 1.
    check_engine(engine, LogGamma(), key=key, bias=1.25)
    with pytest.raises(AssertionError, match=r"gamma\[1\]: sd"):
        check_engine(engine, LogGamma(), key=key, bias=0.36)


@SLOW
def test_variational_inference_is_exact_on_a_gaussian(key):
    # 5,000 steps of stochastic gradients leave some error behind: five hundredths of a
    # standard deviation are forgiven.
    target = Gaussian(3, condition_number=10.0, correlated=True)
    check_engine(wh.BBVI(family=wh.FullRank()), target, key=key, bias=0.05)


@SLOW
def test_variational_inference_of_a_skewed_target_is_as_wrong_as_it_must_be(key):
    # The best Gaussian for the logarithm of Gamma(1) has standard deviation 1 where the
    # truth is 1.28, and its exponential sqrt(e - 1) = 1.31 where the truth is 1.
    check_engine(wh.BBVI(family=wh.FullRank()), LogGamma(), key=key, bias=0.36)
    with pytest.raises(AssertionError, match=r"x\[1\]: sd"):
        check_engine(wh.BBVI(family=wh.FullRank()), LogGamma(), key=key, bias=0.1)
