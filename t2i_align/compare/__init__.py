"""Several models in one evaluation and one report; those that are recipes are trained where they are missing.

``config`` is the YAML file of ``t2i-align compare``, ``run`` the order of things. Loading this package is light.
"""
