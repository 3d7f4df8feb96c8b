"""Checkpoints of the Hugging Face Hub: names, what of a repository souping needs, downloads, the cache."""

from souping.merge.hub.errors import endpoint, first_line, offline, unreachable
from souping.merge.hub.names import HubName, is_repo, parse
from souping.merge.hub.pool import Fetched, cached, fetch, fetch_one, sizes

__all__ = [
    "Fetched",
    "HubName",
    "cached",
    "endpoint",
    "fetch",
    "fetch_one",
    "first_line",
    "is_repo",
    "offline",
    "parse",
    "sizes",
    "unreachable",
]
