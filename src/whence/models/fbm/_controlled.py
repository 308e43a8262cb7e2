"""`ControlledPath`: a variational family of paths, the optimal control and a network on top."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ...core._convert import flag, part, whole
from ...core._dtype import relaxed
from ...core._family import AbstractFamily, Layout, Noise, Vector
from ...core._flat import flat_view
from ...core._types import PRNGKey, Scalar
from ...language._local import with_rows
from ...language._model import look_at_draw, sites
from ._guide import Guide, coloured, guide_of, stacked, whitened
from ._linear import bends, initial
from ._path import PATH, advance, scan, start_size, started
from ._sde import FractionalSDE

BOUND = 10.0  # of what the network adds to a standard normal number
WIDTH = 32


class ControlledPath(AbstractFamily):
    """The noise of a path as a law that sees the state and the data: `BBVI(family=...)`.

    Each number `e` of the noise of a step is `mean + scale z`, where the mean is that of the
    optimal control of the equation made affine, which sees state, bank and all data to come,
    plus a network of time, state and bank. At the start it is the law of the noise given the
    data, if the equation is affine and the data normal: the ELBO is the log evidence, and
    every draw has the same weight. State and bank at the start are drawn jointly, in
    coordinates whitened by the closed form of their prior covariance.

    The density of a draw is that of its noise, so that log weights hold what Girsanov's theorem
    adds to a drift: `IWAE`, Pareto k and resampling rest on it. With parameters that are points
    and another objective than `ELBO`, use `TotalDerivative()`.

    Attributes:
        parameters: Family of all other latents, on which the path depends: `MeanField()`,
            `Point()` and so on. It must be given if the model has any.
        linear: Whether to begin with the optimal control. It takes derivatives of `observe`
            to second order; without it noise begins at its prior.
        discrete: Whether the noise of a step has the covariance that is optimal for steps of
            their length, or (False) that of its prior, as in continuous time.
        rounds: How often the path along which the equation is made affine is made again.
        width: Of the two hidden layers of the network; 0 for none. By default 32, and none if
            the control is exact without.
        encoder: Makes a module, given a key, that is called with the data of one series and
            returns features, `(feature,)` or `(time, feature)`; of the latter the network
            sees those of the next time. It serves series that no fit has seen, and with it
            an update may see a batch of the series (`batch_size`).

    References:
        Daems, Opper, Crevecoeur and Birdal (2024), Variational inference for SDEs driven by
        fractional noise, arXiv:2310.12975.
        Daems, Opper, Crevecoeur and Birdal (2025), Efficient training of neural SDEs using
        stochastic optimal control, arXiv:2505.17150.
    """

    parameters: AbstractFamily | None = eqx.field(
        default=None,
        converter=lambda f: f if f is None else part("parameters", AbstractFamily)(f),
    )
    linear: bool = eqx.field(default=True, converter=flag("linear"))
    discrete: bool = eqx.field(default=True, converter=flag("discrete"))
    rounds: int = eqx.field(default=8, converter=whole("rounds", least=0))
    width: int | None = eqx.field(
        default=None, converter=whole("width", least=0, optional=True)
    )
    encoder: Callable[[PRNGKey], Callable[..., Any]] | None = None
    target: Any = None  # set by `at`
    scale: float = eqx.field(default=1.0, static=True)  # of paths, set by `of_rows`

    def __check_init__(self):
        if self.encoder is not None and isinstance(self.encoder, eqx.Module):
            raise ValueError(
                "`encoder` must be a function of a key that makes the module, such as "
                f"`lambda key: eqx.nn.MLP(64, 4, 32, 1, key=key)`; got {self.encoder!r}."
            )

    # -- the form of a position ---------------------------------------------------------

    def at(self, target: Any) -> ControlledPath:
        """Return the family for a target.

        Args:
            target: From `condition`.

        Raises:
            ValueError: If its path is no latent, or it has parameters without a family.
        """
        model = getattr(target, "model", None)
        if not isinstance(model, FractionalSDE) or not model._has_path:
            raise ValueError(
                "`ControlledPath` is a family of the path of a `FractionalSDE`; of "
                f"{type(model).__name__} the path is integrated out, or there is none. "
                "Any other family fits its parameters; `exact=False` keeps the path."
            )
        free = [latent.name for latent in target.latents if latent.name not in PATH]
        if free and self.parameters is None:
            raise ValueError(
                f"`parameters` must be a family of the other latents ({', '.join(free)}), as "
                "`whence.MeanField()` or `whence.Point()`; got None."
            )
        width, rounds = self.width, self.rounds
        if width is None or rounds:
            at_start = lambda draw: bends(draw, initial(draw, jnp.result_type(float))[0])
            affine = not look_at_draw(model, at_start)
            rounds = 0 if affine else rounds
            exact = affine and self.linear and self.encoder is None
            width = (0 if exact else WIDTH) if width is None else width
        return dataclasses.replace(self, target=target, width=width, rounds=rounds)

    def of_rows(self, target: Any, rows: Array) -> tuple[ControlledPath, Any]:
        """Return the family for some of several series, and the target of these alone."""
        if self.encoder is None or not target.model.plan.several:
            raise ValueError(
                "`batch_size` must be None for a `ControlledPath` without an `encoder`, or of "
                "one series: its parameters are those of all data together."
            )
        y, inputs = target.take(rows)
        model, count = with_rows(target.model, len(rows)), len(rows)
        part = dataclasses.replace(
            target, model=model, y=y, inputs=inputs, sites=sites(model), rows=count
        )
        return dataclasses.replace(self, scale=target.rows / count), part

    def bind(self, layout: Layout) -> ControlledPath:
        own = tuple(entry for entry in layout if entry[0] not in PATH)
        family = self.parameters and self.parameters.bind(own)
        return dataclasses.replace(self, parameters=family)

    def shared(self, layout: Layout) -> tuple[bool, ...]:
        own = tuple(entry for entry in layout if entry[0] not in PATH)
        found = iter(self.parameters.shared(own) if self.parameters else ())
        return tuple(name not in PATH and next(found) for name, *_ in layout)

    def _split(self, vector: Vector) -> tuple[dict[str, Array], Array]:
        """Return parameters by name, and the noise of each series, `(series, number)`."""
        position = flat_view(self.target)[1](vector)
        path = [position.pop(name).reshape(self._series, -1) for name in PATH]
        return position, jnp.concatenate(path, axis=1)

    def _join(self, theta: Array, path: Array) -> Vector:
        """Return a flat position of flat parameters and the noise of each series."""
        position, unravel = flat_view(self.target)
        position = unravel(position)
        own = {name: v for name, v in position.items() if name not in PATH}
        noise = dict(zip(PATH, jnp.split(path, [self._sizes[1]], axis=1)))
        noise = {name: v.reshape(position[name].shape) for name, v in noise.items()}
        return ravel_pytree(ravel_pytree(own)[1](theta) | noise)[0]

    @property
    def _plan(self) -> Any:
        return self.target.model.plan

    @property
    def _series(self) -> int:
        return len(self.target.y) if self._plan.several else 1

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """Components, numbers of the start and of a step, and steps."""
        d, k = self._plan.components, self._plan.nodes
        return d, start_size(self.target.model, d, k), d * k, len(self._plan.grid) - 1

    def _data(self) -> tuple[Array, Any]:
        """Return data by series, and which were observed."""
        y, seen = self.target.y, (*self.target.inputs, None)[1]
        if self._plan.several:
            return y, seen
        return y[None], None if seen is None else seen[None]

    # -- parameters ---------------------------------------------------------------------

    def noise(self, like: Vector, num: int, *, key: PRNGKey) -> Noise:
        key_own, key_path = jr.split(key)
        theta, path = self._split(like)
        own, family = ravel_pytree(theta)[0], self.parameters
        path = jr.normal(key_path, (num, *path.shape), like.dtype)
        return {"parameters": family and family.noise(own, num, key=key_own), "path": path}

    def init(self, location: Vector) -> dict[str, PyTree]:
        own = ravel_pytree(self._split(location)[0])[0]
        d, first, number, steps = self._sizes
        key, dtype = jr.key(0), location.dtype
        params: dict[str, Any] = {
            "parameters": self.parameters and self.parameters.init(own),
            "start": jnp.zeros((self._series, 2, first), dtype),
            "log_scale": jnp.zeros((self._series, steps, number), dtype),
        }
        layers, features = {}, 0
        if self.encoder is not None:
            made, _ = eqx.partition(self.encoder(key), eqx.is_array)
            layers["encoder"] = jax.tree.leaves(made)
            features = self._features(layers["encoder"]).shape[-1]
            # What is of one series is a function of its features.
            params = {"parameters": params["parameters"]}
            layers["start"] = _network(key, (features, 2 * first), dtype)
            layers["log_scale"] = _network(key, (2 + features, WIDTH, number), dtype)
        if self.width:
            inputs = 2 + d + number + features
            sizes = (inputs, self.width, self.width, number)
            layers["control"] = _network(key, sizes, dtype)
        return params | {"layers": layers}

    def no_step(self, params: PyTree) -> PyTree:
        own = self.parameters and self.parameters.no_step(params["parameters"])
        return {"parameters": own} | jax.tree.map(jnp.zeros_like, _rest(params))

    def move(self, params: PyTree, step: PyTree) -> PyTree:
        own = self.parameters and self.parameters.move(params["parameters"], step["parameters"])
        return {"parameters": own} | jax.tree.map(jnp.add, _rest(params), _rest(step))

    def describe(self, params: PyTree) -> dict[str, Any]:
        own = self.parameters.describe(params["parameters"]) if self.parameters else {}
        return {f"parameters: {name}": v for name, v in own.items()} | _rest(params)

    # -- law ------------------------------------------------------------------------------

    def transform(self, params: PyTree, noise: Noise) -> Vector:
        theta = self._theta(params, noise)
        return self._join(theta, self._paths(params, theta, noise["path"], False)[0])

    def log_prob(self, params: PyTree, noise: Noise) -> Scalar:
        theta, z = self._theta(params, noise), noise["path"]
        path = self.scale * (_normal(z) + self._paths(params, theta, z, False)[1])
        if self.parameters is None:
            return path
        return path + self.parameters.log_prob(params["parameters"], noise["parameters"])

    def score(self, params: PyTree, noise: Noise) -> Vector:
        def log_density(vector):
            theta, path = self._split(vector)
            z, scales = self._paths(params, ravel_pytree(theta)[0], path, True)
            return self.scale * (scales + _normal(z))

        path = jax.grad(log_density)(self.transform(params, noise))
        if self.parameters is None:
            return path
        own = self.parameters.score(params["parameters"], noise["parameters"])
        return path + self._join(own, jnp.zeros_like(noise["path"]))

    def entropy(self, params: PyTree) -> Scalar:
        raise ValueError(
            "`ControlledPath` has no entropy in closed form: use `PathDerivative()`."
        )

    def _theta(self, params, noise) -> Array:
        if self.parameters is None:
            return jnp.zeros(0, noise["path"].dtype)
        return self.parameters.transform(params["parameters"], noise["parameters"])

    def _features(self, leaves: Any) -> Array:
        """Return what the encoder makes of each series: `(series, [time,] feature)`."""
        assert self.encoder is not None
        made, static = eqx.partition(self.encoder(jr.key(0)), eqx.is_array)
        made = jax.tree.unflatten(jax.tree.structure(made), leaves)
        module = eqx.combine(made, static)
        with relaxed():
            return jax.vmap(module)(self._data()[0])

    def _paths(self, params, theta, numbers, inverse) -> tuple[Array, Scalar]:
        """Return the noise of each series, and minus the logs of its scales, together.

        Of standard normal numbers; with `inverse` it is those behind the noise.
        """
        # The model does not depend on the noise of its own path.
        position = self._join(theta, jnp.zeros_like(numbers))
        draw = self.target.constrain(flat_view(self.target)[1](position))
        layers = params["layers"]
        bank, steps = draw.basis()
        grid, at = self._plan.grid, self._plan.at
        d, first, number, length = self._sizes
        y, seen = self._data()
        following = jnp.minimum(
            jnp.searchsorted(at, jnp.arange(length, dtype=at.dtype), side="right"), len(at) - 1
        )
        span = grid[-1] - grid[0]
        clock = jnp.stack([grid[:-1] - grid[0], grid[at[following]] - grid[:-1]], axis=1) / span

        def one(y, seen, numbers, start, log_scale, features):
            guide = Guide()
            if self.linear:
                guide = guide_of(draw, bank, steps, (at, y, seen), self.rounds)
                guide = guide if self.discrete else guide._replace(root=None)
            seen_ahead = clock
            if features is not None:
                ahead = features if features.ndim == 1 else features[following]
                ahead = jnp.broadcast_to(ahead, (length, ahead.shape[-1]))
                seen_ahead = jnp.concatenate([clock, ahead], axis=1)
                begin = features if features.ndim == 1 else features[0]
                start = _apply(layers["start"], begin).reshape(2, first)
                log_scale = jax.vmap(lambda v: _apply(layers["log_scale"], v))(seen_ahead)
            log_scale = 2 * jnp.tanh(log_scale / 2)

            def law(mean, root, log_scale, v):
                if inverse:
                    return whitened(root, mean, v) * jnp.exp(-log_scale)
                return coloured(root, mean, v * jnp.exp(log_scale))

            mean = start[0] if guide.start_mean is None else guide.start_mean + start[0]
            begun = law(mean, guide.start_root, start[1], numbers[:first])
            noise = numbers[:first] if inverse else begun

            def step(state, inputs):
                step, gain, mean, root, log_scale, clock, v = inputs
                x, y = state
                flat = stacked(x, y)
                mean = jnp.zeros_like(v) if mean is None else mean + gain @ flat
                if "control" in layers:
                    shift = _apply(layers["control"], jnp.concatenate([clock, flat]))
                    mean = mean + BOUND * jnp.tanh(shift / BOUND)
                out = law(mean, root, log_scale, v)
                e = v if inverse else out
                return advance(draw, step, x, y, e.reshape(y.shape) @ step.factor.T), out

            steps_in = (steps, guide.gain, guide.mean, guide.root, log_scale, seen_ahead)
            white = numbers[first:].reshape(length, number)
            _, rest = scan(step, started(draw, bank, noise), (*steps_in, white))
            scales = -jnp.sum(log_scale) - jnp.sum(start[1])
            for root in (guide.root, guide.start_root):
                if root is not None:
                    scales += jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)))
            return jnp.concatenate([begun, rest.ravel()]), scales

        features = self._features(layers["encoder"]) if self.encoder is not None else None
        series = (y, seen, numbers, params.get("start"), params.get("log_scale"), features)
        found, scales = jax.vmap(one)(*series)
        return found, jnp.sum(scales)


def _rest(params: PyTree) -> dict[str, Any]:
    return {name: v for name, v in params.items() if name != "parameters"}


def _normal(z: Array) -> Scalar:
    return -0.5 * jnp.sum(z**2) - 0.5 * math.log(2 * math.pi) * z.size


def _network(key: PRNGKey, sizes: tuple[int, ...], dtype: Any) -> list[tuple[Array, Array]]:
    """Return layers whose last gives zero."""
    layers = [
        (jr.normal(k, (b, a), dtype) / math.sqrt(a), jnp.zeros(b, dtype))
        for k, a, b in zip(jr.split(key, len(sizes) - 1), sizes, sizes[1:])
    ]
    return [*layers[:-1], jax.tree.map(jnp.zeros_like, layers[-1])]


def _apply(layers: list[tuple[Array, Array]], x: Array) -> Array:
    for weight, bias in layers[:-1]:
        x = jnp.tanh(weight @ x + bias)
    weight, bias = layers[-1]
    return weight @ x + bias
