"""Checkpoints of the Hugging Face Hub: names, what of a repository souping needs, downloads, the cache.

What goes to the Hub is loaded when it is first asked for: names alone need no client.
"""

from typing import TYPE_CHECKING

from souping.checkpoints.hub.client import HubName, endpoint, is_repo, offline, parse, unreachable

if TYPE_CHECKING:
    from souping.checkpoints.hub.snapshot import Fetched, cached, fetch, fetch_one, sizes

__all__ = [
    "Fetched",
    "HubName",
    "cached",
    "endpoint",
    "fetch",
    "fetch_one",
    "is_repo",
    "offline",
    "parse",
    "sizes",
    "unreachable",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("souping.checkpoints.hub.snapshot"), name)
