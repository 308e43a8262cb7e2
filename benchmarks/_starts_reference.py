"""The reference of `starts.py`: where the posteriors are, by two libraries that agree.

Short runs of whence and of numpyro from many usual starts find the region with the highest
mean log density. From draws there, and in coordinates in which these draws have unit
covariance, each library makes 8 chains of 5,000 warm-up steps and 5,000 draws in float64,
numpyro with a dense metric, both with a target acceptance of 0.95.
The R-hat that is stored is over the chains of both libraries together.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _hard_starts import PROBLEMS, SEVERAL_MODES
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from numpyro.infer import NUTS
from nuts import flat, flat_density
from starts import finite_start, make_target

import whence as wh
from whence.diagnostics import convergence

CHAINS, WARMUP, DRAWS = 8, 5000, 5000
PILOTS, PILOT_WARMUP, PILOT_DRAWS = 12, 1500, 200
# Short runs in a bad place need not go on for a thousand steps a trajectory.
PILOT_DEPTH, DEPTH = 7, 10
TARGET_ACCEPT = 0.95
FUNNELS = {"schools": 0.99}  # target acceptances where small steps are needed


class Whitened(wh.AbstractTarget):
    """A target in coordinates in which draws have mean zero and unit covariance.

    Attributes:
        target: The target.
        unravel: From a flat position to one of the target.
        mean: Of the draws, shape `(dim,)`.
        factor: Lower Cholesky factor of their covariance.
        starts: Points to start from, in the new coordinates, shape `(start, dim)`.
    """

    target: wh.AbstractTarget
    unravel: Any
    mean: Array
    factor: Array
    starts: Array

    def init(self, *, key):
        """Return one of the points."""
        return jr.choice(key, self.starts)

    def log_density(self, position):
        """Return that of the target, short of a constant."""
        return self.target.log_density(self.unravel(self.constrain(position)))

    def constrain(self, position):
        """Return the flat position in the coordinates of the target."""
        return self.mean + self.factor @ position


def whiten(target, draws):
    """Return the target in coordinates that suit draws of shape `(draw, dim)`."""
    mean, sd = draws.mean(0), draws.std(0)
    correlation = np.corrcoef(draws.T) + 1e-6 * np.eye(len(mean))
    factor = sd[:, None] * np.linalg.cholesky(correlation)
    starts = np.linalg.solve(factor, (draws - mean).T).T
    unravel = ravel_pytree(target.init(key=jr.key(0)))[1]
    return Whitened(target, unravel, *map(jnp.asarray, (mean, factor, starts)))


def by_whence(target, chains, warmup, draws, depth, accept, seed):
    """Return draws `(chain, draw, dim)`."""
    engine = wh.NUTS(
        chains=chains, warmup=warmup, draws=draws, target_accept=accept, max_tree_depth=depth
    )
    posterior = wh.infer(target, engine, key=jr.key(seed), progress=False, throw=False)
    return flat(posterior.sample.positions, np)


def by_numpyro(target, chains, warmup, draws, depth, accept, seed):
    """Return draws `(chain, draw, dim)`."""
    density, start, _ = flat_density(target)
    find = finite_start(density, start)

    def chain(key):
        key_start, key_run = jr.split(key)
        kernel = NUTS(
            potential_fn=lambda x: -density(x),
            dense_mass=True,
            target_accept_prob=accept,
            max_tree_depth=depth,
        )
        state = kernel.init(key_run, warmup, find(key_start), (), {})

        def one(state, _):
            state = kernel.sample(state, (), {})
            return state, state.z

        return jax.lax.scan(one, state, None, length=warmup + draws)[1][warmup:]

    fit = jax.jit(lambda keys: jax.lax.map(chain, keys))
    return np.asarray(fit(jr.split(jr.key(seed), chains)))


def refer(problem, seed=0):
    """Return the reference of one problem, and the mean log densities of its short runs."""
    target = make_target(problem)
    density = flat_density(target)[0]
    batch = jax.jit(lambda x: jax.lax.map(density, x, batch_size=100))
    evaluate = lambda x: np.asarray(batch(x.reshape(-1, x.shape[-1]))).reshape(x.shape[:-1])
    run = lambda target, *sizes: [by(target, *sizes) for by in (by_whence, by_numpyro)]
    pilots = np.concatenate(
        run(target, PILOTS, PILOT_WARMUP, PILOT_DRAWS, PILOT_DEPTH, TARGET_ACCEPT, seed)
    )
    heights = np.nan_to_num(evaluate(pilots).mean(1), nan=-np.inf)
    best = pilots[heights > heights.max() - 3.0].reshape(-1, pilots.shape[-1])
    white = whiten(target, best)
    accept = FUNNELS.get(problem, TARGET_ACCEPT)
    parts = [
        white.mean + found @ white.factor.T
        for found in run(white, CHAINS, WARMUP, DRAWS, DEPTH, accept, seed + 1)
    ]
    draws = np.concatenate(parts)
    lp = evaluate(draws)
    found = convergence(draws)
    return {
        "mean": draws.mean((0, 1)).tolist(),
        "sd": draws.std((0, 1)).tolist(),
        "lp_mean": float(lp.mean()),
        "lp_sd": float(lp.std()),
        "several_modes": problem in SEVERAL_MODES,
        "rhat": float(np.max(found.rhat)),
        "ess": float(np.min(found.ess_bulk)),
        "apart": float(
            np.max(abs(parts[0].mean((0, 1)) - parts[1].mean((0, 1))) / draws.std((0, 1)))
        ),
    }, sorted(np.round(heights, 1).tolist())


def make_reference(problems, path):
    """Make the reference of some problems and keep that of the others.

    Args:
        problems: Names in `_hard_starts.PROBLEMS`.
        path: Of the JSON file.
    """
    import warnings

    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    for problem in problems:
        found, pilots = refer(problem)
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text()) if path.exists() else {}
        known[problem] = found
        known = {name: known[name] for name in PROBLEMS if name in known}
        path.write_text(json.dumps(known, indent=1) + "\n")
        shown = ", ".join(f"{n} {found[n]:.4g}" for n in ("rhat", "ess", "apart", "lp_mean"))
        print(f"{problem:<20} {shown}, short runs {pilots}", flush=True)
