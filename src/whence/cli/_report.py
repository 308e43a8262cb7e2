"""One self-contained HTML file about a posterior."""

import base64
import html
import json
from pathlib import Path

from ..posterior import Posterior
from ..storage._atomic import place, replace_file
from ._plots import Plot, draw_plots

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.meta, figcaption { color: #666; font-size: .9rem; }
.verdict { border-left: .4rem solid; padding: .6rem 1rem; font-weight: 600; }
.good { border-color: #2e8b57; background: #eef7f1; }
.bad { border-color: #d9822b; background: #fdf3e7; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top;
         border-bottom: 1px solid #e4e4e4; }
.numbers td { text-align: right; } th { background: #f6f6f6; }
figure { margin: 1rem 0 2rem; } img { max-width: 100%; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .82rem; }
"""


def prepared(path: Path) -> Path:
    """Make the folder of a report; raise if it cannot be written, before it takes minutes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place(path)
    return path


def write_report(posterior: Posterior, title: str, path: Path, *, png: bool) -> list[Path]:
    """Write the report."""
    plots = draw_plots(posterior)
    replace_file(place(path), render(posterior, title, plots).encode())
    written = [path]
    for plot in plots:
        if png and plot.png is not None:
            image = path.with_name(f"{path.stem}-{plot.name}.png")
            replace_file(place(image), plot.png)
            written.append(image)
    return written


def render(posterior: Posterior, title: str, plots: list[Plot]) -> str:
    """Return the report as HTML."""
    sections = [
        _head(posterior, title),
        _verdict(posterior),
        f"<h2>Summary</h2><div class='wide numbers'>{_summary(posterior)}</div>",
        f"<h2>Timings</h2>{_timings(posterior)}",
        "<h2>Plots</h2>",
        *(_figure(plot) for plot in plots),
        _provenance(posterior),
    ]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>"
    )


def _head(posterior: Posterior, title: str) -> str:
    kind = "particles" if posterior.sample.method == "smc" else "draws"
    made = posterior.manifest.get("created", "")
    text = f"{posterior.engine}: {posterior.num_chains} x {posterior.num_draws} {kind}"
    if posterior.log_evidence is not None:
        error = posterior.log_evidence_error
        text += f"; log evidence {posterior.log_evidence:.3f}"
        text += f" (standard error {error:.3f})" if error is not None else ""
    if made:
        text += f"; {made}"
    return f"<h1>{html.escape(title)}</h1><p class='meta'>{html.escape(text)}</p>"


def _verdict(posterior: Posterior) -> str:
    report = posterior.diagnose()
    kind = "good" if report.ok else "bad"
    # The report's own HTML opens with the verdict too; here it is set apart above it.
    table = report._repr_html_()
    return (
        f"<h2>Verdict</h2><p class='verdict {kind}'>{html.escape(report.verdict)}</p>"
        f"<div class='wide'>{table[table.index('<table') : table.index('</table>')]}</table>"
        "</div>"
    )


def _summary(posterior: Posterior) -> str:
    return posterior.summary().to_html(border=0)


def _timings(posterior: Posterior) -> str:
    if not posterior.seconds:
        return "<p>Not recorded.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in posterior.seconds)
    row = "".join(f"<td>{value:.2f} s</td>" for value in posterior.seconds.values())
    return f"<table><tr>{head}</tr><tr>{row}</tr></table>"


def _figure(plot: Plot) -> str:
    head = f"<h3 id='{plot.name}'>{html.escape(plot.title)}</h3>"
    if plot.png is None:
        problem = html.escape(plot.problem)
        return f"{head}<p class='meta'>ArviZ could not draw this plot: {problem}</p>"
    data = base64.b64encode(plot.png).decode()
    return (
        f"{head}<figure><figcaption>{html.escape(plot.caption)}</figcaption>"
        f"<img alt='{html.escape(plot.title)}' src='data:image/png;base64,{data}'></figure>"
    )


def _provenance(posterior: Posterior) -> str:
    text = html.escape(json.dumps(posterior.manifest, indent=2))
    cited = html.escape(posterior.citation())
    return f"<h2>What to cite</h2><pre>{cited}</pre><h2>How it was made</h2><pre>{text}</pre>"
