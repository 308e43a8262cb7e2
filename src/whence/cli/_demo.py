"""`whence demo`: the whole path, from a model and data to a verdict and a plot."""

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from ..core import enable_x64
from ..inference.hmc import NUTS
from ..posterior import Posterior
from . import _errors
from ._engines import build_engine, find_engine
from ._fit import check_seed, run_fit
from ._load import load_target
from ._text import heading, print_posterior, timings_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STORY = """\
Eight schools each tested a coaching programme for the SAT-V and reported its effect, in
points, with a standard error (Rubin 1981). Taken one by one, the reports are noisy: +28
at Choate, -3 at Phillips Andover. The model lets the schools learn from one another:

    mu     ~ Normal(0, 5)                 the average effect
    tau    ~ HalfCauchy(5)                how much the effect differs between schools
    theta  ~ Normal(mu, tau)              the effect in each school
    y      ~ Normal(theta, sigma)         what each school reports
"""


def run_demo(out: Path, engine: str, seed: int, *, import_seconds: float) -> bool:
    """Fit the eight schools, write plot, posterior and model; say if it was interrupted."""
    begin = time.perf_counter()
    check_seed(seed)
    enable_x64()
    from . import _eight_schools as schools

    chosen = find_engine(engine)
    # Where tau is close to 0 the posterior is a narrow funnel: smaller steps than usual.
    configured = build_engine(chosen, ["target_accept=0.95"] * (chosen is NUTS))
    out.mkdir(parents=True, exist_ok=True)
    model = out / "eight_schools.py"
    _ask_before_replacing(model, Path(schools.__file__))
    heading("whence demo: eight schools")
    typer.echo(_STORY)
    typer.echo(f"Fitting it with {configured.name}. The first time includes compilation.")
    # The model that is handed out is the one that is fitted.
    shutil.copyfile(schools.__file__, model)
    posterior = run_fit(load_target(f"{model}:target"), configured, seed)
    files = _write(posterior, schools, out, model)
    print_posterior(posterior)
    heading("What it says")
    typer.echo(_findings(posterior, schools))
    heading("Timings")
    everything = import_seconds + time.perf_counter() - begin
    parts = {n: s for n, s in posterior.seconds.items() if n != "total"}
    seconds = {"import": import_seconds, **parts, "total": everything}
    typer.echo(timings_text(seconds) + " (total includes the summary and the plot)")
    _next_steps(*files)
    if not posterior.complete:
        _errors.say("these are the draws made so far.", lead="interrupted")
    return not posterior.complete


def _ask_before_replacing(model: Path, original: Path) -> None:
    """Ask before an edited model is written over; without a terminal, refuse."""
    if not model.exists() or model.read_bytes() == original.read_bytes():
        return
    if sys.stdin.isatty() and typer.confirm(f"{model} has been edited. Replace it?"):
        return
    raise _errors.UsageProblem(
        f"{model} exists and is not the demo's model: it would be written over. Move it, or "
        "name another folder with `--out`."
    )


def _write(
    posterior: Posterior, schools: Any, out: Path, model: Path
) -> tuple[Path, Path, Path]:
    saved, plot = out / "posterior.nc", out / "effects.png"
    posterior.save(saved)
    plot_effects(posterior, schools, plot)
    return plot, saved, model


def _findings(posterior: Posterior, schools: Any) -> str:
    equal = _equally_weighted(posterior)
    theta = equal["theta"].reshape(-1, len(schools.SCHOOLS))
    low, middle, high = np.quantile(theta[:, 0], [0.055, 0.5, 0.945])
    tau = np.quantile(equal["tau"], [0.055, 0.945])
    better = np.mean(theta[:, 0] > theta[:, 2])
    positive = np.mean(equal["mu"] > 0)
    return (
        f"Coaching helps on average with probability {positive:.2f}. Choate reported +28; "
        f"given the\nother schools its effect is about {middle:.0f} points (89% interval "
        f"{low:.0f} to {high:.0f}). Schools differ\nby {tau[0]:.1f} to {tau[1]:.1f} points "
        "(standard deviation, 89% interval). The probability that Choate's\nprogramme is "
        f"better than Phillips Andover's is {better:.2f}, although they reported +28 and -3."
    )


