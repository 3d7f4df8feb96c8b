"""A folder shaped like bfcl-eval's data, with made-up questions, and a tiny Llama in SmolLM2's place."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from examples.smollm.data import FILES, SPARE

EACH = 40
"""Questions a category."""


def function(name: str, description: str = "") -> dict[str, Any]:
    properties = {"first": {"type": "string"}, "second": {"type": "integer"}}
    told = description or f"Does what {name} says. And more that nobody needs."
    return {"name": name, "description": told, "parameters": {"type": "dict", "properties": properties}}


def code(text: str) -> str:
    """Four letters, as many as `none` has: a random model then prefers no choice for its length."""
    number = int(hashlib.sha256(text.encode()).hexdigest(), 16)
    return "".join(chr(97 + number // 26**place % 26) for place in range(4))


def rows(stem: str) -> list[dict[str, Any]]:
    """Questions 0 and 1, 2 and 3, ... share a function; files named `multiple` offer two more."""
    made = []
    for i in range(EACH):
        names = [code(f"{stem} {i // 2} {j}") for j in range(3 if "multiple" in stem else 1)]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Please {stem} {i}?"}]
        made.append({"id": f"{stem}_{i}", "question": [messages], "function": [function(n) for n in names]})
    return made


def write(folder: Path) -> Path:
    """Question files and answers; `live_irrelevance` is there too, which no category reads."""
    answers = folder / "possible_answer"
    answers.mkdir(parents=True)
    for stem in (*FILES.values(), *SPARE, "live_irrelevance"):
        made = rows(stem)
        _lines(folder / f"BFCL_v4_{stem}.json", made)
        if "irrelevance" not in stem:
            right = [{"id": r["id"], "ground_truth": [{r["function"][0]["name"]: {"first": ["x"]}}]} for r in made]
            _lines(answers / f"BFCL_v4_{stem}.json", right)
    return folder


def _lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def gguf(path: Path, package: Any) -> Path:
    """A Llama of one layer with a byte-level tokenizer, in the file format of llama.cpp."""
    import numpy as np
    from tokenizers.pre_tokenizers import ByteLevel

    width, inner, tokens = 32, 64, ["<|im_start|>", "<|im_end|>", "ab", *sorted(ByteLevel.alphabet())]
    writer = package.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,), "blk.0.attn_norm": (width,)}
    shapes |= {f"blk.0.attn_{part}": (width, width) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width), "blk.0.ffn_norm": (width,)}
    dice = np.random.default_rng(0)
    for name, shape in {**shapes, "blk.0.ffn_down": (width, inner)}.items():
        writer.add_tensor(f"{name}.weight", dice.normal(size=shape, scale=0.1).astype(np.float32))
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    return path


def model(folder: Path, seed: int = 0) -> Path:
    """A random Llama of two layers that has room for a prompt of these items."""
    from tests.support.family import save_model

    save_model(folder, seed, max_position_embeddings=1024)
    return folder
