"""The head of a motorcyclist in a crash: a Bayesian neural network in one line.

In a simulated collision a crash-test dummy's head is accelerated: nothing at first, then a
blow, then a rebound, and the measurements scatter more in the blow than before it. A neural
network gives both the mean and the size of the noise; its weights are latents, so that its
predictions say where it does not know. The same network with noise of one size is judged
against it by leave-one-out cross-validation.

Weights of a network are not identified: hidden units may swap places and signs, and chains
do. What they compute is identified, so that is what is diagnosed here.

    python examples/bnn.py [FOLDER]

writes its picture to FOLDER (default: `bnn`).

References:
    Silverman (1985), "Some aspects of the spline smoothing approach to non-parametric
    regression curve fitting", Journal of the Royal Statistical Society B 47(1), 1-52: the
    data, in milliseconds after impact and multiples of g.
"""

import sys
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from arviz_stats import compare

import whence as wh
from whence.diagnostics import convergence

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

TIMES = """
2.4 2.6 3.2 3.6 4 6.2 6.6 6.8 7.8 8.2 8.8 8.8 9.6 10 10.2 10.6 11 11.4 13.2 13.6 13.8 14.6
14.6 14.6 14.6 14.6 14.6 14.8 15.4 15.4 15.4 15.4 15.6 15.6 15.8 15.8 16 16 16.2 16.2 16.2
16.4 16.4 16.6 16.8 16.8 16.8 17.6 17.6 17.6 17.6 17.8 17.8 18.6 18.6 19.2 19.4 19.4 19.6 20.2
20.4 21.2 21.4 21.8 22 23.2 23.4 24 24.2 24.2 24.6 25 25 25.4 25.4 25.6 26 26.2 26.2 26.4 27
27.2 27.2 27.2 27.6 28.2 28.4 28.4 28.6 29.4 30.2 31 31.2 32 32 32.8 33.4 33.8 34.4 34.8 35.2
35.2 35.4 35.6 35.6 36.2 36.2 38 38 39.2 39.4 40 40.4 41.6 41.6 42.4 42.8 42.8 43 44 44.4 45
46.6 47.8 47.8 48.8 50.6 52 53.2 55 55 55.4 57.6
"""
ACCELERATIONS = """
0 -1.3 -2.7 0 -2.7 -2.7 -2.7 -1.3 -2.7 -2.7 -1.3 -2.7 -2.7 -2.7 -5.4 -2.7 -5.4 0 -2.7 -2.7 0
-13.3 -5.4 -5.4 -9.3 -16 -22.8 -2.7 -22.8 -32.1 -53.5 -54.9 -40.2 -21.5 -21.5 -50.8 -42.9
-26.8 -21.5 -50.8 -61.7 -5.4 -80.4 -59 -71 -91.1 -77.7 -37.5 -85.6 -123.1 -101.9 -99.1 -104.4
-112.5 -50.8 -123.1 -85.6 -72.3 -127.2 -123.1 -117.9 -134 -101.9 -108.4 -123.1 -123.1 -128.5
-112.5 -95.1 -81.8 -53.5 -64.4 -57.6 -72.3 -44.3 -26.8 -5.4 -107.1 -21.5 -65.6 -16 -45.6 -24.2
9.5 4 12 -21.5 37.5 46.9 -17.4 36.2 75 8.1 54.9 48.2 46.9 16 45.6 1.3 75 -16 -54.9 69.6 34.8
32.1 -37.5 22.8 46.9 10.7 5.4 -1.3 -21.5 -13.3 30.8 -10.7 29.4 0 -10.7 14.7 -1.3 0 10.7 10.7
-26.8 -14.7 -13.3 0 10.7 -14.7 -2.7 10.7 -2.7 10.7
"""

TIME = np.array(TIMES.split(), float)
ACCELERATION = np.array(ACCELERATIONS.split(), float)
GRID = np.linspace(0.0, 75.0, 200)
ENGINE = wh.NUTS(chains=2, warmup=300, draws=300, target_accept=0.9)


def network(noise, outputs: int):
    """A network with one hidden layer, and priors that allow for steep slopes in time."""
    module = eqx.nn.MLP(1, outputs, 12, 1, activation=jnp.tanh, key=jax.random.key(0))
    prior = {"layers.0.*": wh.FanIn(3.0), "*": wh.FanIn(1.5)}
    return wh.bayesian(module, prior, likelihood=wh.regression(noise))


def main(folder: Path) -> None:
    """Fit both networks, compare and draw."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = scale(TIME), ACCELERATION / 50.0
    posteriors = {}
    for name, model in {
        "noise from the network": network("output", outputs=2),
        "noise of one size": network(None, outputs=1),
    }.items():
        with warnings.catch_warnings():
            # What is said of single weights does not matter; see above.
            warnings.simplefilter("ignore", wh.InferenceWarning)
            posterior = wh.infer(wh.condition(model, y, x), ENGINE, key=jax.random.key(1985))
        function = posterior.map(lambda m: m(scale(GRID))[:, 0])
        found = convergence(function)
        print(f"{name}: {posterior.seconds['total']:.0f} s; over the curve, R-hat is at most")
        print(f"  {found.rhat.max():.3f}, effective draws at least {found.ess_bulk.min():.0f}")
        posteriors[name] = posterior
    print("\nLeave-one-out cross-validation:")
    groups = ("posterior", "log_likelihood", "observed_data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's advice on single points; the gap is wide
        table = compare({n: p.to_datatree(groups=groups) for n, p in posteriors.items()})
    print(table[["rank", "elpd", "se", "elpd_diff", "dse"]].to_string())
    draw(posteriors, folder / "bnn.png")
    print(f"The picture is in {folder}")


def scale(time):
    """Times as the network sees them: one column, of about unit size."""
    return ((time - 25.0) / 13.0)[:, None]


def draw(posteriors, path: Path) -> None:
    """Draw what the networks predict, next to each other."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axes, (name, posterior) in zip(panels, posteriors.items()):
        mean = 50.0 * posterior.map(lambda m: m(scale(GRID))[:, 0])
        drawn = 50.0 * posterior.predict(scale(GRID), key=jax.random.key(2))
        band = lambda x, p: np.quantile(x, [(1 - p) / 2, (1 + p) / 2], axis=(0, 1))
        axes.fill_between(GRID, *band(drawn, 0.9), color="#d6e4f2", label="90% of new data")
        axes.fill_between(GRID, *band(mean, 0.9), color="#8db4dc", label="90% of mean curves")
        axes.plot(GRID, mean.mean(axis=(0, 1)), color="#1f5fa8", lw=2, label="mean")
        axes.plot(TIME, ACCELERATION, "o", color="#333333", ms=3.5, alpha=0.7, label="data")
        axes.set_title(name, loc="left")
        axes.set_xlabel("milliseconds after impact")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("acceleration of the head (g)")
    panels[0].legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    wh.enable_x64()
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bnn"))
