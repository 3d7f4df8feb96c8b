"""Pools of PEFT LoRA adapters over one base model, souped in adapter space by rank concatenation."""
