"""`Posterior`: draws, how they were made, and what can be computed from them."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from ..core._conditioned import Conditioned
from ..core._engine import Sample
from ..core._key import seeded
from ..core._target import AbstractDescribedTarget, AbstractTarget, LabelsDraws, latent_names
from ..core._tree import named_leaves
from ..core._types import AnyArray, PRNGKey
from ..diagnostics._html import block, paragraph
from ..diagnostics._records import AbstractRecord
from ._citation import cite, references
from ._from_conditioned import exact
from ._from_draws import external
from ._groups import Wish, contents_of, export, saved_tree
from ._map_draws import (
    constrain,
    mapped,
    new_inputs,
    over_draws,
    pointwise,
    predictions,
    variables,
)
from ._plot import plot
from ._resample import resampled
from ._summary import names_of, summarise

MOST_SHOWN = 50  # variables, and their elements, in the table of a notebook


class Posterior:
    """Draws from a posterior; what `infer` returns.

    `posterior["theta"]` is a latent or derived value with axes `(chain, draw, ...)`.
    Weighted particles have one chain, and `log_weights`; draws of chains may have them, too.

    Attributes:
        target: What was sampled; None for a posterior loaded without its target, or made
            of a closed form.
        engine: Name of the engine.
        seconds: Durations: `trace`, `compile`, `warmup`, `sampling`, `total`, in seconds.
        manifest: Versions, key, engine configuration and data hash.
        failed: What became of replicas that were dropped, one sentence each.
        complete: False if Ctrl-C stopped the run.
        stopped: What ended a run with `until`, in words; None for other runs.
    """

    def __init__(
        self,
        target: AbstractTarget | None,
        sample: Sample | Callable[[], Sample],
        *,
        engine: str,
        seconds: Mapping[str, float] | None = None,
        manifest: Mapping[str, Any] | None = None,
        failed: tuple[str, ...] = (),
        complete: bool = True,
        stopped: str | None = None,
        variables: dict[str, np.ndarray] | None = None,
        described: Mapping[str, Any] | None = None,
    ):
        """Keep what a run returned; users call `infer` or `load`."""
        self.target = target
        self._sample = sample
        self.engine = engine
        self.seconds = dict(seconds or {})
        self.manifest = dict(manifest or {})
        self.failed = failed
        self.complete = complete
        self.stopped = stopped
        self._variables = variables
        self._described = described or _describe(target)
        self._dt = None

    @classmethod
    def from_draws(
        cls,
        target: AbstractTarget,
        draws: Any,
        *,
        unconstrained: bool = False,
        stats: Mapping[str, Any] | None = None,
        log_weights: Any = None,
        engine: str = "external",
        method: str | None = None,
        record: AbstractRecord | None = None,
    ) -> "Posterior":
        """Make a posterior of draws that were made elsewhere.

        Args:
            target: The target they were drawn from.
            draws: Arrays `(chain, draw, ...)` of all latents by name; others are recomputed.
            unconstrained: Whether `draws` are positions instead, in the form of `init`.
            stats: Arrays `(chain, draw)` by ArviZ's names (`lp`, `diverging`, ...).
            log_weights: Log weights of the draws of a single chain, up to a constant.
            engine: A name for where they come from.
            method: As for `Sample`: what kind of draws they are; None for weighted particles
                if there are weights, else those of a Markov chain.
            record: As for `Sample`.
        """
        made = external(
            target, draws, unconstrained, stats, log_weights, engine, method, record
        )
        return cls(target, **made)

    @classmethod
    @seeded
    def from_conditioned(
        cls, conditioned: Conditioned, x: AnyArray, *, draws: int = 1000, key: PRNGKey
    ) -> "Posterior":
        """Make a posterior of a closed form: independent draws, with the evidence.

        Args:
            conditioned: What conditioning in closed form returned.
            x: Inputs at which the function is drawn, rows first.
            draws: How many, in one chain.
            key: A typed key.
        """
        return cls(None, **exact(conditioned, x, draws, key))

    # -- values ------------------------------------------------------------------

    @property
    def sample(self) -> Sample:
        """What the engine returned; a run with a store is read when this is first asked for."""
        if not isinstance(self._sample, Sample):
            self._sample = self._sample()
        return self._sample

    @property
    def num_chains(self) -> int:
        """Number of chains kept."""
        return jax.tree.leaves(self.sample.positions)[0].shape[0]

    @property
    def num_draws(self) -> int:
        """Number of draws (or particles) per chain."""
        return jax.tree.leaves(self.sample.positions)[0].shape[1]

    @property
    def stats(self) -> dict[str, Any]:
        """Sample statistics by ArviZ's names, each `(chain, draw)`."""
        return self.sample.stats

    @property
    def record(self) -> AbstractRecord | None:
        """Results of the engine besides draws, such as a `diagnostics.VariationalFit`."""
        return self.sample.record

    @property
    def log_weights(self) -> Any:
        """Normalised log weights, `(chain, draw)`; None if all draws count the same."""
        return self.sample.log_weights

    @property
    def log_evidence(self) -> float | None:
        """Estimate of the log normalising constant, in nats, if the engine has one."""
        return self.sample.log_evidence

    @property
    def log_evidence_error(self) -> float | None:
        """Standard error of `log_evidence`, in nats."""
        return self.sample.log_evidence_error

    @property
    def variables(self) -> dict[str, np.ndarray]:
        """Latents and derived values by name, each `(chain, draw, ...)`."""
        if self._variables is None:
            found = self._over_draws(variables, self.sample.positions)
            # Compiled code returns dicts sorted by name; people want the model's order.
            first = (name for name in latent_names(self.target) if name in found)
            self._variables = {n: found[n] for n in dict.fromkeys((*first, *found))}
        return self._variables

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.variables[name]
        except KeyError:
            known = ", ".join(self.variables)
            raise KeyError(f"No variable {name!r} in this posterior; it has {known}.") from None

    def __contains__(self, name: object) -> bool:
        return name in self.variables

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    @property
    def draws(self) -> PyTree:
        """The draws as one model (or pytree) whose leaves carry `(chain, draw)`."""
        draws = self._over_draws(constrain, self.sample.positions)
        labels = self.target if isinstance(self.target, LabelsDraws) else None
        return draws if labels is None else labels.labelled(draws)

    def map(self, function: Callable[[Any], PyTree]) -> PyTree:
        """Apply a function of one draw to all draws.

        Args:
            function: Takes a model with values (or what the target's draws are), returns
                arrays. It is compiled.

        Returns:
            What it returns, with axes `(chain, draw, ...)`. Indices beyond an axis are refused.
        """
        return mapped(self.target, self.sample.positions, function)

    @seeded
    def predict(
        self, *inputs: Any, key: PRNGKey, new_groups: str | None = None, **named: Any
    ) -> Any:
        """Draw from the posterior predictive distribution, one data set per draw.

        Args:
            *inputs: New inputs of `likelihood` (arguments of a numpyro model); by default
                those of the fit. Python numbers are part of the program.
            key: A typed key.
            new_groups: `"prior"` draws effects of groups that the fit never saw from their
                prior, given each draw; by default such groups are refused.
            **named: New inputs by name.

        Returns:
            An array with leading axes `(chain, draw)`; a dict of them if there are several
            observed variables, or further ones of a numpyro model at new inputs.

        Raises:
            ValueError: If inputs are not the model's or not finite, hold unknown categories or
                an index beyond its axis; or if the data's distribution has no sampler.
        """
        target = self._described_target("predict")
        new = new_inputs(target, inputs, named, new_groups) if inputs or named else None
        drawn = predictions(target, self.sample, new, key)
        return next(iter(drawn.values())) if len(drawn) == 1 else drawn

    def log_likelihood(self) -> dict[str, np.ndarray]:
        """Return the pointwise log likelihood of every draw, by observed variable, in nats.

        Of data that are dependent given a draw: of each given all others, as LOO needs it.
        """
        self._described_target("log_likelihood")
        return self._over_draws(pointwise, self.sample.positions)

    @seeded
    def resample(
        self, num_draws: int, *, key: PRNGKey, importance: bool = False
    ) -> "Posterior":
        """Return equally weighted draws: systematic resampling of weighted ones.

        They stay in order, copies of one draw beside each other: copies and neighbours are
        correlated as a chain's draws are, and `summary` and `diagnose` count what they are
        worth. A part of them is no sample of the whole: ask for fewer draws, or permute them.

        Args:
            num_draws: How many, in one chain; in as many as there are Markov chains, if it
                is a multiple of their number.
            key: A typed key.
            importance: Repair an approximation: weights are its smoothed importance ratios.

        Raises:
            ValueError: If `num_draws` is not positive, or there are no ratios.
        """
        sample, take = resampled(self.sample, num_draws, key, importance)
        known = self._variables
        return self._like(sample, None if known is None else take(known))

    # -- judgement ---------------------------------------------------------------

    def diagnose(self):
        """Judge the draws: a `whence.diagnostics.Report`, printable and testable."""
        from ..diagnostics import diagnose

        return diagnose(
            self.variables,
            self.stats,
            engine=self.engine,
            unconstrained=named_leaves(self.sample.positions),
            dims=self._described["dims"],
            coords=self._described["coords"],
            log_weights=self.log_weights,
            record=self.record,
            failed=self.failed,
            incomplete=not self.complete,
            method=self.sample.method,
        )

    def trouble(self) -> str:
        """Return one sentence on the most severe fault, from statistics that are cheap."""
        from ..diagnostics._diagnose import CHAINS
        from ..diagnostics._trouble import trouble

        sample = self.sample
        chains, positions = sample.method in CHAINS, jax.tree.leaves(sample.positions)
        found = trouble(positions, self.stats, chains=chains, record=self.record)
        return f"{self.engine}: {found}." if found else ""

    def summary(
        self,
        var_names: str | Sequence[str] | None = None,
        *,
        kind: str = "all",
        ci_prob: float | None = None,
        ci_kind: str | None = None,
        round_to: int | str | None = "auto",
        **arviz: Any,
    ) -> Any:
        """Return a table of the draws, a pandas DataFrame: the one that ArviZ makes.

        Of weighted draws it has weighted moments and quantiles, the effective sample size
        of the weights `1 / sum(w**2)` under both `ess_bulk` and `ess_tail`, the standard
        errors of self-normalised importance sampling, and no R-hat. Weighted draws of chains
        are not taken for independent: theirs is the effective sample size that the error
        of the mean implies.

        `ess_tail` is that of ArviZ's tails, the 11% and 89% quantiles unless its settings
        say otherwise; `diagnose` looks at 5% and 95%.

        Args:
            var_names: Which variables; by default all.
            kind: `"all"`, `"stats"` or `"diagnostics"`; others of ArviZ's, such as
                `"all_median"`, are left to it.
            ci_prob: Probability inside the interval; by default ArviZ's setting, 0.89.
            ci_kind: `"eti"` or `"hdi"`; by default ArviZ's setting, `"eti"`.
            round_to: `"auto"` shows the digits that the Monte Carlo errors support; else
                decimals, significant digits such as `"3g"`, or `"none"`.
            **arviz: Further arguments of `arviz.summary`, which then makes the table; it
                knows no weights and gets resampled draws.
        """
        own = {"kind": kind, "ci_prob": ci_prob, "ci_kind": ci_kind, "round_to": round_to}
        how = {"log_weights": self.log_weights, "method": self.sample.method}
        described = {**self._described, **how, "families": self.stats.get("founder")}
        return summarise(self.variables, self.to_datatree, var_names, own, described, arviz)

    def plot(self, kind: str = "trace_dist", **kwargs: Any) -> Any:
        """Draw one of ArviZ's plots: `arviz.plot_<kind>` of this posterior.

        Args:
            kind: For example `"trace_dist"`, `"rank"`, `"forest"`, `"pair"`, `"ppc_dist"`.
            **kwargs: Passed on.

        Returns:
            ArviZ's `PlotCollection`; `.savefig(path)` writes it.

        Of one chain, `"rank"` and `"rank_dist"` compare the halves: the ranks of a chain among
        its own draws say nothing.

        Raises:
            ValueError: If ArviZ has no such plot.
        """
        return plot(self, kind, kwargs)

    def citation(self) -> str:
        """Return what to cite for these draws, a line each: libraries, then papers.

        Papers are those of the engine and the parts and settings it ran with, of the model,
        and of the diagnostics, as their docstrings name them under "References". They are
        noted when the run is made, so that a loaded posterior knows them too.
        """
        noted = self.manifest.get("references")
        entries = references(self.target) if noted is None else noted
        return cite(entries, self.manifest.get("versions", {}), self.sample.method)

    # -- export ------------------------------------------------------------------

    @property
    def dt(self) -> Any:
        """All groups that apply as an `xarray.DataTree`, made once and kept; for ArviZ."""
        if self._dt is None:
            self._dt = self.to_datatree()
        return self._dt

    @seeded
    def to_datatree(
        self,
        *,
        groups: tuple[str, ...] | None = None,
        inputs: tuple | Mapping[str, Any] | None = None,
        key: PRNGKey | None = None,
        prior_draws: int = 500,
        new_groups: str | None = None,
    ) -> Any:
        """Return an `xarray.DataTree` with ArviZ's groups, dims and coords.

        Weighted draws are resampled to equal weights first, because ArviZ knows no weights.

        Args:
            groups: Which groups; by default all that apply: `posterior`, `sample_stats`,
                `log_likelihood`, `log_prior` (of each latent, in its own space, without a
                Jacobian), `posterior_predictive`, `prior`, `prior_predictive`,
                `observed_data`, `constant_data`, `unconstrained_posterior`, the warm-up
                groups if warm-up was kept, and, with `inputs`, `predictions` and
                `predictions_constant_data`.
            inputs: New inputs of `likelihood`, a tuple or a dict by name, for predictions.
            key: A typed key for predictive draws; by default made from the run's key.
            prior_draws: Number of draws in the prior groups.
            new_groups: As for `predict`.
        """
        key = self._default_key() if key is None else key
        equal = self
        if self.log_weights is not None:
            total = self.num_chains * self.num_draws
            equal = self.resample(total, key=jr.fold_in(key, 0))
        wish = Wish(jr.fold_in(key, 1), prior_draws, groups is None, inputs, new_groups)
        return export(contents_of(equal), groups, wish)

    def to_netcdf(self, path: str | Path, **kwargs: Any) -> None:
        """Write ArviZ's groups as netCDF-4: for R, Julia and other tools.

        `save` keeps less, but all that `whence.load` needs.

        Args:
            path: File to write; it appears whole or not at all.
            **kwargs: As for `to_datatree`; by default all groups that apply.
        """
        from ..storage import save_netcdf

        save_netcdf(self.to_datatree(**kwargs) if kwargs else self.dt, path)

    def draws_df(self, var_names: str | Sequence[str] | None = None) -> Any:
        """Return the draws as a long pandas DataFrame: a row for each draw of each scalar.

        Columns are `chain`, `draw`, `variable` (as `theta[Choate]`), one for each named axis
        with its labels, and `value`; of weighted draws also `weight`. For a column for each
        scalar: `.pivot(index=["chain", "draw"], columns="variable", values="value")`.

        Args:
            var_names: Which variables; by default all.
        """
        from ._frame import long_frame

        chosen = {name: self[name] for name in names_of(var_names, self)}
        return long_frame(chosen, **self._described, log_weights=self.log_weights)

    def save(self, path: str | Path) -> None:
        """Write the posterior as netCDF, readable by `load`, `arviz.from_netcdf` and xarray.

        Args:
            path: File to write; it appears whole or not at all. If it ends in `.zarr`, a
                zarr folder (needs `pip install 'whence[zarr]'`).
        """
        from ..storage import is_zarr, save_netcdf, save_zarr

        save = save_zarr if is_zarr(path) else save_netcdf
        save(saved_tree(contents_of(self)), path)

    def __repr__(self) -> str:
        what = ", ".join(f"{n}{list(v.shape[2:]) or ''}" for n, v in self.variables.items())
        kind = "particles" if self.sample.method == "smc" else "draws"
        kind = kind if self.log_weights is None else f"weighted {kind}"
        return (
            f"Posterior({self.engine}: {self.num_chains} chains x {self.num_draws} {kind}"
            f"{'' if self.complete else ', incomplete'}; {what})"
        )

    def _repr_html_(self) -> str:
        report = self.diagnose()
        few = [n for n, v in self.variables.items() if v[0, 0].size <= MOST_SHOWN][:MOST_SHOWN]
        shown = self.summary(few)._repr_html_() if few else ""
        return block(paragraph(report.verdict), shown, title=repr(self))

    # -- inside ------------------------------------------------------------------

    def _over_draws(self, function, batched, *rest):
        return over_draws(self.target, function, batched, *rest)

    def _default_key(self) -> PRNGKey:
        data = np.asarray(self.manifest.get("key", [0, 0]), dtype=np.uint32)
        impl = self.manifest.get("key_impl", "threefry2x32")
        return jr.fold_in(jr.wrap_key_data(jnp.asarray(data), impl=impl), 2**31 - 2)

    def _described_target(self, method: str) -> AbstractDescribedTarget:
        if self.target is not None and not isinstance(self.target, AbstractDescribedTarget):
            raise ValueError(
                f"`{method}` needs a target that describes its data, such as one made by "
                f"`whence.condition`; got {type(self.target).__name__}."
            )
        if self.target is None:
            self._over_draws(variables, None)  # raises with what to do
        return self.target  # pyright: ignore[reportReturnType]

    def _like(self, sample: Sample, variables=None) -> "Posterior":
        new = copy.copy(self)
        new._sample, new._variables, new._dt = sample, variables, None
        return new


def _describe(target: AbstractTarget | None) -> dict[str, Any]:
    if isinstance(target, AbstractDescribedTarget):
        return {"dims": target.dims, "coords": dict(target.coords)}
    return {"dims": {}, "coords": {}}
