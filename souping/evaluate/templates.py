"""Prompts from items, by the tokenizer's chat template; and decoding: the next token from logits.

Templates are code that comes with a candidate or a task file, which must neither fill the memory nor run forever: a
child process renders them. Answers are greedy, or sampled so that each depends on (seed, item, number of the answer)
and never on its neighbours in a batch: every row has its own generator of Gumbel noise, which is added to the logits,
and the largest sum is picked (Gumbel 1954; the "Gumbel-max trick", Maddison, Tarlow and Minka 2014).
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from souping.core.child import Child
from souping.core.fields import Bounds, Share, Temperature, component, load_json
from souping.core.system import package_environment
from souping.core.text import first_line
from souping.core.types import Folders, Item, Json, JsonObject, Names, UserError

if TYPE_CHECKING:
    import torch
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

TEMPLATE_TIMEOUT_S = 20.0
"""Time that a template has for one item."""
START = 600.0
"""Seconds for the process to start, import its libraries and render a template."""
BYTES = 5 << 28
"""Memory of the process: a sixth of it is taken before the first template."""
LONGEST_PROMPT_CHARS = 50_000_000
"""Characters that a template may write: no tokenizer gets through more."""
PASSED_VARIABLES = ("PATH", "TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Environment variables that the process gets from this one."""


class TemplateStoppedError(Exception):
    """A template took too long or too much memory, or failed by other means than jinja's own errors."""


def _environment() -> dict[str, str]:
    """Environment variables of the process: it finds the same modules as this one, and gets no keys or tokens."""
    package = package_environment()
    # An empty entry is the current folder.
    path = os.pathsep.join([package["PYTHONPATH"], *filter(None, sys.path)])
    passed = {name: value for name, value in os.environ.items() if name in PASSED_VARIABLES}
    return {
        **passed,
        "PYTHONPATH": path,
        "PYTHONSAFEPATH": package["PYTHONSAFEPATH"],
        "OPENBLAS_NUM_THREADS": "1",
    }


PROCESS = Child(_environment, BYTES)
"""Process that renders all templates of a run."""
atexit.register(PROCESS.close)


# ------------------------------------------------------------ templates, in the child


def _chat_in_child(
    template: str,
    special_tokens: Mapping[str, str],
    messages: list[Json],
    options: dict[str, Json],
    seconds: float,
) -> tuple[str, str]:
    """The result of `_text_or_reason` for a chat template, by transformers' own function.

    The function gets a stand-in for the tokenizer, with all that it reads. `options` are its keyword arguments.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # slow to import, and of no use to a template
    from transformers import PreTrainedTokenizerBase as Base

    choose: Callable[..., str] = Base.get_chat_template
    apply: Callable[..., object] = Base.apply_chat_template
    tokenizer = SimpleNamespace(chat_template=template, special_tokens_map=special_tokens)
    tokenizer.get_chat_template = partial(choose, tokenizer)
    return _text_or_reason(lambda: str(apply(tokenizer, messages, **options)), seconds)


def _task_in_child(template: str, doc: Mapping[str, Any], seconds: float) -> tuple[str, str]:
    """The result of `_text_or_reason` for a task's template with a document: as in lm_eval, but in jinja's sandbox."""
    return _text_or_reason(lambda: _compiled(template).render(doc), seconds)


@lru_cache(maxsize=1024)
def _compiled(template: str) -> Template:
    """A template for jinja's sandbox, with the settings and the filter that lm_eval has."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    sandbox.filters["regex_replace"] = lambda string, pattern, repl, count=0: re.sub(
        pattern, repl, string, count=count
    )
    return sandbox.from_string(template)


