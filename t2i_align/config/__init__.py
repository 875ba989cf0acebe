"""The run's YAML file: its typed shape, how it is read, and which options do not go together."""
