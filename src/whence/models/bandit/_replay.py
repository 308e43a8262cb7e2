"""What a policy would have earned, from a log of what another one did."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from ...core._convert import flag, part, whole
from ...core._key import seeded
from ...core._types import PRNGKey
from ._checks import Numbers, real, require_all, require_arm, require_finite
from ._policy import AbstractLearner, AbstractPolicy
from .contextual._policies import AbstractContextualPolicy

_FEW_ROWS = 30  # rows below which a mean and its standard error are not to be trusted
Policy = AbstractPolicy | AbstractContextualPolicy


class LoggedData(eqx.Module):
    """Rounds that were played: which arm was pulled, and what it gave.

    Args:
        pulled: Index of the arm pulled in each round.
        rewards: What it gave.
        arms: Number of arms that could have been pulled.
        features: Features of every arm in each round, shape `(row, arm, feature)`.
        propensities: Probability with which the arm pulled was chosen, above 0 and at
            most 1; may be left out if the arms were drawn uniformly.

    Raises:
        ValueError: If the log is empty, shapes do not match, an arm does not exist, or
            a value is not possible.
    """

    pulled: Int[Array, " row"]
    rewards: Float[Array, " row"]
    arms: int = eqx.field(static=True)
    features: Float[Array, "row arm feature"] | None
    propensities: Float[Array, " row"] | None

    def __init__(
        self,
        pulled: Numbers,
        rewards: Numbers,
        *,
        arms: int,
        features: Numbers | None = None,
        propensities: Numbers | None = None,
    ):
        arms = whole("arms", least=1)(arms)
        require_finite("rewards", rewards)
        rows = jnp.asarray(rewards).shape
        if len(rows) != 1 or not rows[0]:
            raise ValueError(f"`rewards` must be a vector with at least one row; got {rows}.")
        require_arm(pulled, arms)
        given: dict[str, Any] = {"pulled": pulled, "propensities": propensities}
        for name, value in given.items():
            if value is not None and jnp.asarray(value).shape != rows:
                raise ValueError(
                    f"`{name}` must have one entry per reward, {rows}; got "
                    f"{jnp.asarray(value).shape}."
                )
        self.pulled, self.rewards, self.arms = jnp.asarray(pulled), real(rewards), arms
        self.features = None if features is None else _checked_features(features, rows[0], arms)
        self.propensities = None if propensities is None else _checked_chances(propensities)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Estimated mean reward per round of a policy.

    Attributes:
        value: The estimate, in units of the reward; NaN if no row could be used.
        standard_error: Its standard error, as if rows were independent; NaN if fewer than
            two could be used.
        rows: Number of rows of the log.
        used: Rows that could be used: those accepted, or the effective number of those
            that have a weight.
        rewards: What the estimate is the mean of: rewards of accepted rows in order, or
            weighted rewards of all.
        state: The policy's state afterwards.
        remark: What is doubtful about the estimate; empty if nothing was found.
    """

    value: float
    standard_error: float
    rows: int
    used: float
    rewards: np.ndarray
    state: Any
    remark: str

    def __str__(self) -> str:
        """Return the estimate and what it rests on."""
        text = f"{self.value:.4g} per round, s.e. {self.standard_error:.2g}; "
        text += f"{self.used:.0f} of {self.rows} rows used"
        return f"{text}\n{self.remark}" if self.remark else text


