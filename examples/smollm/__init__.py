"""Fine-tunes of SmolLM2-135M and tool-selection tasks made of BFCL's questions."""
