"""Pouring soups of adapters into one live base model: only the adapted weights are touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from souping.core.merge_protocols import Pourable
from souping.core.text import shown
from souping.core.types import Recipe, UserError
from souping.merge.adapters.base import Site
from souping.merge.adapters.factors import DeviceProduct, Guard, Product, Read, Share, blocks_of, product
from souping.merge.kernels.gpu import torch_dtype
from souping.merge.kernels.reference import Float32, widen

if TYPE_CHECKING:
    import torch


class AdapterLive(Pourable):
    """Live base model that `pour` makes base + sum_i w_i s_i B_i A_i of a recipe, again and again.

    `sites` are all modules that any adapter of the pool changes, `shares_of(recipe)` gives the recipe's parts by
    module, `factor_dtype` is what a soup's factors are stored in. With `stored(site, recipe)` not None the sum is
    rounded to that dtype first, as the written full model is. `base` is the base's name for `read`.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        sites: Mapping[str, Site],
        *,
        base: str,
        read: Read,
        guard: Guard,
        shares_of: Callable[[Recipe], Mapping[str, Sequence[Share]]],
        factor_dtype: Callable[[Recipe], str],
        stored: Callable[[Site, Recipe], str | None],
    ) -> None:
        self._sites, self._base, self._read, self._guard = sites, base, read, guard
        self._shares_of, self._factor_dtype, self._stored = shares_of, factor_dtype, stored
        self._places = {name: _place(module, site) for name, site in sites.items()}
        _untie(module, [site for site in sites.values() if site.shared])
        self._changed: set[str] = set()

    def pour(self, recipe: Recipe) -> None:
        """Put the recipe's soup into the module, in place. Modules that only other adapters change get the base's
        weight back.

        Raises:
            UserError: a file ended early, or a value is not finite (the module then holds a part of the soup).
        """
        shares = self._shares_of(recipe)
        for name in sorted(self._changed | set(shares)):
            self._fill(self._sites[name], shares.get(name, ()), recipe)
        self._changed = set(shares)

    def _fill(self, site: Site, shares: Sequence[Share], recipe: Recipe) -> None:
        import torch

        target, stored = weight_in(self._places[site.module]), self._stored(site, recipe)
        made = self._product(site, shares, recipe, target.device)
        with torch.no_grad():
            for first, count in blocks_of(*site.tensor.shape):
                values = self._base_rows(site, first, count)
                sums = torch.from_numpy(values.copy()) if made is None else torch.as_tensor(made.added(values, first))
                if stored is not None:
                    sums = sums.to(torch_dtype(stored))
                self._guard.soup(sums.float().cpu().numpy(), site.tensor.name)
                target[first : first + count].copy_(sums)

    def _product(
        self, site: Site, shares: Sequence[Share], recipe: Recipe, device: torch.device
    ) -> Product | DeviceProduct | None:
        if not shares:
            return None
        made = product(self._read, shares, self._factor_dtype(recipe), site.transposed, self._guard)
        return DeviceProduct(made, device) if device.type == "cuda" else made

    def _base_rows(self, site: Site, first: int, count: int) -> Float32:
        columns = site.tensor.shape[1]
        raw = self._read(self._base, site.tensor, first * columns, count * columns)
        rows = widen(raw, site.tensor.dtype).reshape(count, columns)
        self._guard(rows, self._base, site.tensor)
        return rows


def weight_in(owner: torch.nn.Module) -> torch.nn.Parameter:
    weight: torch.nn.Parameter = owner.get_parameter("weight")
    return weight


def _place(module: torch.nn.Module, site: Site) -> torch.nn.Module:
    """The live submodule that owns the adapted weight.

    Raises:
        UserError: the module has none of that name and shape.
    """
    prefix = f"{getattr(module, 'base_model_prefix', '')}."  # transformers'
    for name in (site.module, prefix + site.module, site.module.removeprefix(prefix)):
        try:
            owner = module.get_submodule(name)
        except AttributeError:
            continue
        weight = dict(owner.named_parameters(recurse=False)).get("weight")
        if weight is not None and tuple(weight.shape) == site.tensor.shape:
            return owner
    raise UserError(f"the adapters change {shown(site.module)}, which the loaded base model has not under that name")


def _untie(module: torch.nn.Module, shared: Sequence[Site]) -> None:
    """Give an adapted weight that is tied to another module's its own storage: adapters change one of the two."""
    import torch

    for site in shared:
        owner = _place(module, site)
        owner.register_parameter("weight", torch.nn.Parameter(weight_in(owner).detach().clone(), requires_grad=False))
