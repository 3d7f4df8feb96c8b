"""The wheel carries the configuration, the pantry and the published figures, and nothing lands outside the package."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

NEEDED = (
    "souping/conf/config.yaml",
    "souping/conf/experiment/bfcl.yaml",
    "souping/examples/paper/bfcl_8b.csv",
    "souping/evaluate/bfcl/inside/runner.py",
    "souping/evaluate/bfcl/requirements/minimal.txt",
    "souping/examples/pantry/items.jsonl",
    "souping/py.typed",
)
wheel = next(Path(sys.argv[1]).glob("souping-*.whl"))
names = zipfile.ZipFile(wheel).namelist()
tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
missing = [name for name in NEEDED if name not in names]
pantry = "souping/examples/pantry/models/"
weights = [name for name in names if name.startswith(pantry) and name.endswith(".safetensors")]
print(
    f"wheel: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB, {len(weights)} pantry models, missing: {missing}"
)
sys.exit(bool(missing or tops != {"souping"} or len(weights) < 6))
