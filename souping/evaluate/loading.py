"""Load a module and its tokenizer with transformers, quietly, from a local folder."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from souping.core import UserError


def quiet() -> None:
    """No progress bars or advice from transformers: the run has one display of its own."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_module(folder: Path, evaluator: Any) -> Any:
    """The architecture of `folder` as a live module in the evaluator's compute dtype, on its device.

    dtype `auto` is the folder's own.

    Raises:
        UserError: transformers cannot build this architecture (its own reason is given).
    """
    import torch
    import transformers

    quiet()
    device = evaluator.resolved_device
    if device.startswith("cuda") and int(device[5:] or 0) >= torch.cuda.device_count():
        raise UserError(f"evaluator.device={device}: this machine has {torch.cuda.device_count()} GPUs torch can use")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=evaluator.trust_remote_code)
        auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        dtype = "auto" if evaluator.dtype == "auto" else getattr(torch, evaluator.dtype)
        module = auto.from_pretrained(folder, dtype=dtype, trust_remote_code=evaluator.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"{folder}: transformers cannot load this model: {first_line(error)}") from error
    return module.to(device).eval()


@lru_cache(maxsize=64)
def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer.

    Raises:
        UserError: there is none, or transformers cannot read it.
    """
    import transformers

    quiet()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{folder}: transformers cannot load the tokenizer: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return (first or type(error).__name__)[:300]
