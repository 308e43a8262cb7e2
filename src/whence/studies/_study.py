"""What a study is: a function that computes tables and draws figures into a folder."""

import csv
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..running._executor import check_executor, run_all

SIZES = ("small", "full")


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked of a study.

    Attributes:
        out: Folder for tables and figures; it exists.
        data: Folder with data that are not part of the package, or None: a study then
            makes what it can without them and says what it left out.
        size: `"small"`, which takes a minute or two, or `"full"`, at the size of the paper.
        seed: Same seed, same results.
        say: Called with a line of progress.
        executor: Any `concurrent.futures.Executor` for independent parts; None for one after
            another in this process.
    """

    out: Path
    data: Path | None
    size: str
    seed: int
    say: Callable[[str], None]
    executor: Any = None

    def map(self, function: Callable[..., Any], calls: Sequence[tuple]) -> list[Any]:
        """Return `function(*call)` of every call, in order.

        Args:
            function: A module-level function.
            calls: Arguments of each call, none of which depends on another's result.
        """
        if self.executor is None:
            return [function(*call) for call in calls]
        return run_all(self.executor, function, calls)


class Table(NamedTuple):
    """A table of results.

    Attributes:
        name: Of its file, without ending.
        title: What it shows, units included.
        columns: Names of the columns.
        rows: Entries, as they are to be read.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table in Markdown, with its title."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows)]

        def line(entries):
            return "| " + " | ".join(e.ljust(w) for e, w in zip(entries, widths)) + " |"

        rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
        return "\n".join([self.title, "", line(self.columns), rule, *map(line, self.rows)])


def mean_of(values: Any, digits: int = 3) -> str:
    """Return the mean of repetitions as an entry, with its standard error if several."""
    entry = f"{np.mean(values):.{digits}f}"
    if len(values) < 2:
        return entry
    return f"{entry} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}"


class Study(NamedTuple):
    """A paper's experiment.

    Attributes:
        name: As on the command line.
        summary: One line.
        run: Draws figures into the folder and gives tables, each as soon as it is there.
    """

    name: str
    summary: str
    run: Callable[[Request], Iterable[Table]]


def carry_out(study: Study, request: Request) -> Sequence[Table]:
    """Run a study and write its tables, as CSV one by one and as Markdown together.

    Each is written as soon as it is there, and of a study that is broken off those stay.

    Raises:
        ValueError: If the size is not one of `SIZES`, or the folder of data is missing.
    """
    if request.size not in SIZES:
        raise ValueError(f"`size` must be one of {', '.join(SIZES)}; got {request.size!r}.")
    if request.data is not None and not request.data.is_dir():
        raise ValueError(f"`data` must be a folder; {request.data} is not.")
    check_executor(request.executor)
    request.out.mkdir(parents=True, exist_ok=True)
    tables = []
    for table in study.run(request):
        tables.append(table)
        with (request.out / f"{table.name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([table.columns, *table.rows])
        whole = "\n\n".join(table.markdown() for table in tables)
        (request.out / "tables.md").write_text(whole + "\n")
    return tables
