"""Vision-language and speech models: their soups on disk and in memory, of full models and of adapters."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from souping.core.protocols import ModuleSettings
from souping.core.types import UserError
from souping.evaluate.engines.transformers import load_module
from souping.merge.local import LocalMerge
from tests.conftest import ROOT, Cli, report_of
from tests.support.multimodal import KINDS, average, forward, load, save_pool
from tests.support.peft_models import close

WEIGHTS = [0.25, 0.75]


@pytest.mark.parametrize("kind", KINDS)
def test_a_soup_has_its_processors_and_answers_to_an_image_or_a_sound_as_the_average(
    kind: str, tmp_path: Path, souping: Cli
) -> None:
    folders = save_pool(kind, tmp_path)
    souping("merge", "pool.candidates=[a,b]", f"optimiser.weights={WEIGHTS}", "out=soup").ok()
    soup = tmp_path / "soup"
    beside = {path.name for path in folders[0].iterdir()} - {"model.safetensors"}
    assert beside <= {path.name for path in soup.iterdir()}
    for name in beside - {"config.json", "generation_config.json"}:
        assert (soup / name).read_bytes() == (folders[0] / name).read_bytes(), name

    inputs = KINDS[kind].inputs(soup)
    loaded = load(kind, soup)
    by_hand = average([load(kind, folder) for folder in folders], WEIGHTS)
    logits = forward(loaded, inputs)
    close(logits, forward(by_hand, inputs), 1e-5)
    # The image or the sound counts: another one gives other logits.
    other = {
        key: torch.flip(value, [-1]) if value.is_floating_point() else value
        for key, value in inputs.items()
    }
    assert (forward(loaded, other) - logits).abs().max() > 1e-4
    assert f"{type(loaded).__name__}.from_pretrained(folder)" in (soup / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_a_live_module_becomes_the_soup_that_is_written(kind: str, tmp_path: Path) -> None:
    folders = save_pool(kind, tmp_path)
    pool = LocalMerge().open({folder.name: folder for folder in folders})
    recipe = pool.recipe(dict(zip("ab", WEIGHTS, strict=True)))
    live = load(kind, folders[0])
    pool.live(live).load_soup(recipe)
    written = load(kind, pool.write(recipe, tmp_path / "soup")).state_dict()
    for name, tensor in live.state_dict().items():
        assert torch.equal(tensor, written[name]), name
    shared = live.get_output_embeddings().weight is live.get_input_embeddings().weight
    assert shared == (kind in ("gemma3", "smolvlm", "whisper"))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_the_language_model_are_averaged(
    kind: str, tmp_path: Path, souping: Cli
) -> None:
    peft = pytest.importorskip("peft")
    (base,) = save_pool(kind, tmp_path, "o")
    merged = []
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        settings = peft.LoraConfig(r=2, target_modules=KINDS[kind].adapted, init_lora_weights=False)
        model = peft.get_peft_model(load(kind, base), settings)
        model.save_pretrained(str(tmp_path / name))
        merged.append(model.merge_and_unload())
    inputs = KINDS[kind].inputs(base)
    by_hand = forward(average(merged, WEIGHTS), inputs)
    assert (by_hand - forward(load(kind, base), inputs)).abs().max() > 1e-3
    for kept in ("keep", "merge"):
        words = ["merge", "pool.candidates=[a,b]", f"optimiser.weights={WEIGHTS}", f"out={kept}"]
        souping(*words, f"merge.adapters={kept}").ok()
        close(forward(load(kind, tmp_path / kept), inputs), by_hand, 1e-5)


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("gemma3", "language_model.model.", "model.language_model."),
        ("qwen2_5_vl", "model.", "model.language_model."),
        ("llava", "vision_tower.", "model.vision_tower."),
    ],
)
def test_names_of_another_version_of_transformers_are_told(
    kind: str, before: str, after: str, tmp_path: Path, souping: Cli
) -> None:
    _, other = save_pool(kind, tmp_path)
    tensors = load_file(other / "model.safetensors")
    renamed = {
        after + name.removeprefix(before) if name.startswith(before) else name: tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, other / "model.safetensors", {"format": "pt"})
    outcome = souping("merge", "pool.candidates=[a,b]", "optimiser=uniform", "out=soup")
    outcome.refused("version of transformers", before)


def test_the_dtype_of_a_soup_is_that_of_all_its_parts(tmp_path: Path, souping: Cli) -> None:
    for folder in save_pool("gemma3", tmp_path):
        config = json.loads((folder / "config.json").read_text())
        for part in ("text_config", "vision_config"):
            config[part]["dtype"] = "float32"
        (folder / "config.json").write_text(json.dumps(config))
    words = ["merge", "pool.candidates=[a,b]", "optimiser=uniform", "out=soup"]
    souping(*words, "merge.dtype=bfloat16").ok()
    config = json.loads((tmp_path / "soup" / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        assert part["dtype"] == "bfloat16"


def test_a_head_that_only_some_speech_models_store_is_left_out(
    tmp_path: Path, souping: Cli
) -> None:
    _, other = save_pool("whisper", tmp_path)
    tensors = load_file(other / "model.safetensors")
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"].clone()
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    souping("merge", "pool.candidates=[a,b]", "optimiser=uniform", "out=soup").ok()
    assert "proj_out.weight" not in load_file(tmp_path / "soup" / "model.safetensors")


ITEMS = [
    {"id": f"{c}-{i}", "category": c, "prompt": f"image {c}/{i}.png", "answer": "a"}
    for c in ("cats", "dogs")
    for i in range(12)
]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "whisper"])
def test_evaluators_of_texts_refuse_models_that_they_cannot_load(
    kind: str, tmp_path: Path, souping: Cli
) -> None:
    save_pool(kind, tmp_path)
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    words = ["pool.candidates=[a,b]", "benchmark.path=items.jsonl", "selector=all"]
    for command in ([], ["plan"]):
        outcome = souping(*command, *words)
        outcome.refused("evaluator=command", "hf-multimodal")
    assert len(outcome.err.strip().splitlines()) <= 2


def test_a_model_of_images_that_also_reads_texts_alone_answers_them(
    tmp_path: Path, souping: Cli
) -> None:
    save_pool("gemma3", tmp_path)
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    words = ["pool.candidates=[a,b]", "benchmark.path=items.jsonl", "selector=all"]
    souping(*words, "evaluator.max_new_tokens=1", "optimiser=uniform", "dry_run=1").ok()


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_kernels_of_the_hub_are_refused_in_each_part(part: str, tmp_path: Path) -> None:
    folder, _ = save_pool("gemma3", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["attn_implementation"] = {part: "someone/kernel"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"someone/kernel.*trust_remote_code"):
        load_module(folder, ModuleSettings())


SCORE = """
import json, sys
from pathlib import Path
import torch
from tests.support.multimodal import KINDS, forward, load

