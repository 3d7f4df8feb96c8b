"""Examples that anybody can run: the pantry, SmolLM2 fine-tunes, the paper's tables and tasks."""
