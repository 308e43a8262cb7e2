"""Laws of weights: fixed ones by rule, Gaussian ones to be selected, hierarchical ones."""

from itertools import zip_longest
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from ....core._convert import number, one_of, positive
from ....language._module_leaves import floating_leaves
from ....language._module_priors import priors_of
from ._abstract_prior import PER, AbstractPrior, Arrays, Layout, layout_of, weight


class FixedPrior(AbstractPrior):
    """Priors by rule, as `whence.bayesian` takes them; none of it is selected."""

    layout: Layout = eqx.field(static=True)
    laws: dict[str, dist.Distribution]

    @classmethod
    def of(cls, rule: Any, module: Any) -> "FixedPrior":
        """Return the priors that a rule of `whence.bayesian` gives the arrays of a module."""
        layout, laws = layout_of(module), priors_of(rule, floating_leaves(module))
        for entry in layout:
            if entry.path not in laws:
                raise ValueError(
                    f"`prior` must give every array a law; none for {entry.path!r}."
                )
        return cls(layout, laws)

    def scales(self):
        return {}

    def weights(self, scales):
        return {e.path: weight(self.laws[e.path], e.shape) for e in self.layout}

    def arrays(self, values):
        return values


class GaussianPrior(AbstractPrior):
    """Independent Gaussian weights, whose scales (and means) can be selected.

    Standard deviations are `exp(log_scale)` times those of `whence.FanIn()`, one number for
    each group: the whole network, a layer, an array or a single weight.

    Attributes:
        layout: The network's arrays.
        per: What shares a scale.
        log_scales: By group; for `per="weight"` arrays like the weights.
        means: Of the weights by path; None keeps those of `FanIn()`, mostly 0.
    """

    layout: Layout = eqx.field(static=True)
    per: str = eqx.field(static=True)
    log_scales: dict[str, Array]
    means: Arrays | None = None

    @classmethod
    def fan_in(cls, module: Any, *, per: str = "layer", scale: float = 1.0) -> "GaussianPrior":
        """Return the prior of mean 0 under which layers keep the size of what they read.

        Args:
            module: The network.
            per: `"net"`, `"layer"`, `"tensor"` or `"weight"`.
            scale: Factor of all standard deviations.
        """
        layout, per = layout_of(module), one_of("per", PER)(per)
        log_scale = jnp.log(jnp.asarray(positive("scale")(scale), jnp.result_type(float)))
        shapes = {e.group(per): e.shape if per == "weight" else () for e in layout}
        return cls(layout, per, {g: jnp.full(s, log_scale) for g, s in shapes.items()})

    @classmethod
    def around(cls, module: Any, *, log_variance: float = -6.0) -> "GaussianPrior":
        """Return the prior around the present weights of a module, with a scale for each.

        Args:
            module: The network, trained.
            log_variance: Of every weight at the start, as in the code of Tran et al. (2021),
                arXiv:2106.06245.
        """
        layout, log_variance = layout_of(module), number("log_variance")(log_variance)
        means = {leaf.path: leaf.value for leaf in floating_leaves(module)}
        scales = {
            e.path: jnp.full(e.shape, log_variance / 2 - jnp.log(e.scale)) for e in layout
        }
        return cls(layout, "weight", scales, means)

    def scales(self):
        return {}

    def weights(self, scales):
        latents = {}
        for e in self.layout:
            loc = jnp.asarray(e.loc) if self.means is None else self.means[e.path]
            sigma = e.scale * jnp.exp(self.log_scales[e.group(self.per)])
            latents[e.path] = weight(dist.Normal(loc, sigma), e.shape)
        return latents

    def arrays(self, values):
        return values


class HierarchicalPrior(AbstractPrior):
    """Gaussian weights whose variances are unknown, one for each layer or array.

    Variances are inverse-gamma, times those of `whence.FanIn()`. They are latents, drawn with
    the weights.

    References:
        Tran, Rossi, Milios and Filippone (2022), JMLR 23 (there a draw of the variances serves
        many functions; here each has its own).
    """

    layout: Layout = eqx.field(static=True)
    per: str = eqx.field(static=True)
    log_concentrations: dict[str, Array]
    log_rates: dict[str, Array]

    @classmethod
    def fan_in(
        cls, module: Any, *, per: str = "layer", concentration: float = 3.0, rate: float = 3.0
    ) -> "HierarchicalPrior":
        """Return the prior of one law for all variances.

        Args:
            module: The network.
            per: `"net"`, `"layer"` or `"tensor"`.
            concentration: Of the inverse-gamma law.
            rate: Of it; the mean variance is `rate / (concentration - 1)`.
        """
        layout, per = layout_of(module), one_of("per", PER[:-1])(per)
        groups = dict.fromkeys(e.group(per) for e in layout)
        a, b = positive("concentration")(concentration), positive("rate")(rate)
        every = lambda v: dict.fromkeys(groups, jnp.log(jnp.asarray(v, jnp.result_type(float))))
        return cls(layout, per, every(a), every(b))

    def scales(self):
        laws = {}
        for group, a in self.log_concentrations.items():
            law = dist.InverseGamma(jnp.exp(a), jnp.exp(self.log_rates[group]))
            laws[f"variance.{group}"] = weight(law, ())
        return laws

    def weights(self, scales):
        latents = {}
        for e in self.layout:
            sigma = e.scale * jnp.sqrt(scales[f"variance.{e.group(self.per)}"])
            latents[e.path] = weight(dist.Normal(e.loc, sigma), e.shape)
        return latents

    def arrays(self, values):
        return values


def as_prior(prior: Any, module: Any) -> AbstractPrior:
    """Return a law of the weights of a module: the one given (or selected), or of a rule."""
    if isinstance(getattr(prior, "prior", None), AbstractPrior):
        prior = prior.prior
    if not isinstance(prior, AbstractPrior):
        return FixedPrior.of(prior, module)
    for theirs, ours in zip_longest(prior.layout, layout_of(module)):
        if theirs is None or ours is None or theirs[:2] != ours[:2]:
            said = [e and f"`{e.path}` of shape {e.shape}" for e in (theirs, ours)]
            raise ValueError(
                f"`prior` must be of the same network: it has {said[0]} where the network has "
                f"{said[1]}."
            )
    return prior


def movable_prior(name: str, prior: Any, module: Any) -> AbstractPrior:
    """Return `as_prior`; raise `ValueError`, with the name of the argument, if it is fixed."""
    prior = as_prior(prior, module)
    if isinstance(prior, FixedPrior):
        raise ValueError(
            f"`{name}` must be a prior with something to select: `GaussianPrior`, "
            f"`HierarchicalPrior` or `FlowPrior`; got {type(prior).__name__}."
        )
    return prior
