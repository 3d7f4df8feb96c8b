"""Logs of evaluations by any harness, read into one shape (`records`), and matched item by item (`match`)."""
