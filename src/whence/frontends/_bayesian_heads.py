"""What a module's outputs say of the data: likelihoods for `bayesian`."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array


class AbstractHead(eqx.Module):
    """A distribution of the data given a module's outputs for all rows."""

    @property
    @abc.abstractmethod
    def priors(self) -> dict[str, dist.Distribution]:
        """Priors of latents of the head itself, by name."""

    @abc.abstractmethod
    def __call__(self, output: Array, values: dict[str, Array]) -> dist.Distribution:
        """Return the distribution of the data, its batch axis that of the rows."""

    @abc.abstractmethod
    def check(self, y: Any) -> None:
        """Raise `ValueError` if `y`, of the right shape, is of the wrong kind."""


class Regression(AbstractHead):
    """Gaussian noise; made by `regression`."""

    noise: Any

    @property
    def priors(self):
        return {"sigma": self.noise} if isinstance(self.noise, dist.Distribution) else {}

    def __call__(self, output, values):
        """Return a normal distribution for each row."""
        if isinstance(self.noise, str):
            if output.ndim < 2 or output.shape[-1] % 2:
                raise ValueError(
                    "`regression(noise='output')` needs an even number of outputs, means and "
                    f"then log standard deviations; got outputs of shape {output.shape}."
                )
            mean, log_sigma = jnp.split(output, 2, axis=-1)
            mean, sigma = squeeze(mean), jnp.exp(squeeze(log_sigma))
        else:
            mean = squeeze(output)
            sigma: Any = values.get("sigma", self.noise)
            _check_noise(jnp.shape(sigma), mean.shape[1:])
        return _rows(dist.Normal(mean, sigma))

    def check(self, y):
        """Accept all real numbers."""


class Function(AbstractHead):
    """A function from outputs to a distribution, perhaps of labels."""

    function: Any
    labels: bool = eqx.field(static=True, default=False)

    @property
    def priors(self):
        return {}

    def __call__(self, output, values):
        """Return what the function does."""
        return self.function(output)

    def check(self, y):
        if self.labels and not jnp.issubdtype(jnp.result_type(y), jnp.integer):
            raise ValueError(
                "`y` must be integers, the numbers of classes from 0, for "
                f"`classification()`; got dtype {jnp.result_type(y)}."
            )


def _categorical(output: Array) -> Any:
    """Return a categorical distribution, or a Bernoulli one for a single logit."""
    if output.ndim == 1 or output.shape[-1] == 1:
        return _rows(dist.Bernoulli(logits=squeeze(output)))
    return _rows(dist.Categorical(logits=output))


def _counts(output: Array) -> Any:
    return _rows(dist.Poisson(jnp.exp(squeeze(output))))


def regression(noise: Any = None) -> Regression:
    """Gaussian noise around a module's outputs: a likelihood for `bayesian`.

    A single output per row is the mean of a single number: `y` has shape `(n,)`.

    Args:
        noise: The standard deviation `sigma`. A numpyro distribution is its prior, and
            `sigma` a latent; by default HalfNormal(1), for data of about unit size. A
            number is its value. With `"output"` the module says it: the second half of its
            outputs are log standard deviations.

    Raises:
        ValueError: If `noise` is none of these, or not positive.
    """
    if noise is None:
        noise = dist.HalfNormal(1.0)
    if isinstance(noise, dist.Distribution) or (isinstance(noise, str) and noise == "output"):
        return Regression(noise)
    try:
        sigma = jnp.asarray(noise, dtype=float)
    except (TypeError, ValueError):
        sigma = None
    if sigma is None or not sigma.size or not bool(jnp.all((sigma > 0) & jnp.isfinite(sigma))):
        raise ValueError(
            "`noise` must be a prior for the standard deviation, a positive number or "
            f"'output'; got {noise!r}."
        )
    return Regression(sigma)


def classification() -> Function:
    """Labels whose logits are a module's outputs: a likelihood for `bayesian`.

    With two outputs per row or more, `y` are classes 0, 1, ...; with a single one it is the
    log odds of class 1 against class 0.
    """
    return Function(_categorical, labels=True)


def poisson() -> Function:
    """Counts whose log rates are a module's outputs: a likelihood for `bayesian`."""
    return Function(_counts)


def squeeze(output: Array) -> Array:
    """Return outputs without a last axis of length one: one number per row."""
    return output[..., 0] if output.ndim > 1 and output.shape[-1] == 1 else output


def _rows(d: Any) -> Any:
    """Make all axes but that of the rows axes of the event."""
    return d.to_event(len(d.batch_shape) - 1)


def _check_noise(sigma, row) -> None:
    try:
        fits = jnp.broadcast_shapes(sigma, row) == row
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"`noise` must be a scalar or have the shape of one row of outputs, {row}; got "
            f"{sigma}."
        )
