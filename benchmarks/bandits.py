"""CPU time per instance-round of Thompson sampling with unknown variances, ten arms.

Against a loop in Python with NumPy, one instance at a time, and against NumPy vectorised by
hand over the instances. The three take turns, so that other load on the machine meets all of
them alike; medians over the turns are printed. Run: `python benchmarks/bandits.py`.
"""

import time

import jax
import jax.random as jr
import numpy as np

from whence.models.bandit import NormalGamma, VarTS, sample_instances, simulate

ARMS, INSTANCES, HORIZON, TURNS = 10, 1_000, 1_000, 5
LOOP_HORIZON = 5_000  # of one instance


def loop(rng):
    """Play one instance, a round at a time."""
    scale = 1 / np.sqrt(rng.gamma(4.0, 1.0, ARMS))
    means = rng.normal(0, scale)
    mu, kappa = np.zeros(ARMS), np.ones(ARMS)
    alpha, beta = np.full(ARMS, 4.0), np.ones(ARMS)
    for _ in range(LOOP_HORIZON):
        precision = rng.gamma(alpha) / beta
        arm = np.argmax(mu + rng.standard_normal(ARMS) / np.sqrt(kappa * precision))
        error = means[arm] + scale[arm] * rng.standard_normal() - mu[arm]
        beta[arm] += kappa[arm] * error**2 / (2 * (kappa[arm] + 1))
        mu[arm] += error / (kappa[arm] + 1)
        kappa[arm] += 1
        alpha[arm] += 0.5


def vectorised(rng):
    """Play all instances at once."""
    shape, rows = (INSTANCES, ARMS), np.arange(INSTANCES)
    scale = 1 / np.sqrt(rng.gamma(4.0, 1.0, shape))
    means = rng.normal(0, scale)
    mu, kappa = np.zeros(shape), np.ones(shape)
    alpha, beta = np.full(shape, 4.0), np.ones(shape)
    for _ in range(HORIZON):
        precision = rng.standard_gamma(alpha) / beta
        noise = rng.standard_normal(shape)
        at = (rows, np.argmax(mu + noise / np.sqrt(kappa * precision), axis=1))
        error = means[at] + scale[at] * rng.standard_normal(INSTANCES) - mu[at]
        beta[at] += kappa[at] * error**2 / (2 * (kappa[at] + 1))
        mu[at] += error / (kappa[at] + 1)
        kappa[at] += 1
        alpha[at] += 0.5


def ours(seed):
    """Simulate, reward tape included."""
    prior = NormalGamma(*(np.float32(x) for x in (0, 1, 4, 1)), arms=ARMS)
    environment = sample_instances(prior, instances=INSTANCES, key=jr.key(seed))
    simulate({"x": VarTS(prior)}, environment, horizon=HORIZON, key=jr.key(seed + 1))


def seconds(function, argument):
    """Return CPU seconds of all threads."""
    start = time.process_time()
    function(argument)
    return time.process_time() - start


def main():
    """Take turns and print medians."""
    first = seconds(ours, 0)
    taken = {"loop": [], "vectorised": [], "whence": []}
    for turn in range(TURNS):
        rng = np.random.default_rng(turn)
        taken["loop"].append(seconds(loop, rng) / LOOP_HORIZON)
        taken["vectorised"].append(seconds(vectorised, rng) / (INSTANCES * HORIZON))
        taken["whence"].append(seconds(ours, turn) / (INSTANCES * HORIZON))
    print(f"{jax.default_backend()}, float32; first call with compilation {first:.1f} CPU s")
    for name, values in taken.items():
        low, middle, high = (1e6 * np.quantile(values, q) for q in (0, 0.5, 1))
        print(f"{name:<11} {middle:7.3f} us per instance-round ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
