"""What is special about TensorFlow Probability."""

import sys

import jax
import jax.random as jr
import pytest

import whence as wh
from whence.inference.backends import TFPNUTS
from whence.inference.backends._tfp import library
from whence.testing import Gaussian


@pytest.fixture
def missing(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("tensorflow_probability.substrates")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tensorflow_probability.substrates.jax", None)
    library.cache_clear()
    yield
    library.cache_clear()


def test_missing_library_is_named_with_the_cure(missing):
    with pytest.raises(ImportError, match=r"pip install whence\[tfp\]"):
        TFPNUTS()


@pytest.mark.parametrize("warmup", [0, 10, 100])
def test_short_warmups_have_a_kernel(warmup):
    engine = TFPNUTS(warmup=warmup)
    target = Gaussian(2)
    state = jax.eval_shape(lambda: engine.init(target, key=jr.key(0)))
    after, _ = jax.eval_shape(
        lambda s, i: engine.step(target, s, i, key=jr.key(0)),
        state,
        jax.ShapeDtypeStruct((), "int32"),
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_a_short_warmup_leaves_a_chain_that_moves(key):
    """Variances of a few draws would drive step sizes to 1e-15: all transitions diverge."""
    target, engine = Gaussian(5), TFPNUTS(chains=2, warmup=30, draws=30)
    posterior = wh.infer(target, engine, key=key, progress=False, throw=False)
    assert not posterior.stats["diverging"].any()
    assert (posterior.stats["step_size"] > 0.1).all()


def test_options_reach_tfp():
    engine = TFPNUTS(options={"max_energy_diff": 500.0, "decay_rate": 0.6})
    sampling, averaging = engine._options()
    assert sampling == {"max_energy_diff": 500.0}
    assert averaging == {"decay_rate": 0.6}
