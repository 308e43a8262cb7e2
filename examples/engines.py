"""One target, four kinds of inference, one table.

A regression of children's test scores on their mothers' IQ and schooling, with errors of
heavier tails than a normal's, goes unchanged to Hamiltonian Monte Carlo, to stochastic
gradients on minibatches, to variational inference and to sequential Monte Carlo. Each
returns the same kind of posterior, with its own verdict: that of stochastic gradients says
which parameter they are slow to explore.

    python examples/engines.py [FOLDER]

writes the table to FOLDER (default: `engines`).

References:
    Gelman and Hill (2007), "Data Analysis Using Regression and Multilevel/Hierarchical
    Models", chapter 3: the data.
"""

import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import whence as wh
from whence.testing import load_shipped


class Scores(wh.Model):
    """A robust linear regression on standardised data."""

    intercept: jax.Array = wh.latent(dist.Normal(0.0, 1.0))
    slope: jax.Array = wh.latent(dist.Normal(0.0, 1.0), dims="covariate")
    sigma: jax.Array = wh.latent(dist.HalfNormal(1.0))
    freedom: jax.Array = wh.latent(dist.Gamma(2.0, 0.1))

    def likelihood(self, covariates):
        """Student's t around a line."""
        center = self.intercept + covariates @ self.slope
        return dist.StudentT(self.freedom, center, self.sigma)


ENGINES = (
    wh.NUTS(),
    wh.SGLD(batch_size=62, steps=100_000),  # 434 children are 7 batches of 62
    wh.BBVI(family=wh.FullRank()),
    wh.TemperedSMC(),
)


def main(folder: Path) -> None:
    """Run all engines and print what they say."""
    folder.mkdir(parents=True, exist_ok=True)
    target = make_target()
    posteriors = {}
    for engine in ENGINES:
        with warnings.catch_warnings():
            # The verdicts below say the same.
            warnings.simplefilter("ignore", wh.InferenceWarning)
            posteriors[engine.name] = wh.infer(target, engine, key=jax.random.key(7))
    table = render(posteriors)
    print(table)
    (folder / "engines.txt").write_text(table + "\n")
    for name, posterior in posteriors.items():
        print(f"\n{name}: {posterior.diagnose().verdict}")
        if posterior.log_evidence is not None:
            error = posterior.log_evidence_error
            shown = "" if error is None else f", standard error {error:.2f}"
            print(f"log evidence {posterior.log_evidence:.2f} nats{shown}")


def make_target():
    """Condition the model on the standardised data."""
    data, _ = load_shipped("kidiq-kidscore_momhsiq")
    standard = lambda x: (np.asarray(x, float) - np.mean(x)) / np.std(x)
    covariates = np.stack([standard(data["mom_iq"]), standard(data["mom_hs"])], axis=1)
    model = Scores(coords={"covariate": ["IQ", "school"]})
    return wh.condition(model, jnp.asarray(standard(data["kid_score"])), covariates)


def render(posteriors) -> str:
    """Return means and standard deviations, an engine per column, and the seconds taken."""
    lines = [f"{'mean (sd)':<16}" + "".join(f"{name:>18}" for name in posteriors)]
    columns = [moments(posterior) for posterior in posteriors.values()]
    for name in columns[0]:
        cells = "".join(f"{c[name][0]:>10.3f} ({c[name][1]:.3f})" for c in columns)
        lines.append(f"{name:<16}{cells}")
    seconds = "".join(f"{p.seconds['total']:>18.1f}" for p in posteriors.values())
    return "\n".join([*lines, f"{'seconds':<16}{seconds}"])


def moments(posterior) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation by scalar, weighted if the draws are."""
    weights = None if posterior.log_weights is None else np.exp(posterior.log_weights).ravel()
    found = {}
    for name, values in posterior.variables.items():
        flat = values.reshape(values.shape[0] * values.shape[1], -1)
        mean = np.average(flat, axis=0, weights=weights)
        sd = np.sqrt(np.average((flat - mean) ** 2, axis=0, weights=weights))
        for i in range(flat.shape[1]):
            label = f"{name}[{i}]" if values.ndim > 2 else name
            found[label] = (float(mean[i]), float(sd[i]))
    return found


if __name__ == "__main__":
    wh.enable_x64()
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "engines"))
