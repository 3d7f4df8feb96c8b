"""pip's constraints for the lowest versions that setup.py's core allows, a line each; torch is left to pip."""

from __future__ import annotations

import re

from extras import setup_arguments

for requirement in setup_arguments()["install_requires"]:
    name, lowest = re.findall(r"^([\w-]+)>=([\w.]+)", requirement)[0]
    if name != "torch":
        print(f"{name}=={lowest}")
