"""The names of setup.py's extras, a line each; with a name, that extra's requirements."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

said: dict[str, Any] = {}
setup = Path(__file__).resolve().parents[1] / "setup.py"
with patch("setuptools.setup", lambda **given: said.update(given)):
    exec(compile(setup.read_text(encoding="utf-8"), str(setup), "exec"), {"__file__": str(setup)})
extras = said["extras_require"]
print(
    "\n".join(
        extras[sys.argv[1]] if len(sys.argv) > 1 else [name for name in extras if name != "lm-eval"]
    )
)
