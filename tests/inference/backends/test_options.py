"""Options of other libraries."""

import numpy as np
import pytest

from whence.inference.backends._options import freeze, initial_metric, route


def integrate(step, *, order=2): ...


def average(step, decay=0.5): ...


def test_options_are_frozen_to_something_hashable():
    frozen = freeze({"b": np.eye(2), "a": [1, (2, 3)], "c": "x"})
    assert frozen == (("a", (1, (2, 3))), ("b", ((1.0, 0.0), (0.0, 1.0))), ("c", "x"))
    assert hash(frozen) == hash(freeze(frozen))
    assert freeze(()) == ()


def test_options_go_where_they_belong():
    options = (("decay", 0.1), ("order", 4))
    assert route(options, "lib", ("step",), integrate, average) == (
        {"order": 4},
        {"decay": 0.1},
    )
    with pytest.raises(
        ValueError, match='"lib" has no option `step`; the options are `decay`, `order`.'
    ):
        route((("step", 1),), "lib", ("step",), integrate, average)


def test_initial_metric_must_fit():
    assert initial_metric((1.0, 2.0), False, 2).shape == (2,)
    assert initial_metric(((1.0, 0.0), (0.0, 1.0)), True, 2).shape == (2, 2)
    with pytest.raises(ValueError, match=r"shape \(3,\) here; got \(2,\)"):
        initial_metric((1.0, 2.0), False, 3)
