"""`python -m souping`."""

from souping.cli import interrupts_end

interrupts_end()

from souping.cli.main import main  # noqa: E402  # its imports take a while

main()
