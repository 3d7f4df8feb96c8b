"""Files of a model folder: weights by their headers, and side files."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from souping.checkpoints.archives import read_pickled
from souping.checkpoints.header import (
    Tensor,
    broken,
    inside,
    json_object,
    parse_json,
    read_header,
    small,
)
from souping.checkpoints.layouts import model_places
from souping.checkpoints.sharded import Sharded
from souping.checkpoints.trainers import MODEL_PLACES
from souping.core.text import shown
from souping.core.types import Json, Names, UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
WEIGHT_FILES = (SINGLE, INDEX, PICKLED, PICKLED_INDEX)
SIDE_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "chat_template*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken", "spiece.model", "sentencepiece*.model", "source.spm",
    "target.spm", "tekken.json", "normalizer.json", "*processor_config.json", "audio_tokenizer_config.json",
)  # fmt: skip
NOT_SIDE = (".safetensors", ".bin", ".py", ".pyc", ".pkl", ".pt", ".gguf")
"""Suffixes that are never side files: those of weights and code."""
MAX_SIDE = 512_000_000
TIED = ("lm_head.weight", "output.weight", "proj_out.weight")
"""Last parts of the names of output heads, which may be tied to the embedding."""
CAUSAL = "AutoModelForCausalLM"
WRAPPERS = {"model", "language_model", "vision_model"}
"""Parts of names that one version of transformers writes and another leaves out, or writes in another order."""


@dataclass(frozen=True)
class Like:
    """What a sharded checkpoint lacks: a `folder` with config and tokenizer, and a file of `rules` for its names.

    With `stored`, a checkpoint that has no config is opened too, under its stored names.
    """

    folder: Path | None = None
    rules: Path | None = None
    stored: bool = False


Reader = Callable[[Path, str], dict[str, Tensor]]
"""read(path, label) -> {name: tensor} of a weight file, which the tensors call `label`."""


def read_model_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder. Raises UserError if it has none."""
    path = inside(folder, "config.json")
    if not path.is_file():
        hint = ""
        if (folder / "adapter_config.json").is_file():
            hint = " It looks like an adapter: pools of adapters need their base."
        elif any(folder.glob("adapter_model.*")):
            hint = " It holds an adapter's weights without their adapter_config.json."
        raise UserError(f"{folder} has no config.json: not a complete model folder.{hint}")
    return json_object(path)


def model_class(folder: Path) -> str:
    """The class of transformers that loads the model in a folder, by its config; CAUSAL if that does not say."""
    path = inside(folder, "config.json")
    config = json_object(path) if path.is_file() else {}
    head = re.search(r"\w+ForConditionalGeneration", str(config.get("architectures")))
    return head[0] if head else CAUSAL


def read_weights(
    folder: Path,
    allow_pickle: bool,
    safe: Sequence[str] = (SINGLE, INDEX),
    pickles: Sequence[str] = (PICKLED, PICKLED_INDEX),
) -> dict[str, Tensor]:
    """{name: tensor} by the first file of `safe` (safetensors), then of `pickles`, that is there.

    A single file precedes an index of shards, as in transformers.

    Raises:
        UserError: none is there, it is pickled and that is not allowed, or it cannot be trusted.
    """
    name = next((name for name in (*safe, *pickles) if inside(folder, name).is_file()), None)
    if name is None:
        raise UserError(f"{folder} has no weights: {' or '.join(safe)} is missing")
    if name in pickles and not allow_pickle:
        advice = "convert them to safetensors, or set merge.allow_pickle=true"
        raise UserError(f"{folder / name} holds pickled weights: {advice}")
    read: Reader = read_pickled if name in pickles else read_header
    if name.endswith(".json"):
        return _read_sharded(folder, name, read)
    return read(folder / name, name)


