"""`whence fit` and what goes on with a stored fit: run, save, then judge."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ..core import AbstractEngine, AbstractTarget, InferenceWarning
from ..core._key import LARGEST
from ..posterior import Posterior
from ..running import Until, infer
from ._errors import UsageProblem, say
from ._load import absolute_spec
from ._text import heading, print_posterior, timings_text


def run_fit(
    target: AbstractTarget,
    engine: AbstractEngine,
    seed: int,
    until: Until | None = None,
    store: Path | None = None,
    spec: str | None = None,
    mesh: Any = None,
) -> Posterior:
    """Run `infer` with a key made of a seed."""
    import jax

    source = absolute_spec(spec) if spec else None
    key = jax.random.key(seed)
    with quiet():
        return infer(
            target, engine, key=key, until=until, store=store, source=source, mesh=mesh
        )


def check_seed(seed: int) -> None:
    """Raise unless every bit of a seed counts, in float32 as in float64."""
    if not 0 <= seed <= LARGEST:
        raise UsageProblem(f"--seed must be from 0 to {LARGEST}; got {seed}.")


def is_silent() -> bool:
    """Whether another process writes and prints."""
    import jax

    return jax.process_index() != 0


@contextmanager
def quiet() -> Iterator[None]:
    """Run without the warnings of `infer`: the verdict, printed soon after, says the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)
        yield


def save_and_judge(posterior: Posterior, out: Path | None, store: Path | None) -> bool:
    """Write a posterior to `out`, if given; print and judge it; say if it was complete."""
    place = out or store
    if out is not None:
        posterior.save(out)  # before anything else can go wrong
    if not posterior.complete:
        say(
            f"{posterior.num_draws} draws per chain, those made so far, are in {place}, marked "
            "incomplete.",
            lead="interrupted",
        )
    print_posterior(posterior)
    heading("Timings")
    typer.echo(timings_text(posterior.seconds))
    if posterior.stopped:
        heading("Why it ended")
        typer.echo(posterior.stopped)
    typer.echo(f"\nWrote {place}. For plots: whence report {place}")
    return posterior.complete
