"""Tiny random vision-language and speech models with their processors, and an image or a sound as input."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from souping.evaluate.engines.transformers import quiet_transformers
from tests.support.family import save_tokenizer

TEXT = {
    "vocab_size": 104, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
SQUARE = {"height": 16, "width": 16}
hf: Any = transformers
"""Its configs and processors take more settings than their annotations say."""
IMAGE = 100
"""Id of the image token, the first after those of `save_tokenizer`."""
Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """Kind of model: how one is made, what its folder gets, its Auto class, and an input by the processor in a folder.

    `processor` of a folder with a tokenizer writes what belongs there. `adapted` matches the modules of the language
    model that adapters of it change.
    """

    model: Callable[[], Any]
    processor: Callable[[Path], None]
    inputs: Callable[[Path], Inputs]
    auto: Any = hf.AutoModelForImageTextToText
    adapted: str = r".*language_model.*\.(q_proj|down_proj)"


def _tokens(folder: Path, **special: str) -> Any:
    """The folder's tokenizer with special tokens from IMAGE on, {attribute: token}."""
    plain = hf.PreTrainedTokenizerFast.from_pretrained(folder)
    plain.add_special_tokens({"extra_special_tokens": list(special.values())})
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=plain._tokenizer, extra_special_tokens=special, **names
    )


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _gemma3() -> Any:
    tied = {"tie_word_embeddings": True}
    config = hf.Gemma3Config(
        text_config={**TEXT, **tied, "head_dim": 12, "sliding_window": 8},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=101,
        eoi_token_index=102,
        **tied,
    )
    return hf.Gemma3ForConditionalGeneration(config)


def _gemma3_processor(folder: Path) -> None:
    tokens = _tokens(folder, image_token="<image>", boi_token="<boi>", eoi_token="<eoi>")
    images = hf.Gemma3ImageProcessorPil(size=SQUARE)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    processor = hf.Gemma3Processor(images, tokens, chat_template=template, image_seq_length=4)
    processor.save_pretrained(folder)


def _gemma3_inputs(folder: Path) -> Inputs:
    processor = hf.AutoProcessor.from_pretrained(folder)
    return dict(processor(text="a<boi>b", images=picture(), return_tensors="pt"))


def _llava() -> Any:
    config = hf.LlavaConfig(
        text_config={**TEXT, "model_type": "llama", "tie_word_embeddings": False},
        vision_config={**VISION, "model_type": "siglip_vision_model"},
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return hf.LlavaForConditionalGeneration(config)


def _llava_processor(folder: Path) -> None:
    tokens = _tokens(folder, image_token="<image>")
    images = hf.SiglipImageProcessorPil(size=SQUARE)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    processor = hf.LlavaProcessor(
        images, tokens, patch_size=8, vision_feature_select_strategy="full", chat_template=template
    )
    processor.save_pretrained(folder)


def _llava_inputs(folder: Path) -> Inputs:
    processor = hf.AutoProcessor.from_pretrained(folder)
    return dict(processor(text="a<image>b", images=picture(), return_tensors="pt"))


def _write_processors(folder: Path, images: Any, video: str) -> None:
    """The files that versions before 5 write: processors of images and of videos, and the chat template, apart."""
    images.save_pretrained(folder)
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": video, "size": {"longest_edge": 16}})
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))


