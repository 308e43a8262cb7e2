"""`whence fit`: run, save, then judge."""

from pathlib import Path

import typer

from ..core import AbstractEngine, AbstractTarget
from ._errors import say
from ._text import heading, print_posterior, run, timings_text


def fit_and_save(target: AbstractTarget, engine: AbstractEngine, seed: int, out: Path) -> bool:
    """Fit a target, write the posterior, and print summary and verdict.

    Args:
        target: What to fit.
        engine: How.
        seed: Seed of the run's key.
        out: netCDF file to write.

    Returns:
        Whether the run was complete; False after Ctrl-C.
    """
    posterior = run(target, engine, seed)
    posterior.save(out)  # before anything else can go wrong
    if not posterior.complete:
        say(
            f"{posterior.num_draws} draws per chain, those made so far, are in {out}, marked "
            "incomplete.",
            lead="interrupted",
        )
    print_posterior(posterior)
    heading("Timings")
    typer.echo(timings_text(posterior.seconds))
    typer.echo(f"\nWrote {out}. For plots: whence report {out}")
    return posterior.complete
