"""What the commands print of a posterior."""

import textwrap
from collections.abc import Mapping
from typing import Any

import typer

from ..posterior import Posterior

MOST_ROWS = 40


def heading(text: str) -> None:
    """Print the title of a block."""
    typer.echo("\n" + typer.style(text, bold=True))


def print_posterior(posterior: Posterior) -> None:
    """Print ArviZ's summary and the verdict."""
    kind = "particles" if posterior.sample.method == "smc" else "draws"
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
