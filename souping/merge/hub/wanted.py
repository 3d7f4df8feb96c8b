"""What of a repository souping needs: weights as safetensors, config, tokenizer and chat template; never code."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from souping.merge.adapters.adapter import PICKLED_WEIGHTS, WEIGHTS
from souping.merge.adapters.settings import CONFIG
from souping.merge.checkpoint import INDEX, NOT_SIDE, PICKLED, PICKLED_INDEX, SIDE_FILES, SINGLE

TEMPLATES = "additional_chat_templates/*.jinja"
CARD = "README.md"


def side(names: Iterable[str]) -> list[str]:
    """Config, tokenizer and chat templates among a repository's files: what `side_files` finds in a folder."""
    patterns = [*SIDE_FILES, CONFIG]
    root = [n for n in names if "/" not in n and not n.endswith(NOT_SIDE)]
    chosen = [n for n in root if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    return sorted({*chosen, *(n for n in names if fnmatch.fnmatchcase(n, TEMPLATES) and n.count("/") == 1)})


def weights(names: Iterable[str], allow_pickle: bool) -> tuple[str, bool]:
    """(the file that holds the weights, or the index of their shards; whether it is an index). Empty where none is.

    The order is that in which a folder is read: one file before an index, safetensors before pickles, a full model
    before an adapter.
    """
    have = set(names)
    order = [(SINGLE, False), (INDEX, True), (WEIGHTS, False)]
    if allow_pickle:
        order[2:2] = [(PICKLED, False), (PICKLED_INDEX, True)]
        order.append((PICKLED_WEIGHTS, False))
    return next(((name, index) for name, index in order if name in have), ("", False))


def without_adapter(chosen: list[str], main: str) -> list[str]:
    """Side files for these weights: a repository that holds a full model and an adapter beside it is the model."""
    adapter = main in (WEIGHTS, PICKLED_WEIGHTS)
    return [name for name in chosen if adapter or name != CONFIG]


def foreign(names: Iterable[str]) -> str:
    """Weights of a kind that souping does not read, for an error's sake."""
    kinds = {".gguf": "GGUF", ".bin": "pickled weights", ".pt": "pickled weights", ".pth": "pickled weights"}
    kinds |= {".onnx": "ONNX", ".h5": "TensorFlow weights", ".msgpack": "Flax weights"}
    found = [kind for ending, kind in kinds.items() if any(name.endswith(ending) for name in names)]
    return found[0] if found else ""
