"""Checkpoints of the Hugging Face Hub: names, what of a repository souping needs, downloads, the cache."""

from souping.checkpoints.hub.client import HubName, endpoint, is_repo, offline, parse, unreachable
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
