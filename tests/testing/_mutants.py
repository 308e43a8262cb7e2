"""Bugs that libraries have shipped, planted in small copies, each with what must catch it.

`MUTANTS[name]` is `(correct, mutant, source, check, says)`: `check(correct, key)` passes and
`check(mutant, key)` raises with a message that matches `says`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import _mutants_chains as chains
import _mutants_particles as particles
import _mutants_targets as targets
import jax.numpy as jnp
import jax.random as jr

import whence as wh
from whence import testing as wt
from whence.core._rows import check_rows

OFF = "standard errors"
STUCK = f"{OFF}|R-hat|effective sample size"


class Planted(NamedTuple):
    """One planted bug.

    Attributes:
        correct: An engine or a target.
        mutant: The same with the bug.
        source: Where it was seen.
        check: Called with one of them and a key; raises if it finds fault.
        says: What it says of the mutant, a regular expression.
    """

    correct: Any
    mutant: Any
    source: str
    check: Callable[[Any, Any], None]
    says: str


def moments(target, bias=0.0):
    """Check an engine by the moments (and evidence) of a target."""

    def check(engine, key):
        posterior = wh.infer(target, engine, key=key, progress=False)
        wt.check_truth(posterior, target, bias=bias)

    return check


def moments_by_nuts(target, key):
    """Check a target by the moments that it should have."""
    moments(target)(wh.NUTS(chains=4, draws=1_000), key)


def engine_suite(target):
    """Check an engine by the suite for authors of engines."""
    return lambda engine, key: wt.check_engine(engine, target, key=key)


def simulation(target, **settings):
    """Check an engine by simulation-based calibration."""
    return lambda engine, key: _require_ok(wh.sbc(target, engine, key=key, **settings))


def joint(target, **settings):
    """Check an engine by Geweke's joint distribution test."""
    return lambda engine, key: _require_ok(wh.geweke(target, engine, key=key, **settings))


def model_suite(y):
    """Check a model by the suite for authors of models."""
    return lambda model, key: wt.check_model(model, y, key=key, points=2, prior_draws=3)


def target_suite(target, key):
    """Check a target by the suite for authors of front ends."""
    wt.check_target(target, key=key)


def looked_at(y):
    """Check a model by `whence.check`."""
    return lambda model, key: _require_ok(wh.check(wh.condition(model, y), key=key))


def in_batches(target, key):
    """Check a target by what is asked before any minibatch is made."""
    check_rows(target, 5)


def mean_of_data(target, key):
    """Check a target of `mean_model` by the posterior of its mean."""
    variance = 1 / (1 / 4 + target.observed_data["y"].size)
    truth = variance * float(target.observed_data["y"].sum()), variance**0.5
    posterior = wh.infer(target, wh.NUTS(chains=4, draws=500), key=key, progress=False)
    wt.compare_moments(posterior.variables, {"mu": truth}).check()


def _require_ok(result):
    if not result.ok:
        raise AssertionError(str(result))


# Twenty rows with a prior that counts: four pseudo-data against twenty.
_Y = 1.0 + jr.normal(jr.key(1), (20, 2))
_MEAN = wt.GaussianMean(_Y, prior_sd=0.5)
_WIDE = wt.GaussianMean(_Y, prior_sd=5.0)
_GAUSSIAN = wt.Gaussian(3)
_SKEWED = wt.LogGamma((2.0, 4.0))
_VALUES = jnp.linspace(-1.0, 3.0, 8)

# The error of first order in the step size, known for both in closed form, is forgiven:
# Langevin has sd too large by (h a + h V) / 4 with precision a = 24 and gradient noise
# V = 20^2 / 5 at h = 0.001, which is 2.6%; the thermostat's are of order h = 2%.
_LANGEVIN, _THERMOSTAT = moments(_MEAN, bias=0.05), moments(_GAUSSIAN, bias=0.04)


def _engine(correct, fault, source, check, says):
    return Planted(correct, chains.with_fault(correct, fault), source, check, says)


def _numpyro(y):
    return wh.from_numpyro(targets.mean_model, y=y)


