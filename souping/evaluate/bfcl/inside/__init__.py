"""Scripts for bfcl-eval's own environment: `runner.py` and its handlers; nothing of souping."""
