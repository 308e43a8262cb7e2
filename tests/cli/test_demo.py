import jax
import numpy as np

import whence as wh
from whence.cli import _demo, _eight_schools
from whence.cli._load import load_target


def test_the_data_are_those_of_rubin():
    assert _eight_schools.EFFECT == (28, 8, -3, 7, -1, 1, 18, 12)
    assert _eight_schools.STANDARD_ERROR == (15, 10, 16, 11, 9, 11, 10, 18)
    assert len(_eight_schools.SCHOOLS) == 8


def test_demo(whence, folder):
    result = whence("demo", "--engine", "sgld", "--out", "there")
    files = {"effects.png", "eight_schools.py", "posterior.nc"}
    assert {path.name for path in (folder / "there").iterdir()} == files
    assert (folder / "there/effects.png").read_bytes().startswith(b"\x89PNG")
    for part in ("Rubin 1981", "theta[Mt. Hermon]", "Verdict", "import", "sampling", *files):
        assert part in result.stdout
    # What was saved is a posterior of the model that was handed out.
    target = load_target("there/eight_schools.py:target")
    saved = wh.load(folder / "there/posterior.nc", target=target)
    assert saved.predict(key=jax.random.key(0)).shape[2:] == (8,)
    assert saved["theta"].dtype == np.float64


def test_an_edited_model_is_not_written_over(whence, folder):
    edited = folder / "there/eight_schools.py"
    edited.parent.mkdir()
    edited.write_text("# mine\n")
    result = whence("demo", "--engine", "sgld", "--out", "there", code=2)
    assert "it would be written over" in " ".join(result.stderr.split())
    assert edited.read_text() == "# mine\n"


def test_findings_are_computed_from_the_draws():
    from whence.core import Sample
    from whence.posterior import Posterior

    theta = np.zeros((1, 4, 8))
    theta[0, :, 0] = 7.0
    theta[0, :3, 2] = 9.0
    variables = {
        "mu": np.array([[1.0, 1.0, -1.0, -1.0]]),
        "tau": np.full((1, 4), 2.0),
        "theta": theta,
    }
    sample = Sample(variables, {}, method="mcmc")
    posterior = Posterior(None, sample, engine="x", variables=variables)
    text = " ".join(_demo._findings(posterior, _eight_schools).split())
    assert "on average with probability 0.50" in text
    assert "about 7 points (89% interval 7 to 7)" in text
    assert "by 2.0 to 2.0 points" in text
    assert "Andover's is 0.25" in text
