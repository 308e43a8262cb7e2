"""The regret of simulated policies: means with their uncertainty, quantiles, differences."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from ...core._convert import number
from ._checks import require_within


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Means over instances, with a confidence interval, at each checkpoint.

    Attributes:
        mean: Mean over instances, in units of the reward, shape `(checkpoint,)`.
        standard_error: Its standard error.
        low: Lower end of the interval, pointwise.
        high: Upper end.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class PolicyRun:
    """What a policy did.

    Attributes:
        rounds: Numbers of rounds at the checkpoints, shape `(checkpoint,)`.
        regret: Sum over rounds of the best mean reward less that of the arm pulled, in
            units of the reward, shape `(checkpoint, instance)`.
        pulls: How often each arm was pulled, shape `(arm, instance)`.
    """

    rounds: np.ndarray
    regret: np.ndarray
    pulls: np.ndarray

    @property
    def final(self) -> np.ndarray:
        """Regret after the last round, shape `(instance,)`."""
        return self.regret[-1]

    def bayes_regret(self, *, ci: float = 0.95) -> Estimate:
        """Estimate the mean regret at each checkpoint.

        It is Bayes regret if the instances were drawn from the prior.

        Args:
            ci: Coverage of the interval, by the normal approximation.

        Raises:
            ValueError: If `ci` is not between 0 and 1, or there is only one instance.
        """
        return _estimate(self.regret, ci)

    def quantiles(self, q: tuple[float, ...] = (0.5, 0.95)) -> np.ndarray:
        """Return quantiles over instances, shape `(quantile, checkpoint)`.

        The mean alone hides the few instances on which an over-confident policy fails.

        Raises:
            ValueError: If one is not between 0 and 1.
        """
        require_within("q", q, 0.0, 1.0)
        return np.quantile(self.regret, q, axis=1)


class Simulation(Mapping[str, PolicyRun]):
    """What several policies did on the same instances; a mapping from names to runs."""

    def __init__(self, runs: dict[str, PolicyRun]):
        """Collect runs."""
        self._runs = runs

    def __getitem__(self, name: str) -> PolicyRun:
        """Return the run of one policy."""
        return self._runs[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over names."""
        return iter(self._runs)

    def __len__(self) -> int:
        """Return the number of policies."""
        return len(self._runs)

    def difference(self, a: str, b: str, *, ci: float = 0.95) -> Estimate:
        """Estimate the mean of the difference in regret, instance by instance.

        Args:
            a: Name of a policy.
            b: Name of the one to subtract.
            ci: Coverage of the interval, by the normal approximation.

        Raises:
            ValueError: If `ci` is not between 0 and 1, or there is only one instance.
        """
        return _estimate(self[a].regret - self[b].regret, ci)

    def __str__(self) -> str:
        """Return a table of regret after the last round."""
        width = max(len("policy"), *(len(name) for name in self))
        lines = [f"{'policy':<{width}}      mean    s.e.    median   95% quantile"]
        for name, run in self.items():
            estimate = run.bayes_regret()
            median, high = run.quantiles()[:, -1]
            lines.append(
                f"{name:<{width}}  {estimate.mean[-1]:8.4g}  {estimate.standard_error[-1]:6.2g}"
                f"  {median:8.4g}       {high:8.4g}"
            )
        return "\n".join(lines)


def _estimate(values: np.ndarray, ci: float) -> Estimate:
    from scipy.special import ndtri

    ci = number("ci", least=0, most=1)(ci)
    num = values.shape[1]
    if num < 2:
        raise ValueError(f"A standard error needs at least 2 instances; got {num}.")
    mean, error = values.mean(1), values.std(1, ddof=1) / np.sqrt(num)
    reach = ndtri((1 + ci) / 2) * error
    return Estimate(mean, error, mean - reach, mean + reach)