def _next_steps(plot: Path, saved: Path, model: Path) -> None:
    heading("Files")
    typer.echo(f"{plot}  the plot\n{saved}  the posterior\n{model}  the model, yours to edit")
    heading("Try next")
    typer.echo(
        f"whence report {saved} --target {model}:target\n"
        f"whence fit {model}:target --set target_accept=0.7   (bolder steps: what does the "
        "verdict say?)\nwhence engines"
    )


def plot_effects(posterior: Posterior, schools: Any, path: Path) -> None:
    """Draw reported and estimated effects side by side, and the scale `tau`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    equal = _equally_weighted(posterior)
    with plt.rc_context({"font.size": 11}):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11, 5.4), width_ratios=[2.2, 1], layout="constrained"
        )
        _draw_effects(left, equal, schools)
        _draw_scale(right, equal["tau"].ravel())
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=150)
        plt.close(figure)


_REPORTED, _ESTIMATED = "#9a9a9a", "#1f5fa8"


def _draw_effects(axes: "Axes", equal: Posterior, schools: Any) -> None:
    rows = np.arange(len(schools.SCHOOLS))[::-1]
    y, error = np.asarray(schools.EFFECT), np.asarray(schools.STANDARD_ERROR)
    theta = equal["theta"].reshape(-1, len(rows))
    wide = np.quantile(theta, [0.055, 0.945], axis=0)
    narrow = np.quantile(theta, [0.25, 0.75], axis=0)
    axes.errorbar(
        y, rows + 0.16, xerr=error, fmt="o", color=_REPORTED, ms=5, lw=1.2, capsize=3,
        label="reported, ± 1 standard error",
    )  # fmt: skip
    axes.hlines(rows - 0.16, *wide, color=_ESTIMATED, lw=1.6)
    axes.hlines(rows - 0.16, *narrow, color=_ESTIMATED, lw=5)
    axes.plot(
        np.median(theta, axis=0), rows - 0.16, "o", color="white", mec=_ESTIMATED, ms=6,
        label="estimated: median, 50% and 89% interval",
    )  # fmt: skip
    mean = equal["mu"].mean()
    axes.axvline(mean, color=_ESTIMATED, lw=1, ls="--", alpha=0.6, zorder=0)
    axes.annotate(
        f"average effect {mean:.1f}", (mean, 1), (4, -2), xycoords=("data", "axes fraction"),
        textcoords="offset points", color=_ESTIMATED, fontsize=9, va="top",
    )  # fmt: skip
    axes.axvline(0, color="black", lw=0.8, zorder=0)
    axes.set_yticks(rows, schools.SCHOOLS)
    axes.set_ylim(-0.7, len(rows) - 0.1)
    axes.set_xlabel("effect of coaching (SAT-V points)")
    axes.set_title("Schools learn from one another", loc="left")
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.02, -0.1), ncols=2, fontsize=9, frameon=False
    )


def _draw_scale(axes: "Axes", tau: np.ndarray) -> None:
    top = np.quantile(tau, 0.99)
    axes.hist(tau[tau <= top], bins=40, density=True, color=_ESTIMATED, alpha=0.8)
    axes.axvline(np.median(tau), color="black", lw=1)
    axes.set_xlim(0, top)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("tau (SAT-V points)")
    axes.set_title("How much schools differ", loc="left")
    axes.annotate(
        f"median {np.median(tau):.1f}", (np.median(tau), 0.97), (4, 0), fontsize=9,
        xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
    )  # fmt: skip


def _equally_weighted(posterior: Posterior) -> Posterior:
    import jax

    if posterior.log_weights is None:
        return posterior
    total = posterior.num_chains * posterior.num_draws
    return posterior.resample(total, key=jax.random.key(0))
