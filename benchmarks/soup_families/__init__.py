"""Families of tiny models: when does a soup help? The design is that of `benchmarks/preregistration.md`."""
