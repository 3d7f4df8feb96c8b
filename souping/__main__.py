"""The command `souping`, and `python -m souping`."""

import signal


def run_command_line() -> None:
    """Run the command line. While its packages are imported, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from souping.cli.main import main

    main()


if __name__ == "__main__":
    run_command_line()
