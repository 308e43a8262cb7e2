"""Few-shot learning by a Normal-inverse-Wishart hierarchy: sines and lines, and characters.

After Kim and Hospedales (2024), ICLR, arXiv:2306.09702; the protocol is stated in the
tables' titles.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..models import niw
from ..running import train
from . import _niw_images as images, _niw_tasks as lines
from ._study import Request, Study, Table


def _run(request: Request) -> Iterator[Table]:
    full = request.size == "full"
    yield _sine_line(request, full)
    yield _toy(request, full)
    if request.data is None:
        request.say("No --data: Omniglot is left out.")
    else:
        yield _omniglot(request, full)


def _sine_line(request: Request, full: bool) -> Table:
    number, rows = 500 if full else 50, []
    problem = niw.Episodes(lines.sine_line)

    def add(name: str, steps: str, score: lines.Score) -> None:
        request.say(f"sines and lines: {name}: MSE {score.mse[0]:.2f}, NLL {score.nll[0]:.2f}")
        each = [f"{value:.3f} ± {error:.3f}" for value, error in (score.mse, score.nll)]
        rows.append([name, steps, *each, f"{score.covered:.2f}"])

    learned = {}
    for name, (meta, procedure) in lines.variants(full).items():
        fit = train(meta.on(problem), procedure, key=request.seed, progress=False)
        learned[name] = fit, procedure.local
        adapted = partial(_predict, fit.state.model, procedure.local)
        score = lines.score_of(adapted, number, request.seed)
        add(name, str(procedure.steps), score)
    maml = niw.PointMeta(rule="maml", steps=8_000 if full else 200, inner_rate=1e-3)
    meta = niw.NIWMeta(lines.mlp(jr.key(0)), niw.Gaussian(lines.NOISE))
    fit = train(meta.on(problem), maml, key=request.seed, progress=False)
    model = fit.state.model
    score = lines.score_of(
        lambda x, y, new: maml.adapt(model, x, y).predict(new), number, request.seed
    )
    add("MAML, 5 steps", str(maml.steps), score)
    for name, twin in lines.twins().items():
        procedure = niw.SummedEvidence(steps=500 if full else 100)
        fit = train(twin.on(problem), procedure, key=request.seed, progress=False)
        process = jax.tree.map(jnp.asarray, fit.state.model).process
        score = lines.score_of(lines.twin_prediction(process), number, request.seed)
        add(name, str(procedure.steps), score)
    add("GP by task alone", "", lines.score_of(lines.alone_prediction, number, request.seed))
    _draw(request, learned)
    return Table(
        "sine-line",
        f"Sines and lines, noise 0.3: 10 points to adapt to, 100 new ones, {number} test "
        "tasks; network 1-40-40-1; mean ± standard error. No prediction has an MSE below "
        "0.09 or an NLL below 0.21",
        ("model", "steps", "MSE", "NLL", "inside 90%"),
        rows,
    )


def _predict(model, local, x, y, new):
    return niw.adapt(model, x, y, local=local).predict(new)


def _draw(request: Request, learned: dict) -> None:
    """Draw what one model makes of two tasks, with more and more points."""
    import matplotlib.pyplot as plt

    fit, local = learned["head, two components"]
    x, y = map(np.asarray, lines.sine_line(jr.key(request.seed + 7), 12, 10))
    # One task of either kind: the straightest and the least straight.
    bend = [np.polyfit(a[:, 0], b, 1, full=True)[1].sum() for a, b in zip(x, y)]
    grid = np.linspace(-2, 2, 200)[:, None]
    figure, panels = plt.subplots(2, 3, figsize=(9, 5), sharex=True, sharey="row")
    for row, task in zip(panels, (int(np.argmax(bend)), int(np.argmin(bend)))):
        for axes, shots in zip(row, (1, 3, 10)):
            adapted = niw.adapt(fit, x[task][:shots], y[task][:shots], local=local)
            predicted = adapted.predict(grid)
            mean = np.asarray(predicted.mean[:, 0])
            band = 2 * np.sqrt(np.asarray(predicted.variance[:, 0]))
            at = lines.UNIT * grid[:, 0]
            axes.fill_between(at, mean - band, mean + band, alpha=0.25, linewidth=0)
            axes.plot(at, mean)
            axes.plot(lines.UNIT * x[task][:shots, 0], y[task][:shots], "k.")
            axes.set_title(f"{shots} point{'s' * (shots > 1)}", fontsize=10)
    figure.tight_layout()
    figure.savefig(request.out / "niw.png", dpi=150)
    plt.close(figure)


def _toy(request: Request, full: bool) -> Table:
    """Linear regressions: what is learned against the truth and against exact ascent."""
    import equinox as eqx

    mu, sigma, noise = np.array([1.0, -0.5]), np.array([[0.6, 0.2], [0.2, 0.3]]), 0.3
    rng = np.random.default_rng(request.seed)
    number = 2_000 if full else 200
    theta = rng.multivariate_normal(mu, sigma, number)
    x = rng.normal(size=(number, 5, 2))
    y = np.einsum("tpi,ti->tp", x, theta) + noise * rng.normal(size=(number, 5))
    a = np.einsum("tpi,tpj->tij", x, x) / noise**2
    b = np.linalg.solve(a, np.einsum("tpi,tp->ti", x, y)[..., None] / noise**2)[..., 0]
    prior = niw.NIW(np.zeros(2), 0.1, 0.5 * np.eye(2), 4.0)
    law = niw.coordinate_ascent(b, a, prior).law
    net = eqx.nn.Linear(2, 1, use_bias=False, key=jr.key(0))
    meta = niw.NIWMeta(net, niw.Gaussian(noise), covariance="full", precision=1.0)
    procedure = niw.OneTimeIterates(
        local=niw.GGNLaplace(steps=0),
        steps=2_000,
        batch=50,
        learning_rate=0.03,
        pairs=4,
        clip=1e3,
    )
    fit = train(meta.on(niw.Tasks(x, y)), procedure, key=request.seed, progress=False)
    population = fit.state.model.population
    tril = niw.Full(jnp.asarray(population.covariance.lower[0])).tril
    rows = []
    for name, mean, matrix in (
        ("truth", mu, sigma),
        ("stochastic", population.mean[0], tril @ tril.T),
        ("exact ascent: 1 / E precision", law.mean, jnp.linalg.inv(law.expected_precision)),
        ("exact ascent: mean", law.mean, law.scale / (law.df - 3)),
    ):
        numbers = [*np.asarray(mean), *np.asarray(matrix)[[0, 0, 1], [0, 1, 1]]]
        rows.append([name, *(f"{n:.3f}" for n in numbers)])
    return Table(
        "toy",
        f"{number} linear regressions of 5 points, noise 0.3: what they say of (mu, Sigma)",
        ("", "mu 1", "mu 2", "Sigma 11", "Sigma 12", "Sigma 22"),
        rows,
    )


def _omniglot(request: Request, full: bool) -> Table:
    number, steps, seeds = (400, 1_500, 3) if full else (60, 100, 1)
    every = (1, 5) if full else (1,)
    names = [(shots, name) for shots in every for name in images.rules(shots, steps)]
    calls = [
        (request.data, *name, steps, number, request.seed + i)
        for name in names
        for i in range(seeds)
    ]
    found = np.array(request.map(images.learned_and_judged, calls))
    rows = []
    for (shots, name), scores in zip(names, found.reshape(len(names), seeds, -1)):
        right, error, loss, off = scores.mean(0)
        if seeds > 1:
            error = scores[:, 0].std(ddof=1) / seeds**0.5
        request.say(f"Omniglot, {shots}-shot: {name}: {right:.1%}")
        share = f"{right:.1%} ± {error:.1%}"
        rows.append([str(shots), name, share, f"{loss:.3f}", f"{off:.1%}"])
    return Table(
        "omniglot",
        "Omniglot, small sets: 5 characters of an alphabet set not learned from, "
        f"{number} tasks of 10 new drawings each; one small convolutional net on 14 x 14 "
        f"pixels, {steps} steps of 4 tasks; mean ± standard error "
        + ("over 3 seeds" if seeds > 1 else "over tasks"),
        ("shots", "model", "accuracy", "log loss (nats)", "confidence off by"),
        rows,
    )


STUDY = Study(
    "niw", "Few-shot learning: sines and lines, linear toy, Omniglot characters", _run
)
