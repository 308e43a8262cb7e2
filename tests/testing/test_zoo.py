"""The zoo's log densities against independent transcriptions in NumPy and SciPy.

Each transcription takes the data under Stan's names and the latents on their own scale, and
returns the log joint density. All latents of a model that are given values are fixed, and
its target's log density is then the log joint density, without any change of variables.
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import integrate, stats
from scipy.special import logsumexp

from whence.language._condition import condition
from whence.language._model import named_latents
from whence.testing import ZOO, load_shipped, shipped
from whence.testing._ordered import OrderedNormal
from whence.testing._zoo_models import lotka_volterra_path

norm = stats.norm.logpdf


def ark(d, alpha, beta, sigma):
    y, total = np.array(d["y"]), 0.0
    for t in range(5, 200):
        mean = alpha + sum(beta[k] * y[t - 1 - k] for k in range(5))
        total += norm(y[t], mean, sigma)
    prior = norm(alpha, 0, 10) + norm(beta, 0, 10).sum()
    return total + prior + stats.halfcauchy.logpdf(sigma, scale=2.5)


def hmm(d, theta1, theta2, phi, lam):
    rows = np.stack([theta1, theta2])
    alpha = np.array(d["alpha"], float)
    total = sum(stats.dirichlet.logpdf(r / r.sum(), a) for r, a in zip(rows, alpha))
    total += norm(phi, [0, 3], 1).sum() + norm(lam, [0, 3], 1).sum()

    def emit(t, k):
        return stats.expon.logpdf(d["u"][t], scale=1 / phi[k]) + stats.expon.logpdf(
            d["v"][t], scale=1 / lam[k]
        )

    forward = [emit(0, k) for k in range(2)]
    for t in range(1, d["N"]):
        forward = [
            logsumexp([forward[j] + np.log(rows[j, k]) for j in range(2)]) + emit(t, k)
            for k in range(2)
        ]
    return total + logsumexp(forward)


def logearn_height(d, beta, sigma):
    mean = beta[0] + beta[1] * np.array(d["height"])
    return norm(np.log(d["earn"]), mean, sigma).sum()


def eight_schools(d, mu, tau, theta):
    prior = norm(mu, 0, 5) + stats.halfcauchy.logpdf(tau, scale=5)
    return prior + norm(theta, mu, tau).sum() + norm(d["y"], theta, d["sigma"]).sum()


def garch(d, mu, alpha0, alpha1, beta1):
    y = d["y"]
    sd = [d["sigma1"]]
    for t in range(1, 200):
        sd.append(np.sqrt(alpha0 + alpha1 * (y[t - 1] - mu) ** 2 + beta1 * sd[-1] ** 2))
    return norm(y, mu, sd).sum()


def gp(d, rho, alpha, f_tilde):
    x = np.array(d["x"], float)
    gram = np.array([[np.exp(-((a - b) ** 2) / (2 * rho**2)) for a in x] for b in x])
    f = np.linalg.cholesky(alpha**2 * gram + 1e-10 * np.eye(len(x))) @ f_tilde
    prior = stats.gamma.logpdf(rho, 25, scale=1 / 4) + stats.halfnorm.logpdf(alpha, scale=2)
    return prior + norm(f_tilde).sum() + stats.poisson.logpmf(d["k"], np.exp(f)).sum()


def path(theta, z_init, times):
    def slope(_, z):
        u, v = z
        return [(theta[0] - theta[1] * v) * u, (-theta[2] + theta[3] * u) * v]

    solution = integrate.solve_ivp(
        slope, (0, times[-1]), z_init, "DOP853", t_eval=times, rtol=1e-12, atol=1e-12
    )
    return solution.y.T


def lotka_volterra(d, theta, z_init, sigma):
    prior = sum(
        stats.truncnorm.logpdf(t, -m / s, np.inf, loc=m, scale=s)
        for t, m, s in zip(theta, (1, 0.05, 1, 0.05), (0.5, 0.05, 0.5, 0.05))
    )
    prior += stats.lognorm.logpdf(sigma, 1, scale=np.exp(-1)).sum()
    prior += stats.lognorm.logpdf(z_init, 1, scale=10).sum()
    z = path(theta, z_init, d["ts"])
    data = stats.lognorm.logpdf(d["y_init"], sigma, scale=z_init).sum()
    return prior + data + stats.lognorm.logpdf(d["y"], sigma, scale=z).sum()


def momhsiq(d, beta, sigma):
    mean = beta[0] + beta[1] * np.array(d["mom_hs"]) + beta[2] * np.array(d["mom_iq"])
    return norm(d["kid_score"], mean, sigma).sum() + stats.halfcauchy.logpdf(sigma, scale=2.5)


def interaction_c(d, beta, sigma):
    h = np.array(d["mom_hs"]) - np.mean(d["mom_hs"])
    q = np.array(d["mom_iq"]) - np.mean(d["mom_iq"])
    mean = beta[0] + beta[1] * h + beta[2] * q + beta[3] * h * q
    return norm(d["kid_score"], mean, sigma).sum()


def mixture(d, mu, sigma, theta):
    y = np.array(d["y"])
    prior = norm(mu, 0, 2).sum() + stats.halfnorm.logpdf(sigma, scale=2).sum()
    parts = [
        np.log(theta) + norm(y, mu[0], sigma[0]),
        np.log1p(-theta) + norm(y, mu[1], sigma[1]),
    ]
    return prior + stats.beta.logpdf(theta, 5, 5) + logsumexp(parts, axis=0).sum()


def logmesquite(d, beta, sigma):
    log = {k: np.log(v) for k, v in d.items() if k not in ("N", "group")}
    mean = beta[0] + beta[6] * np.array(d["group"])
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    for b, name in zip(beta[1:6], names):
        mean = mean + b * log[name]
    return norm(log["weight"], mean, sigma).sum()


def blr(d, beta, sigma):
    prior = norm(beta, 0, 10).sum() + stats.halfnorm.logpdf(sigma, scale=10)
    return prior + norm(d["y"], np.array(d["X"]) @ beta, sigma).sum()


TRANSCRIPTIONS = {
    "arK-arK": ark,
    "bball_drive_event_0-hmm_drive_0": hmm,
    "earnings-logearn_height": logearn_height,
    "eight_schools-eight_schools_noncentered": eight_schools,
    "garch-garch11": garch,
    "gp_pois_regr-gp_pois_regr": gp,
    "hudson_lynx_hare-lotka_volterra": lotka_volterra,
    "kidiq-kidscore_momhsiq": momhsiq,
    "kidiq_with_mom_work-kidscore_interaction_c": interaction_c,
    "low_dim_gauss_mix-low_dim_gauss_mix": mixture,
    "mesquite-logmesquite": logmesquite,
    "sblri-blr": blr,
}
# Away from its posterior the predator-prey path is wild, so start it where it lives.
POSITIONS = {
    "hudson_lynx_hare-lotka_volterra": {
        "theta": np.log([0.5, 0.025, 0.8, 0.024]),
        "z_init": np.log([35.0, 6.0]),
        "sigma": np.log([0.25, 0.3]),
    }
}


def draw_of(name, key):
    """A draw of a shipped posterior's model near the origin of unconstrained space."""
    data, _ = load_shipped(name)
    problem = ZOO[name].build(data)
    target = condition(problem.model, problem.y, *problem.inputs)
    position = POSITIONS.get(name) or target.init(key=key)
    draw = eqx.filter_jit(lambda t, p: t.constrain(p))(target, position)
    return data, problem, draw


