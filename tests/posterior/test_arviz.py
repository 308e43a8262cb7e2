"""What ArviZ, pandas and R get of a posterior: groups, names of axes, tables, files."""

import itertools
from typing import Any

import arviz as az
import h5py
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from numpy.testing import assert_allclose, assert_array_equal

import whence as wh
from whence.storage import (
    in_order,
    load_netcdf,
    load_zarr,
    save_netcdf,
    save_zarr,
    to_datatree,
)

matplotlib.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of ArviZ, on so few draws
X = np.linspace(0.0, 1.0, 70)
SHIFT = np.stack([X, X**2], axis=1)


class Line(wh.Model):
    mu: Any = wh.latent(dist.Normal(1.0, 2.0))
    tau: Any = wh.latent(dist.HalfNormal(1.0))
    slope: Any = wh.latent(lambda m: dist.Normal(m.mu, m.tau), dims="firm", noncentered=True)
    part: Any = wh.latent(dist.Dirichlet(jnp.array([2.0, 3.0])), dims="half")

    def likelihood(self, x, shift):
        return dist.Normal(self.mu + self.slope.sum() * x + shift @ self.part, 1.0)


@pytest.fixture(scope="module")
def posterior():
    rng = np.random.default_rng(0)
    model = Line(coords={"firm": ["A", "B", "C"], "half": ["p", "q"]})
    target = wh.condition(model, X + rng.normal(size=70), X, SHIFT)
    draws = {
        "mu": rng.normal(size=(1, 41)),
        "tau": rng.uniform(0.5, 1.0, size=(1, 41)),
        "slope": rng.normal(size=(1, 41, 3)),
        "part": rng.dirichlet([2.0, 3.0], size=(1, 41)),
    }
    return wh.Posterior.from_draws(target, draws)


def test_the_tree_is_made_once(posterior):
    tree = posterior.dt
    assert posterior.dt is tree
    assert posterior.resample(10, key=jax.random.key(0)).dt is not tree
    assert np.isfinite(az.loo(posterior.dt).elpd)


AXES = {"c": ("coef",), "b": ("firm", "coef"), "e": ("coef", "firm")}
LABELS = {"coef": ["i", "s", "t"], "firm": ["A", "B"]}


def _number(name, where):
    """A number for each label, another one for each entry of each variable."""
    own = [10.0**i * v.index(where[n]) for i, (n, v) in enumerate(LABELS.items()) if n in where]
    return 100.0 * "cbe".index(name) + sum(own)


def _labelled(axes):
    """Draws of variables with these axes, and the number that belongs to each label."""
    draws, expected = {}, {}
    for name, own in axes.items():
        labels = list(itertools.product(*(LABELS[axis] for axis in own)))
        found = [_number(name, dict(zip(own, label))) for label in labels]
        shape = tuple(len(LABELS[axis]) for axis in own)
        draws[name] = np.broadcast_to(np.reshape(found, shape), (2, 4, *shape))
        expected |= {f"{name}[{', '.join(sorted(k))}]": v for k, v in zip(labels, found)}
    return draws, expected


def _read(tree):
    """What ArviZ's table has, labels sorted."""
    table = az.summary(tree, kind="stats", round_to="none")["mean"]
    by_labels = lambda row: f"{row[0]}[{', '.join(sorted(row[2:-1].split(', ')))}]"
    return {by_labels(row): value for row, value in table.items()}


@pytest.mark.parametrize("names", list(itertools.permutations(AXES)), ids="".join)
def test_arviz_finds_numbers_under_their_labels(names):
    """Over orders of variables of which one has the axes of another the other way round."""
    draws, expected = _labelled({name: AXES[name] for name in names})
    tree = in_order(to_datatree({"posterior": draws}, dims=AXES, coords=LABELS))
    assert _read(tree) == expected
    two = {name: draws[name] for name in names if name != "e"}  # stay as they are
    pair = in_order(to_datatree({"posterior": two}, dims=AXES, coords=LABELS))["posterior"]
    assert pair["b"].dims == tuple(pair.sizes) == ("chain", "draw", "firm", "coef")


