"""Packages and what they need; `conf/` at the root travels as `souping/conf`. pyproject.toml has the rest."""

import re
import tomllib
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

CORE = [
    "hydra-core>=1.3.2,<1.4",  # 1.4 needs a whitelist of targets
    "omegaconf>=2.3,<2.5",
    "torch>=2.6,<3",
    "accelerate>=1.2,<2",
    "transformers>=5.4.0,<6",
    "huggingface-hub>=1.31,<3",
    "httpx>=0.27",  # for servers and judges
    "safetensors>=0.5",
    "wandb>=0.31",
    "nevergrad>=1.0.8",
    "numpy>=2",
    "scipy>=1.13",
    "llvmlite>=0.45",  # compiles the averaging kernel in milliseconds; numpy does the same slower
    "matplotlib>=3.9",
    "psutil>=6",
    "rich>=13",
    "regex>=2025.10.22",  # patterns of items, with a time limit
    "tree-sitter>=0.26.1",  # calls in Java and JavaScript
    "tree-sitter-java>=0.23",
    "tree-sitter-javascript>=0.23",
]
DEV = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "pytest-cov>=5",
    "hypothesis>=6.100",
    "cosmic-ray>=8.4",  # plants the faults of benchmarks/mutants.py
    "ruff>=0.8",
    "mypy>=1.13",
    "nbmake>=1.5",
    "ipykernel>=6",
    "build>=1.2",
    "twine>=5",
    "gguf>=0.10",  # examples/smollm reads a model in this format
    "jsonschema>=4.18",  # holds settings files against their schema
]
DOCS = ["pdoc>=15", "mkdocs>=1.6,<2"]  # pages of the docstrings, and the site around them
# its loop and its sums are called by name
LM_EVAL = ["lm_eval>=0.4.13,<0.5", "sacrebleu>=2.4,<3", "datasets>=3"]
# from 5.6 on it serves one folder and answers /v1/completions
SERVING = ["transformers[serving]>=5.6,<6"]
# its Python interface changes with versions: souping/evaluate/engines/vllm.py
VLLM = ["vllm>=0.32,<0.34"]


def description(repository: str) -> str:
    """README.md for PyPI's page, which has no other file: links to files go to that address, or are only text."""
    link = r"\1"
    if repository:
        link = rf"[\1]({repository}/blob/v{PROJECT['version']}/\2)"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)", link, text)


setup(
    long_description=description(PROJECT["urls"].get("Repository", "")),
    long_description_content_type="text/markdown",
    # On 3.14 argparse refuses a help of hydra 1.3 that is no string: hydra's issue 3121.
    python_requires=">=3.11,<3.14",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["souping", "souping.*"]), "souping.conf"],
    package_dir={"souping.conf": "conf"},
    package_data={
        "souping.conf": ["*.yaml", "**/*.yaml", "*.json"],
        "souping": ["py.typed"],
        "souping.checkpoints": ["rules/*.json"],
        "souping.report": ["*.css"],
        "souping.paper": ["*.md", "*.csv", "tasks/**/*"],
        "souping.evaluate.bfcl": ["requirements/*.txt"],
        "souping.demo": ["*.jsonl", "*.md", "models/**/*"],
    },
    install_requires=CORE,
    extras_require={
        "dev": DEV,
        "docs": DOCS,
        "peft": ["peft>=0.18"],
        "datasets": ["datasets>=4"],  # from 4 on it runs no code of a data set
        "mergekit": ["mergekit>=0.1.4,<0.2"],
        "lm_eval": LM_EVAL,
        "lm-eval": LM_EVAL,  # the other spelling, which pip before 23.3 does not take for the same
        "serving": SERVING,
        "vllm": VLLM,
        "trackio": ["trackio>=0.20"],
        "math": ["math-verify[antlr4_9_3]>=0.9,<0.10"],  # the antlr that omegaconf has
        "ray": ["ray>=2.40,<3"],
        "remote": ["fsspec>=2024.6", "s3fs>=2024.6", "gcsfs>=2024.6"],
        "inspect": ["inspect-ai>=0.3.200"],  # reads its own logs
    },
    entry_points={"console_scripts": ["souping=souping.__main__:run_command_line"]},
)
