"""What engines with particles see of a state-space model."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

from ...core._dtype import relaxed
from ...core._feynman_kac import ExactStates
from ...core._types import Scalar
from ...language._condition import ModelTarget
from .._sequence import AbstractModelSequence
from ..linear_gaussian import _square_root as square_root
from ..linear_gaussian._kalman import LOG_2PI, long_sum
from . import _hidden_markov as hidden_markov
from ._forms import finite_chain, gaussian
from ._parts import emission_terms, law, log_prob


class StateSpaceSequence(AbstractModelSequence):
    """A state-space model with its data, one time after the other.

    Attributes:
        parameters: The target without its path of states.
        y: Data by time: an array, or a dict of them.
        inputs: By time, or None.
        observed: Which numbers of `y` count, of the same form.
    """

    parameters: ModelTarget
    y: Any
    inputs: Any
    observed: Any

    @property
    def form(self) -> str:
        """`"linear"`, `"finite"`, `"continuous"` or `"discrete"`."""
        return self.parameters.model.form  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def num_times(self) -> int:
        return len(jax.tree.leaves(self.y)[0])

    # -- parameters ------------------------------------------------------------------

    def log_density(self, position):
        if not self.is_exact:
            raise NotImplementedError("States of this model cannot be integrated out.")
        return self.parameters.log_density(position)

    def join(self, position, path):
        if self.form != "continuous":
            return position
        one: Any = law(self.constrain(position), "initial").support
        support = dist.constraints.independent(one, path.ndim - one.event_dim)
        with relaxed():
            return {**position, "states": dist.biject_to(support).inv(path)}

    def without_path(self, position):
        return {name: value for name, value in position.items() if name != "states"}

    # -- one time --------------------------------------------------------------------

    def datum(self, time):
        return jax.tree.map(lambda v: v[time], (self.y, self.inputs, self.observed))

    def with_data(self, data):
        y, inputs, observed = data
        return StateSpaceSequence(self.parameters, y, inputs, observed)

    def as_datum(self, y, inputs=None):
        like = jax.eval_shape(self.datum, jax.ShapeDtypeStruct((), jnp.int32))
        have = jax.tree.leaves(like[1])
        given = jax.tree.leaves(inputs)
        if [np.shape(v) for v in given] != [v.shape for v in have]:
            raise ValueError(
                f"`inputs` of one time must have shapes {[v.shape for v in have]}; got "
                f"{[np.shape(v) for v in given]}."
            )

        def convert(y, known):
            value = np.asarray(y)
            if value.dtype.kind not in "biuf" or value.shape != known.shape[1:]:
                raise ValueError(
                    "The datum of one time must be real numbers of shape "
                    f"{known.shape[1:]}; got {y!r}."
                )
            seen = ~np.isnan(value.astype(float))
            # A number that is not observed may be any that `emission` accepts.
            filled = np.where(seen, value, np.asarray(known[0]))
            return jnp.asarray(filled, known.dtype), jnp.asarray(seen)

        inputs = jax.tree.map(lambda v, w: jnp.asarray(v, w.dtype), inputs, like[1])
        if not isinstance(self.y, dict):
            value, seen = convert(y, self.y)
            return value, inputs, seen
        pairs = {name: convert(y[name], known) for name, known in self.y.items()}
        split = lambda i: {name: pair[i] for name, pair in pairs.items()}
        return split(0), inputs, split(1)

    def initial(self, draw, *, key):
        with relaxed():
            return jnp.asarray(law(draw, "initial").sample(key))

    def transition(self, draw, state, time, datum, *, key):
        with relaxed():
            new = law(draw, "transition", state, time, datum[1]).sample(key)
            return jnp.asarray(new, state.dtype)

    def log_transition(self, draw, state, new, time, datum):
        return log_prob(law(draw, "transition", state, time, datum[1]), new)

    def log_potential(self, draw, state, time, datum):
        y, inputs, observed = datum
        return jnp.sum(emission_terms(draw, state, time, y, inputs, observed))

    # -- proposals that know the datum -----------------------------------------------

    def propose(self, draw, state, time, datum, *, key):
        """Draw from `proposal` of the model if it has one, else from `_tilted`."""
        y, inputs, _ = datum
        name = "initial_proposal" if state is None else "proposal"
        prior = self._ahead(draw, state, time, inputs)
        if hasattr(draw, name):
            arguments = (y, inputs) if state is None else (state, y, time, inputs)
            proposal = law(draw, name, *arguments)
        else:
            mean, root, log_det, _ = self._tilted(draw, prior, time, datum)
            z = jr.normal(key, mean.shape, mean.dtype)
            new = (mean + root @ z).reshape(tuple(prior.shape()))
            own = -0.5 * jnp.sum(z**2 + LOG_2PI) - log_det
            return new, log_prob(prior, new) - own
        with relaxed():
            new = jnp.asarray(proposal.sample(key))
        return new, log_prob(prior, new) - log_prob(proposal, new)

    def log_lookahead(self, draw, state, time, datum):
        """Return the log density of the datum given the state before, as `_tilted` has it."""
        prior = self._ahead(draw, state, time, datum[1])
        return self._tilted(draw, prior, time, datum)[3]

    def _ahead(self, draw, state, time, inputs):
        if state is None:
            return law(draw, "initial")
        return law(draw, "transition", state, time, inputs)

    def _tilted(self, draw, prior, time, datum) -> tuple[Array, Array, Scalar, Scalar]:
        """Return a normal law near `prior * exp(log_potential)`, and the log mass of that.

        The law is its mean, a root of its covariance, and the log determinant of the root.

        With a prior N(m, L L') and the datum's log density expanded to second order at m, with
        gradient g and curvature -A, the covariance is L (I + L'A L)^-1 L' and the mean
        m + covariance g. Directions along which the density is not concave keep the prior's
        spread. For a linear Gaussian emission it is exact.

        References:
            Doucet, Godsill and Andrieu (2000), doi:10.1023/A:1008935410038, section II-D.
        """
        found = gaussian(prior)
        if found is None:
            raise ValueError(
                "`proposal='guided'` needs a normal law of `transition` and `initial`, or "
                f"methods `proposal(self, x, y, t)` and `initial_proposal(self, y)`; got "
                f"{type(prior).__name__}."
            )
        mean, root = found
        shape = tuple(prior.shape())
        f = lambda z: self.log_potential(draw, (mean + root @ z).reshape(shape), time, datum)
        zero = jnp.zeros_like(mean)
        with relaxed():
            height, slope = jax.value_and_grad(f)(zero)
            bend = -jax.hessian(f)(zero)
        if len(mean) == 1:
            values, axes = jnp.ones((1,), mean.dtype) + bend[0], jnp.ones_like(bend)
        else:
            values, axes = jnp.linalg.eigh(jnp.eye(len(mean), dtype=mean.dtype) + bend)
        values = jnp.maximum(values, 1.0)
        along = axes.T @ slope
        mass = height + 0.5 * jnp.sum(along**2 / values) - 0.5 * jnp.sum(jnp.log(values))
        spread = root @ axes / jnp.sqrt(values)[None, :]
        log_det = jnp.sum(jnp.log(jnp.diagonal(root)) - 0.5 * jnp.log(values))
        return mean + spread @ (along / jnp.sqrt(values)), spread, log_det, mass

    # -- closed forms ----------------------------------------------------------------

    @property
    def is_exact(self) -> bool:
        """Whether states have a closed form."""
        return self.form in ("linear", "finite")

    def exact_states(self, draw, paths, *, smooth, key) -> ExactStates:
        """Return the states given the data, in closed form."""
        keys = jr.split(key, paths)
        if self.form == "finite":
            chain = finite_chain(draw, self.y, self.inputs, self.observed)
            alpha, evidence = hidden_markov.forward(chain)
            p = jnp.exp(hidden_markov.smooth(chain, alpha) if smooth else alpha)
            some = jax.vmap(lambda k: hidden_markov.sample_path(chain, alpha, key=k))(keys)
            return ExactStates(p, p * (1 - p), some if smooth else None, evidence)
        linear, y, seen = draw._linear(self.y, self.inputs, self.observed)
        filtered = square_root.filter_states(linear, y, seen)
        mean, root = filtered.mean, filtered.root
        some = None
        if smooth:
            mean, root = square_root.smooth_states(linear, filtered)
            some = jax.vmap(lambda k: square_root.sample_path(linear, filtered, key=k))(keys)
        shape = tuple(law(draw, "initial").shape())
        fold = lambda v: v.reshape(*v.shape[:-1], *shape)
        variance = jnp.sum(root**2, axis=-1)
        paths_ = None if some is None else fold(some)
        total = long_sum(filtered.log_evidence)
        return ExactStates(fold(mean), fold(variance), paths_, total)
