"""Cache of a live module whose rows begin and end where they are: what was refused is written over."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from souping.core.types import Json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicLayer


@dataclass
class LayerBuffers:
    """Keys and values of one layer in buffers [rows, heads, columns, size], of which a window is the cache."""

    size: tuple[int, int]
    buffers: list[torch.Tensor] = field(default_factory=list)
    rows: slice = field(default_factory=lambda: slice(0))
    first: int = 0
    end: int = 0

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put what a pass adds behind the window; all of it together."""
        if not self.buffers:  # zeros: what is masked must not be nan
            rows, columns = self.size
            self.buffers = [new.new_zeros((rows, new.shape[1], columns, new.shape[3])) for new in (keys, values)]
        begin, self.end = self.end, self.end + keys.shape[2]
        for buffer, states in zip(self.buffers, (keys, values), strict=True):
            buffer[self.rows, :, begin : self.end] = states
        whole = [buffer[self.rows, :, self.first : self.end] for buffer in self.buffers]
        return whole[0], whole[1]


@lru_cache(maxsize=1)
def layer_class() -> Callable[[LayerBuffers], DynamicLayer]:
    """Cache layer as transformers takes it, over buffers; made late, for its base is transformers'."""
    from transformers.cache_utils import DynamicLayer

    class BufferedLayer(DynamicLayer):
        def __init__(self, place: LayerBuffers) -> None:
            self.keys = self.values = None
            self.is_initialized = True
            self._place = place

        def update(
            self,
            key_states: torch.Tensor,
            value_states: torch.Tensor,
            cache_kwargs: Mapping[str, Json] | None = None,
            kwargs: Mapping[str, Json] | None = None,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return self._place.write(key_states, value_states)

        def get_seq_length(self) -> int:
            return self._place.end - self._place.first

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.get_seq_length() + query_length, 0

    return BufferedLayer


class RowCache:
    """Cache of a module for rows that begin and end at columns of their own, of which a pass sees a window."""

    def __init__(self, module: PreTrainedModel, rows: int, columns: int) -> None:
        self.columns = columns
        from transformers import DynamicCache

        self.cache = DynamicCache(config=module.config)
        self.layers = [LayerBuffers(size=(rows, columns)) for _ in self.cache.layers]
        self.cache.layers[:] = [layer_class()(layer) for layer in self.layers]

    def window(self, rows: slice, first: int, end: int) -> None:
        """What the next pass sees: columns `first` to `end` of these rows."""
        for layer in self.layers:
            layer.rows, layer.first, layer.end = rows, first, end

    def move(self, row: int, begin: int, end: int, by: int) -> None:
        """Move a row's columns to the right, or to the left where `by` is negative."""
        for layer in self.layers:
            for buffer in layer.buffers:
                buffer[row, :, begin + by : end + by] = buffer[row, :, begin:end].clone()

    def copy(self, source: int, row: int, end: int) -> None:
        """Write a row over another, up to column `end`."""
        for layer in self.layers:
            for buffer in layer.buffers:
                buffer[row, :, :end] = buffer[source, :, :end]

    def swap(self, one: int, other: int, end: int) -> None:
        """Let two rows change places, up to column `end`."""
        for layer in self.layers:
            for buffer in layer.buffers:
                buffer[[one, other], :, :end] = buffer[[other, one], :, :end]


def cache_name(module: PreTrainedModel) -> str:
    """Argument by which the module takes its cache: transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def croppable(module: PreTrainedModel) -> str:
    """Why rows of this module's cache cannot go back; empty where they can."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = module.config
    if config.is_encoder_decoder:
        return "encoder and decoder"
    if "logits_to_keep" not in inspect.signature(module.forward).parameters or not config.use_cache:
        return "no cache that souping knows"
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if module._is_stateful or kinds != {DynamicLayer}:
        return "a cache that cannot go back (sliding window, state space or hybrid)"
    return ""
