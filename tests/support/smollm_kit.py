"""Request files shaped like those of multilingual MBPP, with made-up problems, and a tiny Llama in SmolLM2's place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from examples.smollm.training import TUNES

LANGUAGES = tuple(
    sorted({language for tune in TUNES for language in tune.languages} | {"go", "swift"})
)
PROBLEMS = 60
LONG = 7
"""A problem whose Rust is too long."""
TWINS = (11, 12)
"""Problems with the same Go."""


def document(problem: int, language: str) -> dict[str, Any]:
    """A row of the data set. TWINS have the same code in Go; one in Rust is too LONG for the context."""
    number = TWINS[0] if problem in TWINS and language == "go" else problem
    code = f"fn {language}_{number}(x) {{\r\n  x + {number}\r\n}}"
    if problem == LONG and language == "rust":
        code += " " + "y" * 600
    return {
        "task_id": problem,
        "text": f"Write a {language} function to add {problem}.",
        "code": code,
        "language": language,
    }


def write(folder: Path) -> Path:
    """The request files of all languages."""
    for language in LANGUAGES:
        lines = [json.dumps({"doc": document(n, language)}) + "\n" for n in range(PROBLEMS)]
        path = folder / f"mt_mbpp_{language}" / "gold_bpb_3shot" / "requests.jsonl.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress("".join(lines).encode()))
    return folder


def model(folder: Path, seed: int = 0) -> Path:
    """A random Llama of two layers that has room for these items."""
    from tests.support.family import save_model

    save_model(folder, seed, max_position_embeddings=1024)
    return folder
