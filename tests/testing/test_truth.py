"""NUTS, our own and that of other libraries, on targets in closed form.

Each case makes at most 204 comparisons (the autoregression, others make 4 to 40). Were all
normal, a correct sampler would exceed 5 standard errors there on one key in 8,000.
"""

import jax.random as jr
import pytest

import whence as wh
from whence import testing as wt

TARGETS = {
    "gaussian": lambda key: wt.Gaussian(20, condition_number=1e3, correlated=True),
    "skewed": lambda key: wt.LogGamma((0.5, 1.0, 4.0)),
    # With scale 3 no sampler of one step size reaches the neck; with 1 all do.
    "funnel": lambda key: wt.Funnel(4, scale=1.0),
    "autoregression": lambda key: wt.Autoregression(100, correlation=0.9),
    "regression": lambda key: wt.ConjugateRegression.simulate(key=key),
}
BACKENDS = ["whence"] + [
    pytest.param(name, marks=pytest.mark.slow) for name in ("blackjax", "numpyro", "tfp")
]


@pytest.mark.filterwarnings("ignore::whence.InferenceWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TARGETS)
def test_moments(name, backend, key):
    key_target, key_run = jr.split(key)
    target = TARGETS[name](key_target)
    posterior = wh.infer(target, wh.NUTS(backend=backend), key=key_run, progress=False)
    wt.check_truth(posterior, target, max_z=5.0, min_ess=200.0)


@pytest.mark.filterwarnings("ignore::whence.InferenceWarning")
def test_neals_funnel_is_beyond_reach_and_seen_to_be(key):
    # Neither moments nor effective sample size may pass for right.
    target = wt.Funnel(9, scale=3.0)
    posterior = wh.infer(target, wh.NUTS(), key=key, progress=False)
    with pytest.raises(AssertionError, match=r"v: |log_abs_x"):
        wt.check_truth(posterior, target, min_ess=400.0)
