"""Divergences: counted, and found where they are, by a real sampler and by construction."""

import numpy as np
import pytest

from whence.diagnostics import diagnose
from whence.diagnostics._divergences import _probability_above


def funnel_hmc(rng, step_size, draws=1500, dim=5, num_steps=15):
    """Hamiltonian Monte Carlo on Neal's funnel: v ~ N(0, 3^2), x_i ~ N(0, exp(v)).

    Returns draws of `(v, x)`, `(chain, draw, 1 + dim)`, and where the energy error of a
    trajectory was above 1000 nats.
    """

    def energy(q):
        v, x = q[:, 0], q[:, 1:]
        return v**2 / 18 + dim * v / 2 + np.sum(x**2, axis=1) * np.exp(-v) / 2

    def gradient(q):
        v, x = q[:, 0], q[:, 1:]
        precision = np.exp(-v)
        dv = v / 9 + dim / 2 - np.sum(x**2, axis=1) * precision / 2
        return np.concatenate([dv[:, None], x * precision[:, None]], axis=1)

    q = np.zeros((4, 1 + dim))
    q[:, 1:] = rng.normal(size=(4, dim))
    out, diverging = np.empty((4, draws, 1 + dim)), np.empty((4, draws), bool)
    for i in range(draws):
        p = rng.normal(size=q.shape)
        new, momentum = q, p - step_size / 2 * gradient(q)
        for _ in range(num_steps):
            new = np.clip(new + step_size * momentum, -1e6, 1e6)
            new[:, 0] = np.clip(new[:, 0], -50, 50)
            momentum = np.clip(momentum - step_size * gradient(new), -1e30, 1e30)
        momentum = momentum + step_size / 2 * gradient(new)
        with np.errstate(over="ignore"):
            error = energy(new) + np.sum(momentum**2, 1) / 2 - energy(q) - np.sum(p**2, 1) / 2
        diverging[:, i] = error > 1000
        accept = np.log(rng.random(4)) < -error
        q = np.where(accept[:, None], new, q)
        out[:, i] = q
    return out, diverging


def test_a_real_funnel():
    q, diverging = funnel_hmc(np.random.default_rng(20261120), step_size=0.4)
    tau = np.exp(q[..., 0] / 2)
    report = diagnose(
        {"tau": tau, "theta": q[..., 1:]},
        {"diverging": diverging},
        unconstrained={"tau": q[..., 0] / 2, "theta": q[..., 1:]},
    )
    assert diverging.sum() >= 10
    finding = report["divergences"]
    assert finding.value == diverging.sum()
    assert finding.where[0] == "log tau is low"
    assert "concentrate where log tau is low" in finding.message
    assert not report.ok


def planted(rng, where, draws=1000):
    """Draws of a funnel, divergent at random where `where(log_tau, theta)`."""
    log_tau = rng.normal(size=(4, draws))
    theta = np.exp(log_tau)[..., None] * rng.normal(size=(4, draws, 8))
    diverging = where(log_tau, theta) & (rng.random((4, draws)) < 0.1)
    return log_tau, theta, diverging


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (lambda log_tau, theta: log_tau < -1.3, "log tau is low"),
        (lambda log_tau, theta: theta[..., 3] > 2, "theta[Hotchkiss] is high"),
    ],
)
def test_planted_regions_are_named(where, expected):
    log_tau, theta, diverging = planted(np.random.default_rng(0), where)
    names = ["Choate", "Deerfield", "Andover", "Hotchkiss", "Lawrenceville", *"abc"]
    report = diagnose(
        {"tau": np.exp(log_tau), "theta": theta},
        {"diverging": diverging},
        unconstrained={"tau": log_tau, "theta": theta},
        dims={"theta": ("school",)},
        coords={"school": names},
    )
    assert diverging.sum() > 5
    assert report["divergences"].where[0] == expected


def test_divergences_anywhere_have_no_region():
    """Of 9 coordinates, at 4 standard errors: a false region in less than 1 of 1000 runs."""
    rng = np.random.default_rng(1)
    named = 0
    for _ in range(50):
        log_tau, theta, diverging = planted(rng, lambda a, b: a < np.inf, draws=150)
        report = diagnose({"log_tau": log_tau, "theta": theta}, {"diverging": diverging})
        named += bool(report["divergences"].where)
        assert "no single variable stands out" in report["divergences"].message or named
    assert named == 0


def test_accidents_and_trifles_are_not_named():
    """Few divergences among many coordinates, and many that are hardly displaced."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4, 500, 300))
    few = np.zeros(2000, bool)
    few[rng.choice(2000, 8, replace=False)] = True
    report = diagnose({"x": x}, {"diverging": few.reshape(4, 500)})
    assert report["divergences"].where == ()
    slightly = rng.random((4, 500)) < 0.25 * np.exp(-0.3 * x[..., 0])  # by 0.3 sigma
    report = diagnose({"x": x[..., :1]}, {"diverging": slightly})
    assert slightly.sum() > 300
    assert report["divergences"].where == ()


def test_concentration_in_one_chain():
    rng = np.random.default_rng(2)
    diverging = rng.random((4, 500)) < 0.002
    diverging[2, :100] = True
    report = diagnose({"mu": rng.normal(size=(4, 500))}, {"diverging": diverging})
    assert f"{diverging[2].sum()} of them in chain 2" in report["divergences"].message
    even = rng.random((4, 500)) < 0.05
    message = diagnose({"mu": rng.normal(size=(4, 500))}, {"diverging": even})["divergences"]
    assert "of them in chain" not in message.message


def test_one_divergence_is_reported_without_a_place():
    rng = np.random.default_rng(3)
    diverging = np.zeros((4, 500), bool)
    diverging[1, 7] = True
    finding = diagnose({"mu": rng.normal(size=(4, 500))}, {"diverging": diverging})[
        "divergences"
    ]
    assert finding.message == "1 divergence in 2000 transitions (0.05%)"
    assert finding.is_problem


def test_names_of_unconstrained_coordinates():
    """An interval, a simplex and a bare array are named by what they are."""
    rng = np.random.default_rng(4)
    u = rng.normal(size=(4, 500))
    diverging = u < -2
    interval = diagnose(
        {"p": 1 / (1 + np.exp(-u))}, {"diverging": diverging}, unconstrained={"p": u}
    )
    assert interval["divergences"].where == ("unconstrained p is low",)
    simplex = np.exp(np.stack([u, 0 * u, 0 * u], axis=-1))
    simplex /= simplex.sum(axis=-1, keepdims=True)
    free = np.stack([u, rng.normal(size=u.shape)], axis=-1)
    report = diagnose({"w": simplex}, {"diverging": diverging}, unconstrained={"w": free})
    assert report["divergences"].where == ("unconstrained w[0] is low",)
    report = diagnose({"w": simplex}, {"diverging": diverging}, unconstrained=free)
    assert report["divergences"].where == ("position[0] is low",)


def test_ties_count_half():
    """Of (0, 0, 1): 0 is above 1/3 of it, 1 above 5/6, if equal values count half."""
    above = _probability_above(np.array([[0.0], [0.0], [1.0]]), np.array([[0.0], [1.0]]))
    np.testing.assert_allclose(above, (1 / 3 + 5 / 6) / 2)
