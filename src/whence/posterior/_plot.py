"""ArviZ's plots of a posterior."""

from typing import Any


def plot(posterior: Any, kind: str, kwargs: dict[str, Any]) -> Any:
    """Return the plot of this kind; see `Posterior.plot`."""
    import arviz_plots

    function = getattr(arviz_plots, f"plot_{kind}", None)
    if function is None:
        known = [n[5:] for n in dir(arviz_plots) if n.startswith("plot_")]
        raise ValueError(f"`kind` must be one of {', '.join(known)}; got {kind!r}.")
    if kind.startswith("rank") and posterior.num_chains == 1:
        return function(_halves(posterior.dt), **kwargs)
    return function(posterior.dt, **kwargs)


def _halves(tree: Any) -> Any:
    """Return the first and the second half of the one chain as chains to compare.

    Ranks among a chain's own draws are uniform whatever the chain does.
    """
    import xarray

    whole = tree["posterior"].to_dataset()
    size = whole.sizes["draw"] // 2
    halves = [whole.isel(draw=slice(i * size, (i + 1) * size)) for i in (0, 1)]
    parts = [half.assign_coords(draw=range(size), chain=[i]) for i, half in enumerate(halves)]
    return xarray.DataTree.from_dict({"posterior": xarray.concat(parts, "chain")})
