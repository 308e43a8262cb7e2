"""Arrays of the wrong rank or kind, and names that nobody reads, are refused by name."""

import re

import numpy as np
import pytest

from whence import diagnostics as d

X = np.random.default_rng(0).normal(size=(4, 100))
WIDE = np.broadcast_to(X[..., None], (4, 100, 2))

REFUSED = {
    "`draws` must have shape (chain, draw, ...)": [
        lambda: d.convergence(X[0]),
        lambda: d.rhat(np.array(1.0)),
        lambda: d.ess_bulk(X[0]),
        lambda: d.ess_tail(np.zeros((0, 5))),
        lambda: d.mcse(X[0]),
    ],
    "`draws` must be real numbers; got dtype complex128": [lambda: d.rhat(1j * X)],
    "`energy` must have shape (chain, draw)": [lambda: d.bfmi(X[0]), lambda: d.bfmi(WIDE)],
    "`energy` must have at least 2 draws; got 1": [lambda: d.bfmi(X[:, :1])],
    "`log_weights` must have at least one": [
        lambda: d.weight_ess(np.zeros(0)),
        lambda: d.pareto_khat(np.zeros((0, 3))),
    ],
    "`variables` must be a dict of arrays by name; got a ndarray": [lambda: d.diagnose(X)],
    "`stats` must be a dict of arrays by name; got a list": [lambda: d.diagnose({"a": X}, [1])],
    "`variables['a']` must be numbers; got dtype object": [
        lambda: d.diagnose({"a": np.full((4, 100), None)})
    ],
    "`stats['diverging']` must have shape (chain, draw), with": [
        lambda: d.diagnose({"a": X}, {"diverging": WIDE > 0})
    ],
    "`stats` must have ArviZ's names: 'diverging' in place of 'divergent__'": [
        lambda: d.diagnose({"a": X}, {"divergent__": X > 0})
    ],
    "`log_weights` must have the shape of the draws, (4, 100); got (7,)": [
        lambda: d.diagnose({"a": X}, log_weights=np.zeros(7))
    ],
    "`dims['a']` must have at most a name for each of its 1 axes": [
        lambda: d.diagnose({"a": WIDE}, dims={"a": ("t", "u")})
    ],
    "`record` must be an `AbstractRecord`": [lambda: d.diagnose({"a": X}, record={"elbo": 1})],
    "`max_tree_depth` must be a whole number": [
        lambda: d.diagnose({"a": X}, max_tree_depth="10"),
        lambda: d.diagnose({"a": X}, max_tree_depth=0),
    ],
    "`failed` must be a list": [lambda: d.diagnose({"a": X}, failed="chain 1")],
    "`elbo` must have shape (step,) or (replica, step); got (2, 3, 4)": [
        lambda: d.diagnose({"a": X}, record=d.VariationalFit(elbo=np.zeros((2, 3, 4))))
    ],
    "`objectives` must have an entry": [
        lambda: d.diagnose(
            {"a": X[:1, :1]}, method="point", record=d.Optimum(np.zeros(0), np.zeros(0, bool))
        )
    ],
    "`loc` must broadcast to the shape of `y`, (100,); got (100, 1)": [
        lambda: d.crps_normal(X[0], X[0][:, None], 1.0),
        lambda: d.crps_student_t(X[0], 3.0, X[0][:, None], 1.0),
    ],
    "`draws` must have an axis of draws and then the shape of `y`, (100,); got (2, 50, 100)": [
        lambda: d.crps_draws(X[0], np.zeros((2, 50, 100)))
    ],
    "`low` must broadcast to the shape of `y`, (100,); got (3,)": [
        lambda: d.coverage(X[0], X[0, :3], 1.0),
        lambda: d.interval_score(X[0], X[0, :3], 1.0),
    ],
    "`low` must be at most `high`": [lambda: d.interval_score(0.0, 1.0, -1.0)],
    "`probabilities` must be at least 0 and summing to 1": [
        lambda: d.entropy(np.array([0.5, 1.2]))
    ],
    "`groups` must be 1 to 2, the rows, a whole number; got 1.5": [
        lambda: d.reliability(np.full((2, 2), 0.5), np.zeros(2, int), groups=1.5)
    ],
}


@pytest.mark.parametrize("rule", REFUSED)
def test_what_is_refused(rule):
    for call in REFUSED[rule]:
        with pytest.raises(ValueError, match=re.escape(rule)):
            call()
