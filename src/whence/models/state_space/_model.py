"""`StateSpaceModel`: a hidden state that moves, data that see it, and unknown parameters."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ...core._convert import flag, whole
from ...core._key import seeded
from ...core._types import PRNGKey
from ...language._latent import UNDRAWN, Latent
from ...language._model import Model, look_at_draw, sites
from ..linear_gaussian import _kalman as kalman, _square_root as square_root
from . import _hidden_markov as hidden_markov
from ._data import check_parts, split_missing
from ._forms import finite_chain, form_of, linear_system
from ._parts import emission_terms, emit, go_on, simulate
from ._path_law import PathLaw
from ._sequence import StateSpaceSequence

DISCRETE = (
    "Its states are discrete, and not of a finite set for which `initial` and `transition` "
    "return a `Categorical` law of one number: only engines with particles (`ParticleMH`, "
    "`SMC2`) run on it."
)


def _states(model: Any) -> dict[str, Latent]:
    """Return the latent that the path is, once the model knows how long it is."""
    if "states" not in model.hidden:
        return {}
    prior = lambda m: PathLaw(m, m.length, m.inputs)
    return {"states": Latent(prior, None, (), False, "prior")}


class StateSpaceModel(Model):
    """A hidden Markov process with unknown parameters, seen at times 0, 1, ..., T - 1.

    Subclass it: parameters are latents of a `whence.Model`, and the process is three methods
    that return numpyro distributions. `whence.condition(model, y)` takes data `(time, ...)`,
    or a dict of them if `emission` returns a dict; `condition(model, y, inputs)` gives each
    time its row of `inputs` (covariates, the time since the last observation) as a third
    argument of `transition` and `emission`. NaN in `y` is a number that was not observed.

    What an engine draws depends on the model, which is looked at:

    - Linear and Gaussian (`Normal`, or `MultivariateNormal`, with a mean affine in the state
      and a covariance that does not depend on it): states are integrated out exactly by
      Kalman's filter, and engines draw the parameters.
    - States that are one of finitely many (`Categorical`): integrated out by the forward
      recursion.
    - Else the path is a latent named `states`, `(time, ...)`, that gradient-based engines
      draw jointly with the parameters.

    `ParticleMH` and `SMC2` run on all of them. In posteriors, `posterior.predict()` draws
    data at the observed times given the data, and `posterior.predict(steps=5)` (with inputs:
    `posterior.predict(new_inputs)`, a row a step) those that come after.

    Attributes:
        exact: Whether to integrate states out where that can be done; `False` makes them
            latents.
        parallel: Whether exact filters are associative scans, for accelerators; by default on
            all platforms but CPUs.

    References:
        Kalman (1960), doi:10.1115/1.3662552.
        Rabiner (1989), doi:10.1109/5.18626.
        Särkkä and García-Fernández (2021), doi:10.1109/TAC.2020.2976316.
    """

    exact: bool = eqx.field(default=True, static=True, kw_only=True, converter=flag("exact"))
    parallel: bool | None = eqx.field(
        default=None, static=True, kw_only=True, converter=flag("parallel", optional=True)
    )
    form: str = eqx.field(default="", static=True, kw_only=True)  # known once conditioned
    length: int = eqx.field(default=0, static=True, kw_only=True)
    inputs: Any = eqx.field(default=None, kw_only=True)
    hidden: dict[str, Any] = eqx.field(
        default_factory=dict, kw_only=True, metadata={"latents": _states}
    )

    def __check_init__(self):
        # The law of the path needs all parameters, so that they must be visited before it,
        # though fields of a base class come first.
        fields = type(self).__dataclass_fields__
        fields["hidden"] = fields.pop("hidden")

    @abc.abstractmethod
    def initial(self) -> Any:
        """Return the law of the state at time 0."""

    @abc.abstractmethod
    def transition(self, x: Any, t: Any) -> Any:
        """Return the law of the state at time `t` given that at `t - 1`; `(x, t, inputs)` too.

        Args:
            x: The state before.
            t: The time, from 1.
        """

    @abc.abstractmethod
    def emission(self, x: Any, t: Any) -> Any:
        """Return the law of the data at time `t` given the state; `(x, t, inputs)` too.

        Args:
            x: The state.
            t: The time, from 0.
        """

    @property
    def states(self) -> Any:
        """The path of hidden states, `(time, ...)`, of a draw that has it."""
        if "states" not in self.hidden:
            raise ValueError(
                f"This {type(self).__name__} has no path of states: they are integrated out "
                "(`whence.smooth(target.at(posterior))` gives their law), or it was not "
                "conditioned on data yet."
            )
        return self.hidden["states"]

    # -- data ------------------------------------------------------------------------

    def prepare(self, y: Any, *inputs: Any) -> tuple[Any, tuple]:
        """Split numbers that are missing from `y`; refuse what cannot be a sequence."""
        return split_missing(type(self).__name__, y, inputs)

    def for_data(self, y: Any, inputs: Any = None, observed: Any = None) -> "StateSpaceModel":
        """Return the model with the path of states as long as the data are."""
        at_once = lambda v: jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], v)
        plain = dataclasses.replace(self, hidden={}, form="", inputs=None)

        def look(draw):
            check_parts(draw, at_once(y), at_once(inputs), observed)
            return form_of(draw, at_once(inputs))

        form = look_at_draw(plain, look)
        if form == "linear" and not self.exact:
            form = "continuous"
        hidden = {"states": UNDRAWN} if form == "continuous" else {}
        length = len(jax.tree.leaves(y)[0])
        return dataclasses.replace(
            plain, hidden=hidden, form=form, length=length, inputs=inputs
        )

    def review(self, y: Any, *inputs: Any) -> tuple[str, ...]:
        """Say so if only engines with particles run."""
        return (f"{type(self).__name__}: {DISCRETE}",) if self.form == "discrete" else ()

    def sequence(self, target: Any) -> StateSpaceSequence:
        """Return what engines with particles see."""
        plain = dataclasses.replace(self, hidden={})
        parameters = dataclasses.replace(target, model=plain, sites=sites(plain))
        y, (inputs, observed) = target.y, (*target.inputs, None, None)[:2]
        if observed is None:
            observed = jax.tree.map(lambda v: jnp.ones(jnp.shape(v), bool), y)
        return StateSpaceSequence(parameters, y, inputs, observed)

    # -- densities -------------------------------------------------------------------

    def log_likelihood(
        self, y: Any, inputs: Any = None, observed: Any = None, steps: Any = None
    ) -> Any:
        """Return the log density of the data, in nats.

        Args:
            y: `(time, ...)`, or a dict of such arrays.
            inputs: `(time, ...)`, or a pytree of such arrays.
            observed: Which numbers of `y` were observed, of its form; by default all.
            steps: For predictions only.

        Returns:
            One number if states are integrated out; else that of the data of each time given
            the state there, `(time,)`.
        """
        del steps
        if self.form == "linear":
            linear, y, seen = self._linear(y, inputs, observed)
            if self._in_parallel:
                return kalman.log_evidence_in_parallel(linear.dense(), y, seen)
            return square_root.log_evidence(linear, y, seen)
        if self.form == "finite":
            chain = finite_chain(self, y, inputs, observed)
            return hidden_markov.forward(chain, self._in_parallel)[1]
        if self.form == "discrete":
            return jnp.full((), jnp.nan)
        times = jnp.arange(len(jax.tree.leaves(y)[0]), dtype=jnp.int32)
        each = lambda *at: jnp.sum(emission_terms(self, *at))
        return jax.vmap(each)(self.states, times, y, inputs, observed)

    def explain(self, y: Any, *inputs: Any) -> str:
        """Say why there is no log likelihood."""
        return DISCRETE if self.form == "discrete" else ""

    def log_density_given_rest(self, y: Any, inputs: Any = None, observed: Any = None) -> Any:
        """Return the log density of each datum given all others, in nats, if it is known."""
        if self.form == "linear":
            linear, data, seen = self._linear(y, inputs, observed)
            filtered = square_root.filter_states(linear, data, seen)
            rest = square_root.density_given_rest(linear, filtered, data, seen)
            return rest.reshape(y.shape)
        if self.form == "finite" and not isinstance(y, Mapping):
            chain = finite_chain(self, y, inputs, observed)
            smoothed = hidden_markov.smooth(chain, hidden_markov.forward(chain)[0])
            return hidden_markov.density_given_rest(chain, smoothed)
        return None

    @property
    def _in_parallel(self) -> bool:
        return jax.default_backend() != "cpu" if self.parallel is None else self.parallel

    def _linear(self, y, inputs, observed) -> tuple[square_root.Factored, Array, Array]:
        linear = linear_system(self, len(y), inputs)
        flat = y.reshape(len(y), -1).astype(linear.mean.dtype)
        seen = jnp.ones(flat.shape, bool) if observed is None else observed.reshape(flat.shape)
        return linear, flat, seen

    # -- draws -----------------------------------------------------------------------

    def draw_path(self, y: Any, inputs: Any, observed: Any, *, key: PRNGKey) -> Any:
        """Return a path of states given this draw of parameters and the data.

        Raises:
            ValueError: If it takes particles to do so.
        """
        if self.form == "linear":
            linear, y, seen = self._linear(y, inputs, observed)
            filtered = square_root.filter_states(linear, y, seen)
            path = square_root.sample_path(linear, filtered, key=key)
            shape = tuple(self.initial().shape())
            return path.reshape(len(path), *shape)
        if self.form == "finite":
            chain = finite_chain(self, y, inputs, observed)
            return hidden_markov.sample_path(chain, hidden_markov.forward(chain)[0], key=key)
        if self.form == "discrete":
            raise ValueError(f"{type(self).__name__} has no path to go on from. {DISCRETE}")
        return self.states

    @seeded
    def predict(
        self,
        inputs: Any = None,
        observed: Any = None,
        steps: Any = None,
        *,
        key: PRNGKey,
    ) -> Any:
        """Draw data of this draw from time 0 on, not given any.

        Args:
            inputs: By time; with other data than the observed, a row for each.
            observed: Not used; for the form of the data.
            steps: How many, if there are no inputs; by default as many as were observed.
            key: A typed key.
        """
        del observed
        key_path, key_data = jr.split(key)
        length = self._horizon(inputs, steps, self.length)
        if length == self.length and "states" in self.hidden:
            path = self.hidden["states"]
        else:
            path = simulate(self, length, inputs, key=key_path)
        return emit(self, path, jnp.arange(length, dtype=jnp.int32), inputs, key=key_data)

    def predict_given(self, y: Any, inputs: tuple, new_inputs: tuple, *, key: PRNGKey) -> Any:
        """Draw data given the observed ones: at their times, or (new inputs) those to come."""
        covariates, observed = (*inputs, None, None)[:2]
        key_path, key_steps, key_data = jr.split(key, 3)
        path = self.draw_path(y, covariates, observed, key=key_path)
        times = jnp.arange(len(path), dtype=jnp.int32)
        if new_inputs is not inputs:
            covariates, _, steps = (*new_inputs, None, None, None)[:3]
            times = len(path) + jnp.arange(self._horizon(covariates, steps, 0), dtype=jnp.int32)
            path = go_on(self, path[-1], times, covariates, key=key_steps)
        return emit(self, path, times, covariates, key=key_data)

    def check_inputs(self, inputs: tuple, new_inputs: tuple) -> None:
        """Refuse a forecast without a length, or without the inputs it takes."""
        covariates, _, steps = (*new_inputs, None, None, None)[:3]
        whole("steps", least=1)(self._horizon(covariates, steps, 0))
        if (covariates is None) != (self.inputs is None):
            raise ValueError(
                "`predict` must be given a row of inputs for each step if the model has "
                f"inputs, and `steps` alone if not; got inputs {covariates!r}."
            )

    def _horizon(self, inputs: Any, steps: Any, default: int) -> Any:
        rows = [np.shape(leaf)[0] for leaf in jax.tree.leaves(inputs)]
        found = rows[0] if rows else (default if steps is None else steps)
        if rows and steps is not None and steps != rows[0]:
            raise ValueError(
                f"`steps` must be the number of rows of the inputs, {rows[0]}; got {steps}."
            )
        return found if isinstance(found, Tracer) else int(found)
