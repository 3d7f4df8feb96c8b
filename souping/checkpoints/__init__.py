"""Checkpoint folder, read from its headers: tensors and their places, config, side files, fingerprint.

Pickled weights (`pytorch_model.bin`) are read only with `merge.allow_pickle=true`, by their table, without running
their code: `torch.load(weights_only=True)` refuses everything but plain tensors. Under a fake mode it reads no weight
either and gives the place of each storage in the zip file (`UntypedStorage._checkpoint_offset`), so that a pickled file
streams like a safetensors file afterwards.
"""

from __future__ import annotations

import fnmatch
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from souping.checkpoints.header import FLOATS, ITEM, TAGS, TORCH_NAMES, Tensor, broken, parse_json, read_header
from souping.core.files import expanded
from souping.core.text import shown
from souping.core.types import Json, UserError, digest

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SIDE_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "chat_template*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken", "spiece.model", "sentencepiece*.model", "source.spm",
    "target.spm", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
NOT_SIDE = (".safetensors", ".bin", ".py", ".pyc", ".pkl", ".pt", ".gguf")
"""Endings of what is no side file whatever it is called: weights and code."""
MAX_SIDE = 512_000_000
MAX_JSON = 200_000_000
MAX_RECIPE = 10_000_000
"""Bytes of a recipe.json at most."""
GENERATION = "generation_config.json"
FRESH = 20_000_000  # nanoseconds: within a tick of the system's clock a file may change twice at one time
Stamp = tuple[int, int, int, int]
"""A file as the system knows it: size, time of the content, time of the entry (which no program sets), inode."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Model folder whose headers were read and found sound; no weight is in memory.

    `tensors` are in file order, `files` are the weight files and `side` the files that a soup carries over, both
    relative to `folder`. `stamps` tell whether one of them has changed since.
    """

    folder: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    files: tuple[str, ...]
    side: tuple[str, ...]
    stamps: Mapping[str, Stamp] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, folder: Path, allow_pickle: bool = False) -> Checkpoint:
        """Read a folder's headers.

        Raises:
            UserError: it is missing, has no config.json or no weights, holds pickled weights that are not
                allowed, a name or symlink leaves it, or a header cannot be trusted.
        """
        folder = expanded(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder. Give the path of a saved Hugging Face model.")
        before = stamps_in(folder)
        config = _read_config(folder)
        tensors = read_weights(folder, allow_pickle)
        if not tensors:
            raise UserError(f"{folder} holds no tensor: nothing to soup.")
        return cls.of(folder, tensors, config, side_files(folder), before)

    @classmethod
    def of(
        cls,
        folder: Path,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
        side: tuple[str, ...],
        before: Mapping[str, Stamp],
    ) -> Checkpoint:
        """A folder that was read; `before` are the stamps of its files from before that."""
        files = tuple(sorted({tensor.file for tensor in tensors.values()}))
        stamps = {name: before[name] if name in before else stamp(folder / name) for name in (*files, *side)}
        return cls(folder=folder, tensors=tensors, config=config, files=files, side=side, stamps=stamps)

    @property
    def dtype(self) -> str:
        """Its float dtypes by torch's names, widest first, such as `bfloat16` or `float32+bfloat16`."""
        present = {tensor.dtype for tensor in self.tensors.values()}
        return "+".join(name for name, tag in TORCH_NAMES.items() if tag in present)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(tensor.count for tensor in self.tensors.values() if tensor.dtype in FLOATS)

    def size_in(self, dtype: str | None) -> int:
        """Bytes of the weights in `dtype` (auto and None: as stored), in memory or as a soup on disk."""
        return self.parameters * ITEM[dtype] if dtype in ITEM else self.nbytes

    def check_unchanged(self, names: Iterable[str] | None = None) -> None:
        """Raises UserError where a file (of these names) is not the one that was opened."""
        check_stamps(self.folder, self.stamps if names is None else {name: self.stamps[name] for name in names})

    @property
    def side_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.side)

    def side_text(self, name: str) -> bytes | None:
        """The bytes of a side file, or None where there is none."""
        if name not in self.side:
            return None
        return (self.folder / name).read_bytes()


Reader = Callable[[Path, str], dict[str, Tensor]]


