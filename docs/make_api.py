"""Pages of the docstrings of what users import: `python docs/make_api.py FOLDER`, with the extra `docs`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc

import souping

MODULES = ("souping", "souping.core.protocols", "souping.core.types", "souping.testing")


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)  # pdoc's own
    # Annotations are shown as they are written: a base class in another file has names that this one does not import.
    warnings.filterwarnings("ignore", "Error parsing type annotation")
    # pdoc reads the names of a module, and these are imported when they are first used.
    for name in souping.__all__:
        vars(souping)[name] = getattr(souping, name)
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*MODULES, output_directory=Path(sys.argv[1]))