@pytest.mark.parametrize("names", list(itertools.permutations(AXES)), ids="".join)
@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_arviz_finds_numbers_of_files_under_their_labels(tmp_path, names, kind):
    """netCDF gives variables back as written, zarr sorted; here both, of any axes."""
    axes = dict(zip("bce", (AXES[name] for name in names)))
    path, save, load, read = {
        "nc": (tmp_path / "a.nc", save_netcdf, load_netcdf, az.from_netcdf),
        "zarr": (tmp_path / "a.zarr", save_zarr, load_zarr, az.from_zarr),
    }[kind]
    for order in ("bce", "ecb"):
        own = {name: axes[name] for name in order}
        draws, expected = _labelled(own)
        tree = to_datatree({"posterior": draws}, dims=own, coords=LABELS)
        save(tree, path)
        assert _read(read(path)) == expected
        for name, variable in load(path)["posterior"].data_vars.items():
            xarray.testing.assert_identical(variable, tree["posterior"][name])


class Crossed(wh.Model):
    """Latents whose axes are in conflicting orders."""

    c: Any = wh.latent(dist.Normal(0.0, 1.0), dims="coef")
    b: Any = wh.latent(dist.Normal(0.0, 1.0), dims=("firm", "coef"))
    e: Any = wh.latent(dist.Normal(0.0, 1.0), dims=("coef", "firm"))

    def likelihood(self):
        return dist.Normal(self.c[None] + self.b + self.e.T, 1.0)


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
def test_a_saved_posterior_is_as_it_was(tmp_path, name):
    draws, expected = _labelled(AXES)
    target = wh.condition(Crossed(coords=LABELS), np.zeros((2, 3)), dims=("firm", "coef"))
    fit = wh.Posterior.from_draws(target, draws)
    fit.save(tmp_path / name)
    tree = xarray.open_datatree(tmp_path / name)
    assert _read(tree) == expected
    back = wh.load(tmp_path / name, target=target)
    assert list(back.variables) == list(fit.variables)
    jax.tree.map(assert_array_equal, dict(back.variables), dict(fit.variables))
    jax.tree.map(assert_array_equal, back.sample.positions, fit.sample.positions)
    assert back.summary().to_string() == fit.summary().to_string()


def test_log_prior_is_in_the_space_of_the_model(posterior):
    """No Jacobian, and not the density of the standardised variable."""
    tree = posterior.dt
    mu, tau = posterior["mu"], posterior["tau"]
    expected = {
        "mu": dist.Normal(1.0, 2.0).log_prob(mu),
        "tau": dist.HalfNormal(1.0).log_prob(tau),
        "slope": dist.Normal(mu[..., None], tau[..., None]).log_prob(posterior["slope"]),
        "part": np.log(12.0) + np.log(posterior["part"]) @ [1.0, 2.0],
    }
    assert set(tree["log_prior"].data_vars) == set(expected)
    for name, value in expected.items():
        assert_allclose(tree["log_prior"][name], value, rtol=1e-10)
    assert tree["log_prior"]["slope"].dims == ("chain", "draw", "firm")
    found = az.psense_summary(tree, prior_var_names=["mu"])
    assert np.isfinite(found["prior"]).all()


def test_inputs_share_the_axis_of_the_rows(posterior):
    tree = posterior.dt
    row = tree["observed_data"]["y"].dims
    assert tree["posterior_predictive"]["y"].dims[2:] == row
    assert tree["constant_data"]["x"].dims == row
    assert tree["constant_data"]["shift"].dims == (*row, "shift_dim_1")
    az.plot_lm(tree, x="x", y="y", smooth=False)


def test_predictions_at_new_inputs(posterior):
    new = np.linspace(1.0, 2.0, 5)
    tree = posterior.to_datatree(inputs=(new, np.stack([new, new], 1)))
    assert tree["predictions"]["y"].shape == (1, 41, 5)
    assert_array_equal(tree["predictions_constant_data"]["x"], new)
    assert tree["predictions_constant_data"]["x"].dims == tree["predictions"]["y"].dims[2:]
    with pytest.raises(ValueError, match="give them: `to_datatree.inputs="):
        posterior.to_datatree(groups=("predictions",))


def _flat(target, shape):
    rng = np.random.default_rng(1)
    return wh.Posterior.from_draws(target, {"theta": rng.normal(size=(1, 3, *shape))})


def test_new_rows_do_not_get_the_labels_of_the_old():
    class Rows(wh.Model):
        theta: Any = wh.latent(dist.Normal(0.0, 1.0))

        def likelihood(self, x):
            return dist.Normal(self.theta * x, 1.0)

    model = Rows(coords={"city": ["Ulm", "Bonn"]})
    target = wh.condition(model, np.zeros(2), np.ones(2), dims="city")
    tree = _flat(target, ()).to_datatree(inputs=(np.ones(2),))
    assert list(tree["observed_data"]["city"].values) == ["Ulm", "Bonn"]
    assert list(tree["predictions"]["city"].values) == [0, 1]


