"""One self-contained ``report.html``: verdict first, then everything needed to doubt it."""

from t2i_align.evaluation.report.document import render

__all__ = ["render"]
