"""Scale mixtures of neural network Gaussian processes: where the law of the scale matters.

Lee, Yun, Yang, Lee (2022), arXiv:2107.01408. The protocols are stated in the tables' titles;
kernels and noise are chosen by evidence, and all scores are of observations, noise included,
in the unit of the data.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..testing import load_shipped
from . import _smnngp_images as images, _smnngp_regression as regression
from ._study import Request, Study, Table, mean_of

_UCI = ("bostonHousing", "energy", "concrete")
_SMALL_N = (5, 10, 20, 100)
# An independent NumPy run of the same protocol: mean and standard error over 10 splits.
_REFERENCE = {
    "bostonHousing": "2.304 ± 0.036",
    "energy": "0.713 ± 0.053",
    "concrete": "2.980 ± 0.035",
}


def _run(request: Request) -> Iterator[Table]:
    small = request.size == "small"
    bushes, _ = load_shipped("mesquite-logmesquite")
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    x = np.log(np.stack([np.asarray(bushes[name], float) for name in names], 1))
    sets = {"mesquite": (x, np.log(np.asarray(bushes["weight"], float)))}
    if request.data is None:
        request.say("No --data: the UCI table and the images are left out.")
    else:
        found = {name: _read(request.data, name) for name in _UCI}
        sets |= {name: found[name] for name in ("concrete", "energy")}
    yield _few_rows(request, sets, repeats=10 if small else 100)
    if request.data is not None:
        yield _uci(request, found, splits=2 if small else 10)
        yield from _images(request, 700 if small else 3500, 300 if small else 1000)


def _read(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    file = data / "uci" / f"{name}.npz"
    if not file.is_file():
        raise ValueError(f"`data` must hold uci/{name}.npz (arrays x and y); {data} does not.")
    with np.load(file) as stored:
        return stored["x"].astype(float), stored["y"].astype(float)


def _few_rows(request: Request, sets: dict, *, repeats: int) -> Table:
    """Compare a Gaussian with fitted scale and Jeffreys' t where rows are few."""
    import matplotlib.pyplot as plt

    rows, curves = [], {}
    for name, (x, y) in sets.items():
        for n in _SMALL_N:
            if n > len(y) - 10:
                continue
            calls = [(x, y, n, request.seed, i) for i in range(repeats)]
            scores = np.array(request.map(_repeat, calls))
            gauss, t = scores[:, 0], scores[:, 1]
            rows.append(
                [
                    name,
                    str(n),
                    *(f"{np.mean(part[:, 0]):.2f}" for part in (gauss, t)),
                    mean_of(gauss[:, 0] - t[:, 0]),
                    *(f"{np.mean(part[:, 1]):.3f}" for part in (gauss, t)),
                ]
            )
            curves.setdefault(name, []).append((n, gauss.mean(0), t.mean(0)))
            request.say(f"few rows: {name}, n = {n}")
    figure, panels = plt.subplots(
        2, len(curves), figsize=(3.2 * len(curves), 5), squeeze=False, sharex="col"
    )
    for column, (name, points) in zip(panels.T, curves.items()):
        sizes = [n for n, *_ in points]
        for i, (axes, label) in enumerate(zip(column, ("NLL (nats)", "coverage of 95%"))):
            axes.plot(sizes, [g[i] for _, g, _ in points], "o-", label="Gaussian")
            axes.plot(sizes, [t[i] for _, _, t in points], "o-", label="Student's t")
            axes.set(xscale="log", ylabel=label)
            axes.set_xticks(sizes, [str(n) for n in sizes])
            axes.minorticks_off()
        column[0].set_title(name)
        column[1].axhline(0.95, color="0.6", linewidth=1)
        column[1].set_xlabel("rows to learn from")
    panels[0, 0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(request.out / "few-rows.png", dpi=150)
    plt.close(figure)
    return Table(
        "few-rows",
        f"Few rows: {repeats} random sets of n, up to 200 test rows, two hidden layers; "
        "Gaussian with the scale of highest evidence against Jeffreys' Student-t",
        (
            *("data", "n", "NLL Gaussian", "NLL t", "difference ± s.e."),
            *("coverage Gaussian", "coverage t"),
        ),
        rows,
    )


def _repeat(x, y, n: int, seed: int, i: int) -> list[tuple]:
    """Return NLL and coverage, by law, of one choice of rows."""
    order = np.random.default_rng([seed, n, i]).permutation(len(y))
    data = regression.split(x, y, order[:n], order[n : n + 200])
    choice = regression.choose(data, (2,))
    laws = regression.laws(data, choice)
    both = [regression.score(data, choice, laws[name]) for name in ("Gaussian", "Jeffreys")]
    return [(each.nll, each.covered) for each in both]


def _split(x, y, s: int) -> tuple[str, dict[str, Any]]:
    """Return the choice of a network and scores, by law, of one split into train and test."""
    order = np.random.RandomState(s).permutation(len(y))
    num = round(0.9 * len(y))
    data = regression.split(x, y, order[:num], order[num:])
    choice = regression.choose(data, (1, 3))
    laws = regression.laws(data, choice)
    return choice.name, {
        name: regression.score(data, choice, law) for name, law in laws.items()
    }


def _uci(request: Request, found: dict, *, splits: int) -> Table:
    rows = []
    for name, (x, y) in found.items():
        scores: dict[str, list] = {}
        for s, (chosen, by_law) in enumerate(
            request.map(_split, [(x, y, s) for s in range(splits)])
        ):
            for law_name, each in by_law.items():
                scores.setdefault(law_name, []).append(each)
            request.say(f"UCI: {name}, split {s + 1} of {splits}, {chosen}")
        for law_name, each in scores.items():
            reference = _REFERENCE[name] if law_name == "Gaussian" else ""
            rows.append([name, law_name, *map(mean_of, np.array(each).T), reference])
    return Table(
        "uci",
        f"UCI: {splits} random 90/10 splits (NumPy's RandomState(0), ...), mean ± standard "
        "error, unit of the data; reference: an independent NumPy run of 10 splits",
        ("data", "law of the scale", "NLL", "RMSE", "CRPS", "coverage of 95%", "reference NLL"),
        rows,
    )


def _images(request: Request, num_train: int, num_test: int) -> list[Table]:
    import matplotlib.pyplot as plt

    assert request.data is not None
    request.say(f"images: {num_train} digits to learn from")
    data = images.read(request.data, num_train, num_test, seed=request.seed)
    tables, curves = images.study(data, seed=request.seed)
    figure, panels = plt.subplots(
        1, len(curves), figsize=(3.2 * len(curves), 3.4), layout="constrained"
    )
    for axes, (name, curve) in zip(panels, curves.items()):
        curve.plot(axes)
        axes.set_title(name, fontsize=10)
    figure.savefig(request.out / "reliability.png", dpi=150)
    plt.close(figure)
    return tables


STUDY = Study(
    "smnngp",
    "Scale mixtures of NNGPs: few rows, UCI regression, digits and what is unlike them",
    _run,
)
