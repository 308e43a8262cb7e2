"""The commands. They parse, call the library, and print what it says."""

import os
import shutil
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from ..storage import as_path, check_destination
from ..studies import names
from ._errors import INTERRUPTED, UsageProblem, message, one_paragraph

IMPORT_SECONDS = time.process_time()  # CPU time since the process began

app = typer.Typer(
    help="Bayesian inference on models written in Python. Start with `whence demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Spec = Annotated[str, typer.Argument(metavar="FILE.py:NAME", help="A target in a file.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]
Float32 = Annotated[bool, typer.Option("--float32", help="Compute in float32, not float64.")]
Engine = Annotated[
    str, typer.Option("--engine", "-e", help="See `whence engines`; or FILE.py:NAME.")
]
StoredEngine = Annotated[
    str | None,
    typer.Option("--engine", "-e", help="The run's engine, if not whence's own: FILE.py:NAME."),
]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same draws; below 2**32.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        parser=as_path,
        help="netCDF file (or .zarr) to write; by default posterior.nc, or only the store.",
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run whatever Python file the store names.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
Store = Annotated[
    Path, typer.Argument(metavar="STORE", parser=as_path, help="From `whence fit --store`.")
]
StoredSpec = Annotated[
    str | None,
    typer.Argument(metavar="FILE.py:NAME", help="The target; by default the one it was."),
]
Ess = Annotated[float | None, typer.Option("--ess", help="Run until this ESS is reached.")]
Rhat = Annotated[float | None, typer.Option("--rhat", help="Run until R-hat is this or less.")]
MaxDraws = Annotated[
    int | None, typer.Option("--max-draws", help="Most draws per chain, with --ess or --rhat.")
]
MaxSeconds = Annotated[float | None, typer.Option("--max-seconds", help="Most seconds.")]
POSTERIOR = Path("posterior.nc")


def main() -> None:
    """Run the command line."""
    # Plots go to files: no window system is asked for.
    os.environ.setdefault("MPLBACKEND", "Agg")
    app(prog_name="whence")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Say the version, if that is all that was asked."""
    if version:
        import whence

        typer.echo(f"whence {whence.__version__}")
        raise typer.Exit


@app.command()
@one_paragraph
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", parser=as_path, help="Folder.")] = Path(
        "whence-demo"
    ),
    engine: Engine = "nuts",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Fit a hierarchical model to real data (a minute at most), with a verdict and a plot."""
    from ._demo import run_demo

    _exit_if(run_demo(out, engine, seed, import_seconds=IMPORT_SECONDS))


@app.command()
@one_paragraph
def check(target: Spec, float32: Float32 = False, debug: Debug = False) -> None:
    """Look for what is wrong with a target before it is fitted; exit code 1 if anything is."""
    from ..core import enable_x64
    from ..language import check as check_target
    from ._load import load_target

    enable_x64(not float32)
    report = check_target(load_target(target))
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
@one_paragraph
def fit(
    target: Spec,
    engine: Engine = "nuts",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="NAME=VALUE", help="Setting of the engine."),
    ] = None,
    seed: Seed = 0,
    ess: Ess = None,
    rhat: Rhat = None,
    max_draws: MaxDraws = None,
    max_seconds: MaxSeconds = None,
    out: Out = None,
    overwrite: Overwrite = False,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            parser=as_path,
            help="New folder to write the run to as it goes; see `whence resume`.",
        ),
    ] = None,
    mesh: Annotated[
        str | None, typer.Option("--mesh", help="Devices, as chain=4,data=2: what they divide.")
    ] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="This is one of several processes.")
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option("--coordinator", help="HOST:PORT of process 0.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", help="How many processes there are.")
    ] = None,
    process: Annotated[
        int | None, typer.Option("--process", help="Which one this is, from 0.")
    ] = None,
    float32: Float32 = False,
    debug: Debug = False,
) -> None:
    """Fit a target and write the posterior. Ctrl-C stops early and keeps the draws so far."""
    from ..core import enable_x64
    from ._devices import prepare_devices
    from ._engines import build_engine, find_engine
    from ._fit import check_seed, is_silent, run_fit, save_and_judge
    from ._load import load_target

    enable_x64(not float32)
    check_seed(seed)
    configured = build_engine(find_engine(engine), settings or [])
    out = out or (POSTERIOR if store is None else None)
    _check_out(out, overwrite)
    until = _until(ess, rhat, max_draws, max_seconds)
    arranged = prepare_devices(mesh, distributed, coordinator, processes, process)
    loaded = load_target(target)
    posterior = run_fit(loaded, configured, seed, until, store, target, arranged)
    if distributed and is_silent():
        return
    _exit_if(not save_and_judge(posterior, out, store), INTERRUPTED)


