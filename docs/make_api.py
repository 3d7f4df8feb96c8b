"""Pages of the docstrings of what users import, for the site (docs/site_files.py)."""

from __future__ import annotations

import warnings
from pathlib import Path

import pdoc

import souping

MODULES = ("souping", "souping.core.protocols", "souping.core.types", "souping.testing")


def write(folder: Path) -> None:
    """Write the pages into a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # pdoc's own
        # Annotations are shown as they are written: a base class in another file has names that this one lacks.
        warnings.filterwarnings("ignore", "Error parsing type annotation")
        # pdoc reads the names of a module, and these are imported when they are first used.
        for name in souping.__all__:
            vars(souping)[name] = getattr(souping, name)
        pdoc.render.configure(docformat="google")
        pdoc.pdoc(*MODULES, output_directory=folder)
