"""Minibatches of data rows, and the one place where their likelihood is scaled up.

With `N` rows of data and a batch `B` of `b` rows, the estimate

    log_prior(x) + (N / b) * sum over B of log_likelihood_i(x)

(with local latents, the prior of those of row `i` counted to row `i`)
is unbiased for the log density at a fixed `x`, and so is its gradient, whenever every
row is equally likely to be in `B`. Both ways of drawing `B` below have that property;
they differ in how the errors of successive batches are correlated. Independent batches
leave an error of first order in the step size of a stochastic-gradient sampler, while
within a reshuffled epoch the errors cancel and the order is two (Franzese et al. 2022).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int

from ._convert import one_of, whole
from ._stream import rows_at_hand, stream_of
from ._target import AbstractDataTarget, AbstractTarget, HasLocals
from ._types import Position, PRNGKey, Scalar

BATCHING = ("reshuffle", "iid", "symmetric")
Epoch = Int[Array, " used"]  # the order of the rows in the running epoch


class Minibatches(eqx.Module):
    """Which rows make up batch number 0, 1, 2, ...

    The running epoch (its permutation) is a value that the caller carries in its state,
    so that one is computed per epoch and a run that is resumed goes on with the same one.

    With `"reshuffle"` each epoch is a fresh permutation of the rows, cut into batches.
    When `b` does not divide `N`, the last `N mod b` entries of each permutation are left
    out rather than made into a short batch, which would need a weight of its own. This
    leaves the estimate unbiased: every contiguous piece of a uniform permutation is a
    uniform subset, so each batch alone contains each row with probability `b / N`; which
    rows are left out changes from epoch to epoch and depends on nothing else.

    Attributes:
        num_data: Rows of data, `N`.
        batch_size: Rows per batch, `b`; None for all rows, always.
        mode: `"reshuffle"`, without replacement within an epoch; `"symmetric"`, the same and
            then the batches of the epoch once more in reverse; or `"iid"`, with replacement.

    References:
        Franzese, Milios, Filippone and Michiardi (2022), "Revisiting the effects of
        stochasticity for Hamiltonian samplers", ICML.
    """

    num_data: int | None
    batch_size: int | None = eqx.field(converter=whole("batch_size", least=1, optional=True))
    mode: str = eqx.field(default="reshuffle", converter=one_of("mode", BATCHING))

    def __check_init__(self):
        if self.batch_size is None:
            return
        if self.num_data is None:
            raise ValueError("`batch_size` needs `num_data`; got None.")
        if self.batch_size > self.num_data:
            raise ValueError(
                f"`batch_size` must be at most the number of data rows, {self.num_data}; got "
                f"{self.batch_size}."
            )

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        if self.batch_size is None or self.num_data is None:
            return 1
        return self.num_data // self.batch_size

    def init(self) -> Epoch:
        """Return the epoch to start from; `next` replaces it at batch 0."""
        if self.batch_size is None or self.mode == "iid":
            return jnp.zeros(0, jnp.int32)
        return jnp.zeros(self.per_epoch * self.batch_size, jnp.int32)

    def next(
        self, epoch: Epoch, counter: Int[Array, ""], *, key: PRNGKey
    ) -> tuple[Int[Array, " batch"] | None, Epoch]:
        """Return the rows of batch `counter` (None for all rows), and the running epoch.

        Args:
            epoch: From `init`, or from this method at batch `counter - 1`.
            counter: Number of the batch, from 0. If it is the same for all replicas, the
                permutation stays a real branch under `vmap`.
            key: Belongs to this batch alone.
        """
        if self.batch_size is None or self.num_data is None:
            return None, epoch
        if self.mode == "iid":
            return jr.randint(key, (self.batch_size,), 0, self.num_data, jnp.int32), epoch
        sweep = self.per_epoch * (2 if self.mode == "symmetric" else 1)
        place = counter % sweep
        epoch = jax.lax.cond(place == 0, lambda _: self._shuffle(key), lambda old: old, epoch)
        if self.mode == "symmetric":
            place = jnp.minimum(place, sweep - 1 - place)
        start = place * self.batch_size
        return jax.lax.dynamic_slice_in_dim(epoch, start, self.batch_size), epoch

    def _shuffle(self, key: PRNGKey) -> Epoch:
        # `jax.random.permutation` sorts twice, in case two of its 32-bit words are equal: twice
        # the time, an eighth of an SGLD step on a small network. Of such a pair (1% of epochs
        # of 10,000 rows have one) the order is not random here, which matters only where one
        # ends a batch and the other begins the next.
        assert self.num_data is not None
        words = jr.bits(key, (self.num_data,))
        return jnp.argsort(words, stable=False).astype(jnp.int32)[: self.init().size]


def minibatches(
    target: AbstractTarget, batch_size: int | None, mode: str = "reshuffle"
) -> Minibatches:
    """Return the batches of a target's data.

    Args:
        target: The target; without data rows only `batch_size=None` is possible.
        batch_size: Rows per batch; None for all rows.
        mode: `"reshuffle"`, `"symmetric"` or `"iid"`.

    Raises:
        ValueError: If the target has no data rows, or fewer than `batch_size`.
    """
    num_data, stream = rows_at_hand(target), stream_of(target)
    if stream is not None:
        if batch_size is None or stream.batch not in (None, batch_size):
            made = f"what its source makes, {stream.batch}" if stream.batch else "given"
            raise ValueError(
                f"`batch_size` must be {made}, for data that come from a stream; got "
                f"{batch_size}."
            )
        # A function makes a new batch for each random number.
        mode = mode if stream.slab else "iid"
    if batch_size is not None and num_data is None:
        raise ValueError(
            "`batch_size` needs a target whose likelihood is a product over data rows; "
            f"got {batch_size} with {type(target).__name__}. "
            "Use `batch_size=None` to take the whole likelihood at every step."
        )
    return Minibatches(num_data, batch_size, mode)


def log_density_estimate(
    target: AbstractTarget, position: Position, rows: Int[Array, " batch"] | None
) -> Scalar:
    """Return the log density with the likelihood estimated from some of the rows, in nats.

    Args:
        target: The target; with `rows`, one with data.
        position: A point in unconstrained space.
        rows: Row numbers of the batch; None for the log density itself.
    """
    if rows is None:
        return target.log_density(position)
    assert isinstance(target, AbstractDataTarget)
    assert target.num_data is not None
    if isinstance(target, HasLocals) and target.local:
        prior, each = target.log_joint_rows(target.at_rows(position, rows), rows)
    else:
        prior, each = target.log_prior(position), target.log_likelihood(position, rows)
    return prior + (target.num_data / rows.size) * each.sum()
