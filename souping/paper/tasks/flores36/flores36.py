"""FLORES-36 for lm-evaluation-harness: pairs of languages from FLORES-200's own archive, and BLEU on them.

The archive (https://dl.fbaipublicfiles.com/nllb/flores200_dataset.tar.gz, CC BY-SA 4.0) holds one sentence a line:
dev/eng_Latn.dev (997) and devtest/eng_Latn.devtest (1,012). FLORES_DIR names the folder that it was unpacked to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

NAMES = {
    "eng_Latn": "English", "deu_Latn": "German", "spa_Latn": "Spanish", "tha_Thai": "Thai", "por_Latn": "Portuguese",
    "vie_Latn": "Vietnamese", "ind_Latn": "Indonesian", "hin_Deva": "Hindi", "fra_Latn": "French",
    "ita_Latn": "Italian", "arb_Arab": "Arabic", "ben_Beng": "Bengali", "zho_Hans": "Chinese (Simplified)",
    "zho_Hant": "Chinese (Traditional)", "jpn_Jpan": "Japanese", "kor_Hang": "Korean", "rus_Cyrl": "Russian",
    "tur_Latn": "Turkish", "tgl_Latn": "Tagalog",
}  # fmt: skip
WITHOUT_SPACES = {"zho_Hans": "zh", "zho_Hant": "zh", "tha_Thai": "char", "jpn_Jpan": "char"}
"""Languages in which BLEU's default tokeniser finds one long word a sentence, and sacrebleu's tokeniser for each."""


def pairs(
    source: str, target: str, version: float = 1.0, config_source: str = ""
) -> dict[str, Dataset]:
    """{split: documents} of one direction; document n is the same sentence in every direction.

    The harness also passes the metadata of the task, `version` and `config_source`, which are not used.
    """
    from datasets import Dataset

    documents = {}
    for split in ("dev", "devtest"):
        rows = []
        lines = zip(_lines(split, source), _lines(split, target), strict=True)
        for number, (source_line, target_line) in enumerate(lines):
            row = {
                "sentence": number,
                "source": source_line,
                "target": target_line,
                "language": NAMES[source],
                "other": NAMES[target],
                "into": target,
            }
            rows.append(row)
        documents[split] = Dataset.from_list(rows)
    return documents


def _lines(split: str, language: str) -> list[str]:
    folder = os.environ.get("FLORES_DIR")
    if not folder:
        raise FileNotFoundError(
            "set FLORES_DIR to the unpacked flores200_dataset.tar.gz (dl.fbaipublicfiles.com/nllb)"
        )
    path = Path(folder).expanduser() / split / f"{language}.{split}"
    # splitlines would cut at U+2028 too
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def bleu(doc: Mapping[str, str], results: list[str]) -> dict[str, list[str]]:
    """Reference and answer for BLEU's statistics, cut into characters where the language has no spaces."""
    tokenise = _tokeniser(WITHOUT_SPACES.get(doc["into"], "none"))
    return {"bleu": [tokenise(doc["target"]), tokenise(results[0].strip())]}


@cache
def _tokeniser(name: str) -> Callable[[str], str]:
    """sacrebleu's own; `none` leaves a text as it is."""
    tokeniser: Callable[[str], str] = str
    if name == "zh":
        from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

        tokeniser = TokenizerZh()  # type: ignore[no-untyped-call]
    elif name != "none":
        from sacrebleu.tokenizers.tokenizer_char import TokenizerChar

        tokeniser = TokenizerChar()  # type: ignore[no-untyped-call]
    return tokeniser
