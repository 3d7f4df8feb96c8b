"""What a pool of adapters is checked for beside the weights: settings of the merge, tokenizers, targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from souping.core import UserError
from souping.merge.adapters.adapter import Adapter
from souping.merge.checkpoint import Checkpoint
from souping.merge.header import shown
from souping.merge.tokenizers import compare_tokenizers, read_tokenizer


def check_settings(merge: Any) -> None:
    """Refuse settings that mean nothing for adapters.

    Raises:
        UserError: the first of them, by name.
    """
    if not hasattr(merge, "adapters"):
        raise UserError("this merge backend does not soup adapters: use merge=local")
    if merge.method != "linear":
        raise UserError(f"merge.method={merge.method} is for full models: adapters are souped with merge.method=linear")
    if merge.overrides:
        raise UserError("merge.overrides is for full models: a soup of adapters has one weight an adapter")


def compare_with_base(adapters: Mapping[str, Adapter], base: Checkpoint) -> list[str]:
    """Warnings about tokenizers that adapters bring.

    Raises:
        UserError: one gives other ids than the base's.
    """
    own = read_tokenizer(base)
    found = []
    for name, adapter in adapters.items():
        if adapter.has_tokenizer:
            found += compare_tokenizers("base", name, own, read_tokenizer(adapter.checkpoint), "error")
    return found


def note_base(adapters: Mapping[str, Adapter], base: Checkpoint) -> list[str]:
    """One note where the adapters name a folder that is here, and another one is used."""
    named = next(iter(adapters.values())).settings.base
    if named is None or "\0" in named:
        return []
    path = Path(named).expanduser()
    if not path.is_dir() or path.resolve() == base.folder.resolve():
        return []
    return [f"the adapters name the base {shown(named)}, but merge.base={base.folder} is used"]


def note_targets(adapters: Mapping[str, Adapter]) -> list[str]:
    """One note where adapters change different modules: a module gets the parts of those that have one."""
    everything = {module for adapter in adapters.values() for module in adapter.parts}
    lacking = {name: everything - set(adapter.parts) for name, adapter in adapters.items()}
    if not any(lacking.values()):
        return []
    counts = ", ".join(f"{name} {len(everything) - len(gone)}" for name, gone in lacking.items())
    return [f"adapters change different modules ({counts} of {len(everything)}): each counts where it has a part"]
