"""How the bundled models were trained: not part of the wheel."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from souping.core.types import UserError


def exit_status(action: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run an action. An error that the user can fix is one line on stderr."""
    try:
        action(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "stopped: run the same command again to train the models that are missing",
            file=sys.stderr,
        )
        return 130
    return 0