@seeded
def replay(
    policy: Policy, log: LoggedData, *, key: PRNGKey, state: Any = None, learn: bool = True
) -> Evaluation:
    """Evaluate a policy on a log of arms drawn uniformly, by rejection.

    Row by row the policy chooses; if that is the arm in the log, it gets the reward and
    learns from it, otherwise the row is passed over. What it meets in this way has the same
    distribution as had it been deployed, so that also a policy that learns is evaluated
    without bias. About one row in `arms` is accepted. The estimate is the mean reward over
    as many rounds as there are accepted rows: a policy that learns does better over more.

    Args:
        policy: The policy; with features if the log has some, or one that ignores them.
        log: The log. Propensities, if there are any, must all be `1 / arms`.
        key: For the policy's choices.
        state: State to start from; by default that before the first round.
        learn: Whether the policy learns from accepted rows.

    Returns:
        The estimate; its `remark` says if few rows were accepted, or the log does not look
        uniform.

    Raises:
        ValueError: If the policy does not fit the log, or propensities are not uniform.

    References:
        Li, Chu, Langford and Wang (2011), doi:10.1145/1935826.1935878.
    """
    _check_fits(policy, log)
    flag("learn")(learn)
    if log.propensities is not None:
        off = ~np.isclose(np.asarray(log.propensities) * log.arms, 1, rtol=1e-3)
        if off.any():
            raise ValueError(
                f"`log` must have propensities of 1 / {log.arms} to be replayed; got "
                f"{np.asarray(log.propensities)[off][0]:g}. Use `inverse_propensity`."
            )
    state = _start(policy, log, state)
    _check_rewards(policy, state, log)
    after, choices = _replay(policy, log, state, key, learn)
    choices = np.asarray(choices)
    accepted = choices == np.asarray(log.pulled)
    rewards = np.asarray(log.rewards)[accepted]
    remarks = [*_missing(choices, log), *_uneven(log)]
    if accepted.sum() < _FEW_ROWS:
        remarks.insert(0, f"Only {accepted.sum()} of {accepted.size} rows were accepted.")
    return _evaluation(rewards, len(rewards), accepted.size, after, remarks)


@seeded
def inverse_propensity(
    policy: Policy,
    log: LoggedData,
    *,
    key: PRNGKey,
    state: Any = None,
    normalise: bool = False,
    draws: int = 1,
) -> Evaluation:
    """Evaluate a policy as it stands, by weighting rows with their inverse propensity.

    The policy does not learn: its choices given `state` are what is evaluated. Without
    bias if every arm that it may choose had a positive probability in the log.

    Args:
        policy: The policy; with features if the log has some, or one that ignores them.
        log: The log, with propensities.
        key: For the policy's choices.
        state: The state to choose with; by default that before the first round.
        normalise: Whether to divide by the sum of the weights rather than by the number of
            rows: a smaller variance, for a bias that vanishes in long logs.
        draws: Choices per row, to average over; more than one help for policies that draw.

    Returns:
        The estimate; its `remark` says if it rests on few rows.

    Raises:
        ValueError: If the policy does not fit the log, propensities are missing, or `draws`
            is not a positive integer.

    References:
        Horvitz and Thompson (1952), doi:10.1080/01621459.1952.10483446.
        Swaminathan and Joachims (2015), "The self-normalized estimator for counterfactual
        learning", NeurIPS.
    """
    draws, normalise = whole("draws", least=1)(draws), flag("normalise")(normalise)
    _check_fits(policy, log)
    if log.propensities is None:
        raise ValueError("`log` must have propensities; got none. Use `replay` if uniform.")
    state = _start(policy, log, state)
    choices = np.asarray(_choose(policy, log, state, key, draws))
    chance = np.mean(choices == np.asarray(log.pulled), axis=0)
    weights = chance / np.asarray(log.propensities)
    rewards = np.asarray(log.rewards)
    squares = np.sum(weights**2)
    effective = np.sum(weights) ** 2 / squares if squares else 0.0
    remarks = _missing(choices, log)
    if effective < _FEW_ROWS:
        remarks.insert(0, f"The weights are worth only {effective:.1f} rows.")
    terms = weights * rewards
    if normalise:
        mean = weights.mean()
        value = terms.mean() / mean if mean else np.nan
        # Terms whose mean is the ratio, and whose spread that of its linearisation.
        terms = value + weights * (rewards - value) / mean if mean else terms[:0]
    return _evaluation(terms, effective, len(weights), state, remarks)