def test_rows_that_have_latents_keep_their_labels():
    def model(x, y=None):
        with numpyro.plate("city", 2):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(theta * x, 1.0), obs=y)

    target = wh.from_numpyro(model, np.ones(2), y=np.zeros(2))
    target = target.with_coords({"city": ["Ulm", "Bonn"]})
    tree = _flat(target, (2,)).to_datatree(inputs=(np.ones(2),))
    for group in ("log_prior", "constant_data", "predictions", "predictions_constant_data"):
        assert list(tree[group]["city"].values) == ["Ulm", "Bonn"], group


@pytest.mark.parametrize("kind", ["rank", "rank_dist"])
def test_ranks_of_one_chain_compare_its_halves(posterior, kind):
    assert posterior.plot(kind, var_names="mu") is not None


def test_draws_as_a_long_table(posterior):
    table = posterior.draws_df(["slope", "mu"])
    assert list(table.columns) == ["chain", "draw", "variable", "firm", "value"]
    assert len(table) == 41 * 4
    wide = table.pivot(index=["chain", "draw"], columns="variable", values="value")
    assert list(wide.columns) == ["slope[A]", "slope[B]", "slope[C]", "mu"]
    assert_array_equal(wide.to_numpy()[:, :3], posterior["slope"][0])
    assert_array_equal(wide["mu"], posterior["mu"][0])
    assert_array_equal(table[table.firm == "B"]["value"], posterior["slope"][0, :, 1])
    assert "weight" not in table


def test_a_file_for_other_tools_holds_all_groups(posterior, tmp_path):
    posterior.to_netcdf(tmp_path / "a.nc")
    with h5py.File(tmp_path / "a.nc") as file:  # what R's ncdf4 reads with, too
        assert_array_equal(file["posterior/slope"], posterior["slope"])
        assert file["posterior/firm"].asstr()[:].tolist() == ["A", "B", "C"]
        assert "log_likelihood/y" in file
    assert set(az.from_netcdf(tmp_path / "a.nc").children) == set(posterior.dt.children)
    assert_array_equal(wh.load(tmp_path / "a.nc")["tau"], posterior["tau"])


class Mean(wh.Model):
    """`y[i]` is Normal(mu, 1), or around a known `offset`."""

    offset: Any
    mu: Any = wh.latent(dist.Normal(0.0, 100.0))

    def likelihood(self):
        return dist.Normal(self.mu + self.offset, 1.0)


def _exact(offset, y, name="y"):
    """Draws from the posterior of a nearly flat prior: Normal(mean(y - offset), 1 / n)."""
    mean, n = np.mean(y - offset), len(y)
    draws = mean + np.random.default_rng(2).normal(size=(4, 1000)) / np.sqrt(n)
    target = wh.condition(Mean(jnp.asarray(offset)), y, name=name)
    return wh.Posterior.from_draws(target, {"mu": draws})


def test_compare_is_leave_one_out():
    """Leaving `y[i]` out, it is Normal(mean of the others, 1 + 1 / (n - 1))."""
    rng = np.random.default_rng(3)
    offset = np.linspace(-2.0, 2.0, 150)
    y = offset + rng.normal(size=150)
    right, wrong = _exact(offset, y), _exact(np.zeros(150), y)
    table = wh.compare({"wrong": wrong, "right": right})
    assert list(table.index) == ["right", "wrong"]

    def exact(z):
        others = (z.sum() - z) / 149
        return np.sum(dist.Normal(others, np.sqrt(1 + 1 / 149)).log_prob(z))

    difference = exact(y - offset) - exact(y)
    assert_allclose(table.loc["wrong", "elpd_diff"], -difference, atol=0.05 * difference)
    assert list(wh.compare({"a": wrong, "b": right}, var_name="y").index) == ["b", "a"]
    other = _exact(offset, y + 0.1)
    for arguments, message in [
        ([{"right": right}], "at least two posteriors"),
        (
            [{"a": right, "b": right.target}],
            "'b'.` must be a `whence.Posterior`",
        ),
        ([{"a": right, "b": other}], "'y' differs between 'a' and 'b'"),
        ([{"a": right, "b": _exact(offset, y, "z")}], "'a' has y and 'b' z"),
    ]:
        with pytest.raises(ValueError, match=message):
            wh.compare(*arguments)
    with pytest.raises(ValueError, match="`var_name` must be one of y; got 'z'"):
        wh.compare({"a": right, "b": wrong}, var_name="z")
