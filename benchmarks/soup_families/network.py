"""Small decoder-only transformers, many at once: the parameters of M models are the rows of one matrix [M, P].

A merge is then a product of matrices, and all models go through one batched product per layer.

Shape legend: M models, P parameters, N items, T tokens, A tokens that are predicted, D width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.soup_families.design import Size
from benchmarks.soup_families.items import LENGTH, VOCABULARY

# Factors on embeddings, positions and logits, so that small initial values are in proportion.
EMBEDDING_SCALE = 8.0
POSITION_SCALE = 4.0
LOGIT_SCALE = 2.0


@dataclass(frozen=True, kw_only=True)
class Network:
    """Shape of a transformer."""

    size: Size

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{parameter: its shape}, in the order in which a row has them."""
        width = self.size.width
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (len(VOCABULARY), width),
            "position": (LENGTH, width),
        }
        for layer in range(self.size.layers):
            shapes[f"{layer}.attention.norm"] = (width,)
            shapes[f"{layer}.attention.in"] = (width, 3 * width)
            shapes[f"{layer}.attention.out"] = (width, width)
            shapes[f"{layer}.mlp.norm"] = (width,)
            shapes[f"{layer}.mlp.in"] = (width, 4 * width)
            shapes[f"{layer}.mlp.out"] = (4 * width, width)
        shapes["norm"] = (width,)
        return shapes

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def start(self, random: torch.Generator) -> Tensor:
        """Initial parameters of one model [1, P]."""
        parts = []
        for name, shape in self.shapes.items():
            if name.endswith("norm"):
                parts.append(torch.ones(shape))
                continue
            deviation = 0.05
            if "." in name:
                deviation = 1 / math.sqrt(shape[0])
            if name.endswith("out"):
                deviation /= 2
            parts.append(deviation * torch.randn(shape, generator=random))
        return torch.cat([part.flatten() for part in parts])[None]

    def named(self, rows: Tensor) -> dict[str, Tensor]:
        """{parameter: [M, *shape]} of rows [M, P]."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = rows.split(sizes, dim=1)
        return {
            name: part.unflatten(1, shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def blocks(self) -> Tensor:
        """Number of the block of each parameter [P]: 0 for the embeddings, then attention and MLP of each layer."""
        parts = []
        for name, shape in self.shapes.items():
            block = 0
            if "." in name:
                layer, kind, _ = name.split(".")
                block = 1 + 2 * int(layer) + int(kind == "mlp")
            parts.append(torch.full((math.prod(shape),), block))
        return torch.cat(parts)

    def logits(self, rows: Tensor, tokens: Tensor, first: int = 0) -> Tensor:
        """Logits [M, N, A, V] of the tokens that follow those from `first` on.

        `tokens` are [N, T], the same for all models, or [M, N, T]. The last layer is computed for these tokens only.
        """
        parameters = self.named(rows)
        models = len(rows)
        items, length = tokens.shape[-2:]
        if tokens.dim() == 2:
            embedded = parameters["embedding"][:, tokens]
        else:
            model = torch.arange(models)[:, None, None]
            embedded = parameters["embedding"][model, tokens]
        position = parameters["position"][:, None, :length]
        x = embedded * EMBEDDING_SCALE + position * POSITION_SCALE
        x = x.reshape(models, items * length, -1)
        for layer in range(self.size.layers):
            start = 0
            if layer == self.size.layers - 1:
                start = first
            part = {
                name.removeprefix(f"{layer}."): value
                for name, value in parameters.items()
                if name.startswith(f"{layer}.")
            }
            x = self._attention(part, x, items, start)
            hidden = normed(x, part["mlp.norm"])
            x = x + torch.relu(hidden @ part["mlp.in"]) @ part["mlp.out"]
        x = normed(x, parameters["norm"])
        scores: Tensor = x @ parameters["embedding"].transpose(1, 2) * LOGIT_SCALE
        by_item: Tensor = scores.unflatten(1, (items, length - first))
        return by_item

    def _attention(self, part: dict[str, Tensor], x: Tensor, items: int, start: int) -> Tensor:
        """x [M, N T, D] from token `start` on, plus what these tokens attend to [M, N A, D]."""
        width = self.size.width
        normal = normed(x, part["attention.norm"])
        asking = from_token(normal, items, start)
        query = asking @ part["attention.in"][..., :width]
        key, value = (normal @ part["attention.in"][..., width:]).split(width, dim=-1)
        query = self._heads(query, items)
        key = self._heads(key, items)
        value = self._heads(value, items)
        sees = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril(start)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=sees)
        attended = attended.transpose(1, 2).reshape(*asking.shape)
        return from_token(x, items, start) + attended @ part["attention.out"]

    def _heads(self, x: Tensor, items: int) -> Tensor:
        """[M, N T, D] -> [M N, heads, T, D / heads]"""
        split: Tensor = x.unflatten(1, (items, -1)).flatten(0, 1)
        heads: Tensor = split.unflatten(-1, (self.size.heads, -1))
        return heads.transpose(1, 2)


def normed(x: Tensor, gain: Tensor) -> Tensor:
    """Root mean square normalisation of x [M, N, D], with gains [M, D]."""
    unit: Tensor = functional.rms_norm(x, x.shape[-1:])
    return unit * gain[:, None]


def from_token(x: Tensor, items: int, start: int) -> Tensor:
    """[M, N T, D] -> [M, N A, D] without the first tokens."""
    if not start:
        return x
    by_item: Tensor = x.unflatten(1, (items, -1))
    return by_item[:, :, start:].flatten(1, 2)
