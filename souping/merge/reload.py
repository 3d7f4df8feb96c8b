"""The detour of a live pour for modules that do not look like their checkpoints: let transformers load the soup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from souping.core import UserError
from souping.merge.slots import listed

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
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        fresh, report = type(module).from_pretrained(
            None, config=module.config, state_dict=dict(soup), dtype=module.dtype, output_loading_info=True
        )
    except (RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"the soup does not fit the live module: {str(error).splitlines()[0][:150]}") from None
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    lost = sorted(str(name) for name in report["missing_keys"])
    if lost or report["mismatched_keys"]:
        raise UserError(f"the soup does not fit the live module: it has nothing for {listed(lost) or 'a shape of it'}")
    return fresh
