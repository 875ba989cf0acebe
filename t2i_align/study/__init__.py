"""The method table: many objectives under one budget, judged alike, with controls.

``config`` is the YAML file, ``trials`` one training and its judgement, ``run`` the order of things, ``table`` what is
written. Loading this package is light.
"""
