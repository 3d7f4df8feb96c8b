"""`python -m souping`."""

from souping.cli import main

main()