@eqx.filter_jit
def _replay(policy, log, state, key, learn) -> tuple[Any, Int[Array, " row"]]:
    def one(state, row):
        index, pulled, reward, features = row
        choice = _act(policy, state, features, jr.fold_in(key, index))
        if not learn:
            return state, choice
        action = pulled if features is None or _is_blind(policy) else features[pulled]
        new = policy.update(state, action, reward)
        take = choice == pulled
        return jax.tree.map(lambda a, b: jnp.where(take, a, b), new, state), choice

    rows = jnp.arange(len(log.rewards))
    return jax.lax.scan(one, state, (rows, log.pulled, log.rewards, log.features))


@eqx.filter_jit
def _choose(policy, log, state, key, draws) -> Int[Array, "draw row"]:
    def one(index, features):
        keys = jr.split(jr.fold_in(key, index), draws)
        return jax.vmap(lambda k: _act(policy, state, features, k))(keys)

    rows = jnp.arange(len(log.rewards))
    return jax.vmap(one, out_axes=1)(rows, log.features)


def _start(policy, log, state) -> Any:
    """Return the state to begin with; let the policy refuse its values before compilation."""
    if state is None:
        return policy.init()
    _act(policy, state, None if log.features is None else log.features[0], jr.key(0))
    return state


def _is_blind(policy) -> bool:
    return isinstance(policy, AbstractPolicy)


def _act(policy, state, features, key):
    seen = () if _is_blind(policy) else (features,)
    return policy.act(state, *seen, key=key)


def _evaluation(terms, used, rows, state, remarks) -> Evaluation:
    value = float(terms.mean()) if terms.size else np.nan
    error = float(terms.std(ddof=1) / np.sqrt(terms.size)) if terms.size > 1 else np.nan
    return Evaluation(value, error, rows, float(used), terms, state, " ".join(remarks))


def _missing(choices, log) -> list[str]:
    """Return a remark if arms are chosen that the log does not have."""
    never = np.setdiff1d(np.arange(log.arms), np.asarray(log.pulled))
    share = np.isin(choices, never).mean()
    if not share:
        return []
    return [f"{share:.0%} of the choices are arms {never.tolist()}, which the log never has."]


def _uneven(log) -> list[str]:
    """Return a remark if the log is unlikely to be of arms drawn uniformly."""
    from scipy.stats import chisquare

    counts = np.bincount(np.asarray(log.pulled), minlength=log.arms)
    if log.arms < 2 or chisquare(counts).pvalue > 1e-6:
        return []
    return [f"The arms of the log do not look uniform: {counts.tolist()} pulls."]


def _check_fits(policy, log) -> None:
    part("policy", AbstractLearner)(policy)
    part("log", LoggedData)(log)
    if _is_blind(policy):
        if policy.arms != log.arms:
            raise ValueError(
                f"`policy` must be for the {log.arms} arms of the log; it is for {policy.arms}."
            )
    elif log.features is None:
        raise ValueError("`log` must have features for a policy that sees them; got none.")
    elif log.features.shape[2] != policy.features:
        raise ValueError(
            f"`policy` must be for the {log.features.shape[2]} features of the log; it is for "
            f"{policy.features}."
        )


def _check_rewards(policy, state, log) -> None:
    """Let a policy of successes and failures refuse others, as it cannot once compiled."""
    rewards = np.asarray(log.rewards)
    odd = rewards[(rewards != 0) & (rewards != 1)]
    if _is_blind(policy) and odd.size:
        policy.update(state, log.pulled[0], odd[0])


def _checked_features(features, rows, arms) -> Float[Array, "row arm feature"]:
    require_finite("features", features)
    x = real(features)
    if x.ndim != 3 or x.shape[:2] != (rows, arms) or not x.shape[2]:
        raise ValueError(
            f"`features` must have shape ({rows}, {arms}, feature); got {x.shape}."
        )
    return x


def _checked_chances(propensities) -> Float[Array, " row"]:
    inside = lambda v: (v > 0) & (v <= 1)
    require_all("propensities", propensities, "above 0 and at most 1", inside)
    return real(propensities)
