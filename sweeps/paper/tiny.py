"""Models and items for `TINY=1`: the embedded ones stand in for the paper's, under its names.

python tiny.py pool NAME ...    pool.candidates; without names four embedded models under their own
python tiny.py items            a third of the embedded items, as JSON Lines
python tiny.py others           some of the rest
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from zlib import crc32

from souping import demo


def pool(names: Sequence[str]) -> str:
    pairs = zip(names or demo.CANDIDATES[:4], demo.CANDIDATES, strict=False)
    return f"[{','.join(f'{{name: {name}, path: {demo.path(model)}}}' for name, model in pairs)}]"


def items(parts: Sequence[int]) -> list[str]:
    """The lines whose groups fall into these of nine parts."""
    lines = demo.path("items").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if crc32(json.loads(line)["group"].encode()) % 9 in parts]


def main(what: str, rest: Sequence[str]) -> str:
    if what == "pool":
        return pool(rest)
    ninths = range(9)[: int(rest[0])] if what == "items" else range(9)[-int(rest[0]) :]
    return "\n".join(items(ninths))


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2:]))
