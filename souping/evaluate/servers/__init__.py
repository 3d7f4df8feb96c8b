"""OpenAI-compatible servers that a run starts, uses and stops, or finds: `server={transformers,vllm}`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from souping.evaluate.servers.launch import Running, Say

__all__ = ["Running", "Say", "ServerChoice"]


class ServerChoice(Protocol):
    """A server's settings, checked at composition; `start` makes it serve one model."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that can change an answer beside the model and the request."""
        ...

    def check(self) -> None:
        """Refuse, before any work, what cannot start here (UserError)."""
        ...

    def start(self, folder: Path, name: str, log_dir: Path | None = None, say: Say | None = None) -> Running:
        """A running server for the model in `folder`, called `name` in messages.

        Its log goes to `log_dir`, else to a temporary folder that stays only where it fails; `say` hears how long the
        loading takes. UserError in one or two lines where it does not come up. The caller calls `stop()`; the server
        ends in any case when the caller's process does.
        """
        ...
