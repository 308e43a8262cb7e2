"""What there is to tell of chains with stochastic gradients, and how it is judged."""

import numpy as np

from ...diagnostics._data import Draws
from ...diagnostics._records import AbstractRecord, Judged, Values
from ...diagnostics._report import Finding, Severity
from ...diagnostics._spread import OFF, SIGMAS, check_spread

CLOSE = 0.5  # of the largest stable step size: there the variance is a third too large
SMALL = 1e-3  # of it: hundreds of updates to forget even the stiffest direction
NOISY = 0.1  # share of a variance that is noise of batches
WARM = 0.1  # off the temperature
REJECTED = 0.5  # mean acceptance of a Metropolis test
CLAMPED = 0.01  # share of coordinates
UNLIKELY = 0.002  # p-value

Verdict = tuple[Severity, float, float | None, str, str]  # ..., limit, message, remedy


class StochasticGradientChains(AbstractRecord):
    """Chains with stochastic gradients and no Metropolis test, and what is known of their bias.

    Attributes:
        inflation: As in `UnadjustedChains`, over the temperature: 1 if the draws are from
            `p ** (1 / temperature)`.
        inflation_error: Standard errors.
        overdamped: Whether there was no momentum.
        step_size: The largest of each chain, `(chain,)`.
        friction: Mean of each chain, `(chain,)`; None without a momentum, as below.
        largest_stable: Step size above which updates are unstable, where each chain ended.
        noise_ratio: Share by which the noise of batches makes a variance larger, by theory,
            along the stiffest direction or in the mean over coordinates.
        kinetic: Mean square of the momenta over the temperature: 1 up to discretisation.
        kinetic_error: Its standard error.
        clamped: Share of coordinates whose noise of friction could not be reduced as asked.
        halving: Variances of a second, shorter run with half the step over those of the draws.
        halving_error: Its standard error.
        acceptance: Mean probability that a Metropolis test on all data accepts an update.
        stein: Squared kernel Stein discrepancy of some draws.
        stein_p: Its p-value.

    References:
        Gorham, Mackey (2017), Measuring sample quality with kernels, arXiv:1703.01717.
    """

    inflation: Values
    inflation_error: Values
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
        checks = {
            "step": (self.largest_stable, self._step),
            "noise": (self.noise_ratio, self._noise),
            "halving": (self.halving_error, self._halving),
            "kinetic": (self.kinetic_error, self._kinetic),
            "metropolis": (self.acceptance, self._acceptance),
            "clamped": (self.clamped, self._clamped),
            "stein": (self.stein, self._stein),
        }
        for code, (known, check) in checks.items():
            if known is not None and np.all(np.isfinite(known)):
                severity, value, limit, message, remedy = check()
                remedy = "" if severity == "ok" else remedy
                findings.append(Finding(code, severity, message, value, limit, "", remedy))
                numbers[code] = value
        return findings, numbers

    def _step(self) -> Verdict:
        sizes, limits = np.asarray(self.step_size), np.asarray(self.largest_stable)
        worst = int(np.argmax(sizes / limits))
        value, tenth = float((sizes / limits)[worst]), f"{0.1 * limits.min():.2g}"
        message = (
            f"The step size is {sizes[worst]:.3g}; the largest stable one, where the chain "
            f"ended, is {limits[worst]:.3g}"
        )
        if value > CLOSE:
            remedy = f"Use a step size of at most {tenth}, or None."
            return "warning", value, CLOSE, message, remedy
        remedy = (
            "So small a step takes long to forget where it started: look at the effective "
            f"sample sizes. Up to {tenth} the step itself does little harm; what limits it "
            "then is the noise of the batches."
        )
        return "note" if value < SMALL else "ok", value, CLOSE, message, remedy

    def _noise(self) -> Verdict:
        value = float(self.noise_ratio)
        message = (
            f"The noise of the batches makes variances larger by {value:.2g} of themselves"
        )
        smaller = "smaller" + (
            "" if self.overdamped else ", or a friction as many times larger,"
        )
        remedy = (
            f"A step size {value / NOISY:.0f} times {smaller} or batches as many times larger "
            "bring it to a tenth; so may control variates, or SGNHT."
        )
        return "ok" if value <= NOISY else "warning", value, NOISY, message, remedy

    def _halving(self) -> Verdict:
        ratio, limit = float(self.halving), OFF**2 - 1
        # To first order the excess of the variance goes with the step.
        excess, error = 2 * (1 - ratio), 2 * SIGMAS * float(self.halving_error)
        message = (
            f"With half the step, variances are {ratio:.3g} times those of the draws (standard "
            f"error {self.halving_error:.2g}): by extrapolation the step adds {excess:+.2g}"
        )
        if abs(excess) > max(error, limit):
            remedy = (
                f"Use a step size {max(abs(excess) / limit, 2):.0f} times smaller, or more "
                "warm-up if the chains were not yet at rest."
            )
            return "warning", ratio, None, message, remedy
        remedy = "The second run was too short to tell: make more steps, or raise `checks`."
        return "note" if error > limit else "ok", ratio, None, message, remedy

    def _kinetic(self) -> Verdict:
        value, error = float(self.kinetic), float(self.kinetic_error)
        message = f"The kinetic temperature is {value:.3g} of what it should be"
        remedy = (
            "The noise of the batches heats the momenta: use more friction, a smaller step, "
            "larger batches, or SGNHT, whose thermostat takes the heat away."
            if value > 1
            else "The momenta are damped more than they are driven: use a smaller step size or "
            "less friction."
        )
        fine = abs(value - 1) <= max(WARM, SIGMAS * error)
        return "ok" if fine else "warning", value, 1 + WARM, message, remedy

    def _acceptance(self) -> Verdict:
        value = float(self.acceptance)
        message = (
            "A Metropolis test on all data would accept an update without noise of batches "
            f"with probability {value:.2g}"
        )
        remedy = (
            "The step is long for this number of dimensions. If `spread` is well, single "
            "latents are right nevertheless; else use a smaller step size."
        )
        return "ok" if value >= REJECTED else "note", value, REJECTED, message, remedy

    def _clamped(self) -> Verdict:
        value = float(self.clamped)
        message = f"The gradient is noisier than friction allows in {value:.2g} of coordinates"
        remedy = (
            "There no noise is added any more and the chain follows the gradient like an "
            "optimiser: use more friction, a smaller step size or larger batches."
        )
        return "ok" if value <= CLAMPED else "warning", value, CLAMPED, message, remedy

    def _stein(self) -> Verdict:
        value, p = float(self.stein), float(self.stein_p)
        message = f"The squared kernel Stein discrepancy is {value:.2g} (p = {p:.2g})"
        remedy = (
            "These draws are not from the target: the chains have not arrived, or the bias of "
            "the step or of the batches is large; see `spread`, `rhat` and `halving`."
        )
        return "ok" if p >= UNLIKELY else "warning", value, None, message, remedy
