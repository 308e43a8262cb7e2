"""What a user's code reads is part of the program, and of the manifest of a run."""

import contextvars
import fractions
import functools
import os
import sys
import types
from collections import deque
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray
from jax.tree_util import Partial
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh
from whence.core import _cache
from whence.core._code import Held, code_key, code_parts, named_arrays

Y = np.array([1.0, 2.0, 3.0, 4.0])
KEY = jr.key(0)
SETTINGS = {"sigma": 1.0}
SHIFT = 0.0
GRID = np.arange(3.0)


def shifted(x):
    return x + SHIFT


class Reads(wh.Model):
    mu: Any = wh.latent(dist.Normal(0.0, 100.0))

    def likelihood(self):
        return dist.Normal(shifted(self.mu), SETTINGS["sigma"])


def numpyro_model(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 100.0))
    numpyro.sample("y", dist.Normal(mu, SETTINGS["sigma"]), obs=y)


def density(position):
    return dist.Normal(0.0, SETTINGS["sigma"]).log_prob(position["mu"])


class Density:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, position):
        return dist.Normal(0.0, SETTINGS["sigma"] * self.scale).log_prob(position["mu"])


CALLABLE = Density(1.0)
inner_jitted = eqx.filter_jit(lambda position: density(position))
jitted = jax.jit(lambda position: inner_jitted(position))
MAKERS = {
    "callable": lambda: wh.from_log_density(CALLABLE, {"mu": jnp.zeros(())}),
    "jitted": lambda: wh.from_log_density(jitted, {"mu": jnp.zeros(())}),
    "partial": lambda: wh.from_log_density(Partial(density), {"mu": jnp.zeros(())}),
    "model": lambda: wh.condition(Reads(), Y),
    "numpyro": lambda: wh.from_numpyro(numpyro_model, y=Y),
    "log_density": lambda: wh.from_log_density(density, {"mu": jnp.zeros(())}),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_changed_global_is_a_new_program(name, monkeypatch):
    """A position's density under the new value, by the engine and by MAP's own programs."""
    engine = wh.MAP(starts=1, draws=0)
    first = wh.infer(MAKERS[name](), engine, key=KEY)
    monkeypatch.setitem(SETTINGS, "sigma", 20.0)
    target = MAKERS[name]()
    second = wh.infer(target, engine, key=KEY)
    position = {"mu": jnp.asarray(second.sample.positions["mu"][0, 0])}
    assert_allclose(second.stats["lp"][0, 0], target.log_density(position), rtol=1e-10)
    assert abs(second.stats["lp"][0, 0] - first.stats["lp"][0, 0]) > 1.0
    monkeypatch.setitem(SETTINGS, "sigma", 1.0)
    traces = _cache.traces
    again = wh.infer(MAKERS[name](), engine, key=KEY)
    assert _cache.traces == traces  # the first programs are still there
    assert_array_equal(again.stats["lp"], first.stats["lp"])


def test_functions_of_a_posterior_notice_it(monkeypatch):
    target = MAKERS["model"]()
    posterior = wh.infer(target, wh.NUTS(chains=1, warmup=50, draws=20), key=KEY, throw=False)
    double = lambda m: m.mu * SETTINGS["sigma"]
    assert_allclose(posterior.map(double), posterior["mu"])
    before = posterior.predict(key=KEY)
    monkeypatch.setitem(SETTINGS, "sigma", 3.0)
    assert_allclose(posterior.map(double), 3.0 * posterior["mu"])
    mean = posterior["mu"][..., None]
    assert_allclose(posterior.predict(key=KEY) - mean, 3.0 * (before - mean), rtol=1e-6)


def _scaled(scale):
    return lambda x: x * scale


def _with_default(scale):
    def function(x, factor=scale):
        return x * factor

    return function


class _Callable:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return x * self.scale


def _settings(value):
    """A class with a class in it, and what is no method."""
    inner = type("Inner", (), {"scale": value})
    return type("Settings", (), {"Inner": inner, "link": functools.partial(jnp.power, 2)})


def _hidden(value):
    return type("Settings", (), {"_scale": value})


def _read_package(x):
    return x * outer.inner.SCALE  # noqa: F821  # pyright: ignore


def _package(value):
    """A function that reads a value of a module in a module."""
    outer, inner = types.ModuleType("outer"), types.ModuleType("outer.inner")
    vars(outer)["inner"], vars(inner)["SCALE"] = inner, value
    return types.FunctionType(_read_package.__code__, {"outer": outer})


def _keys(make):
    return tuple(code_key(make(v)) for v in (1.0, 1.0, 2.0))


CHANGES = {
    "partial": lambda: _keys(lambda v: functools.partial(jnp.power, v)),
    "partial_in_closure": lambda: _keys(lambda v: _scaled(functools.partial(_scaled(v)))),
    "partial_as_pytree": lambda: _keys(lambda v: Partial(_scaled(v), np.ones(2))),
    "callable": lambda: _keys(_Callable),
    "slots": lambda: _keys(lambda v: _scaled(_Callable(v))),
    "bound": lambda: _keys(lambda v: {"a": v}.get),
    "class": lambda: _keys(lambda v: _scaled(_settings(v))),
    "hidden": lambda: _keys(lambda v: _scaled(_hidden(v))),
    "transformed": lambda: _keys(lambda v: jax.vmap(_scaled(v))),
    "compiled": lambda: _keys(lambda v: _scaled(jax.jit(_scaled(v)))),
    "modules": lambda: _keys(_package),
    "deque": lambda: _keys(lambda v: _scaled(deque([v]))),
    "proxy": lambda: _keys(lambda v: _scaled(types.MappingProxyType({"a": v}))),
    "fraction": lambda: _keys(lambda v: _scaled(fractions.Fraction(v))),
    "dataset": lambda: _keys(lambda v: _scaled(xarray.Dataset({"a": ("x", [v])}))),
    "closure": lambda: (code_key(_scaled(1.0)), code_key(_scaled(1.0)), code_key(_scaled(2.0))),
    "default": lambda: tuple(code_key(_with_default(s)) for s in (1.0, 1.0, 2.0)),
    "array": lambda: tuple(code_key(_scaled(np.arange(n))) for n in (3, 3, 4)),
    "values": lambda: tuple(code_key(_scaled(jnp.full(3, v))) for v in (0.0, 0.0, 1.0)),
    "nested": lambda: tuple(code_key(_scaled({"a": [(v,)]})) for v in (0, 0, 1)),
    "function": lambda: tuple(code_key(_scaled(_scaled(v))) for v in (0, 0, 1)),
    "set": lambda: tuple(code_key(_scaled({"p", "q", v})) for v in ("r", "r", "s")),
    "module": lambda: tuple(
        code_key(_scaled(eqx.nn.Linear(1, 1, key=jr.key(v)))) for v in (0, 0, 1)
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_counts(name):
    one, same, other = CHANGES[name]()
    assert one == same
    assert one != other


def test_arrays_of_a_pytree_are_data():
    function = _scaled(1.0)
    one, other = (code_key(Partial(function, np.full(2, v))) for v in (0.0, 1.0))
    assert one == other
    assert code_key(dist.Normal(0.0, 1.0)) == code_key(dist.Normal(1.0, 1.0))


def test_a_helper_and_its_globals_count(monkeypatch):
    model = Reads()
    before = code_key(model)
    monkeypatch.setitem(globals(), "SHIFT", 1.0)
    assert code_key(model) != before
    monkeypatch.undo()
    assert code_key(model) == before
    monkeypatch.setitem(globals(), "shifted", lambda x: x - SHIFT)
    assert code_key(model) != before


def test_a_global_with_the_name_of_an_attribute_is_not_read(monkeypatch):
    function = lambda model: model.sigma
    before = code_key(function)
    monkeypatch.setitem(globals(), "sigma", np.array([1.0, np.nan]))  # as data often are
    assert code_key(function) == before
    assert not list(named_arrays(function))


def test_what_code_reads_by_text_or_in_a_context_counts(monkeypatch):
    variable, settings = contextvars.ContextVar("variable"), types.ModuleType("own_settings")
    monkeypatch.setitem(sys.modules, "own_settings", settings)
    changes = [
        (lambda: variable.get(), variable.set),
        (lambda: os.environ["OWN"], lambda v: monkeypatch.setenv("OWN", v)),
        (lambda: os.getenv("OWN"), lambda v: monkeypatch.setenv("OWN", v + v)),
        (
            lambda: sys.modules["own_settings"].a,
            lambda v: monkeypatch.setattr(settings, "a", v),
        ),
        (lambda: getattr(settings, "b"), lambda v: monkeypatch.setattr(settings, "b", v)),  # noqa: B009
        (lambda: globals()["GLOBAL"], lambda v: monkeypatch.setitem(globals(), "GLOBAL", v)),
    ]
    monkeypatch.setattr(settings, "a", "", raising=False)
    monkeypatch.setattr(settings, "b", "", raising=False)
    for function, change in changes:
        keys = []
        for value in ("1", "2"):
            change(value)
            keys += [code_key(function), code_key(function)]
        assert keys[0] == keys[1] != keys[2] == keys[3], function.__code__.co_names
    before = code_key(changes[1][0])
    monkeypatch.setenv("OTHER", "2")  # not read
    assert code_key(changes[1][0]) == before


def test_values_that_refer_to_themselves_come_to_an_end():
    loop: list[Any] = []
    loop.append(loop)
    code_key(_scaled(loop))

    class Node:
        def __init__(self):
            self.me = self

    code_key(_scaled(Node()))


class Before(wh.Model):
    mu: Any = wh.latent(dist.Normal(0.0, 1.0))
    tau: Any = wh.latent(dist.HalfNormal(1.0))

    def likelihood(self):
        return dist.Normal(self.mu, self.tau)


def _edited(prior=None, noncentered=False, likelihood=None):
    class Edited(wh.Model):
        mu: Any = wh.latent(prior or dist.Normal(0.0, 1.0), noncentered=noncentered)
        tau: Any = wh.latent(dist.HalfNormal(1.0))

        def likelihood(self):
            return dist.Normal(self.mu, self.tau)

    if likelihood:
        Edited.likelihood = likelihood
    Edited.__qualname__ = Edited.__name__ = "Before"
    Edited.likelihood.__qualname__ = "Before.likelihood"
    return Edited


EDITS = {
    "prior": (lambda: _edited(dist.Normal(50.0, 1.0)), "Before.mu"),
    "noncentered": (lambda: _edited(noncentered=True), "Before.mu"),
    "likelihood": (
        lambda: _edited(likelihood=lambda self: dist.Normal(self.mu + 50.0, self.tau)),
        "Before.likelihood",
    ),
}


def test_the_same_model_written_again_is_the_same():
    assert code_parts(wh.condition(_edited()(), Y)) == code_parts(wh.condition(Before(), Y))


@pytest.mark.parametrize("name", EDITS)
def test_another_model_with_the_same_data_is_refused(name, tmp_path):
    make, what = EDITS[name]
    target, other = wh.condition(Before(), Y), wh.condition(make()(), Y)
    engine = wh.NUTS(chains=1, warmup=30, draws=20)
    posterior = wh.infer(target, engine, key=KEY, store=tmp_path / "a", throw=False)
    posterior.save(tmp_path / "a.nc")
    for ask in (
        lambda: wh.load(tmp_path / "a", target=other),
        lambda: wh.load(tmp_path / "a.nc", target=other),
        lambda: wh.resume(tmp_path / "a", other),
        lambda: wh.extend(tmp_path / "a", other, draws=10),
        lambda: wh.replay(tmp_path / "a", other),
    ):
        with pytest.raises(ValueError, match=f"its model differs.*{what}"):
            ask()
    assert_array_equal(wh.load(tmp_path / "a.nc", target=target)["mu"], posterior["mu"])
    jax.tree.map(assert_array_equal, wh.resume(tmp_path / "a", target).sample, posterior.sample)


def test_tables_are_read_with_their_labels():
    """Two tables of the same numbers: a model may read names, rows and codes of categories."""
    table = pd.DataFrame({"a": [1.0, 2.0], "g": pd.Categorical(["u", "v"])}, index=["p", "q"])
    others = [
        table.rename(columns={"a": "b"}),
        table[["g", "a"]],
        table.set_axis(["q", "p"]),
        table.assign(g=table["g"].cat.reorder_categories(["v", "u"])),
        table.assign(a=[1.0, 2.5]),
        xarray.DataArray([1.0, 2.0], dims="a"),
        xarray.DataArray([1.0, 2.0], dims="b"),
        xarray.DataArray([1.0, 2.0], coords={"b": [4, 7]}),
        table["a"],
        table["a"].rename("b"),
    ]
    found = [Held(value) for value in (table, *others)]
    assert len(set(found)) == len(found)
    assert Held(table.copy()) == Held(table)
