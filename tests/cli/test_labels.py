"""The numbers of each label, whatever the order of axes, in every table that is shown."""

import itertools
from typing import Any

import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import whence as wh
from whence.cli._plots import _elements
from whence.cli._report import _summary
from whence.cli._text import table_text

LABELS = {"firm": ["A", "B", "C"], "term": ["int", "slope"], "year": ["y1", "y2", "y3"]}
ORDERS = list(itertools.permutations(LABELS))


def _value(labels):
    """Return a number that tells which labels it belongs to."""
    return float(sum((LABELS[a].index(x) + 1) * 10**i for i, (a, x) in enumerate(labels)))


def _posterior(order):
    """`first` has the last axis of `cube`: a Dataset then orders its axes otherwise."""

    class Cube(wh.Model):
        first: Any = wh.latent(dist.Normal(0.0, 1.0), dims=order[-1])
        pair: Any = wh.latent(dist.Normal(0.0, 1.0), dims=order[:0:-1])
        cube: Any = wh.latent(dist.Normal(0.0, 1.0), dims=order)

        def likelihood(self):
            return dist.Normal(self.first.sum(), 1.0)

    values = {}
    for name, axes in (("first", order[-1:]), ("pair", order[:0:-1]), ("cube", order)):
        grid = itertools.product(*(LABELS[axis] for axis in axes))
        flat = [_value([(a, x) for a, x in zip(axes, labels)]) for labels in grid]
        values[name] = np.reshape(flat, [len(LABELS[axis]) for axis in axes])
    target = wh.condition(Cube(coords=LABELS), np.zeros(1))
    noise = np.random.default_rng(0).normal(scale=1e-3, size=(2, 40))
    draws = {n: noise.reshape(2, 40, *[1] * v.ndim) + v for n, v in values.items()}
    return wh.Posterior.from_draws(target, draws)


def _expected(order):
    for name, axes in (("first", order[-1:]), ("pair", order[:0:-1]), ("cube", order)):
        for labels in itertools.product(*(LABELS[axis] for axis in axes)):
            yield f"{name}[{', '.join(labels)}]", _value(list(zip(axes, labels)))


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_every_table_puts_numbers_under_their_labels(order):
    posterior = _posterior(order)
    table, tree = posterior.summary(), posterior.to_datatree(groups=("posterior",))
    long = posterior.draws_df().groupby("variable", observed=True)["value"].mean()
    few, _ = _elements(tree)  # panels of the report's plots
    html = _summary(posterior)
    text = {
        line.split("]")[0] + "]": line.split("]")[1].split()
        for line in table_text(table).splitlines()
        if "]" in line
    }
    for label, value in _expected(order):
        assert_allclose(table.loc[label, "mean"], value, atol=0.01)
        assert_allclose(long[label], value, atol=0.01)
        assert f"<th>{label}</th>" in html
        cell = html.split(f"<th>{label}</th>")[1].split("<td>")[1].split("<")[0]
        assert_allclose(float(cell), value, atol=0.05)
        if label in text:
            assert_allclose(float(text[label][0]), value, atol=0.05)
    assert len(text) > 20
    # A tree may have axes in another order, and then has its labels in that order.
    parts = lambda label: frozenset(label.removesuffix("]").replace("[", ", ").split(", "))
    values = {parts(label): value for label, value in _expected(order)}
    for label, panel in few["posterior"].data_vars.items():
        assert_allclose(panel.mean(), values[parts(str(label))], atol=0.01)
