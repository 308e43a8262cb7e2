"""Outcomes of a run, each with what happened and what to do about it."""

import equinox as eqx


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


class InferenceError(RuntimeError):
    """A run failed; the message says what happened and what to do."""


class InferenceWarning(UserWarning):
    """A run went on, but what it returned needs a look."""
