"""Runs: select, search, write, test and report, step by step."""
