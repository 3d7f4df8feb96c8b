"""An adapter folder, known from its headers: the pairs A and B of each adapted module, and their scaling."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from souping.core import UserError, digest
from souping.merge.adapters.settings import CONFIG, Settings, read_settings
from souping.merge.checkpoint import INDEX, PICKLED, PICKLED_INDEX, SINGLE, Checkpoint, inside, side_files
from souping.merge.checkpoint import _file_hash as file_hash
from souping.merge.header import Tensor, broken, read_header, shown
from souping.merge.slots import FLOATS, listed

WEIGHTS, PICKLED_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.(?P<side>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)")
MAX_NAME, MAX_DOTS = 150, 15  # generous for a module; they bound what a pattern can cost


@dataclass(frozen=True)
class Part:
    """One adapted module: A [rank, in] and B [out, rank], so that the product is scaling * B @ A.

    For an embedding, in is the vocabulary and the product is transposed when it is added to the weight.
    """

    module: str
    embedding: bool
    a: Tensor
    b: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def keys(self) -> tuple[str, str]:
        """Names of A and B in a file."""
        sides = ("lora_embedding_A", "lora_embedding_B") if self.embedding else ("lora_A.weight", "lora_B.weight")
        return (f"{PREFIX}{self.module}.{sides[0]}", f"{PREFIX}{self.module}.{sides[1]}")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA folder whose headers were read and found sound.

    `whole` are full weights of the base that PEFT saved beside the factors (embeddings), by module: they have to be
    the base's own.
    """

    checkpoint: Checkpoint
    settings: Settings
    parts: Mapping[str, Part]
    whole: Mapping[str, Tensor]

    @classmethod
    def open(cls, folder: Path, allow_pickle: bool = False) -> Adapter:
        """Read a folder's config and headers.

        Raises:
            UserError: it is missing or broken, pickled without leave, or no plain LoRA; what it is is named.
        """
        folder = Path(folder).expanduser()
        settings = read_settings(folder)
        tensors = _read_weights(folder, allow_pickle)
        side = tuple(name for name in side_files(folder) if name not in ("config.json", "generation_config.json"))
        files = tuple(sorted({tensor.file for tensor in tensors.values()}))
        checkpoint = Checkpoint(folder=folder, tensors=tensors, config={}, files=files, side=side)
        parts, whole = _sort(folder, tensors, settings)
        return cls(checkpoint=checkpoint, settings=settings, parts=parts, whole=whole)

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def dtype(self) -> str:
        return self.checkpoint.dtype

    @property
    def nbytes(self) -> int:
        return self.checkpoint.nbytes

    @property
    def has_tokenizer(self) -> bool:
        return bool({"tokenizer.json", "tokenizer_config.json"} & set(self.checkpoint.side))

    def fingerprint(self, base: str, cache: MutableMapping[str, str] | None) -> str:
        """SHA-256 (hex) over its weights, what its config does to them, its tokenizer and the base's fingerprint."""
        rules = [[part.module, part.embedding, part.rank, part.scaling] for part in self.parts.values()]
        names = (*self.checkpoint.files, *self.checkpoint.side)
        return digest([base, sorted(rules), {name: file_hash(self.folder / name, cache) for name in names}])


def is_adapter(folder: Path) -> bool:
    """Whether a folder is a PEFT adapter.

    Raises:
        UserError: it holds a full model's weights too, so that nobody knows which is meant.
    """
    folder = Path(folder).expanduser()
    if not (folder / CONFIG).is_file():
        return False
    full = [name for name in (SINGLE, INDEX, PICKLED, PICKLED_INDEX) if (folder / name).is_file()]
    if full:
        raise UserError(f"{folder} holds an adapter ({CONFIG}) and a full model ({full[0]}): move one of them away.")
    return True


def _read_weights(folder: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if inside(folder, WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)[0]
    if not inside(folder, PICKLED_WEIGHTS).is_file():
        raise UserError(f"{folder} has no weights: {WEIGHTS} is not there.")
    if not allow_pickle:
        raise UserError(
            f"{folder / PICKLED_WEIGHTS} holds pickled weights, which can run code when opened. "
            "Convert them to safetensors, or set merge.allow_pickle=true."
        )
    from souping.merge.pickled import read_pickled

    return read_pickled(folder / PICKLED_WEIGHTS, PICKLED_WEIGHTS)


def _sort(folder: Path, tensors: Mapping[str, Tensor], settings: Settings) -> tuple[dict[str, Part], dict[str, Tensor]]:
    """The factors by module in file order, and the whole weights."""
    sides: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        found = FACTOR.fullmatch(name)
        if found:
            sides.setdefault(found["module"], {})[found["side"]] = tensor
        else:
            whole[_whole_module(folder, key, name)] = tensor
    if not sides:
        raise UserError(f"adapter {folder} holds no lora_A and lora_B: nothing to soup.")
    return {module: _part(folder, module, pair, settings) for module, pair in sorted(sides.items())}, whole


def _whole_module(folder: Path, key: str, name: str) -> str:
    """The module whose full weight this is; everything else that is no factor is refused by name."""
    kinds = {"lora_magnitude_vector": "DoRA", "lora_B.bias": "lora_bias", "modules_to_save": "modules_to_save"}
    kind = next((kind for word, kind in kinds.items() if word in name), "")
    if kind or not name.endswith(".weight") or "lora_" in name:
        raise UserError(f"adapter {folder}: {shown(key)} is {kind or 'no part of a plain LoRA'}; it cannot be souped.")
    return name.removesuffix(".weight").removesuffix(".base_layer")


def _part(folder: Path, module: str, pair: Mapping[str, Tensor], settings: Settings) -> Part:
    """A and B of one module, which have to fit each other and the config."""
    path = folder / WEIGHTS
    embedding = "lora_embedding_A" in pair or "lora_embedding_B" in pair
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    if set(pair) != set(names):
        raise broken(path, f"it needs A and B, but has {listed(pair)}", module)
    if len(module) > MAX_NAME or module.count(".") > MAX_DOTS or not re.fullmatch(r"[\w.-]+", module):
        raise broken(path, "a module has a name that no module has", module)
    a, b = pair[names[0]], pair[names[1]]
    dims = {len(a.shape), len(b.shape)}
    if dims <= {3, 4, 5}:
        raise UserError(
            f"adapter {folder}: {module} is a convolution ({len(a.shape)} dimensions); it cannot be souped."
        )
    if dims != {2} or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise broken(path, f"A {list(a.shape)} and B {list(b.shape)} do not fit each other", module)
    if {a.dtype, b.dtype} - set(FLOATS):
        raise broken(path, f"A and B are {a.dtype} and {b.dtype}, not bfloat16, float16 or float32", module)
    rank = settings.rank_of(module)
    if a.shape[0] != rank:
        raise broken(path, f"its rank is {a.shape[0]}, but {CONFIG} says {rank}", module)
    return Part(module, embedding, a, b, settings.scaling_of(module))
