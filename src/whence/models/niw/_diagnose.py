"""Whether few-shot learning can be trusted, in words: on tasks that were not learned from."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ...core._convert import part, whole
from ...core._key import as_key
from ...diagnostics import Finding, Report, coverage, reliability
from ...diagnostics._report import held
from ._adapt import AdaptedTask, adapt, model_of
from ._likelihood import AbstractLabels
from ._local import AbstractLocal, GGNLaplace
from ._objective import local_posterior
from ._tasks import Tasks, subset

_OFF = 1.0  # nats by which a surrogate may be off along draws of the posterior, on average
_CLIPPED = 0.5
_CALIBRATION = 0.1


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
    local = GGNLaplace() if local is None else part("local", AbstractLocal)(local)
    findings, numbers = [], {}
    for shot in map(whole("shots", least=1), shots):
        seen = _measure(meta, tasks, shot, local, as_key(key))
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
        support = subset(y, mask, shot, by_class=labels, key=key_which)
        task = adapt(meta, x, y, mask=support, local=local, key=key_fit)
        predicted = task.predict(x, key=key_draw)
        out = {"off": _surrogate_error(task, local, key_draw), "query": mask & ~support}
        out |= {"ratio": task.ratio, "clipped": task.clipped, "scale": task.scale}
        out |= {"log_prob": predicted.log_prob(y), "mean": predicted.mean}
        return out if labels else {**out, "cdf": predicted.cdf(y)}

    every = (*tasks.example(), jr.split(key, len(tasks)))
    return jax.lax.map(one, every, batch_size=8)


def _measure(meta, tasks: Tasks, shot: int, local, key) -> dict:
    found = _every(meta, tasks, jnp.asarray(shot), local, key)
    left = np.asarray(found["query"]).any(axis=1)
    if not left.all():
        raise ValueError(
            f"`shots` must leave a point to predict in every task; with {shot}, task "
            f"{int(np.argmin(left))} has none."
        )
    return found


def _surrogate_error(task: AdaptedTask, local: AbstractLocal, key) -> jax.Array:
    """Return the mean distance of the surrogate from the loss at draws, less its mean."""
    meta = task.loss.meta
    found = local_posterior(task.loss, meta.population, meta.scales, local, key=key)
    component = jnp.argmax(task.components)
    surrogate = jax.tree.map(lambda a: a[component], found.surrogates)
    drawn = task.sample(8, key=key)
    gaps = jax.vmap(task.loss)(drawn) - jax.vmap(surrogate.at)(drawn)
    return jnp.mean(jnp.abs(gaps))


def _judge(meta, tasks, shot: int, seen: dict) -> tuple[list[Finding], dict[str, float]]:
    query = seen["query"]
    y = np.asarray(tasks.y)
    at = f"with {shot} point{'s' if shot > 1 else ''}"
    nll = -np.array([np.mean(row[q]) for row, q in zip(seen["log_prob"], query)])
    numbers = {
        f"nll_{shot}": float(nll.mean()),
        f"nll_error_{shot}": float(nll.std(ddof=1) / len(nll) ** 0.5)
        if len(nll) > 1
        else np.nan,
        f"ratio_{shot}": float(np.median(seen["ratio"])),
        f"clipped_{shot}": float(np.mean(seen["clipped"])),
        f"surrogate_{shot}": float(np.median(seen["off"])),
    }
    findings = [_surrogate(numbers[f"surrogate_{shot}"], at)]
    findings.append(_clipping(numbers[f"clipped_{shot}"], at))
    findings.append(_adaptation(numbers[f"ratio_{shot}"], at))
    unusual = np.flatnonzero(seen["scale"] > 3)
    if unusual.size:
        worst = unusual[np.argsort(-seen["scale"][unusual])][:5]
        message = f"{unusual.size} tasks are unlike the others {at}: their weights ask for a "
        message += f"covariance up to {seen['scale'].max():.1f} times as large"
        where = tuple(f"task {i}" for i in worst)
        findings.append(Finding("unusual", "note", message, where=where))
    if isinstance(meta.likelihood, AbstractLabels):
        probabilities, labels = seen["mean"][query], y[query]
        groups = min(10, len(labels))
        error = reliability(probabilities, labels, groups=groups).error
        numbers[f"accuracy_{shot}"] = float(np.mean(probabilities.argmax(1) == labels))
        said = f"Confidence is {error:.1%} from accuracy {at}"
    else:
        level = 0.9
        inside = seen["cdf"][query]
        found = coverage(inside, np.full_like(inside, 0.05), np.full_like(inside, 0.95))
        error = abs(found.fraction - level)
        numbers[f"coverage90_{shot}"] = found.fraction
        gaps = (seen["mean"].reshape(y.shape) - y)[query]
        numbers[f"mse_{shot}"] = float(np.mean(gaps**2))
        said = f"Central 90% intervals hold {found.fraction:.1%} of new points {at}"
    numbers[f"calibration_{shot}"] = float(error)
    bad = error > _CALIBRATION
    remedy = "Learn from as few points as there will be (`points=`), try another `covariance`."
    severity = "warning" if bad else "ok"
    findings.append(
        Finding("calibration", severity, said, float(error), _CALIBRATION, "", remedy * bad)
    )
    return findings, numbers


def _surrogate(value: float, at: str) -> Finding:
    message = f"The quadratic surrogate is {value:.2g} nats off at draws of the posterior {at}"
    if value <= _OFF:
        return Finding("surrogate", "ok", message, value, _OFF)
    remedy = "More `steps` of the local search, another `structure`, or `method='vi'`."
    return Finding("surrogate", "note", message, value, _OFF, "rule of thumb", remedy)


def _clipping(value: float, at: str) -> Finding:
    message = f"{value:.0%} of the local curvatures are clipped {at}"
    remedy = "The clip decides then, not the data: a longer chain, or `GGNLaplace`."
    return held(
        "clipped",
        value,
        _CLIPPED,
        fine=message,
        wrong=message,
        remedy=remedy,
        passed=value <= _CLIPPED,
    )


def _adaptation(value: float, at: str) -> Finding:
    message = f"Weights go {value:.0%} of the way to where the surrogate was made {at}"
    remedy = "Tasks hardly move the weights: a lower `precision`, or train longer."
    return held("adaptation", value, 0.01, fine=message, wrong=message, remedy=remedy)
