"""The command line: `python -m souping`."""