@app.command()
@one_paragraph
def resume(
    store: Store,
    target: StoredSpec = None,
    engine: StoredEngine = None,
    out: Out = None,
    overwrite: Overwrite = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Go on with a fit that was stopped or killed, to the same draws bit for bit."""
    from ..running import resume

    _go_on(resume, _Named(store, target, engine, trust), out, overwrite)


@app.command()
@one_paragraph
def extend(
    store: Store,
    target: StoredSpec = None,
    engine: StoredEngine = None,
    draws: Annotated[
        int | None, typer.Option("--draws", "-n", help="How many more draws per chain.")
    ] = None,
    ess: Ess = None,
    rhat: Rhat = None,
    max_draws: MaxDraws = None,
    max_seconds: MaxSeconds = None,
    out: Out = None,
    overwrite: Overwrite = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Add draws to the end of a stored fit, as if it had made so many from the start."""
    from ..running import extend

    until = _until(ess, rhat, max_draws, max_seconds)
    if (draws is None) == (until is None):
        raise UsageProblem("Say either --draws, or when to end: --ess, --rhat and the like.")
    stored = _Named(store, target, engine, trust)
    _go_on(extend, stored, out, overwrite, draws=draws, until=until)


@app.command()
@one_paragraph
def replay(
    store: Store,
    target: StoredSpec = None,
    engine: StoredEngine = None,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Run a stored fit again and say whether its draws agree; exit code 1 if they do not."""
    from ..running import replay
    from ._fit import quiet

    loaded, built = _stored(_Named(store, target, engine, trust))
    with quiet():
        found = replay(store, loaded, engine=built)
    typer.echo(f"{found.tier}\n{found}")
    _exit_if(not found.ok)


@app.command()
@one_paragraph
def report(
    posterior: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", parser=as_path, help="A file of `whence fit`, or a store."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", parser=as_path, help="Folder, or .html file; by default beside PATH."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="FILE.py:NAME",
            help="What was fitted; adds predictive checks. A store knows its own.",
        ),
    ] = None,
    engine: StoredEngine = None,
    trust: Trust = False,
    png: Annotated[bool, typer.Option("--png", help="Write the plots as PNG too.")] = False,
    debug: Debug = False,
) -> None:
    """Write a report in one HTML file: verdict, summary, timings and plots."""
    from ..core import enable_x64
    from ..running import load
    from ._load import load_target
    from ._report import prepared, write_report

    path = prepared(_html_path(posterior, out))
    if (posterior / "manifest.json").is_file():
        loaded, built = _stored(_Named(posterior, target, engine, trust))
        fitted = load(posterior, target=loaded, engine=built)
    else:
        fitted = load(posterior)
        if target:
            # The target's data must have the type they had in the fit.
            enable_x64(bool(fitted.manifest.get("x64", True)))
            fitted = load(posterior, target=load_target(target))
    for written in write_report(fitted, posterior.stem, path, png=png):
        typer.echo(str(written))


@app.command()
@one_paragraph
def engines(debug: Debug = False) -> None:
    """List the engines with their settings and defaults."""
    from ._engines import print_engines

    print_engines(shutil.get_terminal_size().columns)


@app.command()
@one_paragraph
def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(names())}.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", parser=as_path, help="Folder; by default whence-NAME."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", parser=as_path, help="Folder with data that are not bundled."),
    ] = None,
    size: Annotated[str, typer.Option("--size", help="small (minutes) or full.")] = "small",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Repeat a paper's experiment: tables and figures into a folder."""
    from ..core import enable_x64
    from ..studies import Request, carry_out, study
    from ._fit import check_seed

    enable_x64(True)
    check_seed(seed)
    found = study(name)
    folder = out or Path(f"whence-{name}")
    tables = carry_out(found, Request(folder, data, size, seed, typer.echo))
    for table in tables:
        typer.echo(f"\n{table.markdown()}")
    typer.echo(f"\nWritten to {folder}.")


def _exit_if(condition: bool, code: int = 1) -> None:
    if condition:
        raise typer.Exit(code)


class _Named(NamedTuple):
    """A stored run, as it was typed."""

    store: Path
    target: str | None
    engine: str | None
    trust: bool


def _go_on(run, named: _Named, out: Path | None, overwrite: bool, **more) -> None:
    """Run `resume` or `extend` on a store, and write and judge the posterior."""
    from ._fit import quiet, save_and_judge

    loaded, built = _stored(named)
    _check_out(out, overwrite)
    with quiet():
        posterior = run(named.store, loaded, engine=built, **more)
    _exit_if(not save_and_judge(posterior, out, named.store), INTERRUPTED)


def _until(ess, rhat, max_draws, max_seconds):
    from ..running import Until

    wishes = {"ess": ess, "rhat": rhat, "max_draws": max_draws, "max_seconds": max_seconds}
    given = {name: value for name, value in wishes.items() if value is not None}
    return Until(**given) if given else None


def _stored(named: _Named):
    """Return target and engine of a stored run, in its precision; None for an own engine."""
    from ..core import enable_x64
    from ..running._manifest import open_store
    from ._engines import stored_engine
    from ._load import load_target, trusted

    store = open_store(named.store)
    # Data must have the type they had when the run began.
    enable_x64(store.manifest["x64"])
    built = stored_engine(store.manifest["configuration"], named.engine)
    target = named.target or trusted(store.manifest.get("source"), named.store, named.trust)
    return load_target(target), built


def _check_out(out: Path | None, overwrite: bool) -> None:
    """Refuse before the fit what would lose its result after it."""
    if out is None:
        return
    if out.is_dir() and out.suffix != ".zarr":
        raise UsageProblem(f"--out must be a file such as posterior.nc; {out} is a folder.")
    if not out.parent.is_dir():
        raise UsageProblem(f"--out must be in an existing folder; {out.parent} is not one.")
    if out.exists() and not overwrite:
        raise UsageProblem(f"{out} exists; add --overwrite, or choose another with --out.")
    try:
        check_destination(out)
    except OSError as error:
        raise UsageProblem(f"--out cannot be {out}: {message(error)}") from error


def _html_path(posterior: Path, out: Path | None) -> Path:
    if out is None:
        return posterior.with_suffix(".html")
    return out if out.suffix == ".html" else out / f"{posterior.stem}.html"