MUTANTS = {
    "metropolis: ratio upside down": _engine(
        chains.Walk(), "sign", "folklore", engine_suite(wt.Gaussian(2)), STUCK
    ),
    "metropolis: stale density": _engine(
        chains.Walk(), "stale density", "folklore", moments(_SKEWED), STUCK
    ),
    "metropolis: no Hastings ratio": _engine(
        chains.Walk(warmup=0, drift=0.5),
        "no Hastings ratio",
        "folklore",
        joint(wh.condition(targets.Scale(), jnp.ones(2)), replicates=300),
        "distributed as in the prior",
    ),
    "hmc: sign of the energy": _engine(
        chains.HMC(), "energy sign", "folklore", moments(_SKEWED), STUCK
    ),
    "hmc: kinetic energy left out": _engine(
        chains.HMC(), "kinetic energy left out", "folklore", moments(_SKEWED), STUCK
    ),
    "hmc: momentum not refreshed": _engine(
        chains.HMC(), "no refresh", "folklore", moments(_SKEWED), STUCK
    ),
    "hmc: sign of the force": _engine(
        chains.HMC(), "gradient sign", "folklore", moments(_SKEWED), STUCK
    ),
    "ensemble: half updated against itself": _engine(
        chains.Stretch(), "itself", "numpyro pull request 2189", moments(wt.Gaussian(1)), STUCK
    ),
    "thermostat: norm for its square": _engine(
        chains.Thermostat(), "norm", "SGMCMCJax", _THERMOSTAT, OFF
    ),
    "langevin: the same batch in a scan": _engine(
        chains.Langevin(), "same batch", "dynamax issue 130", _LANGEVIN, OFF
    ),
    "langevin: prior once per batch": _engine(
        chains.Langevin(), "prior per batch", "folklore", _LANGEVIN, OFF
    ),
    "langevin: sign of the gradient": _engine(
        chains.Langevin(), "gradient sign", "folklore", _LANGEVIN, f"{STUCK}|finite"
    ),
    "langevin: half of the noise": _engine(
        chains.Langevin(), "half noise", "folklore", _LANGEVIN, OFF
    ),
    "smc: sign in the search for the increment": _engine(
        particles.Tempered(), "increment sign", "blackjax issue 914", moments(_WIDE), OFF
    ),
    "smc: sign of the weights": _engine(
        particles.Tempered(), "weight sign", "folklore", moments(_WIDE), OFF
    ),
    "smc: weights forgotten": _engine(
        particles.Tempered(moves=2), "not resampled", "folklore", moments(_WIDE), OFF
    ),
    "smc: moves on the prior": _engine(
        particles.Tempered(), "moves on the prior", "folklore", moments(_WIDE), OFF
    ),
    "smc: evidence off by a constant": _engine(
        particles.Tempered(), "sum of weights", "folklore", moments(_WIDE), "`log_evidence`"
    ),
    "conjugate: standard deviation for variance": _engine(
        chains.Conjugate(),
        "variance",
        "folklore",
        simulation(wh.condition(targets.Noise(), jnp.zeros(5)), simulations=100),
        r"mu: [\s\S]*too wide",
    ),
    "target: no Jacobian": Planted(
        targets.Rates(jacobian=True),
        targets.Rates(jacobian=False),
        "folklore",
        moments_by_nuts,
        STUCK,
    ),
    "bijection: no Jacobian": Planted(
        targets.Spread(True),
        targets.Spread(False),
        "folklore",
        model_suite(_VALUES),
        "Jacobian of automatic differentiation",
    ),
    "likelihood: derivative of the wrong sign": Planted(
        targets.Gradient(False),
        targets.Gradient(True),
        "folklore",
        model_suite(_VALUES),
        "gradient along a random direction",
    ),
    "likelihood: NaN in the derivative": Planted(
        targets.Root(True),
        targets.Root(False),
        "folklore",
        looked_at(_VALUES),
        "gradient with respect to `x` is not finite",
    ),
    "rows: always the first": Planted(
        wt.GaussianMean(_Y),
        targets.Rows(_Y),
        "folklore",
        in_batches,
        "depends on which other rows",
    ),
    "front end: observed site sampled": Planted(
        _numpyro(_VALUES),
        targets.Blind(_numpyro(None), _VALUES),
        "bayeux issue 51",
        target_suite,
        r"must not be sampled, but \['y'\]",
    ),
    "front end: observed site sampled unseen": Planted(
        _numpyro(_VALUES),
        targets.Silent(_numpyro(None), _VALUES),
        "bayeux issue 51",
        target_suite,
        r"\['y'\] move no variable|the data do not count",
    ),
    "front end: observed site sampled, by moments": Planted(
        _numpyro(_VALUES),
        targets.Silent(_numpyro(None), _VALUES),
        "bayeux issue 51",
        mean_of_data,
        OFF,
    ),
}
