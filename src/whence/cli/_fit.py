"""`whence fit` and `whence resume`: save, then judge."""

from pathlib import Path

import typer

from ..core import Posterior
from ._errors import say
from ._text import heading, print_posterior, timings_text


def save_and_judge(posterior: Posterior, out: Path) -> bool:
    """Write a posterior, and print summary and verdict.

    Args:
        posterior: What a run returned.
        out: netCDF file to write.

    Returns:
        Whether the run was complete; False after Ctrl-C.
    """
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