model, items, out = map(Path, sys.argv[1:])
inputs = KINDS["whisper"].inputs(model)
answer = int(forward(load("whisper", model), inputs)[0, -1].argmax())
with (out / "log.jsonl").open("w") as log:
    for row in map(json.loads, items.open()):
        score = float((answer + len(row["id"])) % 2)
        line = {"item": row["id"], "category": row["category"], "score": score, "output": str(answer)}
        print(json.dumps(line), file=log)
"""


@pytest.mark.slow
def test_a_run_with_a_command_that_loads_speech_models_ends_with_a_report(
    tmp_path: Path, souping: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pool("whisper", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    (tmp_path / "score.py").write_text(SCORE)
    command = f'evaluator.command="{sys.executable} score.py {{model}} {{items}} {{out}}"'
    words = ["pool.candidates=[a,b]", "benchmark.path=items.jsonl", "selector=all"]
    quick = ["optimiser=uniform", "analysis=[]", "hydra.run.dir=run"]
    souping("evaluator=command", command, *words, *quick).ok()
    report = report_of(tmp_path / "run")
    soup = next(row for row in report["rows"] if row["kind"] == "soup")
    assert set(soup["scores"]) == {"cats", "dogs"}
    assert (tmp_path / "run" / "soup" / "normalizer.json").is_file()
    assert (
        "WhisperForConditionalGeneration" in (tmp_path / "run" / "soup" / "README.md").read_text()
    )
