"""Simulation-based calibration: does an engine recover what data were simulated from?"""

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import jax
import jax.random as jr
import numpy as np

from ..core._convert import flag, whole
from ..core._engine import AbstractEngine
from ..core._key import seeded
from ..core._results import InferenceWarning
from ..core._target import AbstractTarget, latent_names
from ..core._types import PRNGKey
from ..running._executor import check_executor
from ..running._progress import progress_bar
from ._calibration import Calibration
from ._fits import Fit, Task, fit_all, fit_batched, thin
from ._generative import check_arguments, check_functions, shapes_of, simulate

DEFAULT_DRAWS = 99  # ranks 0..99: a hundred values
LEAST_DRAWS = 19  # fewer say little, and shape cannot be told
LEAST_SIMULATIONS = 10
_ESS_QUANTILE = 0.05


@seeded
def sbc(
    target: AbstractTarget,
    engine: AbstractEngine,
    *,
    key: PRNGKey,
    simulations: int = 200,
    num_draws: int | None = None,
    test_quantities: Mapping[str, Callable[..., Any]] | None = None,
    alpha: float = 0.05,
    vectorised: bool | None = None,
    progress: bool = False,
    executor: Any = None,
) -> Calibration:
    """Check that an engine recovers, over many data sets, what they were simulated from.

    For each simulation, parameters are drawn from the prior and data given them; the
    engine is fitted to these data. The rank of the true value of each quantity among
    `num_draws` independent posterior draws is then uniform, if the simulator, the
    density and the engine belong together. Compared are all entries of latents and derived
    values, the joint log likelihood (which sees posteriors that ignore data), and
    `test_quantities`. A quantity that the prior does not vary is left out.

    All fits share one compiled program. Draws are thinned, and weighted ones resampled.
    Ctrl-C ends it when the fits that have begun are made; those count, and a warning says how
    many they are.

    Args:
        target: Says what model and, by its data and inputs, what shapes; the values of its
            observed data are not used. From `whence.condition` or `whence.from_numpyro`.
        engine: The engine, with the settings that are to be checked.
        key: A typed key.
        simulations: Number of simulated data sets.
        num_draws: `L`: ranks are among so many draws of each fit. By default 99, or, if
            fits have fewer effective draws, what 95% of them have, at least 19.
        test_quantities: Further quantities by name: functions of a draw and its data (an
            array, or a dict if there are several observed variables) that return an array.
        alpha: Probability of a false alarm in all quantities together, at most.
        vectorised: Fit many data sets in one program, as is best on accelerators, or each
            by itself in threads; by default by the platform.
        progress: Show a progress bar.
        executor: Any `concurrent.futures.Executor` to make the fits, as for `infer_many`;
            by default threads of this process.

    Returns:
        A `Calibration`: print it, test `.ok`, `.plot()` it.

    Raises:
        ValueError: If the target cannot be simulated from, or an argument is wrong.
        KeyboardInterrupt: If Ctrl-C came before there were 10 fits.

    References:
        Cook, Gelman and Rubin (2006), doi:10.1198/106186006X136976.
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), arXiv:1804.06788.
        Modrák et al. (2023), doi:10.1214/23-BA1404, on quantities that depend on data.
        Säilynoja, Bürkner and Vehtari (2022), doi:10.1007/s11222-022-10090-6, on the test.
    """
    model = check_arguments(target, engine, key, alpha)
    simulations = whole("simulations", least=LEAST_SIMULATIONS)(simulations)
    num_draws = whole("num_draws", least=2, optional=True)(num_draws)
    functions = check_functions(test_quantities)
    check_executor(executor)
    vectorised = flag("vectorised", optional=True)(vectorised)
    progress = flag("progress")(progress)
    if executor is not None and vectorised:
        raise ValueError("`vectorised` fits are one program; leave it out, or `executor`.")
    begin = time.perf_counter()
    prior_key, fit_key, tie_key = jr.split(key, 3)
    truth, data = simulate(model, shapes_of(model), functions, jr.split(prior_key, simulations))
    middle = time.perf_counter()
    task = Task(model, engine, functions, num_draws or DEFAULT_DRAWS, num_draws or 1)
    usable = _all_finite({**truth, **data})
    if vectorised is None:
        vectorised = executor is None and jax.default_backend() != "cpu"
    bar = progress_bar(f"SBC of {engine.name}") if progress else nullcontext()
    with bar as on_progress:
        if vectorised:
            fits = fit_batched(task, data, fit_key, usable)
        else:
            keys = list(jr.split(fit_key, simulations))
            fits = fit_all(task, data, keys, usable, on_progress, executor)
    if len(fits) < simulations:
        if len(fits) < LEAST_SIMULATIONS:
            raise KeyboardInterrupt(f"Interrupted after {len(fits)} of {simulations} fits.")
        said = f"Interrupted: ranks are those in the first {len(fits)} of {simulations} fits."
        warnings.warn(said, InferenceWarning, stacklevel=3)
    size = num_draws or _affordable(fits)
    good = [i for i, fit in enumerate(fits) if not fit.failure]
    # Compiled code returns dicts sorted by name; people want the model's order.
    names = dict.fromkeys((*latent_names(model), *truth))
    varied = [name for name in names if good and _varies(truth[name])]
    truth = {name: truth[name][good] for name in varied}
    noise = np.random.default_rng(np.asarray(jr.key_data(tie_key)).ravel())
    draws = [thin(fits[i].draws, size) for i in good]
    end = time.perf_counter()
    return Calibration(
        engine=engine.name,
        ranks={n: _ranks(truth[n], np.stack([d[n] for d in draws]), noise) for n in varied},
        truth=truth,
        num_draws=size,
        alpha=alpha,
        failures={i: fit.failure for i, fit in enumerate(fits) if fit.failure},
        ess=np.array([fit.ess for fit in fits]),
        divergent=sum(fit.divergent > 0 for fit in fits),
        seconds={"simulate": middle - begin, "fit": end - middle, "total": end - begin},
        dims=dict(model.dims),
        coords=dict(model.coords),
        stuck=sum(fit.stuck for fit in fits),
    )


def _all_finite(values: dict[str, np.ndarray]) -> np.ndarray:
    """Return, by simulation, whether all values are finite."""
    flat = [np.isfinite(v.reshape(len(v), -1)).all(axis=1) for v in values.values()]
    return np.all(flat, axis=0)


def _affordable(fits: list[Fit]) -> int:
    """Return how many independent draws nearly all fits have."""
    good = [fit for fit in fits if not fit.failure]
    if not good:
        return DEFAULT_DRAWS
    available = min(len(value) for fit in good for value in fit.draws.values())
    effective = np.quantile([fit.ess for fit in good], _ESS_QUANTILE)
    return int(min(available, np.clip(effective, LEAST_DRAWS, DEFAULT_DRAWS)))


def _varies(truth: np.ndarray) -> bool:
    return bool(truth.size) and bool(np.any(truth != truth[:1]))


def _ranks(truth: np.ndarray, draws: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Count the draws below the truth; among equal values the truth takes a random place."""
    below = np.sum(draws < truth[:, None], axis=1)
    equal = np.sum(draws == truth[:, None], axis=1)
    return below + noise.integers(0, equal + 1)
