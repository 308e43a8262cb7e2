"""The same model by plates, for engines that sample every task's weights: small widths."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from ...core._dtype import relaxed
from ._law import NIW, ProductNIW
from ._meta import NIWMeta, TaskLoss
from ._tasks import check_tasks


def plates(meta: NIWMeta, law: NIW | ProductNIW, x: Any, y: Any, mask: Any = None) -> Callable:
    """Return a numpyro model of all tasks at once, for `whence.from_numpyro`.

    Its sites are `precision` (of the weights between tasks: a matrix, or one number for each
    weight), `mu`, and `theta`, `(task, weight)`, as differences from mu in units of their
    standard deviation (`white`). The population of `meta` does not count, its network and
    likelihood do.

    Args:
        meta: The model, with one component and no tails.
        law: Prior of `(mu, Sigma)`, over as many weights.
        x: Inputs, `(task, point, ...)`.
        y: Data, `(task, point, ...)`.
        mask: Which points are there.

    Raises:
        ValueError: If the law is of another number of weights.
    """
    if len(law.mean) != meta.num_weights:
        raise ValueError(
            f"`law` must be over the {meta.num_weights} weights; got {len(law.mean)}."
        )
    x, y, mask = map(jnp.asarray, check_tasks(x, y, mask))

    def model():
        d = meta.num_weights
        unit = dist.Normal(0.0, 1.0)
        if isinstance(law, NIW):
            inverse = jnp.linalg.cholesky(jnp.linalg.inv(law.scale))
            tril: Any = numpyro.sample("root", dist.WishartCholesky(law.df, scale_tril=inverse))
            precision = tril @ tril.T
            # Sigma = tril^-T tril^-1
            spread = lambda z: solve_triangular(tril, z.T, trans=1, lower=True).T
        else:
            gamma = dist.Gamma(law.df / 2, law.scale / 2).to_event(1)
            precision: Any = numpyro.sample("variance_inverse", gamma)
            spread = lambda z: z / jnp.sqrt(precision)
        numpyro.deterministic("precision", precision)
        white_mu: Any = numpyro.sample("white_mu", unit.expand([d]).to_event(1))
        mu = law.mean + spread(white_mu[None])[0] / jnp.sqrt(law.strength)
        mu: Any = numpyro.deterministic("mu", mu)
        with numpyro.plate("task", len(x)):
            white: Any = numpyro.sample("white", unit.expand([d]).to_event(1))
        theta = numpyro.deterministic("theta", mu + spread(white))
        losses = jax.vmap(lambda w, *data: TaskLoss(meta, *data)(w))(theta, x, y, mask)
        numpyro.factor("data", -jnp.sum(losses))

    def relaxed_model():
        with relaxed():  # numpyro mixes types and ranks
            model()

    return relaxed_model
