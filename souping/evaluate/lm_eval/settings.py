"""Settings of `evaluator=lm_eval`, which all of its files read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Interval

from souping.core.fields import Count, Device, Form, Precision, Seed, Share, Temperature, Threads, TokenId, component
from souping.core.types import Json, UserError
from souping.evaluate.decoding import check_sampling

Spec = str | dict[str, Json]
"""A task as it may be named: by name, pattern or file, or as a mapping."""


@component
class HarnessSettings:
    """Tasks of lm-evaluation-harness, and how they are evaluated.

    Arguments are those of `simple_evaluate` and of its model class `HFLM`, by their own names. `docs/evaluators.md`
    describes those of souping (`metric`, `filter`, `category`, `group`, `tools`) and the harness's that are fixed.
    `temperature` to `replicates` are those of `LocalEvaluator`; None leaves them to each task, and `samples` may be the
    harness's own {task: documents} instead of a number of answers.
    """

    tasks: list[str | dict[str, Any]]
    include_path: str | list[str] | None = None
    include_defaults: bool | None = None
    metadata: dict[str, Any] | None = None
    name: str = "lm_eval"
    limit: Annotated[float, Interval(gt=0)] | None = None
    samples: Count | dict[str, list[int]] | None = None
    metric: str | dict[str, str] | None = None
    filter: str | dict[str, str] | None = None
    category: Annotated[str, Form("task|entry|column:.*", "task, entry or column:NAME")] = "task"
    group: Annotated[str, Form("item|doc|column:.*", "item, doc or column:NAME")] = "item"
    num_fewshot: Annotated[int, Interval(ge=0)] | None = None
    gen_kwargs: dict[str, Any] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    sampling_seed: Seed = 0
    aggregate: Literal["mean", "pass", "majority"] = "mean"
    replicates: Count = 1
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    tools: str | None = None
    batch_size: Count | Annotated[str, Form(r"auto(:\d+(\.\d+)?)?", "auto or auto:N")] = 16
    max_batch_size: Count | None = 64
    max_length: Count | None = None
    truncation: bool = False
    logits_cache: bool = True
    add_bos_token: bool | None = None
    prefix_token_id: TokenId | None = None
    backend: Literal["default", "causal", "seq2seq"] = "default"
    softmax_dtype: Precision | Literal["float64"] | None = None
    mixed_precision_dtype: Precision | Literal["float64"] | None = None
    think_end_token: str | TokenId | None = None
    enable_thinking: bool | None = None
    chat_template_args: dict[str, Any] | None = None
    dtype: Precision | None = None
    device: Device = "auto"
    threads: Threads | None = None
    trust_remote_code: bool = False
    confirm_run_unsafe_code: bool = False
    allow_code: bool = False
    random_seed: Seed = 0
    numpy_random_seed: Seed = 1234
    torch_random_seed: Seed = 1234
    fewshot_random_seed: Seed = 1234

    def __post_init__(self) -> None:
        left_to_tasks = float(self.drawn > 1)  # checked with each task
        check_sampling(left_to_tasks if self.temperature is None else self.temperature, self.drawn, self.replicates)
        if self.limit is not None and self.documents is not None:
            raise UserError(f"evaluator.limit={self.limit}: evaluator.samples names documents: leave one of them out")
        if self.tools is not None and not self.apply_chat_template:
            raise UserError("evaluator.tools needs evaluator.apply_chat_template=true: schemas go through the template")
        if self.replicates > 1 and isinstance(self.batch_size, str):
            raise UserError(f"evaluator.replicates={self.replicates} needs a number as evaluator.batch_size")

    @property
    def documents(self) -> dict[str, list[int]] | None:
        """The documents by task, if `samples` lists them."""
        return self.samples if isinstance(self.samples, dict) else None

    @property
    def drawn(self) -> int:
        """Answers drawn for each item, if `samples` is a number."""
        return self.samples if isinstance(self.samples, int) else 1

    @property
    def answers(self) -> int:
        return max(self.drawn, self.replicates)

    def batch_of(self, replicate: int) -> int:
        """Rows of a batch, at most."""
        size = self.batch_size if isinstance(self.batch_size, int) else self.max_batch_size or 64
        if replicate and self.replicates > 1:
            return size // 2 if size > 1 else 2
        return size
