"""A small world with ground truth: procedural pictures, an oracle that judges them, and a base model of them."""