def _read_sharded(folder: Path, index: str, read: Reader) -> dict[str, Tensor]:
    """{name: tensor} of all shards that an index lists (UserError: index and shards disagree on a tensor)."""
    path = folder / index
    places = weight_map(path)
    tensors = {}
    # The first tensor of each shard, for messages: in reverse, so that the first is the last to be kept.
    first_names = {file: name for name, file in reversed(places.items())}
    shards = {file: inside(folder, file, name) for file, name in first_names.items()}
    for file, shard in shards.items():
        if not shard.is_file():
            raise broken(path, f"the shard {shown(file)} is missing", first_names[file])
    for file in dict.fromkeys(places.values()):
        for name, tensor in read(shards[file], file).items():
            if places.get(name) != file:
                raise broken(shards[file], f"{index} does not place it here", name)
            tensors[name] = tensor
    for name, file in places.items():
        if name not in tensors:
            what = f"{index} places it here, but the shard has no such tensor"
            raise broken(folder / file, what, name)
    return tensors


def weight_map(index: Path) -> dict[str, str]:
    """{tensor: file} of an index of shards."""
    table = parse_json(index, small(index))
    places = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(places, dict) or not places or set(map(type, places.values())) != {str}:
        raise broken(index, "weight_map is not a table of tensor names and file names")
    return places


def side_files(folder: Path) -> Names:
    """Names of the files that a soup carries over from a model folder: config, tokenizer, chat templates, processors.

    Raises:
        UserError: one is too large, or a link that leads nowhere or out of the folder.
    """
    # A link that leads nowhere counts, so that it is reported.
    names = sorted(path.name for path in folder.iterdir() if path.is_file() or not path.exists())
    chosen = list[str]()
    for name in names:
        if name.endswith(NOT_SIDE):
            continue
        if any(fnmatch.fnmatch(name, pattern) for pattern in SIDE_FILES):
            chosen.append(name)
    for name in chosen:
        if inside(folder, name).stat().st_size > MAX_SIDE:
            raise broken(folder / name, f"larger than {MAX_SIDE} bytes, which no such file is")
    templates = folder / "additional_chat_templates"
    if inside(folder, templates.name).is_dir():
        files = sorted(path.name for path in templates.iterdir() if path.suffix == ".jinja")
        named_templates = [f"{templates.name}/{file}" for file in files]
        chosen += [name for name in named_templates if inside(folder, name).is_file()]
    return tuple(chosen)


def config_home(sharded: Sharded, like: Like) -> Path | None:
    """The folder with the config of a sharded checkpoint: `like.folder`, else one in the checkpoint.

    None if there is no config and `like.stored` allows that.

    Raises:
        UserError: there is no config.
    """
    if like.folder is not None:
        if not (like.folder / "config.json").is_file():
            raise UserError(
                f"pool.reference_model={like.folder} is not the folder of a Hugging Face model: it has no config.json"
            )
        return like.folder
    folder = sharded.folder
    # `model_places` comes last: it imports the packages that bring further trainers.
    for place in chain(MODEL_PLACES, [sharded.root], model_places()):
        if (folder / place / "config.json").is_file():
            return folder / place
    if like.stored:
        return None
    advice = "name a folder of the same model that has them, pool.reference_model=HF_FOLDER"
    raise UserError(f"{folder} is a sharded checkpoint without a config and tokenizer: {advice}")


def is_head(name: str) -> bool:
    """Whether a tensor is an output head, of a whole model or of the language model in it, by its name."""
    return name.split(".")[-2:] in [head.split(".") for head in TIED]


def unwrapped(name: str) -> str:
    """A tensor's name without the parts in which versions of transformers differ."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights in the layout of Hugging Face."""
    return any((folder / name).exists() for name in WEIGHT_FILES)


def weights_like(home: Path) -> dict[str, Tensor]:
    """{name: tensor} of the model in a folder; empty if it has no weights."""
    return read_weights(home, allow_pickle=True) if has_weights(home) else {}


def setting(config: Mapping[str, Any], key: str) -> Json:
    """A setting of a model's config, else of the text model in it; None if neither has it."""
    nested = config.get("text_config")
    value: Json = config.get(key, nested.get(key) if isinstance(nested, dict) else None)
    return value
