"""`filter()` and `smooth()`: hidden states at known parameters, exactly or with particles."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ...core._cache import compiled
from ...core._convert import one_of, whole
from ...core._feynman_kac import ExactSequence, SequenceAt
from ...core._key import seeded
from ...core._require import require_key
from ...core._types import PRNGKey
from ._filter import ParticleFilter, at_draws, log_evidence_error, run_filter
from ._smoothing import ancestral_path, backward_path, fixed_lag
from ._states import States, moments, require_alive, warn_if_alone
from ._two_filter import two_filter

_SMOOTHERS = ("backward", "ancestors", "two-filter")


class FixedLag(eqx.Module):
    """A smoother that looks only some steps ahead: as good as the filter so far from now.

    Attributes:
        lag: Steps.

    References:
        Kitagawa and Sato (2001), doi:10.1007/978-1-4757-3437-9_9.
    """

    lag: int = eqx.field(converter=whole("lag", least=1))


class _Request(NamedTuple):
    """What is wanted of every draw; part of the program."""

    method: ParticleFilter | None
    smoother: Any  # None: filter only
    paths: int


@seeded
def filter(
    target: Any, method: ParticleFilter | None = None, *, key: PRNGKey, throw: bool = True
) -> States:
    """Return the hidden states at each time given the data up to it.

    Args:
        target: A state-space target whose parameters are all known, or `target.at(posterior)`.
        method: How; by default exact where there is a closed form, else `ParticleFilter()`.
        key: A typed key.
        throw: Whether to raise if all particles have weight zero at some time.

    Raises:
        ValueError: If the target has unknown parameters, or is no sequence.
        InferenceError: If all weights are zero (or NaN) at a time, naming it.

    Warns:
        InferenceWarning: If one particle has most of the weight at a time.
    """
    return _run(target, method, None, 0, key, throw)


@seeded
def smooth(
    target: Any,
    method: ParticleFilter | None = None,
    *,
    smoother: str | FixedLag = "backward",
    paths: int = 100,
    key: PRNGKey,
    throw: bool = True,
) -> States:
    """Return the hidden states at each time given all data.

    Args:
        target: A state-space target whose parameters are all known, or `target.at(posterior)`.
        method: How; by default exact where there is a closed form, else `ParticleFilter()`.
        smoother: Of a particle filter: `"backward"` draws paths backwards, at a cost of paths
            times particles; `"ancestors"` takes the paths that the particles have come, which
            share their beginnings; `FixedLag(20)` weighs states by their descendants 20 steps
            later; `"two-filter"` weighs them by a filter backwards in time, at a cost of
            particles squared.
        paths: Paths to draw for each draw of the parameters.
        key: A typed key.
        throw: Whether to raise if all particles have weight zero at some time.

    Raises:
        ValueError: If the target has unknown parameters, or is no sequence.
        InferenceError: If all weights are zero (or NaN) at a time, naming it.

    References:
        Godsill, Doucet and West (2004), doi:10.1198/016214504000000151.
    """
    smoother = one_of("smoother", _SMOOTHERS, kind=FixedLag)(smoother)
    return _run(target, method, smoother, whole("paths", least=1)(paths), key, throw)


def _run(target, method, smoother, paths, key, throw) -> States:
    require_key(key)
    at = at_draws(target)
    if method is not None and not isinstance(method, ParticleFilter):
        raise ValueError(
            f"`method` must be a `whence.ParticleFilter`, or None; got {method!r}."
        )
    exact = isinstance(at.sequence, ExactSequence) and at.sequence.is_exact
    if method is None and not exact:
        method = ParticleFilter()
    if method is not None:
        method.validate(at.sequence)
    request = _Request(method, smoother, paths)
    found = compiled(_all_draws, at, request, key).call(at, request, key)
    found = jax.tree.map(np.asarray, found)
    if throw and found.log_evidence_increment is not None:
        require_alive(found.log_evidence_increment, at.sequence)
    if found.ess is not None:
        warn_if_alone(found.ess)
    return found


def _all_draws(at: SequenceAt, request: _Request, key: PRNGKey) -> States:
    def one(pair):
        return _one_draw(at.sequence, at.sequence.constrain(pair[0]), request, pair[1])

    found = jax.lax.map(one, (at.positions, jr.split(key, len(at.log_weights))))
    return eqx.tree_at(lambda s: s.draw_log_weights, found, at.log_weights)


def _one_draw(sequence, draw, request: _Request, key) -> States:
    key_filter, key_paths = jr.split(key)
    if request.method is None:
        smooth = request.smoother is not None
        got = sequence.exact_states(draw, request.paths, smooth=smooth, key=key_paths)
        points = log_weights = None
        if got.paths is not None:
            points = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), got.paths)
            log_weights = jnp.full(points.shape[:2], -jnp.log(request.paths))
        none = jnp.zeros(())
        return States(got.mean, got.variance, points, log_weights, none, got.log_evidence, none)
    cloud, history = run_filter(request.method, sequence, draw, key=key_filter)
    states, log_weights = history.state, history.log_weights
    if isinstance(request.smoother, FixedLag):
        states, log_weights = fixed_lag(history, request.smoother.lag)
    elif request.smoother == "two-filter":
        log_weights = two_filter(sequence, draw, history, key=key_paths)
    elif request.smoother is not None:

        def path(key):
            if request.smoother == "ancestors":
                return ancestral_path(history, key=key)
            return backward_path(sequence, draw, history, key=key)

        drawn = jax.vmap(path)(jr.split(key_paths, request.paths))
        states = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), drawn)
        shape = (len(history.ess), request.paths)
        log_weights = jnp.full(shape, -jnp.log(request.paths), log_weights.dtype)
    mean, variance = moments(states, log_weights)
    return States(
        mean,
        variance,
        states,
        log_weights,
        jnp.zeros(()),
        cloud.log_evidence.value,
        log_evidence_error(cloud),
        history.log_evidence,
        history.ess,
        history.largest_weight,
        history.founders,
        history.ancestors,
    )
