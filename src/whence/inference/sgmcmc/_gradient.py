"""Estimates of the log density and its gradient from a part of the data."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ...core._convert import one_of, whole
from ...core._data import BATCHING, Epoch, Minibatches, log_density_estimate, minibatches
from ...core._rows import check_rows
from ...core._target import AbstractDataTarget, AbstractTarget
from ...core._types import Position, PRNGKey, Scalar
from ..point import MAP

Vector = Float[Array, " dim"]
Count = Int[Array, ""]
Estimate = tuple[Scalar, Vector, Any]
SEARCH = MAP(starts=1, steps=500, objective="unconstrained")


class Space(eqx.Module):
    """A target on flat vectors.

    Attributes:
        target: The target density.
        form: Gives a vector the form of a position.
    """

    target: AbstractTarget
    form: Callable[[Vector], Position] = eqx.field(static=True)

    def log_density(self, flat: Vector, rows: Int[Array, " batch"] | None = None) -> Scalar:
        """Return the log density in nats, by some of the rows (None: all)."""
        return log_density_estimate(self.target, self.form(flat), rows)


class AbstractGradient(eqx.Module):
    """An estimator of the gradient, with what it carries from one evaluation to the next.

    Attributes:
        batch_size: Rows of data per evaluation; None for all.
        batching: How they are chosen.
        is_local: Whether what it estimates is the gradient at the position.
        shows_density: Whether it estimates the log density there, too, exactly by all rows.
        streams: Whether it needs no rows but those of a batch, so that data may be a stream.
    """

    batch_size: eqx.AbstractVar[int | None]
    batching: eqx.AbstractVar[str]
    is_local: eqx.AbstractVar[bool]
    shows_density: eqx.AbstractVar[bool]
    streams: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def validate(self, target: AbstractTarget) -> None:
        """Raise `ValueError` if the target does not have what this needs."""

    @abc.abstractmethod
    def work(self, target: AbstractTarget) -> int | None:
        """Return rows of data per evaluation, in gradients of one row; None for all."""

    @abc.abstractmethod
    def init(self, space: Space, flat: Vector, *, key: PRNGKey) -> PyTree:
        """Return the state before evaluation 0, where the chain starts."""

    @abc.abstractmethod
    def estimate(
        self, space: Space, flat: Vector, state: Any, counter: Count, *, key: PRNGKey
    ) -> Estimate:
        """Return log density and gradient (both estimates) and the new state.

        Args:
            space: The target density, on flat vectors.
            flat: A point in unconstrained space.
            state: From `init` or the last evaluation.
            counter: Number of this evaluation, from 0.
            key: Belongs to this evaluation alone.
        """


def batch_field() -> Any:
    """Return the field `batch_size`."""
    convert = whole("batch_size", least=1, optional=True)
    return eqx.field(default=None, converter=convert)


def batching_field(default: str = "reshuffle") -> Any:
    """Return the field `batching`."""
    return eqx.field(default=default, converter=one_of("batching", BATCHING))


def batches_of(gradient: AbstractGradient, target: AbstractTarget) -> Minibatches:
    """Return the batches of the target, or raise `ValueError` if there are none."""
    return minibatches(target, gradient.batch_size, gradient.batching)


def check_batches(gradient: AbstractGradient, target: AbstractTarget) -> None:
    """Raise `ValueError` unless the target has such batches, and they mean what they should."""
    batches_of(gradient, target)
    check_rows(target, gradient.batch_size)


def rows_of(target: AbstractTarget) -> int:
    """Return the number of data rows; 0 without."""
    rows = target.num_data if isinstance(target, AbstractDataTarget) else None
    return rows or 0


class MinibatchGradient(AbstractGradient):
    """The plain estimate: prior plus the likelihood of a batch, scaled up.

    Attributes:
        batch_size: Rows per batch; None for the exact gradient.
        batching: `"reshuffle"`, `"symmetric"` or `"iid"`, see `Minibatches`.
    """

    batch_size: int | None = batch_field()
    batching: str = batching_field()
    is_local: bool = eqx.field(default=True, init=False)
    shows_density: bool = eqx.field(default=True, init=False)
    streams: bool = eqx.field(default=True, init=False)

    def validate(self, target: AbstractTarget) -> None:
        check_batches(self, target)

    def work(self, target: AbstractTarget) -> int | None:
        return self.batch_size

    def init(self, space: Space, flat: Vector, *, key: PRNGKey) -> Epoch:
        return batches_of(self, space.target).init()

    def estimate(
        self, space: Space, flat: Vector, state: Epoch, counter: Count, *, key: PRNGKey
    ) -> Estimate:
        rows, epoch = batches_of(self, space.target).next(state, counter, key=key)
        return *jax.value_and_grad(space.log_density)(flat, rows), epoch


def batches_per_epoch(gradient: AbstractGradient, target: AbstractTarget) -> int:
    """Return over how many evaluations the noise of batches cancels; 0 if it does not."""
    plain = isinstance(gradient, MinibatchGradient | ControlVariate)
    if not plain or gradient.batch_size is None or gradient.batching == "iid":
        return 0
    return batches_of(gradient, target).per_epoch


def find_mode(target: AbstractTarget, *, key: PRNGKey) -> Vector:
    """Return a maximum of the log density on unconstrained space, or how far a search came.

    Args:
        target: The target density.
        key: For where to start.
    """
    unfinished = lambda state: ~SEARCH.done(state) & (state.count < SEARCH.steps)
    step = lambda state: SEARCH.step(target, state, state.count, key=key)[0]
    return jax.lax.while_loop(unfinished, step, SEARCH.init(target, key=key)).point


class Centre(eqx.Module):
    """What gradients are compared with.

    Attributes:
        epoch: State of the batches.
        point: A position.
        gradient: Of the log density on all data, there.
    """

    epoch: Epoch
    point: Vector
    gradient: Vector


class ControlVariate(AbstractGradient):
    """The exact gradient at a centre, plus what a batch says of the difference to it.

    `grad U(c) + (N / b) sum over the batch of [grad u_i(x) - grad u_i(c)]`: unbiased, and its
    noise vanishes at the centre and for equal curvatures of all rows. The centre is a mode,
    found by L-BFGS on all data before the first update, and chains start there; with `refresh`
    it is instead the position itself, taken anew after that many evaluations (SVRG), and needs
    no mode. Far from the centre the noise is larger than that of the plain estimate.

    Attributes:
        batch_size: Rows per batch.
        batching: `"reshuffle"`, `"symmetric"` or `"iid"`.
        refresh: Evaluations after which the centre is the present position; None for a mode.

    References:
        Baker, Fearnhead, Fox and Nemeth (2019), "Control variates for stochastic gradient
        MCMC", doi:10.1007/s11222-018-9826-2.
        Dubey, Reddi, Williamson, Poczos, Smola and Xing (2016), "Variance reduction in
        stochastic gradient Langevin dynamics", NIPS.
    """

    batch_size: int | None = batch_field()
    batching: str = batching_field()
    refresh: int | None = eqx.field(
        default=None, converter=whole("refresh", least=1, optional=True)
    )
    is_local: bool = eqx.field(default=True, init=False)
    shows_density: bool = eqx.field(default=True, init=False)
    streams: bool = eqx.field(default=False, init=False)

    def validate(self, target: AbstractTarget) -> None:
        check_batches(self, target)

    def work(self, target: AbstractTarget) -> int | None:
        if self.batch_size is None:
            return None
        return 2 * self.batch_size + (rows_of(target) // self.refresh if self.refresh else 0)

    def init(self, space: Space, flat: Vector, *, key: PRNGKey) -> Centre:
        epoch = batches_of(self, space.target).init()
        if self.refresh is not None:
            return Centre(epoch, flat, jnp.zeros_like(flat))
        point = find_mode(space.target, key=key).astype(flat.dtype)
        return Centre(epoch, point, jax.grad(space.log_density)(point))

    def estimate(
        self, space: Space, flat: Vector, state: Centre, counter: Count, *, key: PRNGKey
    ) -> Estimate:
        rows, epoch = batches_of(self, space.target).next(state.epoch, counter, key=key)
        point, known = state.point, state.gradient
        if self.refresh is not None:
            point, known = jax.lax.cond(
                counter % self.refresh == 0,
                lambda: (flat, jax.grad(space.log_density)(flat)),
                lambda: (point, known),
            )
        both = jax.vmap(jax.value_and_grad(space.log_density), in_axes=(0, None))
        values, gradients = both(jnp.stack([flat, point]), rows)
        return values[0], known + gradients[0] - gradients[1], Centre(epoch, point, known)
