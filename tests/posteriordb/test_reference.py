"""NUTS on real posteriors, against posteriordb's reference draws.

Every mean and standard deviation must lie within `MAX_Z` standard errors, our own and the
reference's combined. All shipped posteriors make 162 comparisons; were all normal, a correct
sampler would exceed 5 on one key in 10,000. The standard errors are themselves estimated, to a
few percent at an effective sample size of 1,000, which makes that perhaps one in 5,000.

The other suite takes all posteriors and their draws from a folder:

    pytest -m slow --data DIR tests/posteriordb

`DIR` holds `NAME.npz` and `NAME.data.json` for each name of `whence.testing.ZOO`. It makes
about 450 comparisons, and ends with a table.
"""

import pytest
from runs import fit, read

import whence as wh
from whence.testing import ZOO, load_shipped, shipped

MAX_Z, MIN_ESS, MAX_RHAT = 5.0, 200.0, 1.03

ENGINES = {
    # The scale of this Gaussian process has a neck into which steps of the default size
    # diverge, and a chain that diverges there underestimates the spread.
    "gp_pois_regr-gp_pois_regr": wh.NUTS(target_accept=0.95),
    # Local modes 15 and more nats below the main one wait for chains that start at random.
    # With a metric that learns correlations at once about one chain in twenty settles there
    # (R-hat tells); of 44 with diagonal metrics, on other keys than this suite's, none did.
    "hudson_lynx_hare-lotka_volterra": wh.NUTS(metric="fisher"),
}


def require_agreement(result):
    result.comparison.check(max_z=MAX_Z, min_ess=MIN_ESS, max_rhat=MAX_RHAT)


# One of a kind: regression, hierarchy, time series, mixture, regime switches.
FEW = (
    "arK-arK",
    "bball_drive_event_0-hmm_drive_0",
    "eight_schools-eight_schools_noncentered",
    "garch-garch11",
    "low_dim_gauss_mix-low_dim_gauss_mix",
    "sblri-blr",
)
ALIKE = [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in shipped()]


@pytest.mark.parametrize("name", ALIKE)
def test_shipped(name, key):
    data, reference = load_shipped(name)
    require_agreement(fit(name, data, reference, ENGINES.get(name, wh.NUTS()), key))


@pytest.mark.parametrize("backend", ["numpyro", "blackjax", "tfp"])
@pytest.mark.parametrize(
    "name",
    [
        "eight_schools-eight_schools_noncentered",
        pytest.param("arK-arK", marks=pytest.mark.slow),
    ],
)
def test_backends(name, backend, key):
    if backend == "tfp":
        pytest.importorskip("tensorflow_probability")
    data, reference = load_shipped(name)
    require_agreement(fit(name, data, reference, wh.NUTS(backend=backend), key))


def test_a_wrong_posterior_is_caught(key):
    # Two regressions of the same data whose designs differ by the centre of a covariate.
    data, reference = load_shipped("kidiq_with_mom_work-kidscore_interaction_c")
    other = "kidiq_with_mom_work-kidscore_interaction_c2"
    with pytest.raises(AssertionError, match=r"beta\[1\]: mean"):
        require_agreement(fit(other, data, reference, wh.NUTS(), key))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ZOO))
def test_all(name, key, reference_folder, fits):
    data, reference = read(reference_folder, name)
    result = fit(name, data, reference, ENGINES.get(name, wh.NUTS()), key)
    fits.append(result)
    require_agreement(result)
