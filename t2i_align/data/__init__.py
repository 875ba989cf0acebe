"""Preference pairs: sources, selection, geometry, cache, order and batches.

``sources.open_source`` gives records, ``provider.PairProvider`` gives batches, ``cache.build_cache`` encodes
once, ``check.check`` says whether data can train. Submodules are imported where they are needed, so that
importing the package costs nothing.
"""
