"""Every support: into it and back, and the Jacobian by finite differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from numpyro.distributions import constraints

import whence as wh

EVERY = lambda x: x.ravel()
LOWER = lambda x: x[np.tril_indices(x.shape[-1])]
STRICT = lambda x: x[np.tril_indices(x.shape[-1], -1)]
ALL_BUT_LAST = lambda x: x[..., :-1].ravel()

# Support, shape of a value, and the entries in whose measure its density is.
SUPPORTS = {
    "real": (constraints.real, (3,), EVERY),
    "real_vector": (constraints.real_vector, (3,), EVERY),
    "real_matrix": (constraints.real_matrix, (2, 3), EVERY),
    "positive": (constraints.positive, (3,), EVERY),
    "nonnegative": (constraints.nonnegative, (), EVERY),
    "softplus_positive": (constraints.softplus_positive, (3,), EVERY),
    "greater_than": (constraints.greater_than(2.0), (3,), EVERY),
    "greater_than_eq": (constraints.greater_than_eq(-1.0), (3,), EVERY),
    "less_than": (constraints.less_than(-1.0), (3,), EVERY),
    "less_than_eq": (constraints.less_than_eq(4.0), (3,), EVERY),
    "interval": (constraints.interval(-2.0, 5.0), (3,), EVERY),
    "open_interval": (constraints.open_interval(0.1, 0.3), (2, 2), EVERY),
    "unit_interval": (constraints.unit_interval, (3,), EVERY),
    "circular": (constraints.circular, (2,), EVERY),
    "independent": (constraints.independent(constraints.positive, 1), (2, 2), EVERY),
    "simplex": (constraints.simplex, (4,), ALL_BUT_LAST),
    "rows of simplices": (constraints.simplex, (2, 3), ALL_BUT_LAST),
    "ordered": (constraints.ordered_vector, (4,), EVERY),
    "positive_ordered": (constraints.positive_ordered_vector, (4,), EVERY),
    "l1_ball": (constraints.l1_ball, (3,), EVERY),
    "corr_cholesky": (constraints.corr_cholesky, (4, 4), STRICT),
    "corr_matrix": (constraints.corr_matrix, (3, 3), STRICT),
    "lower_cholesky": (constraints.lower_cholesky, (3, 3), LOWER),
    "scaled_unit_lower_cholesky": (constraints.scaled_unit_lower_cholesky, (3, 3), LOWER),
    "softplus_lower_cholesky": (constraints.softplus_lower_cholesky, (3, 3), LOWER),
    "positive_definite": (constraints.positive_definite, (3, 3), LOWER),
    "positive_semidefinite": (constraints.positive_semidefinite, (2, 2), LOWER),
}
# One dimension less than entries, and no entry is special: surface of the hyperplane.
SURFACES = {"zero_sum": (constraints.zero_sum(1), (4,), EVERY)}
CASES = SUPPORTS | SURFACES

COMPILED = {}


def compiled(name):
    """Compile the maps of one target, which any example of it reuses."""
    if name not in COMPILED:
        support, shape, _ = CASES[name]
        target = wh.from_log_density(lambda draw: 0.0 * draw.sum(), jnp.zeros(shape), support)
        functions = target.constrain, target.unconstrain, target.log_density
        size = target.init(key=jax.random.key(0)).shape
        COMPILED[name] = support, size, *(jax.jit(jax.vmap(f)) for f in functions)
    return COMPILED[name]


def log_volume(constrain, point, entries):
    """Log of the volume that the map makes of a unit cube, by central differences."""
    step = 1e-5
    steps = step * np.eye(point.size).reshape(point.size, *point.shape)
    values = np.asarray(constrain(np.concatenate([point + steps, point - steps])))
    found = np.array([entries(value) for value in values])
    jacobian = (found[: point.size] - found[point.size :]).T / (2 * step)
    return 0.5 * np.linalg.slogdet(jacobian.T @ jacobian)[1]


@pytest.mark.parametrize("name", CASES)
@settings(deadline=None, max_examples=10, derandomize=True)
@given(data=st.data())
def test_there_and_back_with_the_volume(name, data):
    support, shape, constrain, unconstrain, log_density = compiled(name)
    entry = st.floats(-2.0, 2.0, width=32)
    size = math.prod(shape)
    numbers = data.draw(st.lists(entry, min_size=size, max_size=size))
    point = np.reshape(np.array(numbers), shape)
    value = np.asarray(constrain(point[None])[0])
    assert value.shape == CASES[name][1]
    assert np.all(np.asarray(support(value)))
    assert_allclose(np.asarray(unconstrain(value[None])[0]), point, atol=1e-7)
    if size:
        expected = log_volume(constrain, point, CASES[name][2])
        assert_allclose(float(log_density(point[None])[0]), expected, atol=1e-5)


def test_every_support_of_numpyro_is_here():
    """All that numpyro has a bijection for, but for `cat` (parts of the above) and complex."""
    tested = {type(support).__name__ for support, *_ in CASES.values()}
    known = {kind.__name__ for kind in dist.biject_to._registry}
    ours = {kind for kind in known if kind in dir(constraints)}  # others are made by tests
    assert ours - tested <= {"_Cat", "_Complex"}
