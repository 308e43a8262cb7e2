"""`Posterior.citation`: what was really run, and nothing else."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import whence as wh
from whence.inference.sgmcmc import RMSprop
from whence.posterior._citation import references
from whence.testing import GaussianMean


class Part(eqx.Module):
    """A part.

    References:
        Part (1999), doi:10.1000/part.
    """


class Whole(eqx.Module):
    """A thing with parts.

    Attributes:
        way: How.
        parts: Some.

    References:
        Always (2000), A title that goes
        on in another line, J. Things 3.
        Short (2001), arXiv:1234.5678 [way: short, any].
        Long and Short (2002) [way: long] [size: int].

    Notes:
        Not a reference (2003).
    """

    way: str = "short"
    size: int = 1
    parts: tuple = (Part(), {"more": Part()})


def test_entries_are_read_with_their_conditions():
    always = "Whole: Always (2000), A title that goes on in another line, J. Things 3."
    part = "Part: Part (1999), doi:10.1000/part."
    assert references(Whole()) == [always, "Whole: Short (2001), arXiv:1234.5678.", part]
    assert references(Whole("long")) == [always, "Whole: Long and Short (2002).", part]
    assert references(Whole("none", parts=())) == [always]
    assert references(jnp.ones(3), "text", None) == []


@pytest.mark.parametrize(
    ("settings", "with_", "without"),
    [
        ({"metric": "fisher"}, ["Hoffman", "Betancourt", "Seyboldt"], ["Cabezas"]),
        ({"metric": "dense"}, ["Hoffman", "Betancourt"], ["Seyboldt", "Cabezas"]),
        ({"backend": "blackjax"}, ["Hoffman", "Cabezas"], ["Seyboldt", "Lao et al"]),
    ],
)
def test_the_engine_is_cited_as_it_was_set(settings, with_, without):
    text = "\n".join(references(wh.NUTS(**settings)))
    assert all(name in text for name in with_)
    assert not any(name in text for name in without)


def test_parts_are_cited():
    text = "\n".join(references(wh.SGLD(preconditioner=RMSprop())))
    assert "SGLD: Welling and Teh (2011)" in text
    assert "RMSprop: " in text
    assert "RMSprop: " not in "\n".join(references(wh.SGLD()))


def test_what_bases_say_and_defaults_stand_for():
    assert "Dauphin" in "\n".join(references(wh.SGLD()))
    assert "Dauphin" not in "\n".join(references(wh.SGLD(step_size=1e-3)))


def test_a_run_knows_what_it_was_made_with_after_save_and_load(tmp_path, key):
    target = GaussianMean.simulate(key=key)
    engine = wh.NUTS(chains=2, warmup=20, draws=20)
    fitted = wh.infer(target, engine, key=key, progress=False, store=tmp_path / "run")
    lines = fitted.citation().splitlines()
    assert lines[0] == f"whence {wh.__version__}: The whence developers, software."
    assert lines[1].startswith("jax ")
    assert lines[4].startswith("NUTS: Hoffman and Gelman (2014)")
    assert lines[-1].startswith("R-hat and effective sample size: Vehtari")
    fitted.save(tmp_path / "a.nc")
    assert wh.load(tmp_path / "a.nc").citation() == fitted.citation()
    assert wh.load(tmp_path / "run", target=target).citation() == fitted.citation()


def test_draws_from_elsewhere_cite_model_and_libraries(key):
    target = GaussianMean.simulate(key=key)
    position = target.init(key=key)
    draws = jnp.zeros((2, 10, *np.shape(position)))
    made = wh.Posterior.from_draws(target, draws, unconstrained=True)
    text = made.citation()
    assert "whence" in text
    assert "NUTS" not in text
