"""The names of setup.py's extras, a line each."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

said: dict[str, Any] = {}
setup = Path(__file__).resolve().parents[1] / "setup.py"
with patch("setuptools.setup", lambda **given: said.update(given)):
    exec(compile(setup.read_text(encoding="utf-8"), str(setup), "exec"), {"__file__": str(setup)})
print("\n".join(said["extras_require"]))
