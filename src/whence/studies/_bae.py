"""Bayesian autoencoders on few images: what selecting the prior gives, and what else would.

After Tran, Rossi, Milios, Michiardi, Bonilla and Filippone (2021), "Model selection for
Bayesian autoencoders", arXiv:2106.06245, at a size for a processor: dense networks with a code
of 16 numbers, 200 images to learn from. Beside the published comparison (a learned prior
against N(0, 1)) stand the ablations that tell where a gain comes from: the trained networks
that the learned prior starts around, without selection; a fan-in Gaussian; a VAE stopped early.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax.random as jr
import numpy as np
import numpyro.distributions as dist

from ..core._results import InferenceWarning
from ..inference.sgmcmc import SGHMC, ScaleAdapted
from ..language import condition
from ..language._module_priors import FanIn
from ..models import autoencoder
from ..posterior import Posterior
from ..running import infer
from ._bae_figures import draw_images
from ._study import Request, Study, Table

COLUMNS = (
    "log likelihood, plug-in",
    "mixture",
    "squared error of a pixel",
    "SW2 of new images",
)


class Images(NamedTuple):
    """Images from 0 to 1, rows first.

    Attributes:
        prior: To select the prior by: like the others, but not of their kind.
        train: To learn from.
        test: Held out.
    """

    prior: np.ndarray
    train: np.ndarray
    test: np.ndarray


class StudySize(NamedTuple):
    """How large a study is.

    Attributes:
        seeds: Repetitions.
        test: Images held out.
        steps: Of the sampler.
        pretraining: Steps of the plain autoencoder.
        selection: Steps of the prior.
        variational: Steps of the VAEs.
    """

    seeds: int
    test: int
    steps: int
    pretraining: int
    selection: int
    variational: tuple[int, ...]


PLANS = {
    "small": StudySize(1, 300, 4_000, 400, 100, (500, 1_500)),
    "full": StudySize(3, 1_000, 12_000, 400, 400, (500, 1_500, 4_000)),
}


def made_up(rng: np.random.Generator, number: int, slanted: bool) -> np.ndarray:
    """Return images of 12 by 12 of a bright bar: level or upright ones, or slanted ones."""
    angle = rng.uniform(0.2, 1.3, number) if slanted else rng.integers(0, 2, number) * np.pi / 2
    shift, width = rng.uniform(-3, 3, number), rng.uniform(0.7, 1.3, number)
    row, column = np.mgrid[:12, :12] - 5.5
    across = (
        np.cos(angle)[:, None, None] * row + np.sin(angle)[:, None, None] * column
    ) - shift[:, None, None]
    return np.exp(-0.5 * (across / width[:, None, None]) ** 2)


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
    return Images(pixels[zeros[:100]], pixels[others[:200]], pixels[others[200 : 200 + test]])


def read_faces(data: Path, test: int, seed: int) -> Images | None:
    """Read faces: `frey_faces.npz` for the prior, `yale_faces.npz` for the rest; or None."""
    files = [data / "frey_faces.npz", data / "yale_faces.npz"]
    if not all(file.is_file() for file in files):
        return None
    rng = np.random.default_rng(seed)
    with np.load(files[0]) as first, np.load(files[1]) as second:
        frey, yale = (file["images"] / np.float32(255) for file in (first, second))
    order = rng.permutation(len(yale))
    few = rng.permutation(len(frey))[:100]
    return Images(frey[few], yale[order[:200]], yale[order[200 : 200 + test]])


def sample(model: Any, x: np.ndarray, plan: StudySize, key: Any) -> Posterior:
    """Sample the weights as published, but for the length."""
    engine = SGHMC(
        chains=1,
        steps=plan.steps,
        warmup=plan.steps // 3,
        thin=plan.steps // 24,
        step_size=0.003,
        friction=0.05 / 0.003,
        preconditioner=ScaleAdapted(),
        subtract_noise=True,
        batching="iid",
        batch_size=64,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)  # weights are never identified
        return infer(condition(model, x), engine, key=key, progress=False)


class Scores(NamedTuple):
    """What became of one model: numbers in the order of `COLUMNS`, and images."""

    numbers: tuple[float, float, float, float]
    reconstructed: np.ndarray
    generated: np.ndarray


def score(posterior: Posterior, images: Images, key: Any) -> Scores:
    """Score a posterior of autoencoders on held-out images."""
    plugin = autoencoder.log_likelihood(posterior, images.test, mode="plugin").mean()
    mixture = autoencoder.log_likelihood(posterior, images.test).mean()
    image = autoencoder.reconstruct(posterior, images.test)
    key_fit, key_new, key_sliced = jr.split(key, 3)
    codes = autoencoder.DirichletMixture(20).fit(
        autoencoder.encode(posterior, images.train), key=key_fit
    )
    new = autoencoder.generate(posterior, codes, len(images.test), key=key_new)
    sliced = autoencoder.sliced_wasserstein(new, images.test, key=key_sliced, projections=200)
    error = float(np.mean((image - images.test) ** 2))
    numbers = float(plugin), float(mixture), error, sliced.distance
    return Scores(numbers, image[:12], new[:12])


def score_variational(fitted: Any, images: Images, key: Any) -> Scores:
    """Score a VAE: its plug-in likelihood is at the means of codes, and there is no mixture."""
    image = fitted.reconstruct(images.test)
    key_new, key_sliced = jr.split(key)
    new = fitted.generate(len(images.test), key=key_new)
    sliced = autoencoder.sliced_wasserstein(new, images.test, key=key_sliced, projections=200)
    plugin = float(fitted.log_likelihood(images.test).mean())
    error = float(np.mean((image - images.test) ** 2))
    return Scores((plugin, np.nan, error, sliced.distance), image[:12], new[:12])


def play(images: Images, plan: StudySize, key: Any) -> tuple[dict[str, Scores], str]:
    """Fit every model to the same images; return scores by name and the report on the prior."""
    shape = images.train.shape[1:]
    keys = jr.split(key, 6)
    networks = autoencoder.dense(shape, 16, (128,), key=keys[0])
    model = autoencoder.BayesianAutoencoder(networks.encoder, networks.decoder)
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
        posterior = sample(model.with_prior(prior), images.train, plan, keys[2])
        scores[name] = score(posterior, images, keys[3])
    pair = autoencoder.dense(shape, 16, (128,), key=keys[4], codes=2)
    problem = autoencoder.variational(pair.encoder, pair.decoder, images.train)
    for steps in plan.variational:
        fitted = autoencoder.fit_variational(problem, key=keys[5], fit=autoencoder.Adam(steps))
        scores[f"VAE, {steps} steps"] = score_variational(fitted, images, keys[3])
    return scores, str(learned)


def _table(name: str, title: str, runs: list[dict[str, Scores]]) -> Table:
    rows = []
    for model in runs[0]:
        numbers = np.array([run[model].numbers for run in runs])
        cells = []
        for column, digits in zip(numbers.T, (1, 1, 4, 4), strict=True):
            cell = f"{column.mean():.{digits}f}"
            if len(runs) > 1:
                error = column.std(ddof=1) / np.sqrt(len(runs))
                cell += f" ± {error:.{digits}f}"
            cells.append("-" if np.isnan(column).any() else cell)
        rows.append([model, *cells])
    return Table(name, title, ("model", *COLUMNS), rows)


def run(request: Request) -> list[Table]:
    """Fit everything, draw images and return the tables."""
    plan, tables, notes = PLANS[request.size], [], []
    sets: dict[str, list[Images]] = {}
    for seed in range(request.seed, request.seed + plan.seeds):
        rng = np.random.default_rng(seed)
        bars = [made_up(rng, n, s) for n, s in ((100, False), (200, True), (plan.test, True))]
        if request.data is None:
            sets.setdefault("bars", []).append(Images(*bars))
            continue
        sets.setdefault("digits", []).append(read_digits(request.data, plan.test, seed))
        faces = read_faces(request.data, plan.test, seed)
        if faces is not None:
            sets.setdefault("faces", []).append(faces)
    if request.data is None:
        request.say("Without `data` with mnist_test10k.npz: made-up images of bars")
    elif "faces" not in sets:
        request.say("Left out: faces (frey_faces.npz and yale_faces.npz are not in `data`)")
    for name, many in sets.items():
        runs = []
        for i, images in enumerate(many):
            request.say(f"{name}, repetition {i + 1} of {len(many)}")
            scores, report = play(images, plan, jr.key(request.seed + i))
            runs.append(scores)
            notes.append(f"{name}, repetition {i + 1}\n{report}\n")
        title = (
            f"{name}: {len(many[0].train)} images to learn from; log likelihoods in nats per"
        )
        tables.append(_table(name, f"{title} image of {len(many[0].test)} held out", runs))
        draw_images(request.out / f"{name}.png", many[0].test[:12], runs[0])
    (request.out / "priors.txt").write_text("\n".join(notes))
    return tables


STUDY = Study("bae", "Priors of Bayesian autoencoders on few images, and VAEs", run)
