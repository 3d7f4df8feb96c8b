"""Tokenizer of the demo: one token per word, bytes for everything else.

A word that follows a space is the common case and carries the space (`MARK + word`). A word next to a symbol has none;
there the symbol carries a mark (`="` + GLUE). So `to Paris` and `"Paris"` contain the same token, which makes it easy
to learn to copy from the question into a call, and decoding still restores the text exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import TYPE_CHECKING

from examples.demo.stages import VOCABULARY_SEED, VOCABULARY_TASKS
from examples.demo.tasks import CATEGORIES, MAKERS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

MARK = "\ue000"
GLUE = "\ue001"
PAD = "<pad>"
BOS = "<s>"
EOS = "</s>"
UNKNOWN = "<unk>"
PIECES = f"{MARK}?[A-Z]?[a-z]+|{MARK}?[0-9]+|{MARK}?[A-Z]+|{MARK}?[^A-Za-z0-9\\s{MARK}{GLUE}]+{GLUE}?|\\s{GLUE}?"


def vocabulary() -> PreTrainedTokenizerFast:
    """The family's tokenizer, built from the words of generated tasks; the same on every call."""
    rng = Random(VOCABULARY_SEED)
    drawn = [MAKERS[CATEGORIES[i % len(CATEGORIES)]](rng, rng) for i in range(VOCABULARY_TASKS)]
    texts: list[str] = []
    for task in drawn:
        texts += (task.prompt, task.gold)
    return build(texts)


def build(texts: Iterable[str], limit: int = 2000) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the pieces of `texts`, most frequent first (ties in the order of the alphabet)."""
    from transformers import PreTrainedTokenizerFast

    bare = _tokenizer([])
    counts: Counter[str] = Counter()
    for text in texts:
        normal = bare.normalizer.normalize_str(text)
        counts.update(piece for piece, _ in bare.pre_tokenizer.pre_tokenize_str(normal))
    words = sorted(counts, key=lambda piece: (-counts[piece], piece))[:limit]
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return make(
        tokenizer_object=_tokenizer(words),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _tokenizer(words: list[str]) -> Tokenizer:
    """Words whole, then printable ASCII characters, then bytes: every text has tokens."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    pieces = [PAD, BOS, EOS, UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256)), MARK, GLUE]
    pieces += [chr(code) for code in range(33, 127)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces + words))}
    model = models.BPE(
        vocab=vocabulary,
        merges=[],
        unk_token=UNKNOWN,
        byte_fallback=True,
        ignore_merges=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    glued = Regex("(?:^|(?<=[^A-Za-z0-9 ]))(?=[A-Za-z0-9])")
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend(" "),
            normalizers.Replace(glued, GLUE + MARK),
            normalizers.Replace(" ", MARK),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(GLUE + MARK, ""), decoders.Replace(GLUE, ""),
         decoders.Replace(MARK, " "), decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return tokenizer
