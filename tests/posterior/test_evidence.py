"""Bridge sampling against closed forms, and the table of evidences."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import whence as wh
from whence.core import Sample
from whence.posterior import bridge_sampling


class Mean(wh.Model):
    """A normal mean, of variance known, in two dimensions; `scale` is that of the prior."""

    scale: float = 1.0
    mu: jax.Array = wh.latent(lambda m: dist.Normal(jnp.zeros(2), m.scale))

    def likelihood(self):
        return dist.Normal(jnp.broadcast_to(self.mu, (12, 2)), 0.7)


Y = 0.4 + 0.7 * np.random.default_rng(4).normal(size=(12, 2))


def _truth(scale):
    """Return log evidence, posterior mean and standard deviation."""
    from scipy.stats import multivariate_normal

    cov = 0.49 * np.eye(12) + scale**2
    evidence = multivariate_normal(np.zeros(12), cov).logpdf(Y.T).sum()
    precision = 12 / 0.49 + 1 / scale**2
    return evidence, Y.sum(0) / 0.49 / precision, precision**-0.5


def _posterior(scale, seed, draws=400, correlation=0.0):
    """Return draws of stationary autoregressions with the exact law."""
    target = wh.condition(Mean(scale), Y)
    _, mean, sd = _truth(scale)
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(2, draws, 2))
    for i in range(1, draws):
        fresh = np.sqrt(1 - correlation**2)
        z[:, i] = correlation * z[:, i - 1] + fresh * z[:, i]
    return wh.Posterior.from_draws(target, {"mu": mean + sd * z})


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_bridge_sampling_is_right_within_its_error(correlation):
    truth = _truth(1.0)[0]
    found = [
        bridge_sampling(_posterior(1.0, seed, correlation=correlation), key=seed)
        for seed in range(30)
    ]
    scores = np.array([(e.log_evidence - truth) / e.error for e in found])
    # 30 scores of mean 0 and variance about 1.
    assert abs(scores.mean()) < 4 * max(scores.std(), 1) / np.sqrt(30)
    assert 0.4 < scores.std() < 1.8
    assert 0.001 < np.mean([e.error for e in found]) < 0.1


def test_a_skewed_posterior_has_the_evidence_of_its_closed_form():
    class Rate(wh.Model):
        rate: jax.Array = wh.latent(dist.Gamma(2.0, 1.0))

        def likelihood(self):
            return dist.Poisson(jnp.broadcast_to(self.rate, (3,)))

    from scipy.special import gammaln

    y = np.array([1.0, 0.0, 2.0])
    truth = gammaln(5) - 5 * np.log(4) - gammaln(2) - gammaln(y + 1).sum()
    rng = np.random.default_rng(1)
    draws = rng.gamma(5.0, 1 / 4, size=(4, 2_000))
    posterior = wh.Posterior.from_draws(wh.condition(Rate(), y), {"rate": draws})
    found = bridge_sampling(posterior, key=3)
    assert abs(found.log_evidence - truth) < 4 * found.error
    assert found.error < 0.02


def test_models_are_compared_by_evidence():
    posteriors = {"wide": _posterior(50.0, 1), "unit": _posterior(1.0, 2)}
    table = wh.compare(posteriors, by="evidence", key=0)
    assert list(table.index) == ["unit", "wide"]
    factor = _truth(1.0)[0] - _truth(50.0)[0]
    errors = np.hypot(*table["log_evidence_error"])
    assert abs(table["log_bayes_factor"]["wide"] - factor) < 4 * errors
    np.testing.assert_allclose(table["probability"].sum(), 1.0)
    np.testing.assert_allclose(
        table["probability"]["wide"] / table["probability"]["unit"],
        np.exp(-table["log_bayes_factor"]["wide"]),
    )
    with pytest.raises(ValueError, match="give a `key`, for bridge sampling"):
        wh.compare(posteriors, by="evidence")
    with pytest.raises(ValueError, match="`by` must be one of"):
        wh.compare(posteriors, by="waic")


def _claiming(posterior, log_evidence):
    sample = posterior.sample
    claimed = Sample(
        sample.positions,
        sample.stats,
        method="exact",
        log_evidence=log_evidence,
        log_evidence_error=0.01,
    )
    return wh.Posterior(posterior.target, claimed, engine="TemperedSMC")


def test_estimates_that_disagree_are_told():
    posterior, truth = _posterior(1.0, 1), _truth(1.0)[0]
    right, wrong = _claiming(posterior, truth), _claiming(posterior, truth + 0.7)
    table = wh.compare({"a": right, "b": right}, by="evidence", key=0)
    assert list(table.columns[:4]) == [
        "log_evidence",
        "log_evidence_error",
        "bridge",
        "bridge_error",
    ]
    with pytest.warns(wh.InferenceWarning, match="log evidence of 'b' disagree"):
        wh.compare({"a": right, "b": wrong}, by="evidence", key=0)


def test_what_has_no_evidence_is_refused():
    few = _posterior(1.0, 1, draws=10)
    with pytest.raises(ValueError, match="at least 40 draws for 2 dimensions; got 20"):
        bridge_sampling(few, key=0)
    target = few.target
    point = wh.Posterior.from_draws(target, {"mu": np.zeros((1, 50, 2))}, method="variational")
    with pytest.raises(ValueError, match="draws of the posterior itself"):
        bridge_sampling(point, key=0)