def test_every_shipped_posterior_has_a_transcription():
    assert set(TRANSCRIPTIONS) == set(shipped())


@pytest.mark.parametrize("name", TRANSCRIPTIONS)
def test_log_density(name, key):
    data, problem, draw = draw_of(name, key)
    values = named_latents(draw)
    fixed = dataclasses.replace(problem.model, **values)
    target = condition(fixed, problem.y, *problem.inputs)
    expected = TRANSCRIPTIONS[name](data, **{k: np.asarray(v) for k, v in values.items()})
    rtol = 1e-8 if name.endswith("lotka_volterra") else 1e-10
    got = eqx.filter_jit(lambda t: t.log_density({}))(target)
    assert_allclose(got, expected, rtol=rtol)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_names_as_in_stan(name):
    entry = ZOO[name]
    stan = entry.named_as_in_stan({v: np.zeros((4, 5, 2)) for v in entry.variables.values()})
    assert f"{next(iter(entry.variables))}[2]" in stan
    assert all(value.shape == (4, 5) for value in stan.values())


def test_lotka_volterra_path_is_accurate():
    # Over the reference posterior's range the fixed steps must not show.
    for theta in ([0.5, 0.025, 0.8, 0.024], [0.7, 0.035, 1.1, 0.035]):
        times = np.arange(1.0, 21.0)
        z_init = np.array([35.0, 6.0])
        got = lotka_volterra_path(jnp.array(theta), jnp.log(z_init), jnp.array(times))
        assert_allclose(np.exp(got), path(theta, z_init, times), rtol=1e-7)


def test_ordered_normal_draws(key):
    # The order of two standard normals: means -1/sqrt(pi) and +1/sqrt(pi), each with
    # variance 1 - 1/pi; 5 standard errors of 20,000 independent draws.
    draws = np.asarray(OrderedNormal([0.0, 0.0], 1.0).sample(key, (100, 200)))
    assert draws.shape == (100, 200, 2)
    assert (np.diff(draws) > 0).all()
    mean = draws.mean((0, 1))
    error = np.sqrt((1 - 1 / np.pi) / 20_000)
    assert_allclose(mean, np.array([-1, 1]) / np.sqrt(np.pi), atol=5 * error)
    positive = OrderedNormal([0.0, 3.0], 1.0, positive=True).sample(key, (1_000,))
    assert (np.asarray(positive)[:, 0] > 0).all()


def test_load_shipped_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="`name` must be one of"):
        load_shipped("nine_schools")
