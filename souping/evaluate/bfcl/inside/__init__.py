"""Scripts for bfcl-eval's own environment: `runner.py` and what it imports beside it; nothing of souping."""
