"""Benchmarks, and evaluators that answer and score their items."""
