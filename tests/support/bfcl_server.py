"""`evaluator=bfcl` with a server that a test runs itself."""

from __future__ import annotations

from pathlib import Path

from souping import demo
from souping.core.fields import component
from souping.evaluate.bfcl import BfclEvaluator
from souping.evaluate.servers.choices import RunningServer, VllmServer
from tests.support.models import HeldModel

DEMO = HeldModel(folder=Path(demo.path("tuned_python")))


@component
class There(VllmServer):
    """Server that runs already, on `port`."""

    port: int
    settings = {"name": "there"}  # noqa: RUF012
    request = {"top_p": 1.0, "min_p": 0.0}  # noqa: RUF012

    def start(self, folder: Path, name: str, *_: object) -> RunningServer:  # type: ignore[override]
        return RunningServer(url=f"http://127.0.0.1:{self.port}/v1", model="served-name")


def evaluator(port: int, max_new_tokens: int | None = None) -> BfclEvaluator:
    return BfclEvaluator(
        server=There(port=port),
        categories=["irrelevance"],
        handler="plain",
        num_concurrent=1,
        max_new_tokens=max_new_tokens,
    )
