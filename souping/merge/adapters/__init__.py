"""Pools of PEFT LoRA adapters over one base model, souped in adapter space by rank concatenation."""

from souping.merge.adapters.pool import AdapterPool, content, open_adapters

__all__ = ["AdapterPool", "content", "open_adapters"]
