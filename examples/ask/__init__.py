"""A stand-in for a lab's evaluation job (docs/large-runs.md)."""
