"""The names of setup.py's extras, a line each; with a name, that extra's requirements."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

SETUP = Path(__file__).resolve().parents[1] / "setup.py"


def setup_arguments() -> dict[str, Any]:
    """What setup.py gives to `setup`."""
    given: dict[str, Any] = {}
    with patch("setuptools.setup", lambda **arguments: given.update(arguments)):
        code = compile(SETUP.read_text(encoding="utf-8"), str(SETUP), "exec")
        exec(code, {"__file__": str(SETUP)})
    return given


if __name__ == "__main__":
    extras = setup_arguments()["extras_require"]
    names = [name for name in extras if name != "lm-eval"]
    print("\n".join(extras[sys.argv[1]] if len(sys.argv) > 1 else names))