def _text_or_reason(render: Callable[[], str], seconds: float) -> tuple[str, str]:
    """("text", what `render` returns), or ("refused" or "stopped", why there is no text).

    After `seconds` an alarm ends this process, even during a call into C.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        text = render()
        if len(text) > LONGEST_PROMPT_CHARS:
            return "stopped", f"it makes a text of {len(text):.0e} characters"
        return "text", text
    except MemoryError:
        # The child reports it, and is replaced by another process.
        raise
    except Exception as error:  # a template can raise anything
        # Errors of jinja are the template's own, such as those by `raise_exception`.
        kind = "refused" if type(error).__module__.startswith("jinja2.") else "stopped"
        return kind, str(error)[:2000] or type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# ------------------------------------------------------------ templates, in this process


def _from_child(function: Callable[..., tuple[str, str]], *arguments: object) -> str:
    """The text that a `function` of the child (`_chat_in_child`, `_task_in_child`) makes of these arguments.

    Raises:
        TemplateStoppedError: it takes too long or too much memory, or fails.
        jinja2.TemplateError: the template refuses its arguments (`raise_exception`).
    """
    try:
        kind, text = PROCESS.call(function, (*arguments, TEMPLATE_TIMEOUT_S), START)
    except TimeoutError:
        raise TemplateStoppedError(f"it did not end in {TEMPLATE_TIMEOUT_S:g} s") from None
    except MemoryError:
        raise TemplateStoppedError("it takes more than 1 GB of memory") from None
    if kind == "text":
        return text
    from jinja2 import TemplateError

    raise (TemplateError if kind == "refused" else TemplateStoppedError)(text)


def render_task(template: str, doc: Mapping[str, Any]) -> str:
    """The text of a task's template with a document, in place of lm_eval's own function.

    It raises the same errors as `apply_chat_template`.
    """
    return _from_child(_task_in_child, template, doc)


def apply_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[JsonObject],
    options: Mapping[str, Any],
) -> str:
    """`tokenizer.apply_chat_template(messages, **options)`, rendered by the child process.

    Raises:
        TemplateStoppedError: the template takes too long or too much memory, or fails.
        jinja2.TemplateError: the template refuses the messages.
    """
    from transformers import PreTrainedTokenizerBase as Base

    # A tokenizer's class may write chats by its own code instead of a template.
    if type(tokenizer).apply_chat_template is not Base.apply_chat_template:
        return str(tokenizer.apply_chat_template(messages, **options))  # type: ignore[arg-type]
    return _from_child(
        _chat_in_child,
        tokenizer.chat_template,
        dict(tokenizer.special_tokens_map),
        messages,
        options,
    )


def render(tokenizer: PreTrainedTokenizerBase, item: Item) -> list[int]:
    """The prompt's token ids: a text as it stands, chat messages through the tokenizer's chat template.

    Raises:
        UserError: there is no chat template, or it refuses the messages or shows no tools.
    """
    if isinstance(item.prompt, str):
        return list(tokenizer(item.prompt)["input_ids"])
    return encode(tokenizer, prompt_text(tokenizer, item))


def prompt_text(tokenizer: PreTrainedTokenizerBase, item: Item) -> str:
    """The prompt as text: messages and tools as the tokenizer's chat template writes them.

    Raises:
        UserError: there is no chat template, or it refuses the messages or shows no tools.
    """
    if isinstance(item.prompt, str):
        return item.prompt
    template = tokenizer.chat_template
    if not template:
        raise no_template(item)
    if item.tools and "tools" not in str(template):
        raise UserError(
            f"item {item.id}: the tokenizer's chat template shows no tools; put them into a message"
        )
    messages = [dict(message) for message in item.prompt]
    tools = [dict(tool) for tool in item.tools] or None
    options = {"tools": tools, "add_generation_prompt": True, "tokenize": False}
    try:
        return apply_chat_template(tokenizer, messages, options)
    except Exception as error:  # a template is the candidate's code
        raise UserError(
            f"item {item.id}: the chat template refuses its messages: {first_line(error)}"
        ) from error


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text as it stands, without special ones."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def as_seen(tokenizer: PreTrainedTokenizerBase, item: Item, key: str) -> str:
    """A prompt as text, as the model sees it, with its special tokens; `key` is the digest of its token ids."""
    texts = _prompt_texts(tokenizer)
    if key not in texts:
        texts[key] = str(tokenizer.decode(render(tokenizer, item), skip_special_tokens=False))
    return texts[key]


@lru_cache(maxsize=8)
def _prompt_texts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Cache of a tokenizer's prompts, {digest of the token ids: text}: all models of a run get the same prompts.

    It is empty at first; `as_seen` adds to it.
    """
    return {}


def no_template(item: Item) -> UserError:
    """The error for an item with chat messages if the tokenizer has no chat template."""
    return UserError(
        f"item {item.id}: chat messages need a chat template, and the tokenizer has none"
    )


# ------------------------------------------------------------ decoding

IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Keys of a generation_config that mark where a text begins and ends, and do not change how tokens are picked."""
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p")
PENALTIES = (
    "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "forced_decoder_ids", "min_length", "min_new_tokens", "exponential_decay_length_penalty",
    "guidance_scale", "num_beams", "penalty_alpha", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
"""Keys that change which tokens are picked, beside those of sampling."""
NEUTRAL_VALUES: JsonObject = {
    "do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0,
    "min_new_tokens": 0, "num_beams": 1, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
"""Values that change nothing."""


@component
class Decoding:
    """Rule by which tokens are picked: greedy at temperature 0, otherwise sampled.

    Sampling is among the `top_k` likeliest tokens (0: all), those of them that make up `top_p`, and those of them that
    are at least `min_p` times as likely as the likeliest. `penalties` are further keys of a generation_config, which
    a task of lm_eval may set.
    """

    temperature: Temperature = 0.0
    top_p: Share = 1.0
    top_k: Annotated[int, Bounds(ge=0)] = 0
    min_p: Annotated[float, Bounds(ge=0, le=1)] = 0.0
    seed: int = 0
    penalties: JsonObject = field(default_factory=dict)

    def seed_of(self, item: Item, repeat: int) -> int:
        """Seed of one answer, 63 bits. It depends on the item's prompt, not on its id; `repeat` counts the answers."""
        text = f"{self.seed}\0{item.prompt_digest}\0{repeat}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def read_generation(folder: Path) -> JsonObject:
    """The folder's generation_config.json; empty without this file."""
    path = folder / "generation_config.json"
    table: dict[str, Json] = load_json(path, dict[str, Any]) if path.is_file() else {}
    return table


def generation_overrides(folder: Path) -> JsonObject:
    """{key: value} of a folder's generation_config that would change greedy decoding."""
    settings = read_generation(folder)
    keys: Names = PENALTIES
    # Without `do_sample` transformers ignores the keys of sampling.
    if settings.get("do_sample"):
        keys += SAMPLING
    overrides = dict[str, Json]()
    for key in keys:
        value = settings.get(key)
        if value not in (None, NEUTRAL_VALUES.get(key), []):
            overrides[key] = value
    return overrides


def generation_notes(folders: Folders) -> list[str]:
    """Notes on the candidates whose generation_config would change the decoding, as it is not used."""
    notes = []
    for name, folder in folders.items():
        overrides = generation_overrides(folder)
        if overrides:
            listed = ", ".join(
                f"{key}={json.dumps(value)[:40]}" for key, value in overrides.items()
            )
            notes.append(f"{name}: its generation_config sets {listed}; not used")
    return notes


def write_neutral(folder: Path, source: Path, ends: Sequence[int]) -> None:
    """Write a generation_config.json with only the token ids of the file in `source`. If `ends` is not empty, these end
    tokens replace those of the file.
    """
    ids = {key: value for key, value in read_generation(source).items() if key in IDS}
    if ends:
        ids["eos_token_id"] = list(ends)
    path = folder / "generation_config.json"
    # The file may be a link to a candidate's file.
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(ids, indent=2), encoding="utf-8")


SEED_STEP = 0x9E3779B97F4A7C15
"""Distance between seeds that are derived from one: 2^64 over the golden ratio, which spreads them."""
Draw = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""draw(token ids so far [R, T], logits [R, V]) -> logits whose arg max is the sampled token."""


def sampler(decoding: Decoding, seeds: Sequence[int], width: int) -> Draw:
    """Function that turns logits into a draw, for rows whose prompts are `width` tokens wide, one seed per row.

    A draw depends on the row's seed and on the number of tokens that the answer has before it.
    """

    def draw(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        import torch

        scores = keep_likely(logits.float() / decoding.temperature, decoding)
        generator = torch.Generator(device=scores.device)
        place = ids.shape[1] - width
        for row, seed in enumerate(seeds):
            generator.manual_seed((seed + place * SEED_STEP) % 2**63)
            noise = torch.empty_like(scores[row]).exponential_(generator=generator)
            # Minus the logarithm of an exponential variable, which must not be 0, is a Gumbel variable.
            scores[row] -= noise.clamp_min(1e-38).log()
        return scores

    return draw


def keep_likely(scores: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Scores [R, V], minus infinity for tokens that `top_k`, `top_p` or `min_p` leave out."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if decoding.top_k:
        scores = TopKLogitsWarper(decoding.top_k)(None, scores)  # type: ignore[arg-type]  # token ids are not used
    if decoding.top_p < 1:
        scores = TopPLogitsWarper(decoding.top_p)(None, scores)  # type: ignore[arg-type]
    if decoding.min_p > 0:
        scores = MinPLogitsWarper(decoding.min_p)(None, scores)  # type: ignore[arg-type]
    return scores
