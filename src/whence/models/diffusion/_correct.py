"""Feynman-Kac correctors: products, powers and tilts of diffusion models, by particles.

With scores `s_i` of laws `q_i` under one noise, the law `prod_i q_i^(g_i)` at every time is the
law of weighted particles (with `G = sum_i g_i s_i` and `Gamma = sum_i g_i`, time `u` running
from noise to data, and any `eta >= 1/2`)

    dx     = (-A (x - c) + eta Q G) du + sqrt(2 eta - 1) L dW
    dlog w = [(Gamma - 1) tr A + (G' Q G - sum_i g_i s_i' Q s_i) / 2] du.

Simulation without the weights, as guidance of a diffusion model is usually done, has another
law. For a reward `r`, the law `q exp(b r)` with `b` growing from 0 is that of

    dx     = (-A (x - c) + Q (s + b grad r / 2)) du + L dW
    dlog w = [b' r - b grad r . A (x - c) + b grad r . Q s / 2] du.

Both follow from putting the laws into the Fokker-Planck equation of the noise. Weighted
particles that resample have the right law only if `eta > 1 - 1 / (2 Gamma)`: below that the
weights undo the resampling faster than particles spread (seen by linearising at a normal law).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from ...core._convert import number, positive, whole
from ...core._feynman_kac import AbstractFeynmanKac
from ...core._particle_target import AbstractParticleTarget
from ...core._types import PRNGKey, Scalar
from ._noise import AbstractNoise, Vector, as_matrix, require_noise, times, trace

Score = Callable[[Scalar, Vector], Vector]


@runtime_checkable
class HasLogProb(Protocol):
    """A score whose law has a known density at every time, as that of a `GaussianMixture`."""

    def log_prob(self, t: Scalar, x: Vector) -> Scalar:
        """Return the log density at time `t`, in nats."""
        ...


class Steered(NamedTuple):
    """Particles on their way from noise to data."""

    x: Float[Array, "particle dim"]  # where they are, `(particle, dim)`
    increment: Float[Array, " particle"]  # of the log weight by the last step, `(particle,)`


class Progress(NamedTuple):
    """What particles share."""

    step: Int[Array, ""]  # number of the step to come
    clipped: Scalar  # share of increments that the last step has clipped


class Corrected(AbstractParticleTarget):
    """The law `prod_i q_i^(g_i)`, or `q exp(b r)`, of diffusion models `q_i`.

    Made by `annealed`, `product`, `geometric` and `tilted`. Give it to
    `FeynmanKacSMC`: the draws are weighted particles, and the evidence is
    `log int prod_i q_i(x)^(g_i) dx` (of a reward: `log E_q exp(b r)`), exact up to the steps of
    time if densities are known at the horizon, else as far as the laws there are
    `N(c, V(horizon))`, with the centre of the noise.

    Attributes:
        noise: The noise of all models.
        scores: Functions of time and place.
        exponents: `g_i`.
        dim: Dimension of the data.
        steps: Steps of time.
        eta: Strength of the noise in the simulation.
        reward: A function of place, or None.
        strength: `b` at the end.
        clip: Largest absolute increment of a log weight; None for no clipping. Clipped
            weights have another law; the share is in `stats`.

    References:
        Skreta, Akhound-Sadegh, Ohanesian, Bondesan, Aspuru-Guzik, Doucet, Brekelmans, Tong and
        Neklyudov (2025), "Feynman-Kac correctors in diffusion: annealing, guidance, and product
        of experts", ICML.
    """

    noise: AbstractNoise
    scores: tuple[Score, ...]
    exponents: tuple[float, ...] = eqx.field(
        static=True, converter=lambda given: tuple(map(number("exponents"), given))
    )
    dim: int = eqx.field(static=True, converter=whole("dim", least=1))
    steps: int = eqx.field(
        static=True, default=500, kw_only=True, converter=whole("steps", least=1)
    )
    eta: float = eqx.field(
        static=True, default=1.0, kw_only=True, converter=number("eta", least=0.5)
    )
    reward: Callable[[Vector], Scalar] | None = eqx.field(default=None, kw_only=True)
    strength: float = eqx.field(
        static=True, default=0.0, kw_only=True, converter=number("strength")
    )
    clip: float | None = eqx.field(
        static=True, default=None, kw_only=True, converter=positive("clip", optional=True)
    )

    def __check_init__(self):
        total = sum(self.exponents)
        if len(self.exponents) != len(self.scores) or not self.scores:
            raise ValueError(
                "`exponents` must have one number for each score; got "
                f"{len(self.exponents)} and {len(self.scores)}."
            )
        if total <= 0:
            raise ValueError(
                "The sum of `exponents` must be positive, or the law at the horizon has no "
                f"normaliser; got {total:g}."
            )
        if self.eta <= 1 - 1 / (2 * total):
            raise ValueError(
                f"`eta` must be above 1 - 1 / (2 * {total:g}) = {1 - 1 / (2 * total):g}, where "
                f"{total:g} is the sum of the exponents; got {self.eta:g}. Below, weights undo "
                "the resampling faster than particles spread, and no number of particles or "
                "steps gives the right law. `eta=1` always does."
            )
        if self.reward is not None and self.exponents != (1.0,):
            raise ValueError(
                f"`reward` tilts one diffusion model; got exponents {self.exponents}."
            )
        zero = jax.ShapeDtypeStruct((), jnp.result_type(float))
        place = jax.ShapeDtypeStruct((self.dim,), zero.dtype)
        for i, score in enumerate(self.scores):
            require_noise(f"scores[{i}]", score, self.noise)
        functions: list[tuple[str, Any, tuple]] = [
            (f"`scores[{i}]`", jax.eval_shape(score, zero, place), (self.dim,))
            for i, score in enumerate(self.scores)
        ]
        if self.reward is not None:
            functions.append(("`reward`", jax.eval_shape(self.reward, place), ()))
        for name, got, want in functions:
            if got.shape != want:
                raise ValueError(f"{name} must return shape {want}; got {got.shape}.")

    @property
    def num_steps(self) -> int:
        """One step for the weights at the horizon, then the steps of time."""
        return 1 + self.steps

    def init(self, *, key: PRNGKey) -> dict[str, Array]:
        """Return a place drawn from the law of pure noise."""
        return {"x": self._start(1, key)[0]}

    def log_density(self, position):
        raise NotImplementedError(
            "The density of a steered diffusion is not known, only its weighted particles: use "
            "`FeynmanKacSMC`."
        )

    def constrain(self, position):
        return position

    def feynman_kac(self, num: int) -> "Correction":
        """Return the model of particles."""
        return Correction(self, num)

    def positions(self, particles: Steered) -> dict[str, Array]:
        """Return where the particles are."""
        return {"x": particles.x}

    def stats(self, control: Progress) -> dict[str, Array]:
        """Return the share of increments that were clipped, if any are to be."""
        return {} if self.clip is None else {"clipped": control.clipped}

    def _start(self, num: int, key: PRNGKey) -> Float[Array, "particle dim"]:
        """Draw from the normal law that pure noise has under the exponents."""
        dtype = jnp.result_type(float)
        lower = jnp.linalg.cholesky(self._start_covariance())
        apart = jr.normal(key, (num, self.dim), dtype) @ lower.T
        return apart + jnp.asarray(self.noise.centre, dtype)

    def _start_covariance(self) -> Float[Array, "dim dim"]:
        end = jnp.asarray(self.noise.horizon, jnp.result_type(float))
        return as_matrix(self.noise.covariance(end), self.dim) / sum(self.exponents)

    def log_start(self, x: Vector) -> Scalar:
        """Return the log weight of a place that `init` drew."""
        end = jnp.asarray(self.noise.horizon, x.dtype)
        covariance = self._start_covariance()
        apart = self.noise.apart(x)
        normal = lambda s: jax.scipy.stats.multivariate_normal.logpdf(
            apart, jnp.zeros_like(x), s
        )
        noise = normal(covariance * sum(self.exponents))
        laws = [s.log_prob(end, x) if isinstance(s, HasLogProb) else noise for s in self.scores]
        mixed = jnp.asarray(sum(g * law for g, law in zip(self.exponents, laws)))
        return mixed - normal(covariance)

    def rates(self, t: Scalar, x: Vector) -> tuple[Vector, Scalar]:
        """Return the drift of a particle, and the rate of its log weight."""
        drift, spread = self.noise.drift(t), self.noise.diffusion(t)
        forward = times(drift, self.noise.apart(x))
        turn = (
            (lambda v: times(spread.T, v)) if jnp.ndim(spread) == 2 else (lambda v: spread * v)
        )
        diffuse = lambda v: times(spread, turn(v))
        scores = [score(t, x) for score in self.scores]
        if self.reward is not None:
            (score,), strength = scores, self.strength * (1 - t / self.noise.horizon)
            reward, slope = jax.value_and_grad(self.reward)(x)
            move = -forward + diffuse(score + 0.5 * strength * slope)
            rate = self.strength / self.noise.horizon * reward
            rate += strength * (0.5 * slope @ diffuse(score) - slope @ forward)
            return move, rate
        total = sum(self.exponents)
        mixed = sum(g * s for g, s in zip(self.exponents, scores))
        square = lambda v: jnp.sum(turn(v) ** 2)
        apart = square(mixed) - sum(g * square(s) for g, s in zip(self.exponents, scores))
        rate = (total - 1) * trace(drift, self.dim) + 0.5 * apart
        return -forward + self.eta * diffuse(mixed), rate


class Correction(AbstractFeynmanKac):
    """Particles that are steered from noise to data."""

    target: Corrected  # what to steer to
    num: int = eqx.field(static=True)  # number of particles

    def initial(self, *, key: PRNGKey) -> tuple[Steered, Progress]:
        x = self.target._start(self.num, key)
        zero = jnp.zeros((), x.dtype)
        return Steered(x, jnp.zeros(self.num, x.dtype)), Progress(jnp.int32(0), zero)

    def mutate(
        self,
        particles: Steered,
        log_weights: Float[Array, " particle"],
        control: Progress,
        *,
        key: PRNGKey,
    ) -> tuple[Steered, Progress]:
        """Make a step of Euler and Maruyama; the first only weighs where particles start."""
        target, dtype = self.target, particles.x.dtype
        grid = jnp.asarray(target.noise.times(target.steps), dtype)

        def begin(x):
            return x, jax.vmap(target.log_start)(x).astype(dtype), jnp.zeros((), dtype)

        def move(x):
            t = grid[control.step - 1]
            length = t - grid[control.step]
            drift, rate = jax.vmap(lambda place: target.rates(t, place))(x)
            keys = jr.split(key, self.num)  # a key of its own for each particle and step
            shock = jax.vmap(lambda k: jr.normal(k, (target.dim,), dtype))(keys)
            scale = 1.0 if target.reward is not None else np.sqrt(2 * target.eta - 1)
            spread = target.noise.diffusion(t)
            noise = jax.vmap(lambda z: times(spread, z))(shock)
            moved = x + length * drift + scale * jnp.sqrt(length) * noise
            grown, clipped = length * rate, jnp.zeros((), dtype)
            if target.clip is not None:
                clipped = jnp.mean(jnp.abs(grown) > target.clip, dtype=dtype)
                grown = jnp.clip(grown, -target.clip, target.clip)
            return moved, grown, clipped

        x, increment, clipped = jax.lax.cond(control.step == 0, begin, move, particles.x)
        return Steered(x, increment), Progress(control.step + 1, clipped)

    def log_potential(
        self, particles: Steered, log_weights: Float[Array, " particle"], control: Progress
    ) -> tuple[Float[Array, " particle"], Progress]:
        """Return what the step added to the log weights."""
        lost = ~jnp.all(jnp.isfinite(particles.x), axis=1) | jnp.isnan(particles.increment)
        return jnp.where(lost, -jnp.inf, particles.increment), control


def annealed(noise: AbstractNoise, score: Score, power: float, dim: int, **options: Any):
    """Return the law `q^power` of a diffusion model: colder above 1, hotter below.

    `noise`, `score` and `dim` are those of the model; options are `steps`, `eta` and `clip` of
    `Corrected`, here and below.
    """
    return Corrected(noise, (score,), (number("power")(power),), dim, **options)


def product(noise: AbstractNoise, scores: Any, dim: int, **options: Any) -> Corrected:
    """Return the product of the laws of several diffusion models under one noise."""
    scores = tuple(scores)
    return Corrected(noise, scores, (1.0,) * len(scores), dim, **options)


def geometric(
    noise: AbstractNoise, scores: Any, weight: float, dim: int, **options: Any
) -> Corrected:
    """Return the law `q_0^(1 - weight) q_1^weight`: between two models, or beyond the second.

    Above 1 it is guidance: of an unconditional and a conditional model, what classifier-free
    guidance means to sample, and does not.

    References:
        Ho and Salimans (2022), "Classifier-free diffusion guidance", arXiv:2207.12598.
    """
    weight, scores = number("weight")(weight), tuple(scores)
    if len(scores) != 2:
        raise ValueError(f"`scores` must be two; got {len(scores)}.")
    return Corrected(noise, scores, (1.0 - weight, weight), dim, **options)


def tilted(
    noise: AbstractNoise,
    score: Score,
    reward: Callable[[Vector], Scalar],
    strength: float,
    dim: int,
    **options: Any,
) -> Corrected:
    """Return the law `q exp(strength * reward)`, of a differentiable function of a place."""
    return Corrected(noise, (score,), (1.0,), dim, reward=reward, strength=strength, **options)
