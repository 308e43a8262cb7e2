"""What is shown of models, targets and results: notebooks, graphs, tables of priors."""

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_array_equal

import whence as wh


class Schools(wh.Model):
    mu: Any = wh.latent(dist.Normal(0.0, 5.0))
    tau: Any = wh.latent(dist.HalfNormal(5.0))
    sigma: Any = wh.latent(dist.HalfNormal(1.0))
    theta: Any = wh.latent(lambda m: dist.Normal(m.mu, m.tau), dims="<firm>", noncentered=True)

    def likelihood(self, error):
        return dist.Normal(self.theta, error * self.sigma)

    @wh.derived
    def best(self):
        return self.theta.max()


LABELS = ["a", "<b> & c", "d"]
MODEL = Schools(coords={"<firm>": LABELS})


@pytest.fixture(scope="module")
def target():
    return wh.condition(MODEL, np.zeros(3), np.ones(3), dims="<firm>")


@pytest.fixture(scope="module")
def posterior(target):
    rng = np.random.default_rng(0)
    draws = {n: rng.uniform(0.5, 1.0, size=(2, 50)) for n in ("mu", "tau", "sigma")}
    return wh.Posterior.from_draws(target, draws | {"theta": rng.normal(size=(2, 50, 3))})


def _numpyro(error, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("school", 3):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.deterministic("double", 2 * theta)
        numpyro.sample("y", dist.Normal(theta, error), obs=y)


@pytest.fixture(scope="module")
def shown(target, posterior):
    things = {
        "model": MODEL,
        "draw": MODEL.sample_prior(key=0),
        "batch": MODEL.sample_prior(3, key=0),
        "target": target,
        "density": wh.from_log_density(lambda x: -(x**2).sum(), np.zeros(2)),
        "numpyro": wh.from_numpyro(_numpyro, np.ones(3), y=np.zeros(3)),
        "posterior": posterior,
        "report": posterior.diagnose(),
        "check": wh.check(target),
        "graph": wh.graph(target),
    }
    return {name: thing._repr_html_() for name, thing in things.items()}


class Nesting(HTMLParser):
    """Follows which tags are open, as a browser reads them."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        cell = tag in ("td", "th") and "tr" not in self.open
        row = tag == "tr" and "table" not in self.open
        if (
            cell
            or row
            or tag in ("script", "iframe")
            or any(n.startswith("on") for n, _ in attrs)
        ):
            self.wrong.append(tag)
        if tag not in ("br", "hr", "img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"/{tag}")


def test_notebooks_get_well_formed_html(posterior, shown):
    """Parsed as XML, which is stricter: every tag is closed, all text is escaped."""
    text = {}
    for name, html in shown.items():
        nesting = Nesting()
        nesting.feed(html)
        assert (nesting.open, nesting.wrong) == ([], []), name
        tree = ET.fromstring(html)
        text[name] = " ".join("".join(tree.itertext()).split())
    assert "Normal(loc=0, scale=5)" in text["model"]
    assert "<firm> 3" in text["model"]
    assert "noncentered" in text["model"]
    assert "fixed" in text["draw"]
    assert "3 rows" in text["target"]
    assert "theta[<b> & c]" in text["posterior"]
    assert posterior.diagnose().verdict in text["report"]
    assert "no problems found" in text["check"]
    assert "school 3" in text["numpyro"]


@pytest.mark.slow
def test_notebooks_in_a_browser(shown, tmp_path):
    """What a headless browser makes of them: each has a size, and the text that it should."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("needs a browser: Chromium or Chrome")
    parts = "".join(f'<div id="{name}">{html}</div>' for name, html in shown.items())
    script = """for (const part of document.querySelectorAll("body > div")) {
        const box = part.getBoundingClientRect(), letters = part.textContent.trim().length;
        part.title = [box.width > 100, box.height > 15, letters].join(" "); }"""
    page = tmp_path / "page.html"
    head = "<!doctype html><meta charset='utf-8'><body>"
    page.write_text(f"{head}{parts}<script>{script}</script></body>", encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/own"]
    command = [browser, *flags, "--dump-dom", page.as_uri()]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    for name in shown:
        wide, high, seen = re.search(rf'id="{name}" title="(.*?)"', dump.stdout)[1].split()
        assert (wide, high) == ("true", "true"), name
        assert int(seen) > 10, name
    assert "theta[&lt;b&gt; &amp; c]" in dump.stdout


def _edges(graph):
    return {(parent, node.name) for node in graph.nodes for parent in node.parents}


EDGES = {("mu", "theta"), ("tau", "theta"), ("theta", "best"), ("theta", "y"), ("sigma", "y")}


def test_parents_are_what_a_density_depends_on(target):
    """`y` depends on `theta` alone though `theta` is made of `mu` and `tau`."""
    graph = wh.graph(target)
    assert _edges(graph) == EDGES
    assert {n.name: n.plate for n in graph.nodes if n.plate} == {
        "theta": "<firm> 3",
        "y": "<firm> 3",
    }
    kinds = {node.name: node.kind for node in graph.nodes}
    assert kinds["y"] == "observed"
    assert kinds["best"] == "derived"
    assert _edges(wh.graph(MODEL)) == {e for e in EDGES if e[1] != "y"}  # needs inputs
    fixed = wh.graph(Schools(tau=1.0, coords={"<firm>": 3}))
    assert {n.name for n in fixed.nodes if n.kind == "observed"} == {"tau"}
    plain = wh.from_numpyro(_numpyro, np.ones(3), y=np.zeros(3))
    expected = {("mu", "theta"), ("tau", "theta"), ("theta", "double"), ("theta", "y")}
    assert _edges(wh.graph(plain)) == expected
    with pytest.raises(ValueError, match="`model` must be a `whence.Model`"):
        wh.graph(wh.from_log_density(lambda x: -(x**2).sum(), np.zeros(2)))


def test_graphs_are_drawn_without_graphviz(target, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    graph = wh.graph(target)
    graph.save(tmp_path / "a.svg")
    graph.save("~/a.dot")
    source = (tmp_path / "a.dot").read_text()
    assert source.count("->") == len(EDGES)
    assert 'label="<firm> 3"' in source
    tree = ET.parse(tmp_path / "a.svg").getroot()
    name = lambda tag: f"{{http://www.w3.org/2000/svg}}{tag}"
    assert len(tree.findall(name("line"))) == len(EDGES)
    box = next(x for x in tree.findall(name("rect")) if x.get("fill") == "none")
    left, top, width, height = (float(box.get(k)) for k in ("x", "y", "width", "height"))
    labels = {
        x.text: (float(x.get("x")), float(x.get("y"))) for x in tree.findall(name("text"))
    }
    inside = {
        n
        for n, (x, y) in labels.items()
        if left < x < left + width and top < y < top + height and n != "<firm> 3"
    }
    assert inside == {"theta", "y"}  # the plate has its members and no others


def test_quantiles_of_priors_are_listed(target):
    found = wh.check(target).priors
    assert list(found) == ["mu", "tau", "sigma", "theta", "best"]
    expected = 5.0 * np.array([-1.6449, 0.0, 1.6449])
    density = np.exp(-0.5 * (expected / 5.0) ** 2) / (5.0 * np.sqrt(2 * np.pi))
    error = np.sqrt(np.array([0.0475, 0.25, 0.0475]) / 1000) / density
    assert (np.abs(np.array(found["mu"]) - expected) < 4 * error).all()
    assert "prior (1000 draws)" in str(wh.check(target))


def test_many_draws_are_a_batch_of_models():
    many = MODEL.sample_prior(400, key=jr.key(1))
    assert many.theta.shape == (400, 3)
    assert list(many.coords["<firm>"]) == LABELS
    assert abs(float(many.mu.mean())) < 4 * 5.0 / np.sqrt(400)
    assert_array_equal(MODEL.sample_prior(key=3).mu, MODEL.sample_prior(jr.key(3)).mu)
    with pytest.raises(ValueError, match=r"`key` must be given by name, as `sample_prior\(400"):
        MODEL.sample_prior(400)


def test_prior_predictive_is_a_tree(target):
    tree = wh.prior_predictive(target, 300)
    assert set(tree.children) == {
        "prior",
        "prior_predictive",
        "observed_data",
        "constant_data",
    }
    assert tree["prior_predictive"]["y"].shape == (1, 300, 3)
    assert list(tree["prior"]["<firm>"].values) == LABELS
    with pytest.raises(ValueError, match="`target` must describe its data"):
        wh.prior_predictive(wh.from_log_density(lambda x: -(x**2).sum(), np.zeros(2)))


def test_improper_priors_have_no_quantiles_and_no_draws():
    class Flat(wh.Model):
        mu: Any = wh.latent(dist.ImproperUniform(dist.constraints.real, (), ()))

        def likelihood(self):
            return dist.Normal(self.mu, 1.0)

    target = wh.condition(Flat(), np.zeros(3))
    assert wh.check(target).priors == {}
    with pytest.raises(ValueError, match="improper"):
        wh.prior_predictive(target)
