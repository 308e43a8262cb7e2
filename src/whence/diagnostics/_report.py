"""What `diagnose` returns: findings, each with its number, its limit and a remedy."""

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ._html import block, paragraph, table

Severity = Literal["ok", "note", "warning", "error"]
_SEVERITIES = ("error", "warning", "note", "ok")
# Causes before consequences: a stuck chain also has a bad R-hat.
_CAUSES_FIRST = (
    *("nonfinite", "weights", "temperature", "stuck", "modes", "apart"),
    *("divergences", "acceptance", "step_size", "rhat"),
)


@dataclass(frozen=True)
class Finding:
    """One check and its outcome.

    Attributes:
        code: Short stable name of the check, for example `"rhat"`.
        severity: `"ok"` (passed), `"note"` (worth knowing; the draws can be used),
            `"warning"` (results may be wrong) or `"error"` (do not use the draws).
        message: What was found, in plain words, with the numbers.
        value: The number that was judged, or None if there is no single one.
        threshold: The limit it was held against, or None.
        source: Where the limit comes from.
        remedy: What to do about it; empty if nothing is to be done.
        where: Variables, elements or chains concerned, worst first.
    """

    code: str
    severity: Severity
    message: str
    value: float | None = None
    threshold: float | None = None
    source: str = ""
    remedy: str = ""
    where: tuple[str, ...] = ()

    @property
    def is_problem(self) -> bool:
        """Whether this is a warning or an error."""
        return self.severity in ("warning", "error")


def held(
    code: str,
    value: float,
    threshold: float,
    *,
    fine: str,
    wrong: str,
    remedy: str,
    source: str = "rule of thumb",
    passed: bool | None = None,
) -> Finding:
    """Return what a number says that must not be below a limit, unless `passed` decides."""
    if value >= threshold if passed is None else passed:
        return Finding(code, "ok", fine, value, threshold, source)
    return Finding(code, "warning", wrong, value, threshold, source, remedy)


@dataclass(frozen=True)
class Report:
    """The outcome of all checks on one posterior.

    `report["rhat"]` is the finding of that name, passed or not; `"rhat" in report` asks
    whether that check has something to say (a note, a warning or an error).

    Attributes:
        findings: All findings, the most severe first.
        verdict: One sentence.
        numbers: What was measured, by name; NaN where it could not be.
        title: What was diagnosed, for example `"NUTS, 4 chains of 1000 draws"`.
    """

    findings: tuple[Finding, ...]
    verdict: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    title: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is neither a warning nor an error."""
        return not any(finding.is_problem for finding in self.findings)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The warnings and errors, the most severe first."""
        return tuple(finding for finding in self.findings if finding.is_problem)

    def __getitem__(self, code: str) -> Finding:
        """Return the finding of this name."""
        for finding in self.findings:
            if finding.code == code:
                return finding
        known = ", ".join(finding.code for finding in self.findings)
        raise KeyError(f"No check named {code!r} was made; there are: {known}.")

    def __contains__(self, code: object) -> bool:
        """Return whether this check has a note, a warning or an error."""
        return any(f.code == code and f.severity != "ok" for f in self.findings)

    def __iter__(self) -> Iterator[Finding]:
        """Iterate over the findings, the most severe first."""
        return iter(self.findings)

    def __str__(self) -> str:
        """Return a readable block of text."""
        head = [self.title] if self.title else []
        blocks = [_text(finding) for finding in self.findings]
        return "\n".join([*head, self.verdict, "", *blocks])

    def _repr_html_(self) -> str:
        columns = ("", "check", "finding", "limit", "what to do")
        rows = [(f.severity, f.code, f.message, _limit(f), f.remedy) for f in self.findings]
        return block(paragraph(self.verdict), table(columns, rows), title=self.title)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain dicts, lists, strings and numbers, ready for JSON."""
        return {
            "title": self.title,
            "ok": self.ok,
            "verdict": self.verdict,
            "numbers": {name: _json_number(value) for name, value in self.numbers.items()},
            "findings": [
                asdict(f)
                | {
                    "value": _json_number(f.value),
                    "threshold": _json_number(f.threshold),
                    "where": list(f.where),
                }
                for f in self.findings
            ],
        }


def make_report(
    findings: list[Finding], numbers: Mapping[str, float], title: str, praise: str
) -> Report:
    """Sort findings and sum them up."""
    ordered = sorted(findings, key=_rank)
    return Report(tuple(ordered), _verdict(ordered, praise), dict(numbers), title)


def _rank(finding: Finding) -> tuple[int, int]:
    known = finding.code in _CAUSES_FIRST
    cause = _CAUSES_FIRST.index(finding.code) if known else len(_CAUSES_FIRST)
    return _SEVERITIES.index(finding.severity), cause


def _verdict(ordered: list[Finding], praise: str) -> str:
    problems = [finding for finding in ordered if finding.is_problem]
    if not problems:
        return f"No problem found: {praise}." if praise else "No problem found."
    worst = problems[0]
    advice = "Do not use these draws" if worst.severity == "error" else "Use with care"
    rest = len(problems) - 1
    more = f" (and {rest} more finding{'s' if rest > 1 else ''})" if rest else ""
    fact = worst.message.rstrip(".")
    return f"{advice}: {fact[0].lower() + fact[1:] if _is_word(fact) else fact}{more}."


def _is_word(text: str) -> bool:
    """Whether the first word is a plain capitalised one, unlike `R-hat` or `E-BFMI`."""
    first = text.split(" ", 1)[0]
    return len(first) > 1 and first[0].isupper() and first[1:].isalpha() and first[1:].islower()


def _limit(finding: Finding) -> str:
    if finding.threshold is None:
        return finding.source
    source = f" ({finding.source})" if finding.source else ""
    return f"{finding.threshold:.4g}{source}"


def _text(finding: Finding) -> str:
    def block(text: str, lead: str) -> str:
        return textwrap.fill(
            text, 92, initial_indent=lead, subsequent_indent=" " * 10, break_long_words=False
        )

    lines = [block(f"{finding.code}: {finding.message}", f"  {finding.severity:<8}")]
    if finding.severity != "ok":
        if _limit(finding):
            word = "Source" if finding.threshold is None else "Limit"
            lines.append(block(f"{word}: {_limit(finding)}.", " " * 10))
        if finding.remedy:
            lines.append(block(f"-> {finding.remedy}", " " * 10))
    return "\n".join(lines)


def _json_number(value: float | None) -> float | str | None:
    # JSON has no NaN and no infinity.
    if value is None or math.isfinite(value):
        return None if value is None else float(value)
    return str(float(value))
