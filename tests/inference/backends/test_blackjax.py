"""BlackJAX step by step is BlackJAX in its own scan."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.core._dtype import relaxed
from whence.inference.backends import BlackjaxNUTS
from whence.inference.backends._library import Start
from whence.testing import Gaussian


def test_warmup_is_that_of_window_adaptation(key):
    # The two are different programs: a rounding may decide a turn otherwise, and then all that
    # follows differs. A warm-up that is another one differs for every key.
    agree = [_agrees(k) for k in jr.split(key, 3)]
    assert sum(agree) >= 2


@relaxed()
def _agrees(key):
    """Whether draws and adaptation end where those of BlackJAX's own scan do."""
    import blackjax

    target = Gaussian(3, condition_number=20.0, correlated=True)
    start = jnp.asarray([0.3, -0.2, 1.0])
    warmup = 180  # three slow windows
    adaptation = blackjax.window_adaptation(
        blackjax.nuts,
        target.log_density,
        False,
        target_acceptance_rate=0.7,
        imm_shrinkage_to_previous=5.0,
    )
    # Optimised, unlike the rest of the suite: the two then round alike nearly always.
    optimised = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    adapt = optimised(lambda key: adaptation.run(key, start, warmup)[0])
    last, parameters = adapt(key)  # pyright: ignore

    engine = BlackjaxNUTS(
        warmup=warmup,
        metric="dense",
        target_accept=0.7,
        options={"imm_shrinkage_to_previous": 5.0},
    )

    @optimised
    def run(keys):
        value, gradient = jax.value_and_grad(target.log_density)(start)
        state = engine.start(target.log_density, Start(start, value, gradient), key=key)

        def body(state, index):
            state, position, _ = engine.transition(
                target.log_density, state, index, key=keys[index]
            )
            return state, position

        return jax.lax.scan(body, state, jnp.arange(warmup, dtype=jnp.int32))

    state, positions = run(jr.split(key, warmup))
    close = lambda got, want: np.allclose(got, want, rtol=1e-6, atol=0)
    return (
        close(positions[-1], last.position)
        and close(state.step_size, parameters["step_size"])
        and close(state.metric.inverse_mass_matrix, parameters["inverse_mass_matrix"])
    )


def test_options_reach_blackjax():
    engine = BlackjaxNUTS(
        options={
            "integrator": "mclachlan",
            "initial_inverse_mass_matrix": np.array([2.0, 3.0]),
            "initial_buffer_size": 30,
            "t0": 5,
        }
    )
    _, (_, update, _), metric, schedule = engine._parts(2)
    assert_allclose(metric.init(2).inverse_mass_matrix, [2.0, 3.0])
    assert schedule[29, 0] == 0
    assert schedule[30, 0] == 1
    hash(engine)


def test_bad_values_of_options_are_refused():
    with pytest.raises(ValueError, match="must be one of velocity_verlet, .*got leapfrog"):
        BlackjaxNUTS(options={"integrator": "leapfrog"})
    engine = BlackjaxNUTS(options={"initial_inverse_mass_matrix": (1.0, 1.0)})
    with pytest.raises(ValueError, match=r"shape \(3,\) here; got \(2,\)"):
        jax.eval_shape(lambda: engine.init(Gaussian(3), key=jr.key(0)))
