"""Settings of engines and their parts: plain values, or a sentence that says what is wrong."""

import dataclasses
import math
import re
import typing

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hidden_models import LEVEL_Y, Level

import whence as wh
from whence.cli._engines import fits, own_engines
from whence.inference import backends
from whence.inference.sgmcmc import MinibatchGradient, PolynomialDecay, RMSprop
from whence.models import diffusion
from whence.running._job import RunOptions
from whence.testing import GaussianMean

ENGINES = [*own_engines().values(), backends.BlackjaxNUTS, backends.NumpyroNUTS]
PARTS = {
    PolynomialDecay: {},
    RMSprop: {},
    MinibatchGradient: {},
    wh.MeanField: {},
    wh.FullRank: {},
    wh.Blocks: {"blocks": 2},
    wh.ScaleMixtureFamily: {"scale": "v"},
    wh.Factors: {},
    wh.Until: {"ess": 10, "max_draws": 5},
    RunOptions: {"progress": None, "throw": True, "chunk_steps": None, "threads": None},
    wh.TemperedSMC: {"particles": 12},  # so that any small number of chains divides it
}
CLASSES = {cls: {} for cls in ENGINES} | PARTS
INTERNAL = {"index", "places"}  # a family sets these itself, once it knows the latents
WORDS = {"scale"}  # any text will do
WRONG = ["text", None, math.nan, math.inf, -1, 1.5, 100.0, True, [1], np.ones(2), object()]
FIELDS = [
    pytest.param(cls, field, id=f"{cls.__name__}.{field.name}")
    for cls in CLASSES
    for field in dataclasses.fields(cls)
    if field.init and field.name not in INTERNAL
]


def _hint(cls, field):
    return typing.get_type_hints(cls)[field.name]


def _build(cls, changes):
    return cls(**{**CLASSES[cls], **changes})


def _build_or_catch(cls, changes):
    try:
        return _build(cls, changes), ""
    except ValueError as error:
        return None, str(error)


def test_every_engine_is_here():
    assert {cls.__name__ for cls in ENGINES} >= {"NUTS", "SGLD", "BBVI", "TemperedSMC", "MAP"}


@pytest.mark.parametrize(("cls", "field"), FIELDS)
def test_a_setting_fits_or_is_refused_by_name(cls, field):
    for value in WRONG:
        built, said = _build_or_catch(cls, {field.name: value})
        if built is None:
            assert re.search(rf"`{field.name}\b", said), said
            assert repr(value) in said
        else:
            assert fits(value, _hint(cls, field)), value
            assert getattr(built, field.name) == value
            assert value in (None, True, 1.5, 100.0) or field.name in WORDS, value


def _example(cls, field):
    """Return a value that the field takes, other than None; None for one without numbers."""
    if isinstance(field.default, int | float):
        return field.default
    hint = _hint(cls, field)
    kinds = typing.get_args(hint) or (hint,)
    return 3 if int in kinds else 2.5 if float in kinds else None


@pytest.mark.parametrize(("cls", "field"), FIELDS)
def test_scalars_of_arrays_are_taken_as_python_numbers(cls, field):
    value = _example(cls, field)
    if value is None:
        return
    want = _build(cls, {field.name: value})
    for scalar in (np.asarray(value)[()], np.asarray(value), jnp.asarray(value)):
        got = _build(cls, {field.name: scalar})
        assert got == want
        assert hash(got) == hash(want)
        assert type(getattr(got, field.name)) in (int, float, bool)


def test_narrow_scalars_keep_their_value():
    engine = wh.SGLD(step_size=np.float32(1e-3), chains=np.uint8(3))  # pyright: ignore
    assert engine == wh.SGLD(step_size=float(np.float32(1e-3)), chains=3)
    assert wh.SGLD(step_size=1) == wh.SGLD(step_size=1.0)
    assert dataclasses.replace(wh.NUTS(), draws=np.int64(5)) == wh.NUTS(draws=5)


def test_traced_settings_are_refused():
    with pytest.raises(ValueError, match="`step_size` must be a number"):
        jax.jit(lambda h: wh.NUTS(step_size=h).step_size)(0.1)


@pytest.mark.parametrize("cls", [wh.NUTS, wh.HMC, wh.ChEES, wh.MCLMC, wh.TemperedSMC])
def test_diag_is_short_for_diagonal(cls):
    assert cls(metric="diag") == cls(metric="diagonal")
    assert cls(metric="diag").metric == "diagonal"


@pytest.fixture(scope="module")
def target():
    return GaussianMean.simulate(key=jr.key(0))


def _run_shapes(engine, target):
    """Return a first state and records of two steps, without the values."""
    init = lambda key: engine.init(target, key=key)
    state = jax.eval_shape(init, jr.key(0))
    step = lambda state, key: engine.step(target, state, jnp.int32(0), key=key)
    _, info = jax.eval_shape(step, state, jr.key(0))
    lead = (engine.schedule.replicas,)
    ones = lambda tree, axes: jax.tree.map(lambda s: np.ones(axes + s.shape, s.dtype), tree)
    return ones(state, lead), ones(info, (*lead, 2))


@pytest.mark.parametrize("cls", [wh.NUTS, wh.HMC, wh.ChEES, wh.MCLMC, wh.SGLD])
def test_warmup_is_kept_if_asked_for(cls, target):
    state, info = _run_shapes(cls(), target)
    trace = wh.Trace(info, info)
    for keep in (False, True):
        sample = cls(keep_warmup=keep).posterior(target, state, trace, key=jr.key(0))
        assert (sample.warmup_positions is not None) == keep
        assert (sample.warmup_stats is not None) == keep
    assert jax.tree.leaves(sample.warmup_positions)[0].shape[:2] == (cls().chains, 2)


def _target_of(cls, target):
    """Return what an engine runs on, if it is not a density."""
    if cls in (wh.ParticleGibbs, wh.ParticleMH, wh.SMC2):
        return wh.condition(Level(exact=False), LEVEL_Y[:4])
    if cls is wh.FeynmanKacSMC:
        noise = diffusion.VariancePreserving()
        score = diffusion.GaussianMixture(noise, [1.0], [[0.5, 0.0]], 1.0)
        return diffusion.annealed(noise, score, 2.0, dim=2, steps=10)
    return target


@pytest.mark.parametrize("cls", ENGINES, ids=lambda cls: cls.__name__)
def test_no_engine_is_built_in_a_step(cls, target, monkeypatch):
    engine = cls(objective="unconstrained") if cls is wh.MAP else cls()

    def refuse(self):
        raise AssertionError(f"a {type(self).__name__} is built within a step")

    monkeypatch.setattr(wh.AbstractEngine, "__check_init__", refuse, raising=False)
    with pytest.raises(AssertionError, match="is built"):
        cls()
    _run_shapes(engine, _target_of(cls, target))
