"""What a researcher opens after a run: one HTML page with its tables, figures, config and provenance."""

from jaxdistill.report.page import write_page

__all__ = ["write_page"]
