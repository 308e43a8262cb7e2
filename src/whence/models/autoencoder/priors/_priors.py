"""Laws of weights: fixed ones by rule, Gaussian ones to be selected, hierarchical ones."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from ....core._convert import number, one_of, positive
from ....language._latent import Latent
from ....language._module_leaves import floating_leaves
from ....language._module_priors import priors_of
from ._abstract_prior import AbstractPrior, inverse_softplus
from ._layout import PER, Arrays, Layout, check_arrays, layout_of


def _latent(prior: Any, shape: tuple[int, ...]) -> Latent:
    return Latent(prior=prior, shape=shape, dims=(), noncentered=False)


class FixedPrior(AbstractPrior):
    """Priors by rule, as `whence.bayesian` takes them; none of it is selected.

    Attributes:
        layout: The network's arrays.
        laws: A distribution for each array, by path.
    """

    layout: Layout = eqx.field(static=True)
    laws: dict[str, dist.Distribution]

    @classmethod
    def of(cls, rule: Any, module: Any) -> "FixedPrior":
        """Return the priors that a rule gives the arrays of a module.

        Args:
            rule: A numpyro distribution for every entry, a `whence.FanIn`, a function of
                `(path, array)`, or a dict of these by pattern of paths or type of layer.
            module: The network.

        Raises:
            ValueError: If an array has no prior.
        """
        layout, laws = layout_of(module), priors_of(rule, floating_leaves(module))
        for entry in layout:
            if entry.path not in laws:
                raise ValueError(
                    f"`prior` must give every array a distribution; got None for "
                    f"`{entry.path}`."
                )
        return cls(layout, laws)

    def scales(self):
        return {}

    def weights(self, scales):
        return {e.path: _latent(self.laws[e.path], e.shape) for e in self.layout}

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
        means: Of the weights by path; None keeps those of `FanIn()`, which are 0 but for
            gains of normalising layers.
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

        Raises:
            ValueError: If `per` is none of these, or `scale` not positive.
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
            log_variance: Of every weight at the start.

        References:
            Tran, Rossi, Milios, Michiardi, Bonilla and Filippone (2021), Model selection for
            Bayesian autoencoders, arXiv:2106.06245 (as in the authors' code).
        """
        layout, log_variance = layout_of(module), number("log_variance")(log_variance)
        means = {leaf.path: leaf.value for leaf in floating_leaves(module)}
        scales = {
            e.path: jnp.full(e.shape, log_variance / 2 - jnp.log(e.scale)) for e in layout
        }
        return cls(layout, "weight", scales, means)

    def __check_init__(self):
        if self.means is not None:
            check_arrays("means", self.means, self.layout)

    def law(self, path: str, array: Any = None) -> dist.Normal:
        """Return the prior of the array at a path; a rule for `whence.bayesian`.

        Args:
            path: Of the array.
            array: Not used.
        """
        entry = next(e for e in self.layout if e.path == path)
        loc = jnp.asarray(entry.loc) if self.means is None else self.means[path]
        scale = entry.scale * jnp.exp(self.log_scales[entry.group(self.per)])
        return dist.Normal(loc, scale)

    def scales(self):
        return {}

    def weights(self, scales):
        return {e.path: _latent(self.law(e.path), e.shape) for e in self.layout}

    def arrays(self, values):
        return values


class HierarchicalPrior(AbstractPrior):
    """Gaussian weights whose variances are unknown, one for each layer or array.

    Variances are inverse-gamma, times those of `whence.FanIn()`. They are latents, drawn with
    the weights.

    Attributes:
        layout: The network's arrays.
        per: What shares a variance.
        concentrations: By group, before softplus.
        rates: By group, before softplus.

    References:
        Tran, Rossi, Milios and Filippone (2022), All you need is a good functional prior for
        Bayesian deep learning, JMLR 23 (there a draw of the variances serves many functions;
        here each function has its own).
    """

    layout: Layout = eqx.field(static=True)
    per: str = eqx.field(static=True)
    concentrations: dict[str, Array]
    rates: dict[str, Array]

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
        raw = lambda value: {g: inverse_softplus(value) for g in groups}
        return cls(layout, per, raw(a), raw(b))

    def scales(self):
        positive = jax.nn.softplus
        return {
            f"variance.{g}": _latent(
                dist.InverseGamma(positive(self.concentrations[g]), positive(self.rates[g])), ()
            )
            for g in self.concentrations
        }

    def weights(self, scales):
        latents = {}
        for e in self.layout:
            sigma = e.scale * jnp.sqrt(scales[f"variance.{e.group(self.per)}"])
            latents[e.path] = _latent(dist.Normal(e.loc, sigma), e.shape)
        return latents

    def arrays(self, values):
        return values


def as_prior(prior: Any, module: Any) -> AbstractPrior:
    """Return a law of the weights of a module: the one given, or what a rule gives.

    Args:
        prior: An `AbstractPrior`, what has one as `prior` (a selection), or a rule.
        module: The network.

    Raises:
        ValueError: If it belongs to another network.
    """
    if isinstance(getattr(prior, "prior", None), AbstractPrior):
        prior = prior.prior
    if not isinstance(prior, AbstractPrior):
        return FixedPrior.of(prior, module)
    layout = layout_of(module)
    if [(e.path, e.shape) for e in prior.layout] != [(e.path, e.shape) for e in layout]:
        pairs = zip(prior.layout, layout)
        theirs, ours = next(
            ((a, b) for a, b in pairs if a[:2] != b[:2]), (prior.layout[-1], layout[-1])
        )
        raise ValueError(
            f"`prior` must be of the same network: it has `{theirs.path}` of shape "
            f"{theirs.shape} where the network has `{ours.path}` of shape {ours.shape}."
        )
    return prior
