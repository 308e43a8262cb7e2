"""ArviZ's plots of a posterior, as PNG images."""

import io
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..posterior import Posterior

if TYPE_CHECKING:
    import xarray

MOST_ELEMENTS = 12  # panels of one figure; beyond that nobody looks
_CLOSE_BYTES = 2**26  # a group of draws that is cheap to plot


class Plot(NamedTuple):
    """One figure of a report."""

    name: str  # short name, as in ArviZ's `plot_<name>`
    title: str  # what it shows
    caption: str  # how to read it
    png: bytes | None  # the image; None if it could not be drawn
    problem: str = ""  # why not, or nothing


def draw_plots(posterior: Posterior) -> list[Plot]:
    """Draw those plots that say something about this posterior."""
    import matplotlib

    matplotlib.use("Agg")
    plots = []
    for name, title, caption, draw in _wanted(posterior):
        try:
            plots.append(Plot(name, title, caption, _png(draw)))
        except Exception as error:  # one odd variable must not cost the whole report
            plots.append(Plot(name, title, caption, None, f"{type(error).__name__}: {error}"))
    return plots


def _wanted(posterior: Posterior) -> Iterator[tuple[str, str, str, Callable[[], Any]]]:
    import arviz_plots

    tree = posterior.to_datatree(groups=("posterior", "sample_stats"))
    few, shown = _elements(tree)
    count = len(few["posterior"].data_vars)
    chains = posterior.num_chains > 1 and posterior.log_weights is None
    if chains:
        yield (
            "trace_dist",
            "Draws",
            f"Left: the distribution, one line per chain. Right: the draws in order; chains "
            f"should look alike and have no trend. {shown}",
            lambda: arviz_plots.plot_trace_dist(
                few, compact=False, figure_kwargs=_size(1.7 * count)
            ),
        )
        yield (
            "rank",
            "Ranks",
            "Ranks of each chain's draws among all draws: lines that leave the band mean that "
            f"chains disagree. {shown}",
            lambda: arviz_plots.plot_rank(
                few,
                method="envelope",
                # ArviZ's 1000 simulations of the band take a quarter of a report's time;
                # with 300 the standard error of its coverage, 99%, is 0.6%.
                stats={"ecdf_pit": {"n_simulations": 300}},
                figure_kwargs=_size(2.3 * -(-count // 4)),
            ),
        )
    else:
        yield (
            "dist",
            "Distributions",
            f"Marginal distributions. {shown}",
            lambda: arviz_plots.plot_dist(few, figure_kwargs=_size(2.6 * -(-count // 4))),
        )
    if "energy" in posterior.stats and chains:
        yield (
            "energy",
            "Energy",
            "The energy and its changes between draws should spread alike; if changes are much "
            "narrower, the sampler moves slowly through the tails.",
            lambda: arviz_plots.plot_energy(tree),
        )
    predictive = _predictive(posterior)
    if predictive is not None:
        # Whole numbers may be given a continuous likelihood: then no draw equals another.
        both = (predictive.children[g] for g in ("observed_data", "posterior_predictive"))
        counts = all(v.dtype.kind in "iub" for g in both for v in g.data_vars.values())
        name = "ppc_rootogram" if counts else "ppc_dist"
        yield (
            name,
            "Posterior predictive check",
            "How often each value is expected under the fitted model, with an interval, and "
            "how often it was observed (dots)."
            if counts
            else "Data drawn from the fitted model (thin lines) against the observed data.",
            lambda: getattr(arviz_plots, f"plot_{name}")(predictive),
        )


def _size(height: float) -> dict[str, Any]:
    """Return a size in inches at which titles do not run into the panels above."""
    return {"figsize": (11.0, max(height, 2.6)), "layout": "constrained"}


def _elements(tree: "xarray.DataTree") -> tuple["xarray.DataTree", str]:
    """Return at most `MOST_ELEMENTS` scalars, those with the worst R-hat, and say so."""
    import xarray

    from ..diagnostics import rhat

    dataset = tree["posterior"].to_dataset()
    flat = {
        name: value for array in dataset.data_vars.values() for name, value in _split(array)
    }
    keep = list(flat)
    if len(keep) > MOST_ELEMENTS:
        keep = _order(flat, rhat)[:MOST_ELEMENTS]
    groups = {"posterior": xarray.Dataset({name: flat[name] for name in flat if name in keep})}
    if "sample_stats" in tree.children:  # it says where divergences are
        groups["sample_stats"] = tree["sample_stats"].to_dataset()
    few = len(keep) < len(flat)
    note = f"Shown are the {len(keep)} of {len(flat)} elements with the largest R-hat."
    return xarray.DataTree.from_dict(groups), note if few else ""


def _order(flat: dict[str, "xarray.DataArray"], rhat: Callable[..., Any]) -> list[str]:
    draws = np.stack([value.values for value in flat.values()], axis=-1)
    if draws.shape[0] == 1 or draws.shape[1] < 4:
        return list(flat)
    score = np.nan_to_num(np.asarray(rhat(draws)), nan=-np.inf)
    return [list(flat)[i] for i in np.argsort(-score, kind="stable")]


def _split(array: "xarray.DataArray") -> Iterator[tuple[str, "xarray.DataArray"]]:
    dims = [dim for dim in array.dims if dim not in ("chain", "draw")]
    shape = tuple(array.sizes[dim] for dim in dims)
    for index in np.ndindex(shape):
        one = array.isel(dict(zip(dims, index)), drop=True)
        labels = [_label(array, dim, i) for dim, i in zip(dims, index)]
        yield f"{array.name}[{', '.join(labels)}]" if labels else str(array.name), one


def _label(array: "xarray.DataArray", dim: Any, index: int) -> str:
    return str(array.coords[dim].values[index]) if dim in array.coords else str(index)


def _predictive(posterior: Posterior) -> "xarray.DataTree | None":
    """Return draws of the data and the data, if the posterior has what that takes."""
    if posterior.target is None:
        return None
    try:
        tree = posterior.to_datatree(groups=("posterior_predictive", "observed_data"))
    except ValueError:  # no such group for this target
        return None
    return tree if tree["posterior_predictive"].nbytes <= _CLOSE_BYTES else None


def _png(draw: Callable[[], Any]) -> bytes:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # ArviZ and matplotlib remark on their own defaults; a report's reader cannot act.
        warnings.simplefilter("ignore")
        try:
            draw()
            plt.gcf().savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        finally:
            plt.close("all")
    return buffer.getvalue()
