"""What progress says of chains: counted from what they recorded."""

import io

import jax
import numpy as np
import pytest
from rich.console import Console

from whence.core import Info
from whence.running._progress import ChainProgress, Tally, progress_bar, words


def piece(diverging, step_size):
    return Info(None, {"diverging": np.array(diverging), "step_size": np.array(step_size)})


def test_divergences_count_after_warm_up():
    tally = Tally(np.asarray(2), warmup=3)
    assert tally.chains(np.asarray(0)) == [ChainProgress(2, 0, True, None, None)]
    tally.add(0, piece([True, True], [1.0, 2.0]))
    tally.add(2, piece([True, True, False, True], [0.5, 0.5, 0.5, 0.25]))
    assert tally.chains(np.asarray(6)) == [ChainProgress(2, 6, False, 2, 0.25)]


def test_chains_that_run_together_are_told_apart():
    tally = Tally(np.arange(2), warmup=1)
    tally.add(0, piece([[True, True, False], [True, False, False]], [[1, 2, 3], [4, 5, 6]]))
    assert tally.chains(np.array([3, 2])) == [
        ChainProgress(0, 3, False, 1, 3),
        ChainProgress(1, 2, False, 0, 6),
    ]


def test_engines_without_such_statistics():
    tally = Tally(np.asarray(0), warmup=0)
    tally.add(0, Info(None, {}))
    assert words(tally.chains(np.asarray(5)), 2500.0) == "sampling, 2500 draws/s"
    assert (
        words([ChainProgress(0, 5, True, 3, 0.125)], 12.0) == "warm-up, step 0.125, 12 steps/s"
    )


@pytest.mark.parametrize("chains", [3, 20])
def test_a_line_for_each_of_a_few_chains(chains):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    with progress_bar("NUTS", console) as update:
        update(0, 100 * chains)
        fares = [ChainProgress(i, 60, False, i, 0.5) for i in range(chains)]
        update(60 * chains, 100 * chains, fares)
    text = out.getvalue()
    assert ("NUTS chain 2" in text) == (chains == 3)
    assert ("60/100" in text or "60/60" in text) == (chains == 3)
    assert ("2 divergent, step 0.5" in text) == (chains == 3)
    assert ("190 divergent, step 0.5" in text) == (chains == 20)
    assert "compiling" not in text.splitlines()[-1]


@pytest.mark.parametrize("chains", [0, 1])
def test_what_was_interrupted_is_not_called_done(chains):
    """An engine may be done before its last step; some hundred fits may not."""
    out = io.StringIO()
    with progress_bar("fits", Console(file=out, force_terminal=True, width=120)) as update:
        update(60, 100, [ChainProgress(0, 60, False, None, None)] * chains)
    assert ("60/60" in out.getvalue()) == (chains == 1)


def test_a_run_tells_each_chain(key):
    """The loop hands on what chains of a real engine recorded."""
    import jax.numpy as jnp

    import whence as wh
    from whence.running._loop import run

    target = wh.from_log_density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    seen = []
    engine = wh.NUTS(chains=2, warmup=40, draws=60)
    outcome = run(target, engine, key=key, on_progress=lambda *told: seen.append(told))
    made, total, chains = seen[-1]
    assert (made, total) == (200, 200)
    assert [chain.number for chain in chains] == [0, 1]
    for i, chain in enumerate(chains):
        stats = outcome.records[i].stats
        assert chain.divergences == stats["diverging"][40:].sum()
        assert chain.step_size == stats["step_size"][-1]
    assert jax.tree.leaves(outcome.steps.tolist()) == [100, 100]
