"""BFCL by its own package, bfcl-eval: its items, prompts, handlers and checker, in an environment of their own."""
