"""What there is to tell of chains with stochastic gradients, and how it is judged."""

import numpy as np

from ...diagnostics._data import Draws
from ...diagnostics._records import AbstractRecord, Judged, Values
from ...diagnostics._report import Finding
from ...diagnostics._spread import OFF, SIGMAS, check_spread

CLOSE = 0.5  # of the largest stable step size: there the variance is a third too large
SMALL = 1e-3  # of it: hundreds of updates to forget even the stiffest direction
NOISY = 0.1  # inflation of the variance by independent batches
WARM = 0.1  # off the temperature
REJECTED = 0.5  # mean acceptance of a Metropolis test
CLAMPED = 0.01  # share of coordinates
UNLIKELY = 0.002  # p-value


class StochasticGradientChains(AbstractRecord):
    """Chains with stochastic gradients and no Metropolis test, and what is known of their bias.

    Attributes:
        inflation: As in `UnadjustedChains`, over the temperature: 1 if the draws are from
            `p ** (1 / temperature)`.
        inflation_error: Standard errors.
        batching: How batches were made; `"none"` if all rows were used.
        overdamped: Whether there was no momentum.
        step_size: The largest of each chain, `(chain,)`.
        friction: Mean of each chain, `(chain,)`; None without a momentum, as below.
        largest_stable: Step size above which updates are unstable, where each chain ended.
        noise_ratio: Inflation of the variance that independent batches make, `h V / 2` or
            `h V / (2 friction)`, along the stiffest direction or in the mean of coordinates.
        kinetic: Mean square of the momenta over the temperature: 1 up to discretisation.
        kinetic_error: Its standard error.
        clamped: Share of coordinates whose noise of friction could not be reduced as asked.
        halving: Variances of a second, shorter run with half the step over those of the draws.
        halving_error: Its standard error.
        acceptance: Mean probability that a Metropolis test on all data accepts an update.
        stein: Squared kernel Stein discrepancy of some draws.
        stein_p: Its p-value.
    """

    inflation: Values
    inflation_error: Values
    batching: str
    overdamped: bool
    step_size: Values
    friction: Values = None
    largest_stable: Values = None
    noise_ratio: Values = None
    kinetic: Values = None
    kinetic_error: Values = None
    clamped: Values = None
    halving: Values = None
    halving_error: Values = None
    acceptance: Values = None
    stein: Values = None
    stein_p: Values = None

    def judge(self, draws: Draws, method: str) -> Judged:
        findings, numbers = check_spread(self.inflation, self.inflation_error, draws)
        checks = (
            self._step(),
            self._noise(),
            self._halving(),
            self._kinetic(),
            self._acceptance(),
            self._clamped(),
            self._stein(),
        )
        found = [finding for finding in checks if finding is not None]
        values = {finding.code: finding.value for finding in found}
        numbers |= {name: value for name, value in values.items() if value is not None}
        return findings + found, numbers

    def _step(self) -> Finding | None:
        if self.largest_stable is None:
            return None
        sizes, limits = np.asarray(self.step_size), np.asarray(self.largest_stable)
        shares = sizes / limits
        worst = int(np.argmax(shares))
        message = (
            f"The step size is {sizes[worst]:.3g}; the largest stable one, where the chain "
            f"ended, is {limits[worst]:.3g}"
        )
        value = float(shares[worst])
        if value > CLOSE:
            remedy = f"Use a step size of at most {0.1 * limits.min():.2g}, or None."
            return Finding("step", "warning", message, value, CLOSE, "", remedy)
        if value < SMALL:
            remedy = (
                "So small a step takes long to forget where it started: look at the effective "
                f"sample sizes. Up to {0.1 * limits.min():.2g} the step itself does little "
                "harm; what limits it then is the noise of the batches."
            )
            return Finding("step", "note", message, value, SMALL, "", remedy)
        return Finding("step", "ok", message, value, CLOSE)

    def _noise(self) -> Finding | None:
        if self.noise_ratio is None or self.batching == "none":
            return None
        value = float(self.noise_ratio)
        message = (
            f"Independent batches would make variances larger by {value:.2g} of themselves"
        )
        if value <= NOISY:
            return Finding("noise", "ok", message, value, NOISY)
        reshuffled = self.batching != "iid"
        if reshuffled:
            message += "; reshuffled ones, as here, by less: see `spread`"
        factor = (
            "smaller" if self.overdamped else "smaller, or a friction as many times larger,"
        )
        remedy = (
            f"A step size {value / NOISY:.0f} times {factor} or batches as many times larger "
            "bring it to a tenth; so may control variates, or SGNHT."
        )
        severity = "note" if reshuffled else "warning"
        return Finding("noise", severity, message, value, NOISY, "", remedy)

    def _halving(self) -> Finding | None:
        if self.halving is None or not np.isfinite(self.halving_error):
            return None
        ratio, error = float(self.halving), float(self.halving_error)
        # To first order the excess of the variance goes with the step.
        excess, excess_error = 2 * (1 - ratio), 2 * error
        message = (
            f"With half the step, variances are {ratio:.3g} times those of the draws (standard "
            f"error {error:.2g}): the step makes them {excess:+.2g} larger by extrapolation"
        )
        limit = OFF**2 - 1
        if abs(excess) > max(SIGMAS * excess_error, limit):
            remedy = (
                f"Use a step size {max(abs(excess) / limit, 2):.0f} times smaller, or more "
                "warm-up if the chains were not yet at rest."
            )
            return Finding("halving", "warning", message, ratio, None, "", remedy)
        if SIGMAS * excess_error > limit:
            remedy = "The second run was too short to tell: make more steps, or raise `checks`."
            return Finding("halving", "note", message, ratio, None, "", remedy)
        return Finding("halving", "ok", message, ratio)

    def _kinetic(self) -> Finding | None:
        if self.kinetic is None or not np.isfinite(self.kinetic_error):
            return None
        value, error = float(self.kinetic), float(self.kinetic_error)
        message = f"The kinetic temperature is {value:.3g} of what it should be"
        if abs(value - 1) <= max(WARM, SIGMAS * error):
            return Finding("kinetic", "ok", message, value, 1 + WARM)
        remedy = (
            "The noise of the batches heats the momenta: use more friction, a smaller step, "
            "larger batches, or SGNHT, whose thermostat takes the heat away."
            if value > 1
            else "The momenta are damped more than they are driven: use a smaller step size or "
            "less friction."
        )
        return Finding("kinetic", "warning", message, value, 1 + WARM, "", remedy)

    def _acceptance(self) -> Finding | None:
        if self.acceptance is None:
            return None
        value = float(self.acceptance)
        message = (
            "A Metropolis test on all data would accept an update without noise of batches "
            f"with probability {value:.2g}"
        )
        if value >= REJECTED:
            return Finding("metropolis", "ok", message, value, REJECTED)
        remedy = (
            "The step is long for this number of dimensions. If `spread` is well, single "
            "latents are right nevertheless; else use a smaller step size."
        )
        return Finding("metropolis", "note", message, value, REJECTED, "", remedy)

    def _clamped(self) -> Finding | None:
        if self.clamped is None:
            return None
        value = float(self.clamped)
        message = (
            f"In {value:.2g} of the coordinates the gradient is noisier than friction allows"
        )
        if value <= CLAMPED:
            return Finding("clamped", "ok", message, value, CLAMPED)
        remedy = (
            "There no noise is added any more and the chain follows the gradient like an "
            "optimiser: use more friction, a smaller step size or larger batches."
        )
        return Finding("clamped", "warning", message, value, CLAMPED, "", remedy)

    def _stein(self) -> Finding | None:
        if self.stein is None or not np.isfinite(self.stein):
            return None
        value, p = float(self.stein), float(self.stein_p)
        message = f"The squared kernel Stein discrepancy is {value:.2g} (p = {p:.2g})"
        source = "Gorham and Mackey 2017, arXiv:1703.01717"
        if p >= UNLIKELY:
            return Finding("stein", "ok", message, value, None, source)
        remedy = (
            "These draws are not from the target: the chains have not arrived, or the bias of "
            "the step or of the batches is large; see `spread`, `rhat` and `halving`."
        )
        return Finding("stein", "warning", message, value, None, source, remedy)
