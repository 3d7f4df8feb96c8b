"""Cache of a live module for rows of any length, and the attention that reads it.

A pass takes the new tokens of all rows in one line, without padding: all but attention sees so many tokens. Attention
sees each row behind what its slot of the cache holds (as serving engines do: Kwon et al. 2309.06180, without pages).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from souping.core.types import Json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicLayer

NAME = "souping_rows"
"""Name of the attention in transformers' register."""
NARROW = 8
"""Rows with at most so many new tokens are attended together, padded."""
EXACT, SHORT = 0.003, 0.03
"""Differences, as shares of the largest logit, that rounding may make in float32 (TF32 too) and in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class RowSpan:
    """New tokens of a row: `count` of them, behind the `past` that its slot holds."""

    slot: int
    past: int
    count: int

    @property
    def end(self) -> int:
        return self.past + self.count


@dataclass(frozen=True, kw_only=True)
class Wide:
    """Row that is attended by itself: its tokens of the pass, and what each sees (None: causal, without a past)."""

    tokens: slice
    chunk: RowSpan
    sees: torch.Tensor | None


class Narrow:
    """Rows with few new tokens, as a grid [slots, W] of which some places are filled."""

    def __init__(self, starts: Sequence[int], chunks: Sequence[RowSpan], device: torch.device) -> None:
        import torch

        first, self.width = min(chunk.slot for chunk in chunks), max(chunk.count for chunk in chunks)
        self.slots, self.end = slice(first, max(c.slot for c in chunks) + 1), max(c.end for c in chunks)
        places = [(s + n, c.slot - first, n) for s, c in zip(starts, chunks, strict=True) for n in range(c.count)]
        self.tokens, self.rows, self.offsets = torch.tensor(places, device=device).unbind(1)
        pasts = torch.zeros(self.slots.stop - first, dtype=torch.long)
        pasts[[chunk.slot - first for chunk in chunks]] = torch.tensor([chunk.past for chunk in chunks])
        last = pasts[:, None] + torch.arange(self.width)  # [slots, W]: the last column that a place sees
        self.sees = (torch.arange(self.end) <= last[:, :, None])[:, None].to(device)


class LineLayout:
    """Where the tokens of a pass stand in the cache, and what each may see. Chunks follow one another."""

    def __init__(self, chunks: Sequence[RowSpan], columns: int, device: torch.device) -> None:
        import torch

        spans = [torch.arange(chunk.past, chunk.end) for chunk in chunks]
        self.positions = torch.cat(spans).to(device)  # [N]
        places = [chunk.slot * columns + span for chunk, span in zip(chunks, spans, strict=True)]
        self.places = torch.cat(places).to(device)  # [N], in slots one behind the other
        starts, start = [], 0
        for chunk in chunks:
            starts.append(start)
            start += chunk.count
        together = _together(chunks)
        few = [n for n in range(len(chunks)) if n in together]
        self.narrow = Narrow([starts[n] for n in few], [chunks[n] for n in few], device) if few else None
        alone = [(starts[n], chunk) for n, chunk in enumerate(chunks) if n not in together]
        self.wide = [
            Wide(tokens=slice(begin, begin + chunk.count), chunk=chunk, sees=_causal(chunk, device))
            for begin, chunk in alone
        ]


def _together(chunks: Sequence[RowSpan]) -> frozenset[int]:
    """Rows that are attended together: narrow ones, where they fill a good part of the slots between them."""
    few = [n for n, chunk in enumerate(chunks) if chunk.count <= NARROW]
    slots = [chunks[n].slot for n in few]
    return frozenset(few if len(few) > 1 and 4 * len(few) > max(slots) - min(slots) else ())


def _causal(chunk: RowSpan, device: torch.device) -> torch.Tensor | None:
    import torch

    if not chunk.past:
        return None
    return torch.ones(chunk.count, chunk.end, dtype=torch.bool, device=device).tril(chunk.past)[None, None]


@dataclass
class LayerRows:
    """Keys and values of one layer, [slots, columns, heads, size], and the layout of the pass that is under way."""

    slots: int
    columns: int
    layout: LineLayout | None = None
    buffers: list[torch.Tensor] = field(default_factory=list)

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put what a pass adds, [1, heads, N, size], in its places."""
        assert self.layout is not None
        if not self.buffers:  # zeros: what is masked must not be nan
            shapes = [(self.slots, self.columns, new.shape[1], new.shape[3]) for new in (keys, values)]
            self.buffers = [keys.new_zeros(shape) for shape in shapes]
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer.flatten(0, 1).index_copy_(0, self.layout.places, new[0].transpose(0, 1))

    def attend(self, query: torch.Tensor, scale: float | None) -> torch.Tensor:
        """What queries [1, heads, N, size] read, [1, N, heads, size]."""
        assert self.layout is not None
        asked = query[0].transpose(0, 1)
        out = query.new_empty((*asked.shape[:2], self.buffers[1].shape[3]))
        for wide in self.layout.wide:
            known = slice(wide.chunk.slot, wide.chunk.slot + 1), wide.chunk.end
            out[wide.tokens] = self._read(asked[None, wide.tokens], known, wide.sees, scale)[0]
        narrow = self.layout.narrow
        if narrow is not None:
            grid = asked.new_zeros((narrow.sees.shape[0], narrow.width, *asked.shape[1:]))
            grid[narrow.rows, narrow.offsets] = asked[narrow.tokens]
            read = self._read(grid, (narrow.slots, narrow.end), narrow.sees, scale)
            out[narrow.tokens] = read[narrow.rows, narrow.offsets]
        return out[None]

    def _read(
        self, asked: torch.Tensor, known: tuple[slice, int], sees: torch.Tensor | None, scale: float | None
    ) -> torch.Tensor:
        """What queries [R, W, heads, size] read in these slots, up to a column. Heads that share keys are asked as one
        with more queries, for not every kernel takes a mask and fewer keys than heads."""
        from torch.nn.functional import scaled_dot_product_attention as attention

        keys, values = (buffer[known[0], : known[1]].transpose(1, 2) for buffer in self.buffers)
        query, few = asked.transpose(1, 2), keys.shape[1]
        if sees is None:
            return attention(query, keys, values, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2)
        rows, heads, width, size = query.shape
        folded = query.reshape(rows, few, heads // few * width, size)
        read = attention(folded, keys, values, attn_mask=sees.repeat(1, 1, heads // few, 1), scale=scale)
        return read.reshape(rows, heads, width, values.shape[3]).transpose(1, 2)


class RowCache:
    """Cache of a module for rows in slots of their own."""

    def __init__(self, module: PreTrainedModel, slots: int, columns: int) -> None:
        from transformers import DynamicCache

        self.cache = DynamicCache(config=module.config)
        self._device = next(module.parameters()).device
        self._layers = [LayerRows(slots=slots, columns=columns) for _ in self.cache.layers]
        self.cache.layers[:] = [layer_class()(layer) for layer in self._layers]

    def lay(self, chunks: Sequence[RowSpan]) -> LineLayout:
        """LineLayout of the next pass."""
        layout = LineLayout(chunks, self._layers[0].columns, self._device)
        for layer in self._layers:
            layer.layout = layout
        return layout


@lru_cache(maxsize=1)
def layer_class() -> Callable[[LayerRows], DynamicLayer]:
    """Cache layer as transformers takes it; made late, for its base is transformers'.

    In place of keys and values it gives the rows themselves, which `attend` is handed.
    """
    from transformers.cache_utils import DynamicLayer

    class RowsLayer(DynamicLayer):
        def __init__(self, rows: LayerRows) -> None:
            self.keys = self.values = None
            self.is_initialized = True
            self._rows = rows

        def update(  # type: ignore[override]  # no tensors
            self,
            key_states: torch.Tensor,
            value_states: torch.Tensor,
            cache_kwargs: Mapping[str, Json] | None = None,
            kwargs: Mapping[str, Json] | None = None,
        ) -> tuple[LayerRows, LayerRows]:
            self._rows.write(key_states, value_states)
            return self._rows, self._rows

        def get_seq_length(self) -> int:
            return 0

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return query_length, 0

    return RowsLayer


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: LayerRows,
    value: LayerRows,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool = True,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_ids: torch.Tensor | None = None,
    use_cache: bool = True,
    output_router_logits: bool = False,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it, over rows; a model that asks for more than this is not read in lines."""
    if sliding_window is not None or softcap is not None:
        raise NotImplementedError
    return key.attend(query, scaling), None


@contextmanager
def over_rows(module: PreTrainedModel) -> Iterator[None]:
    """While this lasts, the module's attention reads rows."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    config = module.config
    parts = {"": config, **{name: getattr(config, name) for name in config.sub_configs}}  # transformers'
    before = {name: part._attn_implementation for name, part in parts.items() if part is not None}
    module.set_attn_implementation(NAME)
    try:
        yield
    finally:
        module.set_attn_implementation(before)


def cache_name(module: PreTrainedModel) -> str:
    """Argument by which the module takes its cache: transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def croppable(module: PreTrainedModel) -> str:
    """Why rows of this module's cache cannot go back; empty where they can."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config, text = module.config, module.config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        return "encoder and decoder"
    known = "logits_to_keep" in inspect.signature(module.forward).parameters
    if not known or not getattr(text, "use_cache", False):  # transformers', and not every model has it
        return "no cache that souping knows"
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if module._is_stateful or kinds != {DynamicLayer}:
        return "a cache that cannot go back (sliding window, state space or hybrid)"
    return ""


def steady_length(module: PreTrainedModel) -> int | None:
    """Tokens of a row beyond which all rows of a pass get other rotary positions (longrope); None where none do."""
    config = module.config.get_text_config(decoder=True)
    given = getattr(config, "rope_parameters", None) or {}  # transformers': of the model, or of each kind of layer
    tables = [given, *(one for one in given.values() if isinstance(one, dict))]
    lengths = [t["original_max_position_embeddings"] for t in tables if t.get("rope_type") == "longrope"]
    return min(lengths, default=None)


def packs(module: PreTrainedModel) -> bool:
    """Whether rows in one line get the logits that each gets alone: tried with three short ones."""
    import torch

    size = int(module.config.get_text_config(decoder=True).vocab_size)
    texts = [text.to(module.device) for text in torch.arange(1, 25).remainder(size).split([11, 9, 4])]
    with torch.inference_mode():
        try:
            alone = torch.stack([module(input_ids=text[None]).logits[0, -1] for text in texts])
            with over_rows(module):
                own = _in_two_passes(module, texts)
        except Exception:  # code of others, which need not know this attention
            return False
    digits = EXACT if alone.dtype == torch.float32 else SHORT
    return float((alone - own).abs().max()) <= digits * float(alone.abs().max())


def _in_two_passes(module: PreTrainedModel, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits [3, V] at the ends of texts, after a pass over all but their last one to nine tokens."""
    cache, pasts = RowCache(module, len(texts), 16), [0, 0, 0]
    for ends in ([2, 8, 3], list(map(len, texts))):
        spans = list(zip(pasts, ends, strict=True))
        chunks = [RowSpan(slot=n, past=a, count=b - a) for n, (a, b) in enumerate(spans)]
        ids = [text[a:b] for text, (a, b) in zip(texts, spans, strict=True)]
        logits, pasts = line_logits(module, cache, chunks, ids, [1, 1, 1]), ends
    return logits


def line_logits(
    module: PreTrainedModel,
    cache: RowCache,
    chunks: Sequence[RowSpan],
    ids: Sequence[torch.Tensor],
    kept: Sequence[int],
) -> torch.Tensor:
    """Logits [sum of kept, V] of the last places of each chunk, whose token ids are given."""
    import torch

    layout = cache.lay(chunks)
    ends = torch.tensor([chunk.count for chunk in chunks]).cumsum(0).tolist()
    places = torch.cat([torch.arange(end - keep, end) for end, keep in zip(ends, kept, strict=True)])
    logits: torch.Tensor = module(
        input_ids=torch.cat(list(ids))[None],
        position_ids=layout.positions[None],
        use_cache=True,
        logits_to_keep=places.to(layout.positions.device),
        **{cache_name(module): cache.cache},
    ).logits
    return logits[0]
