"""The detour of a live pour for modules that do not look like their checkpoints: let transformers load the soup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from souping.core import UserError

if TYPE_CHECKING:
    import torch


def reload(module: Any, soup: Mapping[str, torch.Tensor]) -> None:
    """Fill `module` with what transformers makes of the tensors `soup`, in place.

    Raises:
        UserError: transformers cannot load them, or its module has other parameters.
    """
    import torch

    fresh = _load(module, soup)
    source = fresh.state_dict()
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            if name not in source or source[name].shape != tensor.shape:
                raise UserError(f"the soup does not fit the live module: {name} is missing or of another shape")
            tensor.copy_(source[name])


def _load(module: Any, soup: Mapping[str, torch.Tensor]) -> Any:
    from transformers.utils import logging as untyped

    logging: Any = untyped
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        fresh = type(module).from_pretrained(None, config=module.config, state_dict=dict(soup), dtype=module.dtype)
    except (RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"the soup does not fit the live module: {str(error).splitlines()[0][:150]}") from None
    finally:
        if bars:
            logging.enable_progress_bar()
    lost = [name for name, tensor in fresh.named_parameters() if tensor.device.type == "meta"]
    if lost:
        raise UserError(f"the checkpoints hold nothing for the module's {lost[0]}")
    return fresh
