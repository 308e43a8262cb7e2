"""`check_engine` accepts a correct engine, and refuses one with each of many planted faults."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.flatten_util import ravel_pytree

from whence.core._engine import AbstractEngine, Info, Sample, Schedule, never
from whence.core._results import RESULTS
from whence.core._target import AbstractDataTarget
from whence.testing import Gaussian, LogGamma, check_engine

CALLS = []  # what the impure engine remembers


class Walk(AbstractEngine):
    """Random-walk Metropolis (Metropolis et al., 1953), several moves a step.

    With a `fault`, the same engine with one mistake.
    """

    scale: float = 1.0
    steps: int = 1_500
    fault: str = ""

    @property
    def name(self):
        return "walk"

    @property
    def schedule(self):
        return Schedule(replicas=4, warmup=500, steps=self.steps)

    def validate(self, target):
        if self.fault == "needs data" and not isinstance(target, AbstractDataTarget):
            raise ValueError("`target` must have data.")
        if self.fault == "refuses all":
            raise ValueError("`target` is not to my taste.")

    def init(self, target, *, key):
        position = target.init(key=key)
        state = {"position": position, "lp": target.log_density(position)}
        if self.fault == "weak type":
            state["scale"] = jnp.where(state["lp"] > 0, 1.0, 2.0)
        if self.fault == "double precision":
            state = jax.tree.map(lambda x: x.astype(jnp.float64), state)
        return state

    def step(self, target, state, index, *, key):
        def move(state, key):
            flat, unravel = ravel_pytree(state["position"])
            key_move, key_accept = jr.split(key)
            proposal = flat + self.scale * jr.normal(key_move, flat.shape, flat.dtype)
            lp = target.log_density(unravel(proposal))
            threshold = jnp.log(jr.uniform(key_accept, dtype=flat.dtype))
            accept = threshold < lp - state["lp"]
            if self.fault == "wrong target":
                accept = threshold < 0.8 * (lp - state["lp"])
            new = state | {"position": unravel(proposal), "lp": lp}
            return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, state), accept

        if self.fault == "impure":
            CALLS.append(index)
            key = jr.fold_in(key, len(CALLS))
        state, accepted = jax.lax.scan(move, state, jr.split(key, 10))
        if self.fault == "changes type":
            state = state | {"lp": state["lp"].astype(jnp.float32)}
        stats = {"lp": state["lp"], "acceptance_rate": accepted.mean(dtype=state["lp"].dtype)}
        if self.fault == "wrong lp":
            stats["lp"] = -stats["lp"]
        if self.fault == "not finite":
            stats["energy"] = jnp.log(-jnp.ones(()))
        if self.fault == "no info":
            return state, stats
        return state, Info(state["position"], stats)

    def done(self, state):
        return never()

    def result(self, state):
        return RESULTS.successful

    def posterior(self, target, state, trace, *, key):
        positions, stats, weights = trace.sampling.position, trace.sampling.stats, None
        if self.fault == "axes swapped":
            positions = jax.tree.map(lambda x: x.swapaxes(0, 1), positions)
        if self.fault == "flat positions":
            positions = jax.vmap(jax.vmap(lambda p: ravel_pytree(p)[0]))(positions)
            positions = {"flat": positions}
        if self.fault == "weights not normalised":
            weights = jnp.zeros(stats["lp"].shape)
        if self.fault == "keeps few draws":
            positions, stats = jax.tree.map(lambda x: x[:, :10], (positions, stats))
        return Sample(positions, stats, log_weights=weights)


def test_a_correct_engine_passes(key):
    check_engine(Walk(), key=key)


@pytest.mark.slow
def test_an_engine_that_needs_data_is_given_data(key):
    # A longer walk with smaller steps: the regression's posterior is narrow and correlated.
    check_engine(Walk(scale=0.25, steps=4_500, fault="needs data"), key=key)


def test_an_engine_that_runs_on_nothing(key):
    with pytest.raises(AssertionError, match="refuses every target"):
        check_engine(Walk(fault="refuses all"), key=key)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("weak type", "weak type"),
        ("changes type", "Leaf .*lp.* of the state of `step`"),
        ("double precision", "is float64 though the target's position is float32"),
        ("no info", "must return an `Info`"),
        ("impure", "differs from one"),
        ("not finite", r"`Sample.stats\['energy'\]` must be finite"),
        ("wrong lp", "must be the log density of the draw"),
        ("axes swapped", r"must have leading axes \(1000, 4\)"),
        ("flat positions", "the target's positions"),
        ("weights not normalised", "must be normalised"),
        ("keeps few draws", "effective sample size"),
        ("wrong target", "standard errors"),
    ],
)
def test_planted_faults(fault, match, key):
    with pytest.raises(AssertionError, match=match):
        check_engine(Walk(fault=fault), LogGamma(), key=key)


class Unhashable(Walk):
    """A configuration that cannot be part of a program."""

    table: tuple = ([1.0],)


def test_an_unhashable_configuration(key):
    with pytest.raises(AssertionError, match="must be hashable"):
        check_engine(Unhashable(), LogGamma(), key=key)


def test_a_schedule_that_makes_no_sense(key):
    with pytest.raises(AssertionError, match="0 <= warmup <= steps"):
        check_engine(Walk(steps=100), Gaussian(), key=key)
