"""Learners of initial weights, on the same networks and tasks: for comparison.

Each is what the hierarchy becomes in a limit. With q a point and the divergence left out,
one linearised step is MAML's; with the exact minimiser of loss plus proximity iMAML's; with
the loss left out of the outer gradient Reptile's; without a step, and prototypes for the
likelihood, prototype networks.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array

from ...core._convert import one_of, positive, whole
from ._adapt import AdaptedTask, check_support, model_of
from ._covariance import Diagonal
from ._local import WeightGaussian
from ._meta import NIWMeta, TaskLoss
from ._tasks import subset
from ._train import AbstractMetaTraining

_RULES = ("maml", "first_order", "imaml", "reptile", "prototypes")


class PointMeta(AbstractMetaTraining):
    """Learn where gradient descent on a task should start.

    Each visit divides the points of a task at random: some to adapt to, the rest to judge
    by (Reptile adapts to all). The population's mean is the start, its covariance does not
    count.

    Args:
        rule: `"maml"`, by derivatives through every inner step, `"first_order"`, without,
            `"imaml"`, by the implicit function theorem at the minimum of loss plus
            proximity, `"reptile"`, towards the adapted weights, or `"prototypes"`, which
            never adapts (with `Prototypes` for the likelihood a prototype network).
        support: Points to adapt to; of each class for labels.
        inner_steps: Of gradient descent on the *mean* loss of the support points.
        inner_rate: Of these.
        proximity: Of `"imaml"`: precision of a normal law around the start, in units of the
            mean loss.

    The others are those of `AbstractMetaTraining`.

    References:
        Finn, Abbeel, Levine (2017), arXiv:1703.03400. Rajeswaran, Finn, Kakade, Levine
        (2019), arXiv:1909.04630. Nichol, Achiam, Schulman (2018), arXiv:1803.02999. Snell,
        Swersky, Zemel (2017), arXiv:1703.05175.
    """

    rule: str = eqx.field(default="maml", converter=one_of("rule", _RULES))
    support: int = eqx.field(default=10, converter=whole("support", least=1))
    inner_steps: int = eqx.field(default=5, converter=whole("inner_steps", least=1))
    inner_rate: float = eqx.field(default=0.01, converter=positive("inner_rate"))
    proximity: float = eqx.field(default=1.0, converter=positive("proximity"))

    def check(self, model, tasks):
        if not isinstance(model, NIWMeta) or len(model.population.mean) > 1:
            raise ValueError("`problem` must hold a `NIWMeta` with one component.")

    def descend(self, loss: TaskLoss, start: Array) -> Array:
        """Return adapted weights."""
        number = jnp.maximum(jnp.sum(loss.mask), 1)
        weight = self.proximity if self.rule == "imaml" else 0.0
        near = lambda w: loss(w) / number + weight * jnp.sum((w - start) ** 2) / 2

        def step(weights, _):
            gradient = jax.grad(near)(weights)
            cut = self.rule == "first_order"
            gradient = jax.lax.stop_gradient(gradient) if cut else gradient
            return weights - self.inner_rate * gradient, None

        if self.rule == "prototypes":
            return start
        weights, _ = jax.lax.scan(step, start, None, length=self.inner_steps)
        return weights

    def losses(self, model, batch, *, key):
        start = model.population.mean[0]

        def one(x, y, mask, key):
            if self.rule == "reptile":
                # The gradient of this is the difference that Reptile moves by.
                whole_task = TaskLoss(model, x, y, mask)
                own = jax.lax.stop_gradient(self.descend(whole_task, start))
                return jnp.sum((start - own) ** 2) / 2 + whole_task(own) / jnp.sum(mask)
            held = subset(y, mask, self.support, key=key)
            support, query = TaskLoss(model, x, y, held), mask & ~held

            def judge(weights):
                log_prob = model.likelihood.log_prob(support.scores(weights, x), y)
                kept = jnp.where(query, log_prob, 0)
                return -jnp.sum(kept) / jnp.maximum(jnp.sum(query), 1)

            if self.rule == "imaml":
                return _implicit(self, support, start, judge)
            return judge(self.descend(support, start))

        values = jax.vmap(one)(*batch, jr.split(key, len(batch.x)))
        return jnp.mean(values), {}

    def adapt(self, fit: Any, x: Any, y: Any, *, mask: Any = None) -> AdaptedTask:
        """Adapt to a new task; what is returned has no spread.

        Args:
            fit: What `whence.train` returned.
            x: Inputs of the support set, `(point, ...)`.
            y: Its data.
            mask: Which points are there.
        """
        return _point(self, check_support(model_of(fit), x, y, mask))


@eqx.filter_jit
def _point(rule: PointMeta, loss: TaskLoss) -> AdaptedTask:
    weights = rule.descend(loss, loss.meta.population.mean[0])
    certain = Diagonal(jnp.full((1, len(weights)), jnp.inf, weights.dtype))
    zero, one = jnp.zeros((), weights.dtype), jnp.ones((), weights.dtype)
    posterior = WeightGaussian(weights[None], certain)
    log_weights = jnp.zeros(1, weights.dtype)
    return AdaptedTask(loss, posterior, log_weights, one[None], one, zero, zero, one, zero)


def _implicit(rule: PointMeta, loss: TaskLoss, start: Array, judge: Any) -> Array:
    """Return the loss of the adapted weights; its gradient is that of the implicit theorem.

    At a minimum of `l + proximity |w - start|^2 / 2` the derivative of w by the start is
    `(I + H / proximity)^-1`, with the Hessian H of l.
    """
    found = jax.lax.stop_gradient(rule.descend(loss, start))
    number = jnp.maximum(jnp.sum(loss.mask), 1)
    gradient = jax.grad(lambda w: loss(w) / number)

    def matrix(v):
        return v + jax.jvp(gradient, (found,), (v,))[1] / rule.proximity

    solved, _ = cg(matrix, jax.grad(judge)(found), maxiter=10)
    return judge(found) + jax.lax.stop_gradient(solved) @ (start - jax.lax.stop_gradient(start))
