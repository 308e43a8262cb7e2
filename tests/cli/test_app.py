import math

import numpy as np
import pytest

import whence as wh

FIT = ("fit", "model.py:target", "-e", "sgld", "-s", "steps=400", "-s", "step_size=0.05")


def test_help_and_version(whence):
    text = whence("--help").stdout
    for command in ("demo", "check", "fit", "report", "engines"):
        assert command in text
    assert whence("--version").stdout == f"whence {wh.__version__}\n"


def test_check(whence, write):
    text = whence("check", "model.py:target").stdout
    assert "theta: shape (3,), dims ('group',)" in text
    assert "no problems found" in text
    name = write(
        "bad.py",
        """
        import jax
        import jax.numpy as jnp
        import numpyro.distributions as dist
        import whence as wh

        class Bad(wh.Model):
            mu: jax.Array = wh.latent(dist.Normal(0.0, 1.0))

            def likelihood(self):
                return dist.Normal(jnp.log(-jnp.exp(self.mu)), jnp.ones(2))

        target = wh.condition(Bad(), jnp.ones(2))
        """,
    )
    text = whence("check", f"{name}:target", code=1).stdout
    assert "The log likelihood of 'y' is NaN, first at index 0" in text


def test_fit_writes_what_infer_returns(whence, folder):
    import jax

    from whence.cli._load import load_target

    text = whence(*FIT, "--seed", "3", "--out", "out.nc").stdout
    saved = wh.load(folder / "out.nc")
    engine = wh.SGLD(steps=400, step_size=0.05)
    with pytest.warns(wh.InferenceWarning):
        expected = wh.infer(load_target("model.py:target"), engine, key=jax.random.key(3))
    np.testing.assert_array_equal(saved["theta"], expected["theta"])
    assert saved["theta"].dtype == np.float64
    assert saved.complete
    assert "theta[b]" in text
    assert expected.diagnose().verdict[:40] in text
    assert "compile" in text
    assert "whence report out.nc" in text


def test_fit_in_float32(whence, folder):
    import jax

    try:
        whence(*FIT, "--float32")
    finally:
        jax.config.update("jax_enable_x64", True)
    assert wh.load(folder / "posterior.nc")["mu"].dtype == np.float32


def test_fit_does_not_replace_a_file_unasked(error, whence, folder):
    (folder / "posterior.nc").write_text("precious")
    assert "--overwrite" in error(*FIT, code=2)
    assert (folder / "posterior.nc").read_text() == "precious"
    assert "existing folder" in error(*FIT, "--out", "absent/x.nc", code=2)
    assert "is a folder" in error(*FIT, "--out", ".", code=2)
    whence(*FIT, "--overwrite")
    assert math.isfinite(wh.load(folder / "posterior.nc")["mu"].mean())


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("check", "model"), 2, "FILE.py:NAME"),
        (("check", "absent.py:x"), 1, "no file 'absent.py'"),
        (("check", "model.py:fails"), 1, "model.py, line "),
        (("fit", "model.py:target", "-e", "nots"), 2, "no engine 'nots'"),
        (("fit", "model.py:target", "-e", "sgld", "-s", "draws"), 2, "NAME=VALUE"),
        (("fit", "model.py:target", "-e", "sgld", "-s", "batch_size=9"), 1, "batch_size"),
        (("report", "absent.nc"), 1, "absent.nc"),
        (("report", "model.py"), 1, "model.py"),
    ],
)
def test_errors_are_one_paragraph(error, args, code, words):
    assert words in error(*args, code=code)


def test_an_unexpected_error_names_its_line_and_debug_shows_it(error, whence, write):
    name = write(
        "surprise.py",
        """
        import jax
        import numpyro.distributions as dist
        import whence as wh

        class Surprise(wh.Model):
            mu: jax.Array = wh.latent(dist.Normal(0.0, 1.0))

            def likelihood(self):
                return dist.Normal(self.nu, 1.0)

        target = lambda: wh.condition(Surprise(), 1.0)
        """,
    )
    text = error("check", f"{name}:target")
    assert "surprise.py, line 10: AttributeError" in text
    text = whence("check", f"{name}:target", "--debug", code=1).stderr
    assert "Traceback (most recent call last)" in text
    assert "return dist.Normal(self.nu, 1.0)" in text


def test_wrong_usage_has_exit_code_2(whence):
    whence("fit", code=2)
    whence("fit", "model.py:target", "--no-such-option", code=2)
    whence("no-such-command", code=2)


def test_what_a_run_would_lose_is_found_before_it(error, whence, folder, monkeypatch):
    for seed in (-1, 2**32):
        for command in (FIT, ("demo",), ("study", "bandits")):
            assert "--seed must be from 0 to 4294967295" in error(
                *command, "--seed", seed, code=2
            )
    (folder / "link.nc").symlink_to("/dev/null")
    said = error(*FIT, "--out", "link.nc", "--overwrite", code=2)
    assert "--out cannot be link.nc" in said
    monkeypatch.setenv("HOME", str(folder))
    assert "existing folder" in error(*FIT, "--out", "~/no/a.nc", code=2)
    assert not (folder / "~").exists()


def test_a_file_that_ends_the_program(error, write):
    text = "import sys\nfrom model import *\n{}\ndef make():\n    sys.exit(0)\n"
    write("leaves.py", text.format("sys.exit(3)"))
    said = error("check", "leaves.py:target")
    assert "leaves.py, line 3: " in said
    assert "sys.exit(3)" in said
    write("leaves_later.py", text.format(""))
    assert "sys.exit(0)" in error("check", "leaves_later.py:make")
