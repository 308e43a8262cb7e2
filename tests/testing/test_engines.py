"""Every engine of the package keeps the contract that `check_engine` states."""

import pytest

import whence as wh
from whence.testing import check_engine

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "make",
    [
        lambda: wh.NUTS(),
        pytest.param(lambda: wh.NUTS(metric="diag"), marks=SLOW),
        pytest.param(lambda: wh.NUTS(metric="fisher"), marks=SLOW),
        pytest.param(lambda: wh.NUTS(metric="dense"), marks=SLOW),
        pytest.param(lambda: wh.NUTS(backend="numpyro"), marks=SLOW),
        pytest.param(lambda: wh.NUTS(backend="blackjax"), marks=SLOW),
        pytest.param(lambda: wh.NUTS(backend="tfp"), marks=SLOW),
        pytest.param(lambda: wh.HMC(), marks=SLOW),
        pytest.param(lambda: wh.ChEES(), marks=SLOW),
        pytest.param(lambda: wh.MCLMC(), marks=SLOW),
        pytest.param(lambda: wh.SGLD(), marks=SLOW),
        pytest.param(lambda: wh.TemperedSMC(), marks=SLOW),
    ],
    ids=["NUTS", "diag", "fisher", "dense", "numpyro", "blackjax", "tfp"]
    + ["HMC", "ChEES", "MCLMC", "SGLD", "TemperedSMC"],
)
def test_engine(make, key):
    check_engine(make(), key=key)
