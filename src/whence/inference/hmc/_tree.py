"""The trajectory of NUTS, built leaf by leaf without recursion.

A trajectory doubles: a subtree of `2^depth` new leaves is appended on a random side of the
`2^depth` points there are. Leaves of a subtree arrive in the order of integration, and
completed subtrees merge like the bits of a binary counter: leaf `n` completes one subtree
of size `2^k` for every trailing one of `n`. Each of these merges joins a left sibling, kept
on a stack under its level, to the subtree that ends at the present leaf, and checks three
U-turns. The trajectory before the doubling lies on the same stack, as the left sibling of
the whole subtree, so that the last merge is one more of the same kind. What a leaf changes
(`extend`) and what a subtree changes (`close`) are apart: the program copies no vector that
a leaf leaves alone.

All momenta are whitened, so that a U-turn is a negative dot product.

References:
    Hoffman and Gelman (2014), http://jmlr.org/papers/v15/hoffman14a.html.
    Betancourt (2017), arXiv:1701.02434, appendix A.3 and A.4.2: multinomial weights,
    biased progressive sampling, generalised U-turn.
    Phan, Pradhan and Jankowiak (2019), arXiv:1912.11554, appendix A: iterative trees.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from ...core._types import PRNGKey, Scalar
from ._common import MAX_ENERGY_ERROR, choose
from ._integrator import End, PhasePoint
from ._metric import Vector
from ._trajectory import AbstractTrajectory, Proposal


class Siblings(NamedTuple):
    """Left siblings by level: momenta at their start and end, in order of integration, sums."""

    first: Float[Array, "levels dim"]
    last: Float[Array, "levels dim"]
    total: Float[Array, "levels dim"]

    def at(self, level: Int[Array, ""]) -> tuple[Vector, Vector, Vector]:
        """Return the sibling of a level."""
        return tuple(lax.dynamic_index_in_dim(x, level, 0, keepdims=False) for x in self)

    def put(self, level: Int[Array, ""], *sibling: Vector) -> "Siblings":
        """Return the siblings with that of a level replaced."""
        pairs = zip(self, sibling, strict=True)
        return Siblings(*(lax.dynamic_update_index_in_dim(x, v, level, 0) for x, v in pairs))


class Tree(AbstractTrajectory):
    """A trajectory that grows by one leaf at a time.

    Attributes:
        near: The end that is being extended.
        far: The other end.
        candidate: Multinomial draw from the present subtree.
        proposal: Draw from the completed trajectory.
        log_weight: Log of the summed weights of the completed trajectory; its first point
            has weight 1.
        subtree_log_weight: The same for the present subtree.
        siblings: Left siblings, and at level `depth` the trajectory so far.
        start_energy: Energy of the first point, in nats.
        step: Step size, negative if the near end is the past.
        depth: Completed doublings.
        max_depth: Doublings allowed.
        leaf: Leaves of the present subtree so far.
        leaves: Leaves so far: gradient evaluations.
        acceptance_sum: Sum over leaves of the probability of accepting each by Metropolis.
        max_energy_error: The largest energy error met, in nats.
        is_turning: Whether a U-turn ended the trajectory.
        is_divergent: Whether an energy error above `MAX_ENERGY_ERROR` did.
        is_complete: Whether the present subtree has all its leaves and is to be joined.
        seed: Two random words.
    """

    near: End
    far: End
    candidate: Proposal
    proposal: Proposal
    log_weight: Scalar
    subtree_log_weight: Scalar
    siblings: Siblings
    start_energy: Scalar
    step: Scalar
    depth: Int[Array, ""]
    max_depth: Int[Array, ""]
    leaf: Int[Array, ""]
    leaves: Int[Array, ""]
    acceptance_sum: Scalar
    max_energy_error: Scalar
    is_turning: Bool[Array, ""]
    is_divergent: Bool[Array, ""]
    is_complete: Bool[Array, ""]
    seed: UInt[Array, "2"]

    def is_growing(self) -> Bool[Array, ""]:
        return (self.depth < self.max_depth) & ~self.is_turning & ~self.is_divergent

    def is_extending(self) -> Bool[Array, ""]:
        return ~self.is_complete & ~self.is_turning & ~self.is_divergent

    def acceptance_rate(self) -> Scalar:
        count = jnp.maximum(self.leaves, 1)
        return self.acceptance_sum / count.astype(self.acceptance_sum.dtype)

    def num_steps(self) -> Int[Array, ""]:
        return self.leaves

    def stats(self) -> dict[str, Array]:
        is_saturated = (self.depth == self.max_depth) & ~self.is_turning & ~self.is_divergent
        return {
            "acceptance_rate": self.acceptance_rate(),
            "tree_depth": self.depth,
            "n_steps": self.leaves,
            "diverging": self.is_divergent,
            "energy": self.proposal.energy,
            "energy_error": self.proposal.energy - self.start_energy,
            "max_energy_error": self.max_energy_error,
            "reached_max_treedepth": is_saturated,
        }

    def end(self) -> End:
        return self.near

    def extend(self, point: PhasePoint) -> "Tree":
        """Append the point that lies one `step` from the near end."""
        energy = point.energy()
        # A comparison with NaN is false: without this a NaN would pass for no divergence.
        error = jnp.where(jnp.isnan(energy), jnp.inf, energy - self.start_energy)
        is_divergent = error > MAX_ENERGY_ERROR
        log_weight = jnp.logaddexp(self.subtree_log_weight, -error)
        new = Proposal(point.position, point.gradient, point.log_density, energy)
        is_new = jnp.log(self._uniform(self.leaves, 0)) < -error - log_weight
        is_last = self.leaf + 1 == 1 << self.depth
        level, total, is_turning = self._merge(point.momentum, is_last)
        first = self._first(level, point.momentum)
        is_whole = ~is_turning | (level == self.depth + 1)
        return replace(
            self,
            near=point.end(),
            candidate=choose(is_new, new, self.candidate),
            subtree_log_weight=log_weight,
            siblings=self.siblings.put(level, first, point.momentum, total),
            leaf=self.leaf + 1,
            leaves=self.leaves + 1,
            acceptance_sum=self.acceptance_sum + jnp.exp(-jnp.maximum(error, 0)),
            max_energy_error=jnp.maximum(self.max_energy_error, error),
            is_turning=is_turning,
            is_divergent=is_divergent,
            is_complete=is_last & ~is_divergent & is_whole,
        )

    def close(self) -> "Tree":
        """Join the present subtree to the trajectory, if it is complete, and choose a side."""
        leaf, top = self.leaves - 1, self.depth + 1
        # Biased progressive sampling prefers the new half: Betancourt (2017), A.3.2.
        advantage = self.subtree_log_weight - self.log_weight
        is_taken = self.is_complete & (jnp.log(self._uniform(leaf, 1)) < advantage)
        is_flipped = self.is_complete & (self._bits(leaf)[2] >> 31 == 1)
        first, last, whole = self.siblings.at(top)
        ends = choose(is_flipped, (last, first), (first, last))
        total = jnp.logaddexp(self.log_weight, self.subtree_log_weight)
        return replace(
            self,
            near=choose(is_flipped, self.far, self.near),
            far=choose(is_flipped, self.near, self.far),
            proposal=choose(is_taken, self.candidate, self.proposal),
            log_weight=jnp.where(self.is_complete, total, self.log_weight),
            subtree_log_weight=jnp.full_like(total, -jnp.inf),
            siblings=self.siblings.put(top, *ends, whole),
            step=jnp.where(is_flipped, -self.step, self.step),
            depth=self.depth + self.is_complete.astype(jnp.int32),
            leaf=jnp.zeros_like(self.leaf),
            is_complete=jnp.zeros_like(self.is_complete),
        )

    def _bits(self, leaf: Int[Array, ""]) -> tuple[UInt[Array, ""], ...]:
        """Return the three random words that belong to a leaf."""
        return _hash(self.seed[0], self.seed[1], leaf.astype(jnp.uint32))

    def _uniform(self, leaf: Int[Array, ""], which: int) -> Float[Array, ""]:
        return _uniform(self._bits(leaf)[which], self.log_weight.dtype)

    def _merge(
        self, momentum: Vector, is_last: Bool[Array, ""]
    ) -> tuple[Int[Array, ""], Vector, Bool[Array, ""]]:
        """Merge the new leaf with every left sibling that it completes.

        Returns:
            Number of merges made, the sum of momenta of the largest subtree that ends at the
            leaf, and whether that makes a U-turn.
        """
        trailing_ones = lax.population_count(self.leaf & ~(self.leaf + 1))
        num_merges = trailing_ones + is_last.astype(jnp.int32)

        def body(carry):
            level, total, _ = carry
            left = self.siblings.at(level)
            right = self._first(level, momentum), momentum, total
            return level + 1, left[2] + total, _makes_u_turn(left, right)

        start = (jnp.zeros((), jnp.int32), momentum, jnp.asarray(False))
        return lax.while_loop(lambda c: (c[0] < num_merges) & ~c[2], body, start)

    def _first(self, merges: Int[Array, ""], momentum: Vector) -> Vector:
        """Return the first momentum of the subtree that a leaf ends after some merges."""
        first, _, _ = self.siblings.at(jnp.maximum(merges - 1, 0))
        return jnp.where(merges > 0, first, momentum)


def start_tree(point: PhasePoint, step_size: Scalar, max_depth, limit, *, key: PRNGKey) -> Tree:
    """Return the trajectory that consists of its first point.

    Args:
        point: Where the trajectory starts, with a fresh momentum.
        step_size: Positive.
        max_depth: Doublings to make room for; a Python integer.
        limit: Doublings allowed, an int32 scalar of at most `max_depth`.
        key: For all random decisions while it grows.
    """
    # A key made by `split` is itself random; two words are enough, and cost nothing.
    seed = jax.random.key_data(key).ravel()[:2]
    dtype = point.position.dtype
    energy = point.energy()
    end = point.end()
    levels = jnp.zeros((max_depth + 1, point.position.shape[0]), dtype)
    siblings = Siblings(*[levels.at[0].set(point.momentum)] * 3)
    proposal = Proposal(point.position, point.gradient, point.log_density, energy)
    zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    return Tree(
        near=end,
        far=end,
        candidate=proposal,
        proposal=proposal,
        log_weight=zero,
        subtree_log_weight=zero - jnp.inf,
        siblings=siblings,
        start_energy=energy,
        step=jnp.where(seed[0] >> 31 == 1, step_size, -step_size),
        depth=none,
        max_depth=limit,
        leaf=none,
        leaves=none,
        acceptance_sum=zero,
        max_energy_error=zero - jnp.inf,
        is_turning=jnp.asarray(False),
        is_divergent=jnp.asarray(False),
        is_complete=jnp.asarray(False),
        seed=seed,
    )


def _makes_u_turn(left: Sequence[Vector], right: Sequence[Vector]) -> Bool[Array, ""]:
    """Whether the union of two adjacent subtrees turns back on itself.

    With the sums `rho` of momenta: over the union, over the left half and the first point of
    the right one, and over the right half and the last point of the left one, the sum must
    point the same way as the momenta at both ends. The last two see a turn that falls
    between the halves; Stan has checked them since version 2.21.
    """
    union = left[2] + right[2]
    across_left, across_right = left[2] + right[0], right[2] + left[1]
    dots = [
        jnp.sum(union * left[0]),
        jnp.sum(union * right[1]),
        jnp.sum(across_left * left[0]),
        jnp.sum(across_left * right[0]),
        jnp.sum(across_right * left[1]),
        jnp.sum(across_right * right[1]),
    ]
    return jnp.any(jnp.stack(dots) <= 0)


def _uniform(bits: UInt[Array, "..."], dtype) -> Float[Array, "..."]:
    """Map random words to the open interval (0, 1)."""
    high = (bits >> 8).astype(jnp.int32).astype(dtype)  # 24 bits: exact in float32
    return (high + 0.5) * jnp.asarray(2.0**-24, dtype)


def _hash(x: UInt[Array, ""], y: UInt[Array, ""], z: UInt[Array, ""]):
    """Return three random words by `pcg3d`.

    Two random words and a counter make a stream that costs a few nanoseconds a leaf, where
    a call of `jax.random` would cost more than a small model's gradient.

    References:
        Jarzynski and Olano (2020), Hash functions for GPU rendering, listing 16.
    """
    a, b = jnp.uint32(1664525), jnp.uint32(1013904223)
    x, y, z = x * a + b, y * a + b, z * a + b
    x = x + y * z
    y = y + z * x
    z = z + x * y
    x, y, z = x ^ (x >> 16), y ^ (y >> 16), z ^ (z >> 16)
    x = x + y * z
    y = y + z * x
    z = z + x * y
    return x, y, z
