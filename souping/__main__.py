"""`python -m souping`."""

from souping.cli.main import main

main()
