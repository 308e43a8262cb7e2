"""Bayesian autoencoders on few images: what selecting the prior gives, and what else would.

After Tran, Rossi, Milios, Michiardi, Bonilla and Filippone (2021), "Model selection for
Bayesian autoencoders", arXiv:2106.06245, at a size for a processor: dense networks with a code
of 16 numbers, 200 images to learn from. Beside the published comparison (a learned prior
against N(0, 1)) stand the ablations that tell where a gain comes from: the trained networks
that the learned prior starts around, without selection; a fan-in Gaussian; a VAE stopped early.

With data that have a folder `uci` also functional priors of regressions, see `_bae_functions`.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.random as jr
import numpy as np
import numpyro.distributions as dist

from ..core._results import InferenceWarning
from ..inference.variational import IWAE
from ..language import condition
from ..language._module_priors import FanIn
from ..models import autoencoder
from ..posterior import Posterior
from . import _bae_functions as functions
from ._bae_figures import draw_images
from ._study import Request, Study, Table, mean_of

COLUMNS = (
    "log likelihood, plug-in",
    "mixture",
    "log density",
    "squared error of a pixel",
    "SW2 of new images",
)
DIGITS = (1, 1, 1, 4, 4)
RIVAL = "BAE, fan-in"  # what others are compared with, repetition by repetition


class Images(NamedTuple):
    """Images from 0 to 1, rows first.

    Attributes:
        prior: To select the prior by: like the others, but not of their kind.
        train: To learn from.
        stop: To choose the length of a training by.
        test: Held out.
    """

    prior: np.ndarray
    train: np.ndarray
    stop: np.ndarray
    test: np.ndarray


class StudySize(NamedTuple):
    """How large a study is.

    Attributes:
        seeds: Repetitions.
        test: Images held out.
        dense: Of these, those whose log density is estimated.
        steps: Of the sampler.
        pretraining: Steps of the plain autoencoder.
        selection: Steps of the prior.
        variational: Lengths of training of the VAEs.
        splits: Of the regression.
        chain: Steps of its sampler.
        matching: Steps of its prior.
    """

    seeds: int
    test: int
    dense: int
    steps: int
    pretraining: int
    selection: int
    variational: tuple[int, ...]
    splits: int
    chain: int
    matching: int


PLANS = {
    "small": StudySize(1, 300, 30, 4_000, 400, 100, (250, 500, 1_000, 2_000), 2, 4_000, 100),
    "full": StudySize(
        5, 500, 50, 8_000, 400, 200, (250, 500, 1_000, 2_000, 4_000), 10, 20_000, 300
    ),
}
DRAWS = 12  # of the weights


def made_up(rng: np.random.Generator, number: int, slanted: bool) -> np.ndarray:
    """Return images of 12 by 12 of a bright bar: level or upright ones, or slanted ones."""
    angle = rng.uniform(0.2, 1.3, number) if slanted else rng.integers(0, 2, number) * np.pi / 2
    shift, width = rng.uniform(-3, 3, number), rng.uniform(0.7, 1.3, number)
    row, column = np.mgrid[:12, :12] - 5.5
    across = (
        np.cos(angle)[:, None, None] * row + np.sin(angle)[:, None, None] * column
    ) - shift[:, None, None]
    return np.exp(-0.5 * (across / width[:, None, None]) ** 2)


def read_bars(test: int, seed: int) -> Images:
    """Make images up: level and upright bars for the prior, slanted ones for the rest."""
    rng = np.random.default_rng(seed)
    return _parts(made_up(rng, 100, False), made_up(rng, 300 + test, True), test)


def read_digits(data: Path, test: int, seed: int) -> Images:
    """Read MNIST: zeros for the prior, other digits for the rest."""
    file = data / "mnist_test10k.npz"
    if not file.is_file():
        raise ValueError(f"`data` must hold {file.name}; {data} does not.")
    rng = np.random.default_rng(seed)
    with np.load(file) as digits:
        pixels, labels = digits["images"] / np.float32(255), digits["labels"]
    zeros = rng.permutation(np.flatnonzero(labels == 0))
    others = rng.permutation(np.flatnonzero(labels > 0))
    return _parts(pixels[zeros], pixels[others], test)


def _parts(prior: np.ndarray, others: np.ndarray, test: int) -> Images:
    return Images(prior[:100], others[:200], others[200:300], others[300 : 300 + test])


def read_faces(data: Path, test: int, seed: int) -> Images | None:
    """Read faces: `frey_faces.npz` for the prior, `yale_faces.npz` for the rest; or None."""
    files = [data / "frey_faces.npz", data / "yale_faces.npz"]
    if not all(file.is_file() for file in files):
        return None
    rng = np.random.default_rng(seed)
    with np.load(files[0]) as first, np.load(files[1]) as second:
        frey, yale = (file["images"] / np.float32(255) for file in (first, second))
    return _parts(rng.permutation(frey), rng.permutation(yale), test)


class Scores(NamedTuple):
    """What became of one model: numbers in the order of `COLUMNS`, and images."""

    numbers: tuple[float, ...]
    reconstructed: np.ndarray
    generated: np.ndarray


def score(posterior: Posterior, images: Images, plan: StudySize, key: Any) -> Scores:
    """Score a posterior of autoencoders on held-out images."""
    key_fit, key_new, key_density, key_sliced = jr.split(key, 4)
    codes = autoencoder.encode(posterior, images.train)
    mixture = autoencoder.DirichletMixture(20).fit(codes, key=key_fit)
    new = autoencoder.generate(posterior, mixture, len(images.test), key=key_new)
    some = images.test[: plan.dense]
    with warnings.catch_warnings():
        # With few codes that count it is a lower bound on average, as that of a VAE is.
        warnings.simplefilter("ignore", InferenceWarning)
        density = autoencoder.importance_log_prob(posterior, mixture, some, key=key_density)
    image = autoencoder.reconstruct(posterior, images.test)
    likelihoods = (
        autoencoder.log_likelihood(posterior, images.test, mode="plugin").mean(),
        autoencoder.log_likelihood(posterior, images.test).mean(),
        density.log_prob.mean(),
    )
    return _scores(likelihoods, image, new, images.test, key_sliced)


def score_variational(fitted: Any, images: Images, plan: StudySize, key: Any) -> Scores:
    """Score a VAE: its plug-in likelihood is at the means of codes, and there is no mixture."""
    key_new, key_density, key_sliced = jr.split(key, 3)
    new = fitted.generate(len(images.test), key=key_new)
    density = fitted.log_prob(images.test[: plan.dense], key=key_density, samples=2_000)
    plugin = fitted.log_likelihood(images.test).mean()
    image, likelihoods = fitted.reconstruct(images.test), (plugin, np.nan, density.mean())
    return _scores(likelihoods, image, new, images.test, key_sliced)


def _scores(likelihoods: tuple, image: np.ndarray, new: np.ndarray, test, key: Any) -> Scores:
    sliced = autoencoder.sliced_wasserstein(new, test, key=key, projections=200)
    error = np.mean((image - test) ** 2)
    numbers = tuple(map(float, (*likelihoods, error, sliced.distance)))
    return Scores(numbers, image[:12], new[:12])


def train_variational(images: Images, plan: StudySize, key: Any, **settings: Any) -> dict:
    """Train VAEs of all lengths; return the longest and, by validation, the best."""
    key_net, key_fit, key_stop = jr.split(key, 3)
    encoder, decoder = autoencoder.dense(
        images.train.shape[1:], 16, (128,), key=key_net, codes=2
    )
    problem = autoencoder.VariationalAutoencoder(encoder, decoder, images.train, **settings)
    fits = {
        steps: autoencoder.fit_variational(problem, key=key_fit, fit=autoencoder.Adam(steps))
        for steps in plan.variational
    }
    bound = {n: f.log_prob(images.stop, key=key_stop).mean() for n, f in fits.items()}
    return {
        f"{plan.variational[-1]} steps": fits[plan.variational[-1]],
        "stopped by validation": fits[max(bound, key=lambda steps: bound[steps])],
    }


def play(images: Images, plan: StudySize, key: Any) -> tuple[dict[str, Scores], str]:
    """Fit every model to the same images; return scores by name and the report on the prior."""
    shape = images.train.shape[1:]
    keys = jr.split(key, 5)
    encoder, decoder = autoencoder.dense(shape, 16, (128,), key=keys[0])
    model = autoencoder.BayesianAutoencoder(encoder, decoder)
    fit = autoencoder.Adam(plan.pretraining)
    procedure = autoencoder.DSWD(steps=plan.selection)
    learned = autoencoder.select_prior(
        model, images.prior, key=keys[1], fit=fit, procedure=procedure
    )
    quick = autoencoder.DSWD(steps=plan.selection, learning_rate=0.02)
    layers = autoencoder.select_prior(
        model, images.prior, key=keys[1], family="layer", procedure=quick
    )
    priors = {
        "BAE, N(0, 1)": dist.Normal(0.0, 1.0),
        "BAE, fan-in": FanIn(),
        "BAE, fan-in with selected scales": layers,
        "BAE, around trained networks": learned.start,
        "BAE, selected by DSWD": learned,
    }
    scores = {}
    for name, prior in priors.items():
        target = condition(model.with_prior(prior), images.train)
        rule = {"chains": 1, "step_size": 0.003, "decay": 0.05, "batch_size": 64}
        posterior = functions.sample(target, keys[2], steps=plan.steps, draws=DRAWS, **rule)
        scores[name] = score(posterior, images, plan, keys[3])
    kinds = {"VAE": {}, "IWAE of 8 codes": {"objective": IWAE(), "samples": 8}}
    for kind, settings in kinds.items():
        for length, fitted in train_variational(images, plan, keys[4], **settings).items():
            scores[f"{kind}, {length}"] = score_variational(fitted, images, plan, keys[3])
    return scores, str(learned)


def _table(name: str, title: str, runs: list[dict[str, Scores]], less: str = "") -> Table:
    """Return means over repetitions with standard errors, perhaps of differences."""
    rows = []
    for model in runs[0]:
        numbers = np.array([run[model].numbers for run in runs])
        if less:
            numbers = numbers - np.array([run[less].numbers for run in runs])
        cells = []
        for column, digits in zip(numbers.T, DIGITS, strict=True):
            cells.append("-" if np.isnan(column).any() else mean_of(column, digits))
        rows.append([model, *cells])
    return Table(name, title, ("model", *COLUMNS), rows)


def run(request: Request) -> Iterator[Table]:
    """Fit everything, draw images and give the tables."""
    plan, notes = PLANS[request.size], []
    seeds = range(request.seed, request.seed + plan.seeds)
    if request.data is None:
        request.say("Without `data` with mnist_test10k.npz: made-up images of bars")
        sets = {"bars": [read_bars(plan.test, seed) for seed in seeds]}
    else:
        folder = request.data
        sets = {"digits": [read_digits(folder, plan.test, seed) for seed in seeds]}
        faces = [read_faces(folder, plan.test, seed) for seed in seeds]
        if faces[0] is None:
            request.say("Left out: faces (frey_faces.npz, yale_faces.npz are not in `data`)")
        else:
            sets["faces"] = [images for images in faces if images is not None]
    for name, many in sets.items():
        runs = []
        for i, images in enumerate(many):
            request.say(f"{name}, repetition {i + 1} of {len(many)}")
            scores, report = play(images, plan, jr.key(request.seed + i))
            runs.append(scores)
            notes.append(f"{name}, repetition {i + 1}\n{report}\n")
        held = f"{len(many[0].test)} held out (density: {plan.dense})"
        title = f"{name}: {len(many[0].train)} images to learn from, {held}; nats per image"
        yield _table(name, title, runs)
        if len(runs) > 1:
            title = f"The same less that of `{RIVAL}`, repetition by repetition"
            yield _table(f"{name}_paired", title, runs, RIVAL)
        draw_images(request.out / f"{name}.png", many[0].test[:12], runs[0])
    (request.out / "priors.txt").write_text("\n".join(notes))
    if request.data is not None and (request.data / "uci" / functions.FILE).is_file():
        request.say("Functional priors: Boston housing, and curves")
        parts = functions.read_boston(request.data / "uci", plan.splits)
        parts += [functions.read_curve(seed) for seed in seeds]
        calls = [(s, request.seed + i, plan.chain, plan.matching) for i, s in enumerate(parts)]
        runs = request.map(functions.play, calls)
        yield from functions.tables(runs[: plan.splits], runs[plan.splits :])


STUDY = Study("bae", "Priors of Bayesian autoencoders on few images, and VAEs", run)
