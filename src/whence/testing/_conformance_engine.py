"""The suite that the author of an engine runs: `check_engine(MyEngine(), key=key)`."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from ..core._engine import AbstractEngine, AbstractPausingEngine, Info, Sample, Trace
from ..core._key import seeded
from ..core._results import RESULTS
from ..core._target import AbstractTarget
from ..core._types import PRNGKey
from ..core._wrapped import AbstractWrappedEngine
from ..posterior._posterior import Posterior
from ..running._infer import InferenceWarning, infer
from ._compare import compare_moments
from ._conformance_loop import check_chunks, check_resume, check_until
from ._data_targets import ConjugateRegression, GaussianMean
from ._require import first_line, require, require_arrays, require_close, require_same_structure
from ._targets import Gaussian, LogGamma


class _Subject:
    """An engine under test, with the runs that several checks look at, each made once."""

    def __init__(self, engine, targets, key_steps, key_run, tolerances):
        self.engine, self.targets, self.tolerances = engine, targets, tolerances
        self.key_steps, self.key_run = key_steps, key_run
        self._runs = {}

    def key(self, number: int) -> PRNGKey:
        return jr.fold_in(self.key_run, number)

    def run(self, number: int) -> tuple[Posterior, "_Spy"]:
        if number not in self._runs:
            spy = _Spy(self.engine, _Record())
            self._runs[number] = _run(self.targets[number], spy, key=self.key(number)), spy
        return self._runs[number]

    def each(self, check: Callable[..., None]) -> None:
        for number, target in enumerate(self.targets):
            check(target, *self.run(number))

    def in_pieces(self, check: Callable[..., None]) -> None:
        check(self.engine, self.targets[0], self.run(0)[0], key=self.key(0))

    def steps(self, check: Callable[..., None]) -> None:
        check(self.engine, self.targets[0], key=self.key_steps)


# In this order, with what each looks at.
CHECKS: dict[str, tuple[str, Callable[[_Subject], None]]] = {
    "configuration": ("name, schedule and hash", lambda it: check_configuration(it.engine)),
    "state": (
        "strongly typed arrays that keep shape and type over steps; `Info`, `done`, `result`",
        lambda it: it.steps(check_state),
    ),
    "transforms": (
        "a step is the same compiled, uncompiled, repeated and vmapped",
        lambda it: it.steps(check_transforms),
    ),
    "float32": (
        "on a float32 target all is float32, though float64 is enabled",
        lambda it: it.steps(check_single_precision),
    ),
    "sample": (
        "a run fills its schedule; draws, weights and statistics are finite and well formed; "
        "`lp` is the log density of the draw",
        lambda it: it.each(lambda t, p, spy: check_sample(it.engine, t, p, spy.record)),
    ),
    "retrace": (
        "a second run on other data of the same shapes traces nothing",
        lambda it: check_one_trace(it.run(0)[1], it.targets[0], key=it.key(99)),
    ),
    "chunks": (
        "draws do not depend on the chunks a run is cut into",
        lambda it: it.in_pieces(check_chunks),
    ),
    "resume": (
        "a run stopped halfway and resumed from its store gives the same draws",
        lambda it: it.in_pieces(check_resume),
    ),
    "until": (
        "if `schedule.extendable`: a run that ends by a rule gives the same first draws",
        lambda it: it.in_pieces(check_until),
    ),
    "truth": (
        "moments and evidence are right within Monte Carlo error",
        lambda it: it.each(lambda t, p, _: check_truth(p, t, **it.tolerances)),
    ),
}


@seeded
def check_engine(
    engine: AbstractEngine,
    target: AbstractTarget | None = None,
    *,
    key: PRNGKey,
    only: str | Sequence[str] | None = None,
    verbose: bool = False,
    bias: float = 0.0,
    max_z: float = 5.0,
    min_ess: float = 100.0,
) -> tuple[str, ...]:
    """Check that an engine keeps the contract of `AbstractEngine`, and that it is right.

    The checks are, in this order: `configuration`, `state`, `transforms`, `float32`,
    `sample`, `retrace`, `chunks`, `resume`, `until` and `truth`; `verbose=True` says what
    each looks at.

    Args:
        engine: The engine, with a schedule long enough for `min_ess` and short enough to
            wait for; it runs six times.
        target: What to run on; if it has `truth` (and `log_evidence`), as the targets of
            this package do, its moments are checked. By default a correlated Gaussian and a
            skewed target, or if the engine refuses these, two with data.
        key: A typed key; choose it before looking.
        only: The check or checks to make, by name; by default all.
        verbose: Print each check before it is made.
        bias: Systematic error of means and standard deviations to forgive, in units of the
            true standard deviation: for engines that are approximate by design.
        max_z: Most Monte Carlo standard errors a moment may be off.
        min_ess: Least effective sample size of every variable.

    Returns:
        Names of the checks that were made; all have passed.

    Raises:
        AssertionError: With the name of the check and a sentence on what is wrong.
        ValueError: If `only` names no check.
    """
    wanted = tuple(CHECKS) if only is None else (only,) if isinstance(only, str) else only
    for name in wanted:
        if name not in CHECKS:
            raise ValueError(f"`only` must be among {', '.join(CHECKS)}; got {name!r}.")
    key_targets, key_steps, key_run = jr.split(key, 3)
    tolerances = {"bias": bias, "max_z": max_z, "min_ess": min_ess}
    targets = _targets_for(engine, target, key_targets)
    subject = _Subject(engine, targets, key_steps, key_run, tolerances)
    for name in wanted:
        description, check = CHECKS[name]
        if verbose:
            print(f"{name}: {description}")
        try:
            check(subject)
        except AssertionError as error:
            raise AssertionError(
                f"{type(engine).__name__} fails the check `{name}` ({description}). {error}"
            ) from error.__cause__
    return tuple(wanted)


def check_configuration(engine: AbstractEngine) -> None:
    """Name and schedule are valid, and the configuration can be hashed."""
    name, schedule = engine.name, engine.schedule
    require(isinstance(name, str) and bool(name), f"`name` must be a word; got {name!r}.")
    replicas, warmup, steps, extendable, pauses = schedule[:5]
    for field, value in {"replicas": replicas, "warmup": warmup, "steps": steps}.items():
        require(type(value) is int, f"`schedule.{field}` must be an int; got {value!r}.")
    require(
        type(extendable) is bool, f"`schedule.extendable` must be a bool; got {extendable!r}."
    )
    require(replicas >= 1, f"`schedule.replicas` must be at least 1; got {replicas}.")
    require(
        0 <= warmup <= steps and steps >= 1,
        f"`schedule` must have 0 <= warmup <= steps and steps >= 1; got {schedule}.",
    )
    require(
        list(pauses) == sorted(set(pauses)) and (not pauses or pauses[0] > 0),
        f"`schedule.pauses` must be increasing and positive; got {pauses}.",
    )
    require(
        not pauses or isinstance(engine, AbstractPausingEngine),
        "An engine with `schedule.pauses` must be an `AbstractPausingEngine`.",
    )
    try:
        hash(engine)
    except TypeError as error:
        raise AssertionError(
            f"The configuration must be hashable, since it is part of the program: {error}."
        ) from error


def check_state(engine: AbstractEngine, target: AbstractTarget, *, key: PRNGKey) -> None:
    """The state is of strongly typed arrays and keeps its structure over steps."""
    state, info = _abstractly(engine, target, key)
    require_arrays(info, "`Info`")
    with _sentence("done"):
        done = eqx.filter_eval_shape(engine.done, state)
    require(
        hasattr(done, "dtype") and done.shape == () and done.dtype == np.dtype(bool),
        f"`done` must return a boolean scalar, for example `jnp.asarray(False)`; got {done}.",
    )
    with _sentence("result"):
        result = eqx.filter_eval_shape(engine.result, state)
    require(
        isinstance(result, RESULTS),
        f"`result` must return one of `RESULTS`, as `RESULTS.successful` or what "
        f"`RESULTS.where` makes; got {result!r}.",
    )


def _abstractly(engine, target, key) -> tuple[PyTree, Info]:
    """Return shapes of the state and of `Info`, once `init` and `step` agree on the former."""
    with _sentence("init"):
        state = eqx.filter_eval_shape(engine.init, target, key=key)
    require_arrays(state, "state of `init`", others=True)
    index = jax.ShapeDtypeStruct((), np.int32)
    with _sentence("step"):
        made = eqx.filter_eval_shape(engine.step, target, state, index, key=key)
    require(
        isinstance(made, tuple) and len(made) == 2,
        f"`step` must return the new state and an `Info`; got {type(made).__name__}.",
    )
    new, info = made
    require_same_structure(state, new, "state of `init`", "state of `step`")
    require(
        isinstance(info, Info),
        "`step` must return an `Info` beside the state, `whence.Info(position, stats)`; got "
        f"{type(info).__name__}.",
    )
    require(
        isinstance(info.stats, dict) and all(isinstance(name, str) for name in info.stats),
        f"`Info.stats` must be a dict of arrays by name; got {info.stats!r}.",
    )
    return state, info


def check_single_precision(
    engine: AbstractEngine, target: AbstractTarget, *, key: PRNGKey
) -> None:
    """On a float32 target all is float32, though float64 is enabled."""

    def narrow(leaf):
        wide = eqx.is_array(leaf) and leaf.dtype == np.float64
        return leaf.astype(np.float32) if wide else leaf

    target = jax.tree.map(narrow, target)
    position = eqx.filter_eval_shape(target.init, key=key)
    narrow_only = lambda tree: all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(tree))
    if not narrow_only(position) or not narrow_only(
        eqx.filter_eval_shape(target.log_density, position)
    ):
        return  # this target does not follow the dtype of its data
    _, info = _abstractly(engine, target, key)
    for leaf in jax.tree.leaves(info.position):
        require(
            leaf.dtype != np.float64,
            "`Info.position` is float64 though the target's position is float32: some "
            "constant of the engine has the default dtype instead of the position's.",
        )


def check_transforms(engine: AbstractEngine, target: AbstractTarget, *, key: PRNGKey) -> None:
    """A step is the same compiled, uncompiled, repeated and vmapped."""
    init = lambda key: engine.init(target, key=key)
    step = lambda state, index, key: engine.step(target, state, index, key=key)
    compiled = eqx.filter_jit(step)
    vmapped = eqx.filter_jit(eqx.filter_vmap(step, in_axes=(eqx.if_array(0), None, 0)))
    keys_init, keys_step = jr.split(key, (2, 2))
    states = eqx.filter_jit(eqx.filter_vmap(init))(keys_init)
    alone = [eqx.filter_jit(init)(k) for k in keys_init]
    # One step at the start, in warm-up if there is one, and one after it.
    for number in sorted({0, min(engine.schedule.warmup, engine.schedule.steps - 1)}):
        index = jnp.asarray(number, jnp.int32)
        stacked = vmapped(states, index, keys_step)
        for i, (state, key_step) in enumerate(zip(alone, keys_step)):
            require_close(_at(states, i), state, "A vmapped `init`", "one by one")
            want = compiled(state, index, key_step)
            name = f"A vmapped `step` at index {number}"
            require_close(_at(stacked, i), want, name, "one by one")
    again, plain = compiled(state, index, key_step), step(state, index, key_step)
    require_close(again, want, "A compiled `step`", "with the same key again")
    require_close(plain, want, "An uncompiled `step`", "compiled")


def check_one_trace(spy: "_Spy", target: AbstractTarget, *, key: PRNGKey) -> None:
    """A second run on other data of the same shapes traces nothing."""
    before = spy.record.traces
    copy = lambda leaf: jnp.array(leaf, copy=True) if eqx.is_array(leaf) else leaf
    _run(jax.tree.map(copy, target), spy, key=key)
    count = spy.record.traces - before
    require(
        count == 0,
        f"`step` was traced {count} times more for a second run on data of the same shapes: "
        "something in the engine or target is not a leaf, or is of a weak type.",
    )


def check_sample(
    engine: AbstractEngine, target: AbstractTarget, posterior: Posterior, record: "_Record"
) -> None:
    """What a run recorded and returned has the right shapes and is finite."""
    _check_trace(engine, record)
    sample = posterior.sample
    example = eqx.filter_eval_shape(target.init, key=jr.key(0))
    require(
        jax.tree.structure(sample.positions) == jax.tree.structure(example),
        f"`Sample.positions` has structure {jax.tree.structure(sample.positions)}, the "
        f"target's positions {jax.tree.structure(example)}.",
    )
    leaves = jax.tree.leaves(sample.positions)
    lead = leaves[0].shape[:2]
    for leaf, like in zip(leaves, jax.tree.leaves(example)):
        require(
            leaf.shape == (*lead, *like.shape) and len(lead) == 2 and min(lead) > 0,
            f"`Sample.positions` must add axes (chain, draw) to {like.shape}; got a leaf of "
            f"shape {leaf.shape}.",
        )
        require(bool(np.isfinite(leaf).all()), "`Sample.positions` must be finite.")
    for name, value in sample.stats.items():
        require(
            np.shape(value)[:2] == lead,
            f"`Sample.stats[{name!r}]` must have leading axes {lead}; got {np.shape(value)}.",
        )
        require(bool(np.isfinite(value).all()), f"`Sample.stats[{name!r}]` must be finite.")
    _check_weights(sample, lead)
    _check_lp(target, sample, lead)


def _check_trace(engine, record):
    replicas, warmup, steps, *_ = engine.schedule
    for name, want in (("warmup", warmup), ("sampling", steps - warmup)):
        part = getattr(record.trace, name)
        for leaf in jax.tree.leaves(part):
            got = leaf.shape[:2]
            short = record.done and got[0] == replicas and 0 < got[1] < want
            require(
                got == (replicas, want) or short,
                f"the trace's {name} has leading axes {got}; the schedule says "
                f"{(replicas, want)}.",
            )


def _check_weights(sample, lead):
    if sample.log_weights is None:
        return
    require(
        sample.log_weights.shape == lead,
        f"`Sample.log_weights` must have shape {lead}; got {sample.log_weights.shape}.",
    )
    total = float(np.logaddexp.reduce(np.asarray(sample.log_weights, np.float64), axis=None))
    require(
        abs(total) < 1e-4,
        f"`Sample.log_weights` must be normalised; the weights sum to {np.exp(total):.6g}.",
    )


def _check_lp(target, sample, lead):
    if "lp" not in sample.stats:
        return
    chain, draw = lead[0] - 1, lead[1] // 2
    position = jax.tree.map(lambda x: jnp.asarray(x[chain, draw]), sample.positions)
    want, got = float(target.log_density(position)), float(sample.stats["lp"][chain, draw])
    require(
        abs(got - want) <= 1e-3 * max(1.0, abs(want)),
        f"`Sample.stats['lp']` must be the log density of the draw in nats; got {got:.6g} "
        f"where the target has {want:.6g}.",
    )


def check_truth(
    posterior: Posterior,
    target: Any,
    *,
    bias: float = 0.0,
    max_z: float = 5.0,
    min_ess: float = 100.0,
) -> None:
    """Moments and evidence are those that `target` knows, within Monte Carlo error."""
    if hasattr(target, "truth"):
        table = compare_moments(
            posterior.variables, target.truth, log_weights=posterior.log_weights, bias=bias
        )
        table.check(max_z=max_z, min_ess=min_ess)
    error = posterior.log_evidence_error
    if hasattr(target, "log_evidence") and posterior.log_evidence is not None and error:
        off = posterior.log_evidence - float(target.log_evidence)
        require(
            abs(off) <= max_z * error,
            f"`log_evidence` {posterior.log_evidence:.4f} should be "
            f"{float(target.log_evidence):.4f}; its error is said to be {error:.4f}.",
        )


class _Record:
    """What a spy has seen; compared by identity."""

    def __init__(self):
        self.traces = 0
        self.trace = Trace(None, None)
        self.done = False


class _Spy(AbstractWrappedEngine):
    """An engine that behaves as another and remembers how it was used."""

    watched: AbstractEngine
    record: _Record = eqx.field(static=True)

    @property
    def engine(self) -> AbstractEngine:
        return self.watched

    def step(self, target, state, index, *, key):
        self.record.traces += 1
        return self.watched.step(target, state, index, key=key)

    def posterior(self, target, state, trace, *, key) -> Sample:
        self.record.trace = trace
        self.record.done = bool(np.all(eqx.filter_vmap(self.watched.done)(state)))
        with _sentence("posterior"):
            sample = self.watched.posterior(target, state, trace, key=key)
        require(
            isinstance(sample, Sample),
            "`posterior` must return a `Sample`, `whence.Sample(positions, stats, "
            f'method="mcmc")`; got {type(sample).__name__}.',
        )
        return sample


def _targets_for(engine, target, key) -> Sequence[AbstractTarget]:
    if target is not None:
        engine.validate(target)
        return (target,)
    key_mean, key_regression = jr.split(key)
    plain = (Gaussian(3, condition_number=10.0, correlated=True), LogGamma())
    data = (
        GaussianMean.simulate(key=key_mean),
        ConjugateRegression.simulate(key=key_regression),
    )
    refusals = []
    for targets in (plain, data):
        try:
            for one in targets:
                engine.validate(one)
        except ValueError as error:
            refusals.append(str(error))
        else:
            return targets
    raise AssertionError(f"`validate` refuses every target: {refusals}. Pass one it accepts.")


def _run(target, engine, **kwargs) -> Posterior:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)  # the checks here say it better
        return infer(target, engine, progress=False, **kwargs)


def _at(tree: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[i] if eqx.is_array(leaf) else leaf, tree)


@contextmanager
def _sentence(method: str) -> Iterator[None]:
    """Turn what a method of the engine raises into a sentence that names the method."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        hint = ""
        if isinstance(error, jax.errors.ConcretizationTypeError):
            hint = " A traced value has no number yet: write `jnp.where` or `jax.lax.cond`."
        raise AssertionError(
            f"`{method}` raised {type(error).__name__}: {first_line(error)}{hint}"
        ) from error
