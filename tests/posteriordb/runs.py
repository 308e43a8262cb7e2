"""One fit of a posterior of the zoo, compared with its reference."""

import json
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

import whence as wh
from whence.testing import ZOO, compare_reference


class Fit(NamedTuple):
    """What the table says of one fit."""

    name: str
    comparison: object
    divergences: int
    seconds: float

    @property
    def line(self):
        c = self.comparison
        return (
            f"{self.name:46}{len(c.rows):>4}{c.max_z_mean:>8.2f}{c.max_z_sd:>8.2f}"
            f"{c.max_rhat:>8.3f}{c.min_ess:>8.0f}{self.divergences:>6}{self.seconds:>8.1f}"
        )


HEAD = (
    f"{'posterior':46}{'d':>4}{'z mean':>8}{'z sd':>8}{'R-hat':>8}{'min ESS':>8}{'div.':>6}"
    f"{'CPU s':>8}"
)


def read(folder, name):
    """Data and reference draws of a posterior in a folder."""
    data = json.loads((Path(folder) / f"{name}.data.json").read_text())
    with np.load(Path(folder) / f"{name}.npz") as file:
        return data, dict(file)


def fit(name, data, reference, engine, key):
    """Run `engine` on a posterior of the zoo and compare.

    Args:
        name: A key of `ZOO`.
        data: Its data under Stan's names.
        reference: Reference draws or estimates by scalar variable.
        engine: The engine.
        key: A typed key.

    Returns:
        A `Fit`.
    """
    problem = ZOO[name].build(data)
    target = wh.condition(problem.model, problem.y, *problem.inputs)
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wh.InferenceWarning)  # the comparison is stricter
        posterior = wh.infer(target, engine, key=key, progress=False)
    seconds = time.process_time() - begin
    draws = ZOO[name].named_as_in_stan(posterior)
    comparison = compare_reference(draws, reference)
    return Fit(name, comparison, int(posterior.stats["diverging"].sum()), seconds)
