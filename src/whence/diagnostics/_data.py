"""The draws in the form that all checks use, with shapes checked once."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ._names import Namer

# Statistics that are read, and what other libraries call them.
READ = {
    "acceptance_rate": ("accept_prob", "accept_stat__", "acceptance", "mean_tree_accept"),
    "diverging": ("divergent", "divergence", "divergences", "divergent__", "is_divergent"),
    "energy": ("energy__", "hamiltonian"),
    "lp": ("lp__", "logp", "log_density"),
    "n_steps": ("n_leapfrog__", "num_steps", "num_integration_steps"),
    "reached_max_treedepth": ("reached_max_tree_depth",),
    "step_size": ("stepsize__", "stepsize"),
    "tree_depth": ("treedepth__", "treedepth", "num_trajectory_expansions"),
}
OTHER_NAMES = {other: name for name, others in READ.items() for other in others}


class Draws:
    """Variables, statistics and positions of one posterior, all `(chain, draw, ...)`.

    Attributes:
        variables: By name.
        stats: By name.
        unconstrained: By name; empty if they were not given.
        name: Names an element of a variable.
    """

    def __init__(
        self,
        variables: Any,
        stats: Any,
        unconstrained: Mapping[str, np.ndarray] | np.ndarray | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Any] | None = None,
    ):
        for argument, given in (("variables", variables), ("stats", stats)):
            if not isinstance(given, Mapping):
                raise ValueError(
                    f"`{argument}` must be a dict of arrays by name; got a "
                    f"{type(given).__name__}."
                )
        if not variables:
            raise ValueError("`variables` must have at least one variable; got none.")
        for name in OTHER_NAMES.keys() & stats.keys():
            known = OTHER_NAMES[name]
            raise ValueError(
                f"`stats` must have ArviZ's names: {known!r} in place of {name!r}."
            )
        if unconstrained is None:
            unconstrained = {}
        elif not isinstance(unconstrained, Mapping):
            unconstrained = {"position": unconstrained}
        self.variables = {name: np.asarray(value) for name, value in variables.items()}
        self.stats = {name: np.asarray(value) for name, value in stats.items()}
        self.unconstrained = {name: np.asarray(value) for name, value in unconstrained.items()}
        self.name = Namer(dims, coords)
        first = next(iter(self.variables.values()))
        self.num_chains, self.num_draws = first.shape[:2] if first.ndim >= 2 else (0, 0)
        for argument in ("variables", "stats", "unconstrained"):
            for name, value in getattr(self, argument).items():
                self._check_shape(argument, name, value)
        for name, axes in (dims or {}).items():
            value = self.variables.get(name)
            if value is not None and len(axes) > value.ndim - 2:
                raise ValueError(
                    f"`dims[{name!r}]` must have at most a name for each of its "
                    f"{value.ndim - 2} axes after chain and draw; got {tuple(axes)}."
                )

    def _check_shape(self, argument: str, name: str, value: np.ndarray) -> None:
        leading = (self.num_chains, self.num_draws)
        if value.dtype.kind not in "biufc":
            raise ValueError(
                f"`{argument}[{name!r}]` must be numbers; got dtype {value.dtype}."
            )
        rank = "(chain, draw)" if argument == "stats" and name in READ else "(chain, draw, ...)"
        is_long = value.ndim > 2 and "..." not in rank
        if value.ndim < 2 or is_long or value.shape[:2] != leading or 0 in leading:
            raise ValueError(
                f"`{argument}[{name!r}]` must have shape {rank}, with at least one "
                f"chain and draw and the same numbers of them everywhere; got {value.shape}"
                f"{'' if 0 in leading else f' where others have {leading}'}."
            )

    @cached_property
    def positions(self) -> np.ndarray:
        """All unconstrained coordinates (else all variables), `(chain, draw, element)`."""
        source = self.unconstrained or self.variables
        parts = [
            value.reshape(self.num_chains, self.num_draws, -1)
            for value in source.values()
            if np.issubdtype(value.dtype, np.number)
        ]
        return np.concatenate(parts, axis=2) if parts else np.zeros((*self.leading, 0))

    def coordinates(self) -> list[str]:
        """Name the entries of a flat position (else of all variables), in their order."""
        names = []
        for name, value in (self.unconstrained or self.variables).items():
            # A simplex has fewer free entries than entries: none of them is one of those.
            other = name in self.variables and self.variables[name].shape != value.shape
            each = lambda i, n=name, v=value: self.name(n, v.shape[2:], i)
            count = math.prod(value.shape[2:])
            names += [name] * count if other else [each(i) for i in range(count)]
        return names

    @property
    def leading(self) -> tuple[int, int]:
        """Numbers of chains and draws."""
        return self.num_chains, self.num_draws

    def elements(self) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
        """Yield name, shape of one draw, and draws as `(chain, draw, element)`."""
        for name, value in self.variables.items():
            shape = value.shape[2:]
            yield name, shape, value.reshape(*self.leading, math.prod(shape))
