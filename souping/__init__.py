"""souping: from several fine-tuned checkpoints of one model to one better checkpoint, with the evidence."""

__version__ = "0.1.0"
