"""Outcomes of a run, each with what happened and what to do about it."""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import equinox as eqx
import jax


class RESULTS(eqx.Enumeration):
    """Outcome of one replica."""

    successful = ""
    nonfinite_start = (
        "The log density or its gradient was not finite at any of the initial points tried. "
        "Run `whence.check(target)` to see which latent and which row; common causes are "
        "data outside the support of the likelihood, a scale that underflows to zero, and "
        "a likelihood that overflows in float32 (try `whence.enable_x64()`)."
    )
    nonfinite_state = (
        "A step produced a non-finite position, and the run could not go on. "
        "Use a smaller step size, or check the model for overflow."
    )
    tempering_stalled = (
        "The next temperature is closer than 1e-6 to the last one: the particles do not "
        "reach the next distribution. Use more particles or more moves per temperature."
    )
    max_steps = (
        "The engine reached its largest number of steps before it was done. "
        "Allow more steps, or look at its statistics for what holds it back."
    )
    unbounded = (
        "The objective rose right up to where it is no longer finite: it is unbounded, or its "
        "maximum lies on the edge of the support. Common causes are a scale that can go to "
        "zero (a mixture component on one data point, a hierarchical scale) and a prior that "
        "is infinite at an end; give the scale a prior that keeps it from zero, or sample."
    )
    still_rising = (
        "The objective was still rising when the steps ran out. Where a scale goes to zero (a "
        "hierarchical scale, a mixture component on one data point) it rises for ever: it "
        "has no maximum. Then give the scale a prior that keeps it from zero, or integrate "
        "over it (NUTS). Else allow more `steps`."
    )
    model_error = "The model raised an error while it ran."


INSTEAD_OF_ERROR = (
    "Proposals go to places that the posterior does not: where the model has no value there, "
    "return a log density of minus infinity instead of an error (a solver of diffrax with "
    "`throw=False` and infinite times does), and they are rejected."
)


class InferenceError(RuntimeError):
    """A run failed; the message says what happened and what to do."""


class ModelError(InferenceError):
    """The model raised an error while it ran: `eqx.error_if`, a solver that gave up."""


_LOCK = threading.Lock()
_running = 0  # how many compiled programs are running, in threads


@contextmanager
def errors_of_the_model() -> Iterator[None]:
    """Turn an error inside of compiled code into a `ModelError` in the model's own words."""
    global _running
    log = logging.getLogger("jax._src.callback")  # would print pages of frames of JAX
    with _LOCK:
        _running += 1
        log.addFilter(_silent)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "allback" not in str(error):
            raise  # out of memory, and the like
        raise ModelError(f"The model raised an error: {_own_words(str(error))}") from None
    finally:
        with _LOCK:
            _running -= 1
            if not _running:
                log.removeFilter(_silent)


def _silent(record: logging.LogRecord) -> bool:
    return "callback failed" not in record.getMessage()


def _own_words(text: str) -> str:
    """Return what stands below the last frame of a traceback, without Equinox's own advice."""
    lines = text.rpartition("\n  File ")[2].splitlines()[1:] or text.splitlines()
    while len(lines) > 1 and lines[0].startswith("    "):
        del lines[0]
    said = "\n".join(lines).partition("\n\n\n-----")[0].strip()
    return re.sub(r"^[\w.]*_EquinoxRuntimeError: ", "", said)


class InferenceWarning(UserWarning):
    """A run went on, but what it returned needs a look."""
