"""Progress of a run, drawn from the main thread between chunks: a line for each chain."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

MOST_LINES = 8  # chains with a line each; more share one


class ChainProgress(NamedTuple):
    """How a chain fares.

    Attributes:
        number: Its number.
        steps: Steps made.
        warming: Whether it is warming up.
        divergences: Divergent transitions after warm-up; None if the engine has none.
        step_size: The last step size; None if the engine has none.
    """

    number: int
    steps: int
    warming: bool
    divergences: int | None
    step_size: float | None


class Tally:
    """What a worker's chains have recorded so far, as far as progress shows it."""

    def __init__(self, replica: np.ndarray, warmup: int):
        """Begin.

        Args:
            replica: Number of the chain, or numbers of all chains that run together.
            warmup: Steps of warm-up.
        """
        self.replica = np.atleast_1d(replica)
        self.warmup = warmup
        self.divergences: np.ndarray | None = None
        self.step_size: np.ndarray | None = None

    def add(self, start: int, piece: PyTree) -> None:
        """Count what one call recorded.

        Args:
            start: Its first step.
            piece: The stacked `Info`, chains first if they run together.
        """
        stats: Any = getattr(piece, "stats", None)
        stats = stats if isinstance(stats, dict) else {}
        by_chain = lambda name: np.asarray(stats[name]).reshape(len(self.replica), -1)
        if "diverging" in stats:
            after = by_chain("diverging")[:, max(self.warmup - start, 0) :].sum(axis=1)
            self.divergences = after + (0 if self.divergences is None else self.divergences)
        if "step_size" in stats and by_chain("step_size").size:
            self.step_size = by_chain("step_size")[:, -1]

    def chains(self, stops: np.ndarray) -> list[ChainProgress]:
        """Return how each chain fares.

        Args:
            stops: Steps that each has made.
        """
        at = lambda values, i: None if values is None else values[i].item()
        return [
            ChainProgress(
                int(number),
                int(steps),
                steps < self.warmup,
                at(self.divergences, i),
                at(self.step_size, i),
            )
            for i, (number, steps) in enumerate(zip(self.replica, np.atleast_1d(stops)))
        ]


@contextmanager
def progress_bar(name: str, console: Any = None) -> Iterator[Callable[..., None]]:
    """Show progress on standard error: of all, and of each chain if chains are told.

    Args:
        name: Of what runs.
        console: Where else to draw, a console of rich.

    Yields:
        A function of steps made, steps in all and, if there are chains, how each fares.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True)) as bar:
        tasks = [bar.add_task(f"{name}: compiling", total=None, state="")]
        early = False  # an engine may be done before its last step

        def update(made: int, total: int, chains: Sequence[ChainProgress] = ()) -> None:
            nonlocal early
            early = bool(chains)
            lines = chains if 1 < len(chains) <= MOST_LINES else ()
            while lines and len(tasks) < len(lines):
                tasks.append(bar.add_task("", total=None, state=""))
            if not lines:
                state = words(chains, bar.tasks[0].speed)
                bar.update(tasks[0], completed=made, total=total, description=name, state=state)
            for task, chain in zip(tasks, lines):
                state = words([chain], bar.tasks[task].speed)
                bar.update(
                    task,
                    completed=chain.steps,
                    total=total // len(lines),
                    description=f"{name} chain {chain.number}",
                    state=state,
                )

        yield update
        for task in tasks:
            now = bar.tasks[task]
            done = now.description.removesuffix(": compiling")
            bar.update(task, total=now.completed if early else now.total, description=done)


def words(chains: Sequence[ChainProgress], speed: float | None) -> str:
    """Return what there is to say of chains, in a few words.

    Args:
        chains: One, or all that share a line.
        speed: Steps of all of them a second.
    """
    if not chains:
        return ""
    said = ["warm-up" if any(chain.warming for chain in chains) else "sampling"]
    divergences = [c.divergences for c in chains if c.divergences is not None]
    if divergences and not all(chain.warming for chain in chains):
        said.append(f"{sum(divergences)} divergent")
    sizes = [c.step_size for c in chains if c.step_size is not None]
    if sizes:
        said.append(f"step {np.median(sizes):.3g}")
    if speed:
        what = "steps" if said[0] == "warm-up" else "draws"
        said.append(f"{speed:.3g} {what}/s" if speed < 1000 else f"{speed:.0f} {what}/s")
    return ", ".join(said)
