"""A folder shaped like bfcl-eval's data, with made-up questions, and a tiny Llama in SmolLM2's place."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from examples.smollm.data import FILES, SPARE

EACH = 40
"""Questions a category."""


def function(name: str, description: str = "") -> dict[str, Any]:
    properties = {"first": {"type": "string"}, "second": {"type": "integer"}}
    told = description or f"Does what {name} says. And more that nobody needs."
    return {
        "name": name,
        "description": told,
        "parameters": {"type": "dict", "properties": properties},
    }


def code(text: str) -> str:
    """Four letters, as many as `none` has: a random model then prefers no choice for its length."""
    number = int(hashlib.sha256(text.encode()).hexdigest(), 16)
    return "".join(chr(97 + number // 26**place % 26) for place in range(4))


def rows(stem: str) -> list[dict[str, Any]]:
    """Questions 0 and 1, 2 and 3, ... share a function; files named `multiple` offer two more."""
    made = []
    for i in range(EACH):
        names = [code(f"{stem} {i // 2} {j}") for j in range(3 if "multiple" in stem else 1)]
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Please {stem} {i}?"},
        ]
        made.append(
            {"id": f"{stem}_{i}", "question": [messages], "function": [function(n) for n in names]}
        )
    return made


def write(folder: Path) -> Path:
    """Question files and answers; `live_irrelevance` is there too, which no category reads."""
    answers = folder / "possible_answer"
    answers.mkdir(parents=True)
    for stem in (*FILES.values(), *SPARE, "live_irrelevance"):
        made = rows(stem)
        _lines(folder / f"BFCL_v4_{stem}.json", made)
        if "irrelevance" not in stem:
            right = [
                {"id": r["id"], "ground_truth": [{r["function"][0]["name"]: {"first": ["x"]}}]}
                for r in made
            ]
            _lines(answers / f"BFCL_v4_{stem}.json", right)
    return folder


def _lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def model(folder: Path, seed: int = 0) -> Path:
    """A random Llama of two layers that has room for a prompt of these items."""
    from tests.support.family import save_model

    save_model(folder, seed, max_position_embeddings=1024)
    return folder
