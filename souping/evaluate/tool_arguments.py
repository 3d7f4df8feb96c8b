"""Arguments of tools, which the keys `args` hold under the tools' own names."""

from __future__ import annotations

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


SET_BY_SOUPING = frozenset(
    {
        "dtype",
        "generation_config",
        "host",
        "model",
        "port",
        "tensor_parallel_size",
        "trust_remote_code",
        "worker_extension_cls",
    }
)
"""Arguments of vLLM or a server that `args` may not hold."""


def check_tool_arguments(args: JsonObject, where: str) -> None:
    """Refuse arguments that souping sets, and a share of memory that is not above 0 and at most 1 (UserError).

    `where` is the key that holds `args`, for messages.
    """
    for name in SET_BY_SOUPING & args.keys():
        raise UserError(f"{where}.{name}: souping sets it, or has a key for it: leave it out")
    fraction = args.get(GPU_FRACTION, 1.0)
    if wrong := mismatch(fraction, Share):
        raise UserError(f"{where}.{GPU_FRACTION}={fraction!r:.60} {wrong}")


def missing_tool(package: str, args: JsonObject, where: str) -> list[Missing]:
    """The tool's package if it is not installed, else nothing. `where` is the key that holds `args`, for messages."""
    lacking = missing(package)
    if not args:
        return lacking
    # Without the tool, the names of its arguments are not known.
    return [replace(tool, what=f"{tool.what} ({where} is not checked)") for tool in lacking]
