"""Small pieces of HTML for notebooks, all text escaped: the one writer of `_repr_html_`."""

import html
from collections.abc import Iterable, Sequence


def block(*parts: str, title: str = "") -> str:
    """Return parts of HTML below a title, which is plain text."""
    head = f"<p><b>{html.escape(title)}</b></p>" if title else ""
    return f"<div>{head}{''.join(parts)}</div>"


def paragraph(text: str) -> str:
    """Return plain text as a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain text; nothing if it has no rows."""
    line = lambda tag, cells: (
        "<tr>" + "".join(f"<{tag}>{html.escape(str(x))}</{tag}>" for x in cells) + "</tr>"
    )
    body = "".join(line("td", row) for row in rows)
    if not body:
        return ""
    return f"<table><thead>{line('th', columns)}</thead><tbody>{body}</tbody></table>"
