"""Execute the notebooks again and keep their outputs: `python notebooks/refresh.py [NAME ...]`.

Run it when a notebook or the embedded models have changed. A notebook runs in a temporary directory, as a reader's
copy would; what would differ from machine to machine (execution counts, times) is not kept. The models' digest is, so
that a test can tell outputs that no longer belong to the models.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from souping import demo

HERE = Path(__file__).resolve().parent
NOTEBOOKS = ("tour", "paper", "reading")


def execute(notebook: Any, folder: Path) -> Any:
    """The notebook with its outputs; a cell that fails raises.

    Its kernel starts in `folder`/start and makes its temporary files in `folder`/tmp, which it does not clear away.
    """
    from nbclient import NotebookClient

    start, scratch = folder / "start", folder / "tmp"
    start.mkdir()
    scratch.mkdir()
    where = {"metadata": {"path": str(start)}}
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", coalesce_streams=True, resources=where
    )
    return client.execute(env={**os.environ, "TMPDIR": str(scratch)})


def models_digest() -> str:
    """One digest over the embedded models' weights."""
    total = hashlib.sha256()
    for name in (demo.BASE, *demo.CANDIDATES):
        total.update((demo.path(name) / "model.safetensors").read_bytes())
    return total.hexdigest()[:16]


def cleaned(notebook: Any) -> Any:
    """Without what the machine and the hour left: counts, times, the kernel's exact version."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                output.pop("execution_count", None)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {
        "kernelspec": kernel,
        "language_info": {"name": "python"},
        "souping": {"models": models_digest()},
    }
    return notebook


def main(names: Sequence[str]) -> None:
    for name in names or NOTEBOOKS:
        path = HERE / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(cleaned(execute(nbformat.read(path, as_version=4), Path(folder))), path)


if __name__ == "__main__":
    main(sys.argv[1:])
