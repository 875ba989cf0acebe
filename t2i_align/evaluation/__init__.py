"""Judging: the same prompts and seeds for every model, scores per picture, and intervals around every number.

``evaluate.run`` does it all: ``generate`` (pictures) -> ``score`` (a table) -> ``statistics`` (paired win
rates) -> ``report`` (one HTML file). Each step can be used alone. Submodules are imported where they are
needed, so that importing the package costs nothing.
"""
