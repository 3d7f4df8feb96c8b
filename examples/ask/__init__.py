"""A stand-in for a lab's evaluation job (docs/ask-and-tell.md)."""
