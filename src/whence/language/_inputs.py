"""Inputs of a likelihood: what they are called, and what a user gave for which."""

import inspect
from collections.abc import Mapping
from typing import Any

from ._model import Model


def described_method(model: Model) -> str:
    """Return the name of the method that says how data are distributed."""
    own = type(model).likelihood is not Model.likelihood
    return "likelihood" if own else "log_likelihood"


def parameters(model: Model) -> list[str]:
    """Return the names of the inputs of `likelihood`, or of `log_likelihood` after `y`."""
    method = described_method(model)
    return list(inspect.signature(getattr(model, method)).parameters)[method != "likelihood" :]


def bound(model: Model, inputs: tuple, named: Mapping[str, Any]) -> tuple:
    """Return inputs in the order of the likelihood.

    Args:
        model: The model.
        inputs: Those given by position.
        named: Those given by name.

    Raises:
        ValueError: If they are not those of the likelihood.
    """
    method = described_method(model)
    given = tuple(inputs) if method == "likelihood" else (None, *inputs)
    try:
        found = inspect.signature(getattr(model, method)).bind(*given, **named)
    except TypeError as error:
        known = ", ".join(parameters(model)) or "none"
        raise ValueError(
            f"`predict` must be given the inputs of `{method}` of {type(model).__name__} "
            f"({known}): {error}."
        ) from None
    if found.kwargs:  # given by name, after others that were left out
        found.apply_defaults()
    return found.args if method == "likelihood" else found.args[1:]
