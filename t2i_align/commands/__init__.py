"""One module per group of commands: argument wiring only, heavy imports inside the functions."""
