import base64
import html
import re

import numpy as np
import pytest

import whence as wh
from whence.cli._plots import MOST_ELEMENTS, _elements, draw_plots
from whence.cli._report import render
from whence.core import Sample
from whence.posterior import Posterior

PNG = b"\x89PNG\r\n\x1a\n"
FIT = ("fit", "model.py:target", "-e", "sgld", "-s", "steps=400", "-s", "step_size=0.05")


@pytest.fixture
def fitted(whence, folder):
    whence(*FIT)
    return folder / "posterior.nc"


def images(text):
    return [
        base64.b64decode(x) for x in re.findall(r"src='data:image/png;base64,([^']+)'", text)
    ]


def test_the_report_is_self_contained(whence, folder):
    whence("fit", "model.py:target", "-s", "draws=100", "-s", "warmup=100")
    out = whence("report", "posterior.nc", "--target", "model.py:target").stdout
    assert out == "posterior.html\n"
    text = (folder / "posterior.html").read_text()
    verdict = wh.load(folder / "posterior.nc").diagnose().verdict
    assert html.escape(verdict) in text
    for part in ("Summary", "theta[c]", "ess_bulk", "Timings", "compile", "data_sha256"):
        assert part in text
    found = images(text)
    plots = ["trace_dist", "rank", "energy", "ppc_dist"]
    assert re.findall(r"<h3 id='(\w+)'>", text) == plots
    assert len(found) == 4
    assert all(image.startswith(PNG) and len(image) > 5000 for image in found)
    assert "could not draw" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_without_the_target_there_is_no_predictive_check(fitted, whence, folder):
    out = whence("report", "posterior.nc", "--out", "there", "--png").stdout.split()
    names = ["posterior.html", "posterior-trace_dist.png", "posterior-rank.png"]
    assert out == [f"there/{name}" for name in names]
    assert all((folder / path).read_bytes().startswith(PNG) for path in out[1:])
    assert "ppc_dist" not in (folder / out[0]).read_text()


@pytest.mark.parametrize(
    ("law", "plot"),
    [("Poisson(self.rate)", "ppc_rootogram"), ("Normal(self.rate)", "ppc_dist")],
)
def test_counts_are_checked_by_their_frequencies(law, plot, whence, write, folder):
    name = write(
        "counts.py",
        f"""
        import jax
        import jax.numpy as jnp
        import numpyro.distributions as dist
        import whence as wh

        class Counts(wh.Model):
            rate: jax.Array = wh.latent(dist.Gamma(2.0, 1.0))

            def likelihood(self):
                return dist.{law}

        target = wh.condition(Counts(), jnp.asarray([0, 1, 3, 2, 0, 1]))
        """,
    )
    steps = ("-s", "steps=400", "-s", "step_size=0.01", "-s", "chains=2")
    whence("fit", f"{name}:target", "-e", "sgld", *steps)
    whence("report", "posterior.nc", "--target", f"{name}:target")
    text = (folder / "posterior.html").read_text()
    assert re.findall(r"<h3 id='(\w+)'>", text)[-1] == plot
    assert "could not draw" not in text


def test_the_wrong_target_is_refused(fitted, error):
    text = error("report", "posterior.nc", "--target", "model.py:make")
    assert "its data differ" in text


def many(chains, draws, size, weights=None):
    x = np.random.default_rng(8).normal(size=(chains, draws, size))
    x[0, :, 17] += 3.0  # chains disagree here
    sample = Sample({"x": x}, {}, method="smc", log_weights=weights)
    manifest = {"key": [0, 0], "key_impl": "threefry2x32"}
    return Posterior(None, sample, engine="test", manifest=manifest, variables={"x": x})


def test_the_worst_elements_of_many_are_shown():
    tree, note = _elements(many(4, 50, 40).to_datatree(groups=("posterior",)))
    shown = list(tree["posterior"].data_vars)
    assert len(shown) == MOST_ELEMENTS
    assert "x[17]" in shown
    assert f"{MOST_ELEMENTS} of 40" in note


def test_particles_have_no_traces():
    weights = np.full((1, 200), -np.log(200.0))
    plots = draw_plots(many(1, 200, 18, weights))
    assert [(plot.name, plot.problem) for plot in plots] == [("dist", "")]


def test_a_plot_that_fails_is_named_and_the_rest_stays(monkeypatch):
    import arviz_plots

    def fail(*args, **kwargs):
        raise ZeroDivisionError("odd <data>")

    monkeypatch.setattr(arviz_plots, "plot_rank", fail)
    posterior = many(2, 50, 18)
    text = render(posterior, "a <b>", draw_plots(posterior))
    assert "ZeroDivisionError: odd &lt;data&gt;" in text
    assert "a &lt;b&gt;" in text
    assert len(images(text)) == 1
