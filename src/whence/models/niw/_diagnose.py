"""Whether few-shot learning can be trusted, in words: on tasks that were not learned from."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ...core._convert import part, whole
from ...core._key import as_key
from ...diagnostics import Finding, Report, coverage, reliability
from ._adapt import AdaptedTask, adapt, model_of
from ._likelihood import AbstractLabels
from ._local import AbstractLocal, GGNLaplace
from ._objective import local_posterior
from ._tasks import Tasks, subset

_OFF = 1.0  # nats by which a surrogate may be off along draws of the posterior, on average
_CLIPPED = 0.5
_CALIBRATION = 0.1
_MOVED = 0.01  # share of the way
_RULE = "rule of thumb"


def diagnose(
    fit: Any,
    tasks: Tasks,
    *,
    shots: Any = (5,),
    local: AbstractLocal | None = None,
    key: Any = 0,
) -> Report:
    """Adapt to some points of each task, predict the others, and say what is found.

    Args:
        fit: What `whence.train` returned, or a `NIWMeta`.
        tasks: Tasks not learned from, with more points than shots.
        shots: Numbers of points to adapt to (of each class for labels).
        local: How surrogates are made; by default `GGNLaplace()`.
        key: A typed key, or a whole number.

    Returns:
        Findings: `surrogate` (how far the quadratic is from the loss at draws of the
        posterior), `clipped`, `adaptation`, `unusual` and `calibration` for each number of
        shots; negative log density, error and adaptation ratio are among the numbers.

    Raises:
        ValueError: If an argument is wrong, or a task has no point left to predict.
    """
    meta = model_of(fit)
    part("tasks", Tasks)(tasks)
    local = part("local", AbstractLocal)(GGNLaplace() if local is None else local)
    findings, numbers = [], {}
    for shot in map(whole("shots", least=1), shots):
        seen = _every(meta, tasks, jnp.asarray(shot), local, as_key(key))
        found, more = _judge(meta, tasks, shot, jax.tree.map(np.asarray, seen))
        findings += found
        numbers |= more
    order = ["error", "warning", "note", "ok"]
    findings.sort(key=lambda finding: order.index(finding.severity))
    problems = [f for f in findings if f.is_problem]
    verdict = f"Use with care: {problems[0].message}." if problems else "No problem found."
    title = f"NIW-Meta, {meta.num_weights} weights, {len(tasks)} tasks"
    return Report(tuple(findings), verdict, numbers, title)


@eqx.filter_jit
def _every(meta, tasks: Tasks, shot, local, key) -> dict:
    labels = isinstance(meta.likelihood, AbstractLabels)

    def one(args):
        x, y, mask, key = args
        key_which, key_fit, key_draw = jr.split(key, 3)
        support = subset(y, mask, shot, key=key_which)
        task = adapt(meta, x, y, mask=support, local=local, key=key_fit)
        predicted = task.predict(x, key=key_draw)
        out = {"off": _surrogate_error(task, local, key_draw), "query": mask & ~support}
        out |= {"ratio": task.ratio, "clipped": task.clipped, "scale": task.scale}
        out |= {"log_prob": predicted.log_prob(y), "mean": predicted.mean}
        return out if labels else {**out, "cdf": predicted.cdf(y)}

    every = (*tasks.example(), jr.split(key, len(tasks)))
    return jax.lax.map(one, every, batch_size=8)


def _surrogate_error(task: AdaptedTask, local: AbstractLocal, key) -> jax.Array:
    """Return the mean distance of the surrogate from the loss at draws, less its mean."""
    meta = task.loss.meta
    found = local_posterior(task.loss, meta.population, meta.scales, local, key)
    component = jnp.argmax(task.components)
    surrogate = jax.tree.map(lambda a: a[component], found.surrogates)
    drawn = task.sample(8, key=key)
    gaps = jax.vmap(task.loss)(drawn) - jax.vmap(surrogate.at)(drawn)
    return jnp.mean(jnp.abs(gaps))


def _judge(meta, tasks, shot: int, seen: dict) -> tuple[list[Finding], dict[str, float]]:
    query, y = seen["query"], np.asarray(tasks.y)
    if not query.any(axis=1).all():
        raise ValueError(
            f"`shots` must leave a point to predict in every task; with {shot}, task "
            f"{int(np.argmin(query.any(axis=1)))} has none."
        )
    nll = -np.array([np.mean(row[q]) for row, q in zip(seen["log_prob"], query)])
    numbers = {
        "nll": nll.mean(),
        "nll_error": nll.std(ddof=1) / len(nll) ** 0.5 if len(nll) > 1 else np.nan,
        "ratio": np.median(seen["ratio"]),
        "clipped": np.mean(seen["clipped"]),
        "surrogate": np.median(seen["off"]),
    }
    if isinstance(meta.likelihood, AbstractLabels):
        probabilities, labels = seen["mean"][query], y[query]
        error = reliability(probabilities, labels, groups=min(10, len(labels))).error
        numbers["accuracy"] = np.mean(probabilities.argmax(1) == labels)
        held_well = f"Confidence is {error:.1%} from accuracy"
    else:
        inside = seen["cdf"][query]
        found = coverage(inside, np.full_like(inside, 0.05), np.full_like(inside, 0.95))
        error = abs(found.fraction - 0.9)
        numbers["coverage90"] = found.fraction
        numbers["mse"] = np.mean((seen["mean"].reshape(y.shape) - y)[query] ** 2)
        held_well = f"Central 90% intervals hold {found.fraction:.1%} of new points"
    numbers["calibration"] = error
    off, clipped, ratio = (float(numbers[n]) for n in ("surrogate", "clipped", "ratio"))
    at = f" with {shot} point{'s' if shot > 1 else ''}"
    judged: Any = (  # code, severity if bad, value, limit, whether it is well, message, remedy
        ("surrogate", "note", off, _OFF, off <= _OFF,
         f"The quadratic surrogate is {off:.2g} nats off at draws of the posterior",
         "More `steps` of the local search, another `structure`, or `method='vi'`."),
        ("clipped", "warning", clipped, _CLIPPED, clipped <= _CLIPPED,
         f"{clipped:.0%} of the local curvatures are clipped",
         "The clip decides then, not the data: a longer chain, or `GGNLaplace`."),
        ("adaptation", "warning", ratio, _MOVED, ratio >= _MOVED,
         f"Weights go {ratio:.0%} of the way to where the surrogate was made",
         "Tasks hardly move the weights: a lower `precision`, or train longer."),
        ("calibration", "warning", float(error), _CALIBRATION, error <= _CALIBRATION,
         held_well,
         "Learn from as few points as there will be (`points=`), try another `covariance`."),
    )  # fmt: skip
    findings = [
        Finding(code, "ok" if well else bad, said + at, value, limit, _RULE, cure * (not well))
        for code, bad, value, limit, well, said, cure in judged
    ]
    unusual = np.flatnonzero(seen["scale"] > 3)
    if unusual.size:
        worst = unusual[np.argsort(-seen["scale"][unusual])][:5]
        message = f"{unusual.size} tasks are unlike the others{at}: their weights ask for a "
        message += f"covariance up to {seen['scale'].max():.1f} times as large"
        where = tuple(f"task {i}" for i in worst)
        findings.append(Finding("unusual", "note", message, where=where))
    return findings, {f"{name}_{shot}": float(value) for name, value in numbers.items()}
