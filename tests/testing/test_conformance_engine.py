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
        if self.fault == "Python float":
            state["scale"] = 0.5
        if self.fault == "raises in init":
            state["scale"] = target.no_such_thing
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
        if self.fault == "changes shape":
            state = state | {"lp": state["lp"][None]}
        if self.fault == "grows":
            state = state | {"more": state["lp"]}
        if self.fault == "Python if" and accepted[0]:
            state = state | {"lp": state["lp"]}
        stats = {"lp": state["lp"], "acceptance_rate": accepted.mean(dtype=state["lp"].dtype)}
        if self.fault == "wrong lp":
            stats["lp"] = -stats["lp"]
        if self.fault == "not finite":
            stats["energy"] = jnp.log(-jnp.ones(()))
        if self.fault == "becomes a float":
            return state | {"lp": 0.0}, Info(state["position"], stats)
        if self.fault == "no info":
            return state, stats
        if self.fault == "tuple for info":
            return state, (state["position"], stats)
        if self.fault == "info unpacked":
            return state, state["position"], stats
        if self.fault == "stats in a list":
            return state, Info(state["position"], [state["lp"]])
        return state, Info(state["position"], stats)

    def done(self, state):
        return False if self.fault == "done in Python" else never()

    def result(self, state):
        return "fine" if self.fault == "result in words" else RESULTS.successful

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
        if self.fault == "no sample":
            return positions
        if self.fault == "posterior raises":
            raise KeyError("draws")
        method = "guess" if self.fault == "method" else "mcmc"
        return Sample(positions, stats, method=method, log_weights=weights)


def test_a_correct_engine_passes(key):
    check_engine(Walk(), key=key)


@pytest.mark.slow
def test_an_engine_that_needs_data_is_given_data(key):
    # A longer walk with smaller steps: the regression's posterior is narrow and correlated.
    check_engine(Walk(scale=0.25, steps=4_500, fault="needs data"), key=key)


def test_it_says_what_it_checks_and_returns_the_names(key, capsys):
    target = Gaussian(2)
    wanted = ("configuration", "state")
    assert check_engine(Walk(), target, key=key, only=wanted, verbose=True) == wanted
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "configuration: name, schedule and hash"
    assert said[1].startswith("state: strongly typed arrays")
    assert check_engine(Walk(), target, key=key, only="state") == ("state",)
    assert capsys.readouterr().out == ""


def test_one_check_alone_finds_its_own_fault_and_no_other(key):
    assert check_engine(Walk(fault="wrong lp"), LogGamma(), key=key, only="transforms")
    with pytest.raises(AssertionError, match="Walk fails the check `sample`"):
        check_engine(Walk(fault="wrong lp"), LogGamma(), key=key, only="sample")
    with pytest.raises(ValueError, match="`only` must be among configuration, .*; got 'speed'"):
        check_engine(Walk(), key=key, only="speed")


def test_an_engine_that_runs_on_nothing(key):
    with pytest.raises(AssertionError, match="refuses every target"):
        check_engine(Walk(fault="refuses all"), key=key)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("weak type", "`state`.*weak type"),
        (
            "Python float",
            r"leaf `\['scale'\]` of the state of `init` must be an array; got 0.5",
        ),
        ("raises in init", "`init` raised AttributeError: .*no_such_thing"),
        ("changes shape", r"Leaf `\['lp'\]` .* shape \(1,\), of the state of `init` .* \(\)"),
        ("grows", "The state of `step` has structure"),
        ("becomes a float", "Leaf .*lp.* of the state of `step` is the float 0.0"),
        ("Python if", "`step` raised TracerBoolConversionError.*`jnp.where`"),
        ("tuple for info", r"must return an `Info` beside the state.*; got tuple"),
        ("info unpacked", "must return the new state and an `Info`; got tuple"),
        # The type checker of this suite, where it is on, speaks first.
        ("stats in a list", "`Info.stats` must be a dict|`step` raised TypeCheckError"),
        ("done in Python", "`done` must return a boolean scalar.*got False"),
        ("result in words", "`result` must return one of `RESULTS`.*got 'fine'"),
        ("no sample", "`sample`.*`posterior` must return a `Sample`"),
        ("posterior raises", "`posterior` raised KeyError: 'draws'"),
        ("method", "`posterior` raised ValueError: `method` must be"),
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
@pytest.mark.usefixtures("standard")  # one of the faults is to mix types
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
