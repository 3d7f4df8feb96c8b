"""Arguments of tools, which the keys `args` hold under the tools' own names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from souping.core.fields import Share, mismatch
from souping.core.text import missing
from souping.core.types import JsonObject, Missing, UserError

GPU_FRACTION = "gpu_memory_utilization"
"""vLLM's name of the share of each GPU's memory that it takes."""
WITHOUT_EFFECT = frozenset(
    {
        GPU_FRACTION,
        "disable_log_stats",
        "disable_uvicorn_access_log",
        "enable_log_requests",
        "log_level",
        "uvicorn_log_level",
    }
)
"""Arguments that change no answer: the share of memory, and logging."""


def check_tool_arguments(args: JsonObject, where: str, keys: Mapping[str, str]) -> None:
    """Refuse arguments that have a key of souping's, {argument: key}; the key is empty if souping sets it itself.

    Raises:
        UserError: there is such an argument, or the share of memory is none.
    """
    for name in args:
        if name in keys:
            hint = f"set {keys[name]}" if keys[name] else "souping sets it"
            raise UserError(f"{where}.{name} is not for `args`: {hint}")
    fraction = args.get(GPU_FRACTION, 1.0)
    if wrong := mismatch(fraction, Share):
        raise UserError(f"{where}.{GPU_FRACTION}={fraction!r:.60} {wrong}")


def missing_tool(package: str, args: JsonObject, where: str) -> list[Missing]:
    """What lacks where a tool is not installed: without it, no name in `args` is checked either."""
    lacking = missing(package)
    if not args:
        return lacking
    return [replace(tool, what=f"{tool.what} ({where} is not checked)") for tool in lacking]
