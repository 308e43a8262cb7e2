"""Batting averages of 18 baseball players: a hierarchical model, checked in every way.

After 45 times at bat each, early in the season of 1970, how will the players do in the rest
of it? Each has an ability; abilities vary around a common mean. The model is fitted to the
first 45 times at bat and judged by prior and posterior predictive checks, by leave-one-out
cross-validation against a model in which all players are alike, and by what really happened
in the rest of the season.

    python examples/hierarchical.py [FOLDER]

writes its pictures to FOLDER (default: `hierarchical`).

References:
    Efron and Morris (1975), "Data analysis using Stein's estimator and its
    generalizations", Journal of the American Statistical Association 70(350), 311-319.
"""

import sys
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro.distributions as dist

import whence as wh

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Player, hits in the first 45 times at bat, then times at bat and average in the rest.
SEASON = (
    ("Clemente", 18, 367, 0.346),
    ("F. Robinson", 17, 426, 0.298),
    ("F. Howard", 16, 521, 0.276),
    ("Johnstone", 15, 275, 0.222),
    ("Berry", 14, 418, 0.273),
    ("Spencer", 14, 466, 0.270),
    ("Kessinger", 13, 586, 0.263),
    ("Alvarado", 12, 138, 0.210),
    ("Santo", 11, 510, 0.269),
    ("Swoboda", 11, 200, 0.230),
    ("Unser", 10, 277, 0.264),
    ("Williams", 10, 270, 0.256),
    ("Scott", 10, 435, 0.303),
    ("Petrocelli", 10, 538, 0.264),
    ("E. Rodriguez", 10, 186, 0.226),
    ("Campaneris", 9, 558, 0.285),
    ("Munson", 8, 408, 0.316),
    ("Alvis", 7, 70, 0.200),
)
PLAYERS = [row[0] for row in SEASON]
AT_BAT = 45


class Varying(wh.Model):
    """Abilities on the log-odds scale, around a common mean."""

    mean: jax.Array = wh.latent(dist.Normal(-1.0, 0.5))
    spread: jax.Array = wh.latent(dist.HalfNormal(0.5))
    ability: jax.Array = wh.latent(
        lambda m: dist.Normal(m.mean, m.spread), dims="player", noncentered=True
    )

    @wh.derived(dims="player")
    def average(self):
        """Expected batting average."""
        return jax.nn.sigmoid(self.ability)

    def likelihood(self, at_bat):
        """Hits."""
        return dist.Binomial(at_bat, logits=self.ability)


class Alike(wh.Model):
    """One ability for all."""

    mean: jax.Array = wh.latent(dist.Normal(-1.0, 0.5))

    def likelihood(self, at_bat):
        """Hits."""
        return dist.Binomial(at_bat, logits=self.mean)


def main(folder: Path) -> None:
    """Fit both models, check them, and draw."""
    folder.mkdir(parents=True, exist_ok=True)
    hits = jnp.array([row[1] for row in SEASON])
    at_bat = jnp.full(len(SEASON), AT_BAT)
    key_fit, key_alike, key_rest = jax.random.split(jax.random.key(1970), 3)

    target = wh.condition(Varying(coords={"player": PLAYERS}), hits, at_bat, name="hits")
    posterior = wh.infer(target, wh.NUTS(target_accept=0.95), key=key_fit)
    print(posterior.diagnose())
    print(posterior.summary(var_names=["mean", "spread", "average"]))

    tree = posterior.to_datatree()
    compare_with_alike(tree, hits, at_bat, key_alike)
    for group in ("prior", "posterior"):
        check = az.plot_ppc_rootogram(tree, group=f"{group}_predictive")
        check.savefig(folder / f"{group}_predictive.png")
    rest = predict_rest(posterior, key_rest)
    draw(posterior, rest, folder / "season.png")
    print(f"Pictures are in {folder}")


def compare_with_alike(tree, hits, at_bat, key):
    """Print which model predicts a player better who was left out."""
    alike = wh.infer(wh.condition(Alike(), hits, at_bat, name="hits"), wh.NUTS(), key=key)
    # ArviZ warns here: a player's ability is known from that player's hits alone, so leaving
    # them out changes it too much for importance sampling to be sure.
    print("\nLeave-one-out cross-validation:")
    table = az.compare({"abilities vary": tree, "all alike": alike.to_datatree()})
    print(table[["rank", "elpd", "se", "elpd_diff", "dse"]].to_string())


def predict_rest(posterior, key):
    """Predict averages in the rest of the season, and print how well."""
    at_bat = np.array([row[2] for row in SEASON])
    actual = np.array([row[3] for row in SEASON])
    predicted = posterior.predict(at_bat, key=key) / at_bat  # (chain, draw, player)
    low, high = np.quantile(predicted, [0.055, 0.945], axis=(0, 1))
    early = np.array([row[1] for row in SEASON]) / AT_BAT
    error = lambda guess: np.sqrt(np.mean((guess - actual) ** 2))
    print("\nThe rest of the season, root mean squared error of")
    print(f"  the average so far      {error(early):.3f}")
    print(f"  the hierarchical model  {error(predicted.mean(axis=(0, 1))):.3f}")
    inside = int(np.sum((low <= actual) & (actual <= high)))
    print(f"  89% intervals hold {inside} of {len(SEASON)} players")
    return low, high


def draw(posterior, rest, path: Path) -> None:
    """Draw averages so far, predictions, and what happened."""
    rows = np.arange(len(SEASON))[::-1]
    figure, axes = plt.subplots(figsize=(9, 6.5), layout="constrained")
    axes.hlines(rows, *rest, color="#b5cbe3", lw=7, label="89% prediction for the rest")
    mean = posterior["average"].mean(axis=(0, 1))
    axes.plot(mean, rows, "|", color="#1f5fa8", ms=14, mew=2, label="estimated ability")
    early = [row[1] / AT_BAT for row in SEASON]
    axes.plot(early, rows, "o", mfc="white", mec="#777777", label="first 45 times at bat")
    axes.plot([row[3] for row in SEASON], rows, "o", color="#d9532b", label="rest of season")
    axes.set_yticks(rows, PLAYERS)
    axes.set_xlabel("batting average")
    axes.set_title("Early averages are drawn towards the mean, and rightly so", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    wh.enable_x64()
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "hierarchical"))
