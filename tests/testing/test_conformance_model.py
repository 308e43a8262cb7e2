"""`check_model` accepts the zoo, and refuses models with planted faults."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from whence.language._latent import latent
from whence.language._model import Model
from whence.testing import ZOO, check_model, load_shipped

# False: data that cannot be taken row by row, because rows depend on each other or have
# latents of their own. The regressions share their classes, so that one of each is enough.
ZOO_MODELS = [
    ("bball_drive_event_0-hmm_drive_0", False),
    ("eight_schools-eight_schools_noncentered", False),
    ("garch-garch11", False),
    pytest.param("arK-arK", True, marks=pytest.mark.slow),
    pytest.param("gp_pois_regr-gp_pois_regr", False, marks=pytest.mark.slow),
    pytest.param("kidiq-kidscore_momhsiq", True, marks=pytest.mark.slow),
    pytest.param("low_dim_gauss_mix-low_dim_gauss_mix", True, marks=pytest.mark.slow),
    pytest.param("mesquite-logmesquite", True, marks=pytest.mark.slow),
    pytest.param("sblri-blr", True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "rows"), ZOO_MODELS)
def test_zoo(name, rows, key):
    model, y, inputs = ZOO[name].build(load_shipped(name)[0])
    check_model(model, y, *inputs, key=key, points=2, rows=rows, prior_draws=3)


class Shapes(Model):
    """A latent on every kind of support."""

    mixed: jax.Array = latent(dist.Dirichlet(jnp.ones(3)), shape=(2, 3))
    factor: jax.Array = latent(dist.LKJCholesky(3, 2.0))
    ordered: jax.Array = latent(
        dist.TransformedDistribution(
            dist.Normal(jnp.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()
        )
    )
    interval: jax.Array = latent(dist.Uniform(-1.0, 3.0), shape=2)
    scale: jax.Array = latent(dist.HalfNormal(1.0))
    shifted: jax.Array = latent(
        lambda m: dist.Normal(m.ordered[0], m.scale), shape=4, noncentered=True
    )

    def likelihood(self):
        return dist.Normal(self.shifted, 1.0)


@pytest.mark.slow
def test_every_support(key):
    check_model(Shapes(), jnp.arange(4.0), key=key, points=2, rows=False, prior_draws=3)


class WrongGradient(Model):
    """The gradient of the likelihood is cut."""

    x: jax.Array = latent(dist.Normal(0.0, 1.0))

    def likelihood(self):
        return dist.Normal(jax.lax.stop_gradient(self.x), 1.0)


class NotPointwise(Model):
    """One log likelihood where there are four data."""

    x: jax.Array = latent(dist.Normal(0.0, 1.0))

    def log_likelihood(self, y):
        return dist.Normal(self.x, 1.0).log_prob(y).sum(keepdims=True)


class TimeSeries(Model):
    """A likelihood in which a row needs the row before it."""

    x: jax.Array = latent(dist.Normal(0.0, 1.0))

    def log_likelihood(self, y):
        before = jnp.concatenate([jnp.zeros(1), y[:-1]])
        return dist.Normal(self.x * before, 1.0).log_prob(y)


class WrongSupport(dist.Distribution):
    """Says it is positive, draws from all of the line."""

    support = constraints.positive
    arg_constraints = {}

    def sample(self, key, sample_shape=()):
        return jax.random.normal(key, sample_shape)

    def log_prob(self, value):
        return dist.HalfNormal(1.0).log_prob(value)


class OutsideSupport(Model):
    x: jax.Array = latent(WrongSupport())

    def likelihood(self):
        return dist.Normal(self.x, 1.0)


class NowhereFinite(Model):
    x: jax.Array = latent(dist.Normal(0.0, 1.0))

    def likelihood(self):
        return dist.Normal(jnp.sqrt(-1.0 - self.x**2), 1.0)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        pytest.param(
            WrongGradient(),
            "gradient along a random direction",
            marks=pytest.mark.filterwarnings("ignore:The likelihood of WrongGradient has no"),
        ),
        (NotPointwise(), "log likelihood of 'y' has shape"),
        (TimeSeries(), "alone is .* among all rows"),
        (OutsideSupport(), "A prior draw of latent `x` lies outside its support"),
        (NowhereFinite(), "finite at only 0 of 100"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Model) else "",
)
def test_planted_faults(model, match, key):
    with pytest.raises(AssertionError, match=match):
        check_model(model, jnp.arange(1.0, 5.0), key=key)


class WrongJacobianTransform(dist.transforms.Transform):
    """`exp` with the log-determinant of the identity."""

    domain, codomain = constraints.real, constraints.greater_than(0.0)

    def __call__(self, x):
        return jnp.exp(x)

    def _inverse(self, y):
        return jnp.log(y)

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return jnp.zeros_like(x)

    def tree_flatten(self):
        return (), ((), {})


def test_wrong_jacobian(key, monkeypatch):
    from whence.language import _sites

    class Scale(Model):
        x: jax.Array = latent(dist.HalfNormal(1.0))

        def likelihood(self):
            return dist.Normal(self.x, 1.0)

    monkeypatch.setattr(_sites.dist, "biject_to", lambda support: WrongJacobianTransform())
    with pytest.raises(AssertionError, match="the Jacobian of automatic differentiation"):
        check_model(Scale(), np.arange(4.0), key=key)
