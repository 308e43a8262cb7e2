"""What the commands print of a posterior."""

import textwrap
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ..core import AbstractEngine, AbstractTarget, InferenceWarning, Posterior, infer, resume

MOST_ROWS = 40


def run(
    target: AbstractTarget, engine: AbstractEngine, seed: int, store: Path | None = None
) -> Posterior:
    """Run `infer` without its warnings: the verdict, printed soon after, says the same."""
    import jax

    with _quiet():
        return infer(target, engine, key=jax.random.key(seed), store=store)


def go_on(store: Path, target: AbstractTarget) -> Posterior:
    """Run `resume` without its warnings, as `run` does `infer`."""
    with _quiet():
        return resume(store, target)


@contextmanager
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)
        yield


def heading(text: str) -> None:
    """Print the title of a block."""
    typer.echo("\n" + typer.style(text, bold=True))


def print_posterior(posterior: Posterior) -> None:
    """Print ArviZ's summary and the verdict."""
    kind = "particles" if posterior.log_weights is not None else "draws"
    chains = posterior.num_chains
    heading(
        f"Summary ({posterior.engine}, {chains} chain{'s' * (chains > 1)} of "
        f"{posterior.num_draws} {kind})"
    )
    typer.echo(table_text(posterior.summary()))
    heading("Verdict")
    report = posterior.diagnose()
    head, _, rest = str(report).partition("\n\n")
    head = "\n".join(textwrap.fill(line, 92) for line in head.splitlines())
    typer.echo(typer.style(head, fg="green" if report.ok else "yellow"))
    typer.echo(rest)


def table_text(table: Any) -> str:
    """Return a summary table, a DataFrame, as text, cut after `MOST_ROWS` rows."""
    text = table.head(MOST_ROWS).to_string()
    more = len(table) - MOST_ROWS
    return text if more <= 0 else f"{text}\n... and {more} rows more, all in `whence report`"


def timings_text(seconds: Mapping[str, float]) -> str:
    """Return durations in one line."""
    return ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
