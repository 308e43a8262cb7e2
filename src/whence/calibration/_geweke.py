"""Geweke's joint distribution test of a transition."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.random as jr
import numpy as np

from ..core._convert import whole
from ..core._engine import AbstractEngine
from ..core._key import seeded
from ..core._target import AbstractTarget, latent_names
from ..core._types import PRNGKey
from ._generative import check_arguments, check_functions, shapes_of
from ._joint import JointTest
from ._transition import begin, check_transition, move, redraw

NUM_DRAWS = 49  # draws from the prior for each replicate, to rank its end among
LEAST_REPLICATES = 100  # the drift's z-scores are normal by the central limit theorem


@seeded
def geweke(
    target: AbstractTarget,
    engine: AbstractEngine,
    *,
    key: PRNGKey,
    replicates: int = 500,
    iterations: int = 20,
    steps: int = 1,
    test_quantities: Mapping[str, Callable[..., Any]] | None = None,
    alpha: float = 0.01,
) -> JointTest:
    """Test whether a Markov transition leaves the posterior invariant, at every data set.

    Each replicate draws parameters from the prior and data given them, then alternates: the
    engine moves the parameters given the data, the simulator draws new data given the
    parameters. If all is right, the joint distribution is that of the start after every
    iteration, however slowly the chain mixes. Geweke (2004) compares one long such chain
    with the prior; here, as Gandy and Scott (2020) advise, replicates are independent and
    start in the joint distribution, so the tests are exact but for rounding and the central
    limit theorem.

    For every scalar there are three tests: ranks of values at the end among fresh draws from
    the prior, and the drift since the start of location and of spread, which are measured on
    the scale of the prior's distribution function, so that heavy tails do no harm.

    An error that `sbc` sees, this sees as well, at a fraction of the cost; but it needs an
    engine that is a Markov chain with fixed parameters.

    Args:
        target: As for `sbc`. The fewer data, the further one iteration moves and the more
            the test can see.
        engine: A chain without warm-up, `whence.NUTS(warmup=0, step_size=0.3)` say.
        key: A typed key.
        replicates: Number of independent replicates.
        iterations: Transitions of each, every one followed by new data.
        steps: Steps of the engine in one transition.
        test_quantities: As for `sbc`.
        alpha: Probability that a correct engine fails, at most.

    Returns:
        A `JointTest`: print it, test `.ok`.

    Raises:
        ValueError: If the engine adapts or is no Markov chain, if the target cannot be
            simulated from, or an argument is wrong.

    References:
        Geweke (2004), "Getting it right", doi:10.1198/016214504000001132.
        Gandy and Scott (2020), "Unit testing for MCMC and other Monte Carlo methods",
        arXiv:2001.06465.
    """
    model = check_arguments(target, engine, key, alpha)
    check_transition(model, engine)
    replicates = whole("replicates", least=LEAST_REPLICATES)(replicates)
    iterations, steps = whole("iterations", least=1)(iterations), whole("steps", least=1)(steps)
    functions, shapes = check_functions(test_quantities), shapes_of(model)
    clock = time.perf_counter()
    start_key, prior_key, run_key, tie_key = jr.split(key, 4)

    positions, data, first = begin(model, shapes, functions, jr.split(start_key, replicates))
    started, values, fine = positions, [], np.ones(replicates, bool)
    for i in range(iterations):
        move_key, data_key = jr.split(jr.fold_in(run_key, i))
        keys = jr.split(move_key, replicates)
        positions, good = move(model, engine, steps, positions, data, keys)
        keys = jr.split(data_key, replicates)
        data, found = redraw(model, shapes, functions, positions, keys)
        fine &= good
        if i >= iterations // 2:
            values.append(_host(found))

    fresh = jr.split(prior_key, (NUM_DRAWS, replicates))
    prior = [_host(begin(model, shapes, functions, keys)[2]) for keys in fresh]
    noise = np.random.default_rng(np.asarray(jr.key_data(tie_key)).ravel())
    # Compiled code returns dicts sorted by name; people want the model's order.
    names = dict.fromkeys((*latent_names(model), *first))
    results = {
        name: _compare(
            np.asarray(first[name]),
            np.stack([found[name] for found in values]),
            np.stack([found[name] for found in prior]),
            noise,
        )
        for name in names
        if _varies(np.asarray(first[name]))
    }
    return JointTest(
        engine=engine.name,
        ranks={name: result[0] for name, result in results.items()},
        drift={name: result[1] for name, result in results.items()},
        memory={name: result[2] for name, result in results.items()},
        num_draws=NUM_DRAWS,
        iterations=iterations,
        alpha=alpha,
        failures=int(np.sum(~fine)),
        moved=_share_moved(started, positions),
        seconds=time.perf_counter() - clock,
        dims=dict(model.dims),
        coords=dict(model.coords),
    )


def _host(tree):
    return jax.tree.map(np.asarray, tree)


def _varies(values: np.ndarray) -> bool:
    return bool(values.size) and bool(np.any(values != values[:1]))


def _share_moved(before, after) -> float:
    changed = [
        np.any(np.asarray(a) != np.asarray(b), axis=tuple(range(1, np.ndim(a))))
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]
    return float(np.mean(np.any(changed, axis=0)))


def _compare(first, later, prior, noise) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare a quantity at the start, later, and in the prior.

    Args:
        first: Values at the start, `(replicate, ...)`.
        later: Values after the later half of the iterations, `(iteration, replicate, ...)`.
        prior: Fresh draws, `(draw, replicate, ...)`.
        noise: Where ties go.

    Returns:
        Ranks at the end `(replicate, ...)`, z-scores of the drift `(2, ...)`, and the
        correlation of the end with the start `(...)`.
    """
    last = later[-1]
    below, equal = np.sum(prior < last, axis=0), np.sum(prior == last, axis=0)
    ranks = below + noise.integers(0, equal + 1)
    inner = first.shape[1:]
    width = math.prod(inner)
    pool = np.sort(prior.reshape(-1, width), axis=0)
    at_first = _distribution(pool, first.reshape(-1, width))
    at_later = _distribution(pool, later.reshape(*later.shape[:2], width))
    size = len(first)
    drift = []
    for function in (lambda u: u, lambda u: (u - 0.5) ** 2):
        change = function(at_later).mean(axis=0) - function(at_first)
        error = change.std(axis=0, ddof=1) / np.sqrt(size)
        moves = error > 0
        drift.append(np.where(moves, change.mean(axis=0) / np.where(moves, error, 1.0), 0.0))
    end = at_later[-1]
    spread = end.std(axis=0) * at_first.std(axis=0)
    product = np.mean((end - end.mean(axis=0)) * (at_first - at_first.mean(axis=0)), axis=0)
    memory = product / np.where(spread > 0, spread, np.nan)
    return ranks, np.stack(drift).reshape(2, *inner), memory.reshape(inner)


def _distribution(pool: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the prior's ECDF, halfway up its jumps, at values; elements along axis -1."""
    out = np.empty(values.shape)
    for i in range(pool.shape[1]):
        low = np.searchsorted(pool[:, i], values[..., i], side="left")
        high = np.searchsorted(pool[:, i], values[..., i], side="right")
        out[..., i] = (low + high) / (2 * len(pool))
    return out
