"""Workers for tests of executors: their answers wait, and leave a file for each request, named by the process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from souping.core.protocols import Workers
from souping.core.types import Record, Request, Response, UserError
from tests.conftest import make_items, recipe


@dataclass
class Busy(Workers):
    """Waits until the file `gate` exists, if there is one to wait for; every answer is the soup's first weight."""

    folder: Path
    gate: Path | None = None
    mark: str = "same"
    refuses: str = ""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        return {"": self.mark}

    def put(self, request: Request) -> Response:
        """Leave the file of the request, wait for the gate, and give every item the same score."""
        if self.refuses:
            raise UserError(self.refuses)
        (self.folder / f"{os.getpid()}-{request.number}").touch()
        while self.gate is not None and not self.gate.exists():
            time.sleep(0.02)
        return Response(
            records=tuple(
                Record(item=item.id, score=request.recipe.weights[0]) for item in request.items
            ),
            seconds=0.0,
        )


def requests(number: int) -> list[Request]:
    """One request for each soup."""
    items = tuple(make_items(2, categories=("c",)))
    return [
        Request(
            number=n, recipe=recipe((n + 1) / (number + 1), 1 - (n + 1) / (number + 1)), items=items
        )
        for n in range(number)
    ]
