"""How the paper's figures were recomputed: not part of the wheel."""
