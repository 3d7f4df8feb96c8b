"""What most people do: load N transformers models, average whole tensors in fp32, save_pretrained.

`merge_naive.py OUT WEIGHTS FOLDER...`
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    out, weights, *paths = sys.argv[1:]
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16) for path in paths]
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, tensor in states[0].items():
            parts = zip(weights.split(","), states, strict=True)
            tensor.copy_(sum(float(w) * state[name].float() for w, state in parts))
    models[0].save_pretrained(out)


if __name__ == "__main__":
    main()