def inside(folder: Path, name: str, tensor: str | None = None) -> Path:
    """`folder/name`, if it really is inside the folder.

    One exception: the Hub's own cache, where a file of `snapshots/<revision>` is a link into its sibling `blobs`.

    Raises:
        UserError: an absolute name, `..`, or a symlink that leads out.
    """
    parts = PurePosixPath(name).parts
    path = folder / name
    if not parts or "\0" in name or "\\" in name or ".." in parts or PurePosixPath(name).is_absolute():
        raise broken(folder, f"the file name {shown(name)} leaves the folder", tensor)
    try:
        target, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError):
        raise broken(folder / shown(name), "its symlinks cannot be followed", tensor) from None
    cache = root.parents[2] if len(root.parents) > 2 else root
    blobs = (root.parent.parent / "blobs", cache / "blobs" / target.parent.name)  # a model's own, and all models'
    hub = root.parent.name == "snapshots" and target.parent in blobs
    if not target.is_relative_to(root) and not hub:
        raise broken(path, "a symlink that leads out of the folder", tensor)
    return path


def _read_config(folder: Path) -> dict[str, Any]:
    path = inside(folder, "config.json")
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = " It looks like an adapter: pools of adapters need their base." if adapter else ""
        raise UserError(f"{folder} has no config.json: not a complete model folder.{hint}")
    config = parse_json(path, small(path))
    if not isinstance(config, dict):
        raise broken(path, "config.json is not a JSON object")
    return config


def small(path: Path, limit: int = MAX_JSON) -> bytes:
    """The whole of a file that has to be small."""
    if path.stat().st_size > limit:
        raise broken(path, f"larger than {limit} bytes, which no such file is")
    return path.read_bytes()


def read_weights(
    folder: Path,
    allow_pickle: bool,
    safe: Sequence[str] = (SINGLE, INDEX),
    pickles: Sequence[str] = (PICKLED, PICKLED_INDEX),
) -> dict[str, Tensor]:
    """The tensors of the first of these files that is there: a single file wins over an index, as in transformers.

    Raises:
        UserError: none is there, it is pickled and that is not allowed, or it cannot be trusted.
    """
    name = next((name for name in (*safe, *pickles) if inside(folder, name).is_file()), None)
    if name is None:
        raise UserError(f"{folder} has no weights: {' or '.join(safe)} is missing")
    if name in pickles and not allow_pickle:
        raise UserError(
            f"{folder / name} holds pickled weights, which can run code when opened. "
            "Convert them to safetensors, or set merge.allow_pickle=true."
        )
    read: Reader = read_pickled if name in pickles else read_header
    return _read_sharded(folder, name, read) if name.endswith(".json") else read(folder / name, name)


def _read_sharded(folder: Path, index: str, read: Reader) -> dict[str, Tensor]:
    """The tensors an index lists; index and shards must tell the same story."""
    path = folder / index
    places = weight_map(path)
    tensors: dict[str, Tensor] = {}
    owners = {file: name for name, file in reversed(places.items())}
    shards = {file: inside(folder, file, name) for file, name in owners.items()}
    for file, shard in shards.items():
        if not shard.is_file():
            raise broken(path, f"the shard {shown(file)} is missing", owners[file])
    for file in dict.fromkeys(places.values()):
        for name, tensor in read(shards[file], file).items():
            if places.get(name) != file:
                raise broken(shards[file], f"{index} does not place it here", name)
            tensors[name] = tensor
    lost = next((name for name in places if name not in tensors), None)
    if lost is not None:
        raise broken(folder / places[lost], f"{index} places it here, but the shard has no such tensor", lost)
    return tensors


def weight_map(index: Path) -> dict[str, str]:
    """{tensor: file} of an index of shards."""
    table = parse_json(index, small(index))
    places = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(v, str) for v in places.values()):
        raise broken(index, "weight_map is not a table of tensor names and file names")
    return places


def side_files(folder: Path) -> tuple[str, ...]:
    # a link that leads nowhere is a file that is missing
    names = sorted(path.name for path in folder.iterdir() if path.is_file() or not path.exists())
    chosen = [n for n in names if any(fnmatch.fnmatch(n, p) for p in SIDE_FILES) and not n.endswith(NOT_SIDE)]
    for name in chosen:
        if inside(folder, name).stat().st_size > MAX_SIDE:
            raise broken(folder / name, f"larger than {MAX_SIDE} bytes, which no such file is")
    templates = folder / "additional_chat_templates"
    if inside(folder, templates.name).is_dir():
        extra = sorted(f"{templates.name}/{path.name}" for path in templates.iterdir() if path.suffix == ".jinja")
        chosen += [name for name in extra if inside(folder, name).is_file()]
    return tuple(chosen)


def stored_names(folder: Path) -> frozenset[str]:
    """The names of the tensors that a model folder stores, including pickled ones, which the pool has allowed.

    Raises:
        UserError: as `Checkpoint.open`.
    """
    return frozenset(Checkpoint.open(folder, allow_pickle=True).tensors)


def stores_head(folder: Path) -> bool:
    """Whether a model folder stores an output head; without one the embeddings are the head too."""
    return any(name.endswith("lm_head.weight") for name in stored_names(folder))


def stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def stamps_in(folder: Path) -> dict[str, Stamp]:
    """The stamps of the files of a folder, to be taken before they are read."""
    return {path.name: stamp(path) for path in folder.iterdir() if path.is_file()}


def check_stamps(folder: Path, stamps: Mapping[str, Stamp]) -> None:
    """Raises UserError where a file is not what its stamp says."""
    for name, known in stamps.items():
        try:
            same = stamp(folder / name) == known
        except OSError:
            same = False
        if not same:
            raise _changed(folder / name)


def _changed(path: Path) -> UserError:
    return UserError(f"{path} has changed since it was opened: start again when nothing writes there")


def fingerprint(folder: Path, cache: MutableMapping[str, str] | None = None, allow_pickle: bool = False) -> str:
    """SHA-256 (hex) over the content of the weights, config, tokenizer and chat template of a model folder.

    Names of the files count, the folder's own name and place do not. With `cache`, a file is hashed once for each
    (resolved path, stamp); the name of a file, in the Hub's cache too, says nothing about its content.

    Raises:
        UserError: as `Checkpoint.open`, or a file changes meanwhile.
    """
    return fingerprint_of(Checkpoint.open(folder, allow_pickle), cache)


def fingerprint_of(checkpoint: Checkpoint, cache: MutableMapping[str, str] | None = None) -> str:
    """`fingerprint` of a folder that is open already."""
    names = (*checkpoint.files, *checkpoint.side)
    value = digest({name: file_digest(checkpoint.folder / name, cache) for name in names})
    checkpoint.check_unchanged()
    return value


def file_digest(path: Path, cache: MutableMapping[str, str] | None) -> str:
    """SHA-256 (hex) of a file, hashed once where a `cache` keeps it."""
    before = settled(path)
    key = digest_key(path, before)
    if cache is not None and key in cache:
        return cache[key]
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    if stamp(path) != before:
        raise _changed(path)
    if cache is not None and time.time_ns() > before[2]:  # a clock that went back tells nothing
        cache[key] = value
    return value


def digest_key(path: Path, state: Stamp) -> str:
    """Under what a file's digest is kept."""
    return "|".join(map(str, (path.resolve(), *state)))


def settled(path: Path) -> Stamp:
    """The stamp of a file, at a time when another change would give it another one."""
    now = stamp(path)
    age = time.time_ns() - now[2]
    if 0 <= age < FRESH:
        time.sleep((FRESH - age) / 1e9)
        return stamp(path)
    return now


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Tokens that end a model's answers by its generation_config.json, else by its config.json, ascending.

    Raises:
        UserError: a file is broken, or names something that is no token.
    """
    for name in (GENERATION, "config.json"):
        path = inside(folder, name)
        if path.is_file():
            ends = _token_ids(path, parse_json(path, small(path)))
            if ends:
                return ends
    return ()


def _token_ids(path: Path, table: Json) -> tuple[int, ...]:
    if not isinstance(table, dict):
        raise broken(path, f"{path.name} is not a JSON object")
    text = table.get("text_config")
    value = table.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and token < 1 << 31 for token in values):
        raise broken(path, f"eos_token_id is {shown(str(value)[:100])}, not one token or a list of them")
    return tuple(sorted({token for token in values if token >= 0}))


def read_pickled(path: Path, label: str) -> dict[str, Tensor]:
    """The tensors of a pickled file and where their bytes are.

    Raises:
        UserError: it holds more than plain, contiguous tensors, or it is truncated.
    """
    state = _load(path)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise broken(path, "not a table of tensors")
    size = path.stat().st_size
    return {name: _tensor(path, label, name, value, size) for name, value in state.items()}


def _load(path: Path) -> Any:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            return torch.load(path, weights_only=True)
    except Exception as error:  # whatever a hostile pickle makes of the loader is the file's fault
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise UserError(f"{path} holds more than plain tensors, or is broken ({reason}). Do not trust it.") from None


def _tensor(path: Path, label: str, name: str, value: torch.Tensor, size: int) -> Tensor:
    import torch

    if not isinstance(value, torch.Tensor) or value.is_sparse or not value.is_contiguous():
        raise broken(path, "not a contiguous tensor", name)
    tag = TAGS.get(str(value.dtype).removeprefix("torch."))
    start = getattr(value.untyped_storage(), "_checkpoint_offset", None)  # torch's
    if tag is None or start is None:
        raise broken(path, f"a tensor of {value.dtype} cannot be read", name)
    offset, nbytes = start + value.storage_offset() * value.element_size(), value.numel() * value.element_size()
    if not 0 <= offset <= offset + nbytes <= size:
        raise broken(path, "truncated: its bytes are beyond the end", name)
    return Tensor(name, tag, tuple(value.shape), label, int(offset), int(nbytes))
