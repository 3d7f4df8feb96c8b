"""Checkpoints of the Hugging Face Hub: names, what of a repository souping needs, downloads, the cache."""

from souping.merge.hub.names import HubName, parse
from souping.merge.hub.pool import Fetched, cached, fetch, fetch_one, sizes

__all__ = ["Fetched", "HubName", "cached", "fetch", "fetch_one", "parse", "sizes"]
