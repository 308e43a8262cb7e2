"""What has a report is shown as that."""

from ..diagnostics import Report


class Reported:
    """A result that is judged by its `report`."""

    report: Report

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, as far as can be told."""
        return self.report.ok

    def __str__(self) -> str:
        """Return the report as text."""
        return str(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()
