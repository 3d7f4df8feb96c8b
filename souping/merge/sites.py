"""What adapters change in their base model: the base, and the parameter of each change, checked for fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.compatibility import same_values, tied
from souping.checkpoints.folder import is_head, setting, unwrapped
from souping.checkpoints.header import FLOATS, Tensor
from souping.checkpoints.lora import FULL_MODEL, Adapter, FactorPair, TrainedTensor
from souping.core.files import expanded, folder_at
from souping.core.text import listed, shown
from souping.core.types import UserError

CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
"""Model types whose linear layers are stored [in, out] (transformers' Conv1D)."""


@dataclass(frozen=True)
class Site:
    """Parameter that adapters change: `tensor` of the base, which they call `parameter`.

    `transposed` where a weight is stored [in, out] (embeddings, Conv1D). `shared` where the base stores one tensor for
    the input embedding and the output head, and only one of them is changed here. `absent` where the base has no such
    bias; `tensor` then has only its shape. `pieces` are the base's tensors of single experts, in the order in which
    they make up `tensor`, if the base has only these.
    """

    parameter: str
    tensor: Tensor
    transposed: bool
    shared: bool = False
    absent: bool = False
    pieces: tuple[Tensor, ...] = ()

    @property
    def module(self) -> str:
        return self.parameter.rpartition(".")[0]

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The tensors in the base's files."""
        return self.pieces or (self.tensor,)

    def pieces_of(self, start: int, count: int) -> tuple[Tensor, ...]:
        """The pieces of `count` experts from expert `start` on."""
        per_expert = len(self.pieces) // self.tensor.shape[0]
        return self.pieces[start * per_expert : (start + count) * per_expert]


def find_base(
    adapters: Mapping[str, Adapter], folder: str | None, allow_pickle: bool = False
) -> Checkpoint:
    """Open the one base of all adapters: `folder` (merge.base_model) if it is given, else the one in their configs.

    Full models among `adapters` name no base; at least one is an adapter.

    Raises:
        UserError: adapters name different bases or revisions, or the base is not a folder here.
    """
    first, *later = (name for name, adapter in adapters.items() if not adapter.full)
    settings = adapters[first].settings
    for name in later:
        _same_base(first, adapters[first], name, adapters[name])
    if folder:
        path: Path | None = expanded(folder, "merge.base_model")
        what = f"merge.base_model={folder}"
    else:
        path = folder_at(settings.base)
        what = f"the adapters' base model {shown(str(settings.base))}"
    if path is None or not path.is_dir():
        raise UserError(f"{what} is not a folder here: set merge.base_model=FOLDER")
    return Checkpoint.open(path, allow_pickle)


def _same_base(a: str, a_adapter: Adapter, b: str, b_adapter: Adapter) -> None:
    """Refuse adapters `a` and `b` whose configs name different base models. Two names may be of one folder."""
    a_settings = a_adapter.settings
    b_settings = b_adapter.settings
    a_base = shown(str(a_settings.base))
    if a_settings.base != b_settings.base:
        folder = folder_at(a_settings.base)
        if folder is None or folder != folder_at(b_settings.base):
            b_base = shown(str(b_settings.base))
            raise UserError(
                f"adapters {a} and {b} are over different base models, {a_base} and {b_base}"
            )
    if (a_settings.revision or "main") != (b_settings.revision or "main"):
        raise UserError(f"adapters {a} and {b} are over different revisions of {a_base}")


def sites(base: Checkpoint, adapters: Mapping[str, Adapter]) -> dict[str, Site]:
    """{parameter: site} of everything that an adapter changes, sorted by name.

    Raises:
        UserError: the base has no such parameter, a shape does not fit, the base's weight is quantised, or full weights
            saved with the factors are not the base's.
    """
    # The shape of a square weight does not show whether it is stored [in, out]: the configs do.
    flagged = any(adapter.settings.transposed for adapter in adapters.values())
    square_transposed = flagged or base.config.get("model_type") in CONV1D
    # {parameter: {adapter: its factors}}
    factors = defaultdict[str, dict[str, FactorPair]](dict)
    for name, adapter in adapters.items():
        for pair in adapter.parts.values():
            factors[pair.parameter][name] = pair
    by_parameter = dict[str, Site]()
    for parameter, pairs in sorted(factors.items()):
        by_parameter[parameter] = _site(base, pairs, square_transposed)
    for name, adapter in adapters.items():
        for part in adapter.trained:
            site = _trained_site(base, name, part)
            # Also a tensor without factors may show that the parameter is shared.
            known = by_parameter.setdefault(part.parameter, site)
            by_parameter[part.parameter] = replace(known, shared=known.shared or site.shared)
            _check_trained(name, part, site)

    # Adapters of a whole model and of its inner one call a weight by different names.
    first_names = dict[str, str]()
    for site in by_parameter.values():
        for tensor in site.stored:
            first = first_names.setdefault(tensor.name, site.parameter)
            if first != site.parameter and not site.shared:
                raise UserError(
                    f"adapters call {tensor.name} by two names, {shown(first)} and {shown(site.parameter)} "
                    "(tied weights, or other classes of the model): leave one of them out"
                )
    for name, adapter in adapters.items():
        _copies_are_base(base, name, adapter)
        _nothing_is_missing(base, name, adapter, by_parameter)
    return dict(sorted(by_parameter.items()))


def _site(base: Checkpoint, pairs: Mapping[str, FactorPair], square_transposed: bool) -> Site:
    """The weight that the adapters' product is added to (UserError: none fits, or they pack factors differently).

    The shape shows whether it is stored [in, out]; for a square one, `square_transposed` says it.
    """
    first, first_pair = next(iter(pairs.items()))
    module = first_pair.module
    target = first_pair.target
    if any(pair.target != target for pair in pairs.values()):
        raise UserError(
            f"{listed(pairs)} have factors of {shown(first_pair.parameter)} in different ways (target_modules, or "
            "versions of PEFT): merge one with PEFT, and use that model as a candidate"
        )
    if target is not None:
        return Site(target.name, target.tensor, target.transposed, pieces=target.pieces)
    tensor = _in_base(base, first, first_pair.parameter)
    rows = first_pair.b.shape[0]
    columns = first_pair.a.shape[1]
    transposed = first_pair.embedding or tensor.shape != (rows, columns)
    shape = tensor.shape[::-1] if transposed else tensor.shape
    for name, pair in pairs.items():
        sizes = (pair.b.shape[0], pair.a.shape[1])
        if pair.embedding != first_pair.embedding or sizes != shape:
            raise UserError(
                f"adapter {name}, {shown(module)}: A {list(pair.a.shape)} and B {list(pair.b.shape)} do not fit the "
                f"base's weight {list(tensor.shape)}"
            )
    if rows == columns and square_transposed:
        transposed = True
    shared = _shared(base, module, tensor, first_pair.embedding)
    return Site(f"{module}.weight", tensor, transposed, shared)


def _in_base(base: Checkpoint, name: str, parameter: str) -> Tensor:
    """The base's tensor for a parameter of the adapter `name` (UserError: there is none, or it is no float)."""
    tensor = tensor_of(base, parameter)
    if tensor is None:
        owner = parameter.removesuffix(".weight")
        raise UserError(
            f"adapter {name} adapts {shown(owner)}, which the base {base.folder} does not have"
        )
    if tensor.dtype not in FLOATS:
        raise UserError(
            f"{tensor.name} of the base is {tensor.dtype}, not a float: use the base's float original"
        )
    return tensor


def _trained_site(base: Checkpoint, name: str, part: TrainedTensor) -> Site:
    """The parameter that a tensor without factors replaces, or is added to (UserError: as `_in_base`)."""
    if part.adds and tensor_of(base, part.parameter) is None:
        # PEFT adds such a bias to the layer's answers, which needs none in the base.
        return Site(part.parameter, replace(part.tensor, name=part.parameter), False, absent=True)
    tensor = _in_base(base, name, part.parameter)
    module = part.parameter.rpartition(".")[0]
    shared = _shared(base, module, tensor, embedding=len(tensor.shape) == 2)
    # PEFT ties the rows of a tied head to those of the embedding, and a full model has both.
    both = part.rows is not None or part.setting == FULL_MODEL
    if both and tensor.name == part.parameter:
        shared = False
    return Site(part.parameter, tensor, False, shared)


def _check_trained(name: str, part: TrainedTensor, site: Site) -> None:
    """Refuse a tensor of an adapter that does not have the shape of what it replaces."""
    shape = site.tensor.shape
    expected = shape
    if part.rows is not None:
        if max(part.rows) >= shape[0]:
            raise UserError(
                f"adapter {name}, {part.setting}: there is no row {max(part.rows)} in "
                f"{shown(part.parameter)}, which is {list(shape)} in the base"
            )
        expected = (len(part.rows), *shape[1:])
    if part.tensor.shape != expected:
        raise UserError(
            f"adapter {name}, {part.setting}: {shown(part.parameter)} is {list(part.tensor.shape)}, "
            f"the base's {list(shape)}"
        )


def _nothing_is_missing(
    base: Checkpoint, name: str, adapter: Adapter, by_parameter: Mapping[str, Site]
) -> None:
    """Refuse an adapter that lacks a tensor of the base which it should bring: PEFT would take the base's silently.

    A full model brings all tensors, an adapter those of the modules in its `modules_to_save`.
    """
    saved = {by_parameter[part.parameter].tensor.name for part in adapter.trained}
    for tensor in base.tensors:
        wanted = adapter.full or adapter.settings.saves(tensor.rpartition(".")[0])
        if wanted and tensor not in saved and base.tensors[tensor].dtype in FLOATS:
            what = "the base has it" if adapter.full else "its modules_to_save names it"
            raise UserError(f"{name}: {shown(tensor)} is missing, and {what}: save it again")


def tensor_of(base: Checkpoint, parameter: str) -> Tensor | None:
    """The base's tensor for a parameter: `named_tensor`, or for a head without its own the embedding."""
    module, _, last = parameter.rpartition(".")
    tensor = named_tensor(base, parameter)
    if tensor is None and last == "weight":
        tensor = _tied_embedding(base, module)
    return tensor


def named_tensor(base: Checkpoint, parameter: str) -> Tensor | None:
    """The parameter in the base: by its name, else by the only name that differs just in leading parts, or in those in
    which versions of transformers differ."""
    if parameter in base.tensors:
        return base.tensors[parameter]
    matching = [tensor for key, tensor in base.tensors.items() if key.endswith(f".{parameter}")]
    _, _, shorter = parameter.partition(".")
    if shorter in base.tensors and "." in shorter:
        matching.append(base.tensors[shorter])
    if not matching:
        matching = base.by_unwrapped_name.get(unwrapped(parameter), [])
    return matching[0] if len(matching) == 1 else None


def _tied_embedding(base: Checkpoint, module: str) -> Tensor | None:
    """The embedding whose weight a head without its own shares; None for other modules, or if it is not unique."""
    if not is_head(f"{module}.weight"):
        return None
    vocab = setting(base.config, "vocab_size")
    matrices = [t for t in base.tensors.values() if len(t.shape) == 2 and t.shape[0] == vocab]
    embeddings = [t for t in matrices if "embed" in t.name]
    # GPT-2's name for the embedding.
    if not embeddings:
        embeddings = [t for t in base.tensors.values() if t.name.endswith("wte.weight")]
    return embeddings[0] if len(embeddings) == 1 else None


def _shared(base: Checkpoint, module: str, tensor: Tensor, embedding: bool) -> bool:
    """Whether the module's weight is also another module's: a tied head, or the embedding that a head is tied to."""
    # Without a weight of its own, the module was found by its tied embedding.
    if named_tensor(base, f"{module}.weight") is None:
        return True
    twins = [t for t in base.tensors.values() if t.shape == tensor.shape and t.name != tensor.name]
    vocabulary = tensor.shape[0] == setting(base.config, "vocab_size")
    # No other tensor has the shape of a head.
    if embedding and vocabulary and not twins:
        return True
    head = is_head(f"{module}.weight")
    return tied(base) and (head or (embedding and vocabulary))


def _copies_are_base(base: Checkpoint, name: str, adapter: Adapter) -> None:
    """Refuse an adapter with full weights that are not the base's: PEFT saves embeddings, and may have trained them."""
    for module, tensor in adapter.copies.items():
        base_tensor = tensor_of(base, f"{module}.weight")
        if base_tensor is None or not same_values(adapter.checkpoint, tensor, base, base_tensor):
            raise UserError(
                f"adapter {name} has a whole weight of {shown(module)} that is not the base's: name it in "
                "modules_to_save of its config if it was trained"
            )
