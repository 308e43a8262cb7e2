"""`train`: procedures that end in a state, run by the loop of the engines."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh
from whence.core import advance
from whence.running import _loop

X = np.linspace(-1.0, 1.0, 40)[:, None]
PROBLEM = {"x": X, "y": np.sin(2 * X)}
KEY = jr.key(3)


class Fitting(eqx.Module):
    network: eqx.nn.MLP
    optimizer: Any


class Regress(wh.AbstractProcedure):
    """Least squares for a small network, whose activation is part of the state."""

    steps: int = 300
    replicas: int = 1
    rate: float = 0.02
    limit: float = 1e6
    swap: bool = False

    @property
    def name(self):
        return "Regress"

    @property
    def schedule(self):
        return wh.Schedule(self.replicas, 0, self.steps)

    def validate(self, target):
        if set(target) != {"x", "y"}:
            raise ValueError(f"`problem` must have x and y; got {sorted(target)}.")

    def init(self, target, *, key):
        network = eqx.nn.MLP(1, 1, 8, 1, activation=jnp.tanh, key=key)
        return Fitting(network, optax.adam(self.rate).init(eqx.filter(network, eqx.is_array)))

    def step(self, target, state, index, *, key):
        def loss(network):
            return jnp.mean((jax.vmap(network)(target["x"]) - target["y"]) ** 2)

        value, gradient = eqx.filter_value_and_grad(loss)(state.network)
        updates, optimizer = optax.adam(self.rate).update(gradient, state.optimizer)
        network = eqx.apply_updates(state.network, updates)
        if self.swap:
            network = eqx.tree_at(lambda n: n.activation, network, jnp.sin)
        return Fitting(network, optimizer), wh.Info(None, {"loss": value})

    def done(self, state):
        return jnp.asarray(False)

    def result(self, state):
        bad = jnp.abs(state.network.layers[0].weight).max() > self.limit
        return wh.RESULTS.where(bad, wh.RESULTS.nonfinite_state, wh.RESULTS.successful)


def _leaves(trained):
    return jax.tree.leaves(eqx.filter(trained.state, eqx.is_array_like))


def _same(a, b):
    for one, other in zip(_leaves(a), _leaves(b), strict=True):
        assert_array_equal(one, other)


def test_a_network_in_the_state_learns():
    trained = wh.train(PROBLEM, Regress(), key=KEY)
    assert trained.complete
    assert trained.stats["loss"].shape == (1, 300)
    assert trained.stats["loss"][0, -1] < trained.stats["loss"][0, 0] / 50
    found = jax.vmap(trained.state.network)(X)  # a network to be used, its activation too
    assert_allclose(
        np.mean((found - PROBLEM["y"]) ** 2), trained.stats["loss"][0, -1], rtol=0.5
    )


def test_replicas_are_trained_side_by_side():
    trained = wh.train(PROBLEM, Regress(steps=20, replicas=3), key=KEY)
    together = wh.train(PROBLEM, Regress(steps=20, replicas=3), key=KEY, vectorised=True)
    assert trained.state.network.layers[0].weight.shape == (3, 8, 1)
    assert trained.stats["loss"].shape == (3, 20)
    for one, other in zip(_leaves(trained), _leaves(together), strict=True):
        assert_allclose(one, other, rtol=1e-8)


@pytest.mark.parametrize("vectorised", [False, True])
def test_resumed_bit_for_bit(tmp_path, monkeypatch, vectorised):
    options = {"key": KEY, "chunk_steps": 25, "vectorised": vectorised}
    whole = wh.train(PROBLEM, Regress(), **options)
    calls, advance_by = [], _loop.Worker.advance

    def interrupted(self, stop):
        calls.append(stop)
        if len(calls) == 5:
            raise RuntimeError("killed")
        return advance_by(self, stop)

    monkeypatch.setattr(_loop.Worker, "advance", interrupted)
    with pytest.raises(RuntimeError, match="killed"):
        wh.train(PROBLEM, Regress(), store=tmp_path / "a", **options)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="`engine` must be given"):
        wh.resume(tmp_path / "a", PROBLEM)
    again = wh.resume(tmp_path / "a", PROBLEM, engine=Regress())
    assert len(calls) == 5
    _same(again, whole)
    assert_array_equal(again.stats["loss"], whole.stats["loss"])


def test_steps_in_a_program_of_ones_own():
    """Several calls make the steps of one, and those of the loop."""
    problem, procedure = jax.tree.map(jnp.asarray, PROBLEM), Regress(steps=30)
    whole = wh.train(problem, procedure, key=KEY, chunk_steps=30)
    init_key, step_key = jr.split(jr.fold_in(KEY, 0))
    state = procedure.init(problem, key=init_key)
    arrays, rest = eqx.partition(state, eqx.is_array)

    def go_on(arrays, index, steps):
        new, info = advance(
            Inside(procedure, rest), problem, arrays, index, steps, key=step_key
        )
        return new, info.stats["loss"]

    for index, steps in [(0, 10), (10, 20)]:
        arrays, loss = jax.jit(go_on, static_argnums=2)(arrays, index, steps)
    assert_allclose(loss, whole.stats["loss"][0, -1], rtol=1e-8)
    with pytest.raises(ValueError, match="`steps` must be at least 1; got 0"):
        advance(procedure, problem, state, 0, 0, key=KEY)


class Inside(wh.AbstractProcedure):
    """A procedure whose state is arrays alone."""

    procedure: Regress
    rest: Any

    name = "Inside"
    schedule = wh.Schedule(1, 0, 30)

    def validate(self, target):
        pass

    def init(self, target, *, key):
        raise NotImplementedError

    def step(self, target, state, index, *, key):
        state = eqx.combine(state, self.rest)
        state, info = self.procedure.step(target, state, index, key=key)
        return eqx.filter(state, eqx.is_array), info

    def done(self, state):
        return jnp.asarray(False)

    def result(self, state):
        return wh.RESULTS.successful


def test_bad_arguments():
    with pytest.raises(ValueError, match="must have x and y"):
        wh.train({"x": X}, Regress(), key=KEY)
    with pytest.raises(ValueError, match="must not contain NaN"):
        wh.train({"x": X * np.nan, "y": X}, Regress(), key=KEY)
    with pytest.raises(ValueError, match="must leave what is no array as it is"):
        wh.train(PROBLEM, Regress(swap=True), key=KEY)


def test_a_failure_is_told():
    with pytest.raises(wh.InferenceError, match="Regress failed"):
        wh.train(PROBLEM, Regress(steps=5, limit=0.0), key=KEY)
    with pytest.warns(wh.InferenceWarning, match="Failed: chain 0"):
        found = wh.train(PROBLEM, Regress(steps=5, limit=0.0), key=KEY, throw=False)
    assert len(found.failed) == 1
