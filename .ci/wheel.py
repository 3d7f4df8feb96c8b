"""The wheel contains what its commands need, nothing of `examples`, and it runs outside a checkout.

python .ci/wheel.py DIST             look into the wheel
python .ci/wheel.py DIST PYTHON      and run its commands with a Python in which the wheel is installed
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NEEDED = (
    "souping/conf/config.yaml",
    "souping/conf/experiment/bfcl.yaml",
    "souping/conf/settings.schema.json",
    "souping/evaluate/bfcl/runner.py",
    "souping/evaluate/bfcl/requirements/minimal.txt",
    "souping/demo/items.jsonl",
    "souping/paper/bfcl_8b.csv",
    "souping/paper/tasks/flores36/flores36.py",
    "souping/py.typed",
)
WITHOUT_WEIGHTS = "pool.candidates=[candidate_1,candidate_2,candidate_3,candidate_4,candidate_5]"
FLORES = (
    "+experiment=flores",
    WITHOUT_WEIGHTS,
    "scores=table",
    "scores.path=${data:paper/flores36_selection.csv}",
)
COMMANDS = (
    ("--help",),
    ("help", "--schema"),
    ("+experiment=bfcl", "--cfg", "job", "--resolve"),
    ("plan", "+experiment=bfcl"),
    ("+experiment=bfcl_8b", "stop_after=select"),
    (*FLORES, "stop_after=select"),
    ("+experiment=paper",),
)


def content(wheel: Path) -> list[str]:
    """Faults of the wheel's content."""
    names = zipfile.ZipFile(wheel).namelist()
    weights = [
        n for n in names if n.startswith("souping/demo/models/") and n.endswith(".safetensors")
    ]
    print(
        f"wheel: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB, {len(weights)} models of the demo"
    )
    faults = [f"{name} is missing" for name in NEEDED if name not in names]
    faults += [f"{n} does not belong here" for n in names if not n.startswith("souping")]
    faults += [f"{n} does not belong here" for n in names if "smollm" in n or "examples" in n]
    return faults + [f"{len(weights)} models of the demo, not 7"] * (len(weights) != 7)


def run(python: str) -> list[str]:
    """Commands that fail in an empty folder, each with the end of what it printed."""
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for words in COMMANDS:
            command = [python, "-m", "souping", *words]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            print(f"status {done.returncode}: python -m souping {' '.join(words)}", flush=True)
            faults += [f"{' '.join(words)}: {(done.stdout + done.stderr)[-2000:]}"] * bool(
                done.returncode
            )
    return faults


if __name__ == "__main__":
    found = content(next(Path(sys.argv[1]).glob("souping-*.whl")))
    found += [fault for python in sys.argv[2:] for fault in run(python)]
    sys.exit("\n".join(found) or 0)
