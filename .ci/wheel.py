"""The wheel carries the configuration, the pantry and the published figures, and nothing lands outside the package."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

wheel = next(Path(sys.argv[1]).glob("souping-*.whl"))
names = zipfile.ZipFile(wheel).namelist()
tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
needed = ["souping/conf/config.yaml", "souping/conf/experiment/bfcl.yaml", "souping/data/paper/bfcl_8b.csv", "souping/py.typed"]
missing = [name for name in needed if name not in names]
models = {name.split("/")[3] for name in names if name.startswith("souping/pantry/models/") and name.endswith(".safetensors")}
size = wheel.stat().st_size / 1e6
print(f"wheel: {len(names)} files, {size:.1f} MB, {len(models)} pantry models")
sys.exit(bool(missing or tops != {"souping"} or len(models) < 6))
