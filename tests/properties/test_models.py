"""Models of random shapes: names of axes reach the tree; what does not fit is said."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from scipy import stats

import whence as wh
from whence.core._rows import check_rows

quick = settings(deadline=None, max_examples=25, derandomize=True)
few = settings(quick, max_examples=6)
LENGTHS = {"school": 2, "year": 3, "one": 1}
LABELS = {"school": ["A", "B é"], "year": [2001, 2003, 2007], "one": ["only"]}


def model_class(**members):
    """Make a model, as a class statement would."""
    latents = {name: wh.latent(**how) for name, how in members.items() if isinstance(how, dict)}
    methods = {name: how for name, how in members.items() if not isinstance(how, dict)}
    notes = dict.fromkeys(latents, jax.Array)
    return type("Random", (wh.Model,), {"__annotations__": notes, **latents, **methods})


@st.composite
def latents(draw):
    """By name: how to declare a latent, its shape, and the names that its axes should get."""
    found = {}
    for name in draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=3, unique=True)):
        dims = tuple(draw(st.lists(st.sampled_from(list(LENGTHS)), max_size=2, unique=True)))
        sizes = tuple(LENGTHS[d] for d in dims)
        axes = tuple(f"{name}_dim_{i}" for i in range(len(sizes)))
        match draw(st.sampled_from(["dims", "both", "shape", "event"])):
            case "dims":
                how = {"prior": dist.Normal(0.0, 1.0), "dims": dims}
                axes = dims
            case "both":
                how = {"prior": dist.HalfNormal(1.0), "dims": dims, "shape": sizes}
                axes = dims
            case "shape":
                how = {"prior": dist.Normal(0.0, 1.0), "shape": sizes}
            case _:
                how = {"prior": dist.Dirichlet(jnp.ones(3)), "dims": ("school", "year")}
                axes, sizes = ("school", "year"), (2, 3)
        found[name] = how, sizes, axes
    return found


@few
@given(latents())
def test_names_of_axes_reach_the_tree(found):
    model = model_class(
        **{name: how for name, (how, _, _) in found.items()},
        likelihood=lambda self: dist.Normal(
            sum(jnp.mean(getattr(self, n)) for n in found), 1.0
        ),
    )(coords=LABELS)
    target = wh.condition(model, np.zeros(3), dims="year")
    rng = np.random.default_rng(0)
    draws = {s.name: rng.normal(size=(2, 4, *s.unconstrained_shape)) for s in target.free}
    posterior = wh.Posterior.from_draws(target, draws, unconstrained=True)
    tree = posterior.to_datatree(groups=("posterior", "observed_data"))
    for name, (_, sizes, axes) in found.items():
        variable = tree["posterior"][name]
        assert variable.dims == ("chain", "draw", *axes)
        assert variable.shape == (2, 4, *sizes)
        assert posterior[name].shape == (2, 4, *sizes)
        for axis, size in zip(axes, sizes, strict=True):
            labels = LABELS.get(axis, list(range(size)))
            assert list(variable[axis].values) == labels
    assert list(tree["observed_data"]["y"]["year"].values) == LABELS["year"]


SHAPES = st.sampled_from([(), (1,), (2,), (3,), (2, 3), (3, 1), (1, 3), (3, 3), (2, 1, 3)])


def line(shape):
    return model_class(
        level={"prior": dist.Normal(0.0, 1.0), "shape": shape},
        likelihood=lambda self, x: dist.Normal(self.level + 2.0 * x, 1.5),
    )()


def fits(*shapes):
    """Return the shape that these broadcast to, or None."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


@quick
@given(SHAPES, SHAPES, SHAPES, st.integers(0, 2**16))
def test_shapes_that_do_not_fit_are_said_and_others_counted_once(level, inputs, data, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=inputs), rng.normal(size=data)
    mean = fits(level, inputs)
    try:
        target = wh.condition(line(level), y, x)
    except ValueError as error:
        assert mean is None or fits(mean, data) != data
        assert ("'y'" if mean is not None else "inputs of shapes") in str(error)  # noqa: PT017
        return
    assert mean is not None
    assert fits(mean, data) == data
    value = rng.normal(size=level)
    position = {"level": jnp.asarray(value)}
    draw = target.constrain(position)
    terms = np.zeros(data)
    where = np.broadcast_to(value + 2 * x, data)
    for index in np.ndindex(data):  # datum by datum
        terms[index] = stats.norm.logpdf(y[index], where[index], 1.5)
    assert_allclose(target.pointwise(draw)["y"], terms, rtol=1e-10)
    expected = terms.sum() + stats.norm.logpdf(value).sum()
    assert_allclose(float(target.log_density(position)), expected, rtol=1e-10)


@settings(quick, max_examples=12)
@given(SHAPES, st.sampled_from([(4,), (4, 3), (3, 3)]), st.data())
def test_rows_that_pass_the_check_are_what_they_are_among_all(level, data, rest):
    """An input as long as the data may yet not belong to the rows, as in a square table."""
    inputs = rest.draw(st.sampled_from([(), data[:1], data[-1:], data]))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=inputs), rng.normal(size=data)
    mean = fits(level, inputs)
    if mean is None or fits(mean, data) != data:
        return
    target = wh.condition(line(level), y, x)
    assert target.num_data == len(y)
    size = rest.draw(st.integers(1, len(y) - 1))
    rows = jnp.asarray(rest.draw(st.permutations(range(len(y))))[:size])
    position = {"level": jnp.asarray(rng.normal(size=level))}
    try:
        check_rows(target, size)
    except ValueError:
        # A latent with an entry for each row, or the columns of a table that has as many rows.
        assert len(level) > 0 or (data == (3, 3) and inputs == (3,))
        return
    whole = np.asarray(target.log_likelihood(position))
    assert_allclose(target.log_likelihood(position, rows), whole[np.asarray(rows)], rtol=1e-10)


@quick
@given(latents(), st.sampled_from(list(LENGTHS)))
def test_labels_that_do_not_fit_are_said(found, axis):
    longer = LABELS | {axis: [*LABELS[axis], "one more"]}
    model = model_class(
        **{name: how for name, (how, _, _) in found.items()},
        likelihood=lambda self: dist.Normal(0.0, 1.0),
    )(coords=longer)
    # With `dims` alone, or none, the labels say the length.
    told = [
        name
        for name, (how, _, axes) in found.items()
        if axis in axes
        and ("shape" in how or (isinstance(how["prior"], dist.Dirichlet) and axis == "year"))
    ]
    try:
        target = wh.condition(model, np.zeros(3))
    except ValueError as error:
        assert any(f"`{name}`" in str(error) for name in told)  # noqa: PT017
        return
    assert not told
    for site in target.sites:
        lengths = [len(longer[name]) for name in site.dims]
        assert not site.dims or list(site.shape) == lengths
