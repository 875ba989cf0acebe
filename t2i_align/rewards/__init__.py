"""Reward models at work on this project's data: scoring, labelling, filtering and training on any pair source."""