def _qwen() -> Any:
    rope = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}, "rope_theta": 1e4}
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 24, "fullatt_block_indexes": [0], "window_size": 16,
    }  # fmt: skip
    config = hf.Qwen2_5_VLConfig(
        text_config={**TEXT, **rope, "tie_word_embeddings": False},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=103,
        vision_start_token_id=101,
        vision_end_token_id=102,
        tie_word_embeddings=False,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def _qwen_processor(folder: Path) -> None:
    images = hf.Qwen2VLImageProcessorPil(patch_size=4, min_pixels=64, max_pixels=256)
    _write_processors(folder, images, "Qwen2VLVideoProcessor")


def _qwen_inputs(folder: Path) -> Inputs:
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    images = dict(processor(images=picture(), return_tensors="pt"))
    ids = torch.tensor([[5, 101, *[IMAGE] * 4, 102, 6]])
    return {**images, "input_ids": ids, "mm_token_type_ids": (ids == IMAGE).long()}


def _smolvlm() -> Any:
    tied = {"tie_word_embeddings": True}
    config = hf.SmolVLMConfig(
        text_config={**TEXT, **tied, "model_type": "llama"},
        vision_config=VISION,
        image_token_id=IMAGE,
        scale_factor=2,
        **tied,
    )
    return hf.SmolVLMForConditionalGeneration(config)


def _smolvlm_processor(folder: Path) -> None:
    edge = {"longest_edge": 16}
    images = hf.SmolVLMImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    _write_processors(folder, images, "SmolVLMVideoProcessor")


def _smolvlm_inputs(folder: Path) -> Inputs:
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    images = processor(images=[[picture()]], return_tensors="pt")
    return {"pixel_values": images["pixel_values"], "input_ids": torch.tensor([[5, IMAGE, 6]])}


def _whisper() -> Any:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 8}
    config = hf.WhisperConfig(
        vocab_size=104,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=50,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        begin_suppress_tokens=None,
        **heads,
        **sizes,
    )
    return hf.WhisperForConditionalGeneration(config)


def _whisper_processor(folder: Path) -> None:
    sound = hf.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    tokens = hf.PreTrainedTokenizerFast.from_pretrained(folder)
    hf.WhisperProcessor(sound, tokens).save_pretrained(folder)
    (folder / "normalizer.json").write_text('{"colour": "color"}')


def _whisper_inputs(folder: Path) -> Inputs:
    processor = hf.AutoProcessor.from_pretrained(folder)
    wave = np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    sound = processor(wave, sampling_rate=16_000, return_tensors="pt")
    return {**sound, "decoder_input_ids": torch.tensor([[3, 5, 6]])}


KINDS = {
    "gemma3": Kind(_gemma3, _gemma3_processor, _gemma3_inputs),
    "llava": Kind(_llava, _llava_processor, _llava_inputs),
    "qwen2_5_vl": Kind(_qwen, _qwen_processor, _qwen_inputs),
    "smolvlm": Kind(
        _smolvlm, _smolvlm_processor, _smolvlm_inputs, adapted=r".*text_model.*\.(q_proj|down_proj)"
    ),
    "whisper": Kind(
        _whisper,
        _whisper_processor,
        _whisper_inputs,
        auto=hf.AutoModelForSpeechSeq2Seq,
        adapted=r".*decoder.*\.(q_proj|fc1)",
    ),
}


def save_pool(kind: str, place: Path, names: str = "ab") -> list[Path]:
    """Folders of fine-tunes in fp32: random weights, and noise of each one's own seed."""
    quiet_transformers()
    torch.manual_seed(0)
    base = KINDS[kind].model().state_dict()
    folders = []
    for seed, name in enumerate(names, start=1):
        model = KINDS[kind].model()
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(base[key] + 0.1 * torch.randn(parameter.shape))
        folder = place / name
        model.save_pretrained(folder)
        save_tokenizer(folder)
        KINDS[kind].processor(folder)
        folders.append(folder)
    return folders


def load(kind: str, folder: Path) -> Any:
    return KINDS[kind].auto.from_pretrained(folder, dtype=torch.float32).eval()


def forward(model: Any, inputs: Inputs) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


def average(models: list[Any], weights: list[float]) -> Any:
    """The first model with the average of the models' weights, in fp64 and then rounded."""
    states = [model.state_dict() for model in models]
    mean = {}
    for key, first in states[0].items():
        total = torch.zeros_like(first, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            total += weight * state[key].double()
        mean[key] = total.to(first.dtype)
    models[0].load_state_dict(mean)
    return models[0]
