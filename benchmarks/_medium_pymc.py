"""The models of `_medium_models.py` written by hand in PyMC, for nutpie.

Each function takes the observed data and the inputs of the whence model and returns a PyMC
model whose variables have the same names, values and posterior. Effects are standardised
(`z`) where whence's are `noncentered`.
"""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt


def effects(name, loc, scale, size):
    """Return normal effects by standardised ones."""
    z = pm.Normal(f"{name}_z", 0.0, 1.0, shape=size)
    return pm.Deterministic(name, loc + scale * z)


def hierarchy(y, group, x):
    mu_a, tau_a = pm.Normal("mu_a", 0.0, 5.0), pm.HalfNormal("tau_a", 1.0)
    a = effects("a", mu_a, tau_a, 400)
    mu_b, tau_b = pm.Normal("mu_b", 0.0, 5.0), pm.HalfNormal("tau_b", 1.0)
    b = effects("b", mu_b, tau_b, 400)
    pm.Normal("y", a[group] + b[group] * x, pm.HalfNormal("sigma", 2.0), observed=y)


def crossed(y, left, right, x):
    intercept, slope = pm.Normal("intercept", 0.0, 3.0), pm.Normal("slope", 0.0, 1.0)
    a = effects("a", 0.0, pm.HalfNormal("tau_a", 1.0), 250)
    b = effects("b", 0.0, pm.HalfNormal("tau_b", 1.0), 122)
    pm.Poisson("y", pt.exp(intercept + slope * x + a[left] + b[right]), observed=y)


def items(y, person, item):
    ability = pm.Normal("ability", 0.0, 1.0, shape=400)
    difficulty = pm.Normal("difficulty", 0.0, 2.0, shape=30)
    discrimination = pm.LogNormal("discrimination", 0.0, 0.5, shape=30)
    gap = ability[person] - difficulty[item]
    pm.Bernoulli("y", logit_p=discrimination[item] * gap, observed=y)


def counts(y, x):
    intercept = pm.Normal("intercept", 0.0, 3.0)
    beta = pm.Normal("beta", 0.0, 1.0, shape=30)
    concentration = pm.Gamma("concentration", 2.0, 0.1)
    pm.NegativeBinomial("y", pt.exp(intercept + x @ beta), concentration, observed=y)


def horseshoe(y, x):
    sigma = pm.HalfNormal("sigma", 2.0)
    tau = pm.HalfCauchy("tau", 0.005 * sigma)
    slab = pm.InverseGamma("slab", 2.0, 8.0)
    local = pm.HalfCauchy("local", 1.0, shape=100)
    shrunk = pt.sqrt(slab * local**2 / (slab + tau**2 * local**2))
    beta = effects("beta", 0.0, tau * shrunk, 100)
    pm.Normal("y", x @ beta, sigma, observed=y)


def logistic_regression(y, x):
    intercept = pm.Normal("intercept", 0.0, 3.0)
    beta = pm.Normal("beta", 0.0, 1.0, shape=50)
    pm.Bernoulli("y", logit_p=intercept + x @ beta, observed=y)


def gaussian_process(y, square):
    length = pm.InverseGamma("length", 5.0, 5.0)
    amplitude, noise = pm.HalfNormal("amplitude", 2.0), pm.HalfNormal("noise", 1.0)
    kernel = amplitude**2 * pt.exp(-0.5 * square / length**2)
    nugget = (noise**2 + 1e-6) * np.eye(len(y))
    pm.MvNormal("y", np.zeros(len(y)), cov=kernel + nugget, observed=y)


def ordinal(y, x):
    beta = pm.Normal("beta", 0.0, 1.0, shape=10)
    ordered = pm.distributions.transforms.ordered
    start = np.linspace(-2.0, 2.0, 5)
    cut = pm.Normal("cut", 0.0, 5.0, shape=5, transform=ordered, initval=start)
    pm.OrderedLogistic("y", eta=x @ beta, cutpoints=cut, observed=y, compute_p=False)


def volatility(y):
    mu, phi = pm.Normal("mu", 0.0, 2.0), 2.0 * pm.Beta("persistence", 20.0, 1.5) - 1.0
    sigma, shock = pm.HalfNormal("sigma", 0.5), pm.Normal("shock", 0.0, 1.0, shape=500)
    first = sigma / pt.sqrt(1.0 - phi**2) * shock[0]
    later = pytensor.scan(
        lambda shock, h, phi, sigma: phi * h + sigma * shock,
        sequences=[shock[1:]],
        outputs_info=[first],
        non_sequences=[phi, sigma],
        strict=True,
        return_updates=False,
    )
    h = mu + pt.concatenate([first[None], later])
    pm.Normal("y", 0.0, pt.exp(0.5 * h), observed=y)


def clinics(y, clinic, x):
    intercept = pm.Normal("intercept", 0.0, 3.0)
    beta = pm.Normal("beta", 0.0, 1.0, shape=5)
    effect = effects("effect", 0.0, pm.HalfNormal("tau", 1.0), 200)
    pm.Bernoulli("y", logit_p=intercept + x @ beta + effect[clinic], observed=y)


def garch(y, previous):
    mu, base = pm.Normal("mu", 0.0, 1.0), pm.HalfNormal("base", 1.0)
    react, share = pm.Uniform("react", 0.0, 1.0), pm.Uniform("share", 0.0, 1.0)
    shocks = base + react * (previous - mu) ** 2
    first = pt.as_tensor(np.float64(1.0))
    later = pytensor.scan(
        lambda shock, variance, keep: shock + keep * variance,
        sequences=[shocks],
        outputs_info=[first],
        non_sequences=[(1.0 - react) * share],
        strict=True,
        return_updates=False,
    )
    pm.Normal("y", mu, pt.sqrt(pt.concatenate([first[None], later])), observed=y)


def robust(y, group, x):
    mu, tau = pm.Normal("mu", 0.0, 5.0), pm.HalfNormal("tau", 2.0)
    a = effects("a", mu, tau, 80)
    beta = pm.Normal("beta", 0.0, 2.0, shape=3)
    sigma, nu = pm.HalfNormal("sigma", 2.0), pm.Gamma("nu", 2.0, 0.1)
    pm.StudentT("y", nu=nu, mu=a[group] + x @ beta, sigma=sigma, observed=y)


MODELS = {
    "hierarchy": hierarchy,
    "crossed_poisson": crossed,
    "item_response": items,
    "negative_binomial": counts,
    "horseshoe": horseshoe,
    "logistic": logistic_regression,
    "gaussian_process": gaussian_process,
    "ordinal": ordinal,
    "volatility": volatility,
    "clinics": clinics,
    "garch": garch,
    "robust": robust,
}


def make(name: str, y, inputs: tuple) -> pm.Model:
    """Return a PyMC model.

    Args:
        name: One of `MODELS`.
        y: Observed data.
        inputs: As the whence model's likelihood takes.
    """
    with pm.Model() as model:
        MODELS[name](y, *inputs)
    return model
