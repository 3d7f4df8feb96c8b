"""Training of the example models. Run from the root of a checkout; nothing of this is in the wheel."""
