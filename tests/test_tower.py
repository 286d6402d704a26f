"""The vision encoder trained for the benchmark on real weights: its training, the checkpoint with it, and its sets."""

import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

from benchmarks.real_weights import checkpoint, images, results
from benchmarks.real_weights.checkpoint import CONTROL_TOKEN, RENAMED_TOKENS
from benchmarks.real_weights.tower import batches
from benchmarks.real_weights.tower.batches import WORDS, BatchSpec, draw_batch
from benchmarks.real_weights.tower.encoder import VisionEncoder
from benchmarks.real_weights.tower.framed_scenes import FRAME_COLOR, draw_scene, is_held_out, questions
from benchmarks.real_weights.tower.image_sets import write_image_set
from benchmarks.real_weights.tower.language import LanguageModel, random_weights
from benchmarks.real_weights.tower.trained import WEIGHTS, trained_vision
from benchmarks.real_weights.tower.training_model import Score, answer_logits, on_device, score_answers
from benchmarks.real_weights_image_tables import images_table
from calibration.scenes import objects_scene
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.runners.torch import open_runner
from mcpmq.system.file_hash import file_sha256
from tests.loss_tools import answer_losses

LAYERS, VOCABULARY, FFN = 2, 300, 64


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A checkpoint with two layers of random weights, their dictionary, and the committed vision encoder."""
    weights, vision = random_weights(LAYERS, VOCABULARY, FFN), VisionEncoder(576)
    path = tmp_path_factory.mktemp("checkpoint")
    vision.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    shape = checkpoint.Shape(layers=LAYERS, ffn=FFN, vocabulary=VOCABULARY)
    checkpoint.write_qwen2vl(weights, _byte_reader(), path, shape, trained_vision(576))
    return SimpleNamespace(path=path, weights=weights, vision=vision, tokenizer=path / "tokenizer.json")


def _byte_reader() -> Any:
    """A GGUF reader whose vocabulary has the control tokens and one token for each byte."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *RENAMED_TOKENS]
    tokens = [*control, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    types = [CONTROL_TOKEN] * len(control) + [1] * (len(tokens) - len(control))
    fields = {"tokens": tokens, "token_type": types, "merges": []}
    values = {f"tokenizer.ggml.{key}": SimpleNamespace(contents=partial(list, value)) for key, value in fields.items()}
    return SimpleNamespace(fields=values)


@torch.inference_mode()
@pytest.mark.parametrize("large", [False, True])
def test_training_computes_the_losses_of_the_checkpoint(small: SimpleNamespace, tmp_path: Path, large: bool) -> None:
    """Batches with several questions about an image have the losses of each sample alone in the product's runner."""
    spec = BatchSpec("loss", 2, 3, large)
    batch, rng = draw_batch(small.tokenizer, spec), random.Random(spec.seed)
    scenes = [draw_scene(rng, large) for _ in range(spec.images)]
    lines: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        scene.image.save(tmp_path / f"{number}.png")
        for question, answer in questions(rng, scene, spec.questions):
            fields = {"prompt": question, "answer": answer, "tags": []}
            lines.append({"id": str(len(lines)), "image": f"{number}.png", **fields})
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    processor = Checkpoint.open(small.path).family.open_processor(small.path)
    samples = [processor.encode_turns(one.id, one.turns) for one in SampleSet.open(tmp_path).samples]
    expected = answer_losses(open_runner(small.path, 1), samples)

    language = LanguageModel(small.weights, torch.device("cpu"), torch.float32)
    tensors = on_device(batch, torch.device("cpu"))
    [image_token] = processor.tokenizer.encode(batches.IMAGE_TOKEN).ids
    features = small.vision(tensors["pixels"])[1]
    logits, wrong = (answer_logits(language, tensors, one, image_token) for one in (features, features.roll(1, 0)))

    losses = torch.nn.functional.cross_entropy(logits, tensors["targets"], reduction="none")
    counts = np.bincount(batch.owners)
    assert len(counts) == len(samples) > spec.images
    assert np.std(np.concatenate(expected)) > 0.1
    np.testing.assert_allclose(losses, np.concatenate(expected), rtol=1e-4, atol=1e-4)
    assert counts.tolist() == list(map(len, expected))
    assert (logits - wrong).abs().amax(1).min() > 0.01  # images matter


def test_held_out_contents_are_not_in_training() -> None:
    """A share of contents is held out, with any question and any exact places; both kinds have a frame."""
    rng = random.Random(4)
    shares = [is_held_out(objects_scene(rng, 112)) for _ in range(400)]
    held_out = draw_scene(rng, held_out=True)

    assert 0.02 < np.mean(shares) < 0.09
    assert is_held_out(held_out)
    assert not is_held_out(draw_scene(rng, large=True))
    assert is_held_out(replace(held_out, question="Another?"))
    assert {held_out.image.getpixel(place) for place in ((0, 50), (111, 111), (50, 1))} == {FRAME_COLOR}


def test_words_of_a_region_are_those_of_its_content(small: SimpleNamespace) -> None:
    """The four regions of a quarter have the words of its object, other regions without text have none."""
    batch = draw_batch(small.tokenizer, BatchSpec("words", 40, 1))
    objects = batch.labels["objects"]
    [number, *_] = np.flatnonzero((objects[:, 3, 0] > 0) & (objects[:, 0, 0] == 0))
    named = {WORDS[index] for index in np.flatnonzero(batch.labels["words"][number, 15])}

    assert len(named) == 3
    assert named == {WORDS[index] for index in np.flatnonzero(batch.labels["words"][number, 10])}
    assert not batch.labels["words"][number, [0, 1, 4, 5]].any()


def test_scores_are_means_over_tokens_and_answers(small: SimpleNamespace) -> None:
    """Perplexity and correct tokens are means over tokens; an answer is exact if all its tokens are correct."""
    batch = draw_batch(small.tokenizer, BatchSpec("score", 3, 2))
    logits = 5 * torch.nn.functional.one_hot(torch.from_numpy(batch.targets), VOCABULARY).float()
    logits[0] = -logits[0]
    scores: dict[str, Score] = {}

    score_answers(logits, batch, scores)

    found = {name: sum(getattr(one, name) for one in scores.values()) for name in ("tokens", "answers", "exact")}
    assert found == {"tokens": len(batch.targets), "answers": len(batch.skills), "exact": len(batch.skills) - 1}
    right, wrong = (np.log(np.exp(5 * sign) + VOCABULARY - 1) - 5 * sign for sign in (1, -1))
    expected = wrong + (len(batch.targets) - 1) * right
    assert sum(one.loss for one in scores.values()) == pytest.approx(expected, rel=1e-5)
    first = scores[batch.skills[0]].summary()
    assert first["same_tokens"] == round(scores[batch.skills[0]].correct_tokens / scores[batch.skills[0]].tokens, 4)


def test_a_test_set_has_held_out_images_and_other_lines(tmp_path: Path) -> None:
    """Sets are reproducible, small ones begin large ones, and calibration and test share no image."""
    text = {"id": "text-1", "prompt": "Continue: a", "answer": "b", "tags": ["narrative"]}
    for name, count, held_out in (("a", 3, True), ("b", 5, True), ("c", 5, False)):
        write_image_set(tmp_path / name, count, held_out, [text])

    sets = {name: SampleSet.open(tmp_path / name).samples for name in "abc"}
    pixels = {name: [image.read_bytes() for image in sorted((tmp_path / name / "images").iterdir())] for name in "abc"}
    assert [one.answer for one in sets["a"][:3]] == [one.answer for one in sets["b"][:3]]
    assert sets["b"][-1].answer == "b"
    assert set(pixels["a"]) <= set(pixels["b"])
    assert not set(pixels["b"]) & set(pixels["c"])
    assert [len(one.images) for one in sets["b"]] == [1, 1, 1, 1, 1, 0]


def test_the_committed_encoder_has_every_tensor_as_finite_fp16() -> None:
    """The file has at most 15 MB and, as fp16, the tensors of the encoder with 576 channels, and was trained."""
    tensors, initial = load_file(WEIGHTS), dict(VisionEncoder(576).named_parameters())

    assert WEIGHTS.stat().st_size <= 15_000_000
    assert {name: value.shape for name, value in tensors.items()} == {name: one.shape for name, one in initial.items()}
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert all(value.isfinite().all() for value in tensors.values())
    assert all(tensors[name].ne(0).any() for name in tensors if name.endswith("bias"))  # zero before training


def test_the_readme_of_the_encoder_names_its_file() -> None:
    """SHA-256, size and number of parameters in the document are those of the committed file."""
    text = (WEIGHTS.parent / "README.md").read_text()
    tensors = load_file(WEIGHTS)

    assert f"`{file_sha256(WEIGHTS)}`" in text
    assert f"{sum(map(torch.numel, tensors.values())):,}, fp16, {WEIGHTS.stat().st_size / 1e6:.1f} MB" in text


def test_other_channels_of_the_language_model_are_zero() -> None:
    """The encoder fits a language model that is extended by zeros: rows of its last matrix and bias are zero."""
    narrow, wide = trained_vision(576), trained_vision(768)

    assert (narrow.config["hidden_size"], wide.config["hidden_size"]) == (576, 768)
    for name in ("visual.merger.mlp.2.weight", "visual.merger.mlp.2.bias"):
        assert wide.tensors[name][:576].equal(narrow.tensors[name])
        assert not wide.tensors[name][576:].any()
        assert len(wide.tensors[name]) == 768


def _image_row(schemes: dict[str, str], **changes: Any) -> dict[str, Any]:
    estimate = {"value": 0.8, "standard_error": 0.04, "low": 0.72, "high": 0.88}
    names = ("kl_divergence", "top_1_agreement", "perplexity_ratio", "exact_match_change")
    groups = {group: dict.fromkeys(names, estimate) for group in ("image", "text")}
    row = {"format": "gguf", "weights": schemes, "layers": 1, "method": "gptq", "bits_per_weight": 4.5}
    facts = {"calibration": "both", "calibration_tokens": 1081, "cost": {"processor_seconds": 1234.4}}
    return row | facts | groups | {results.BY_SAMPLE: [1.0, 3.0]} | changes


def test_the_table_of_images_has_schemes_and_ratios_of_divergences(monkeypatch: pytest.MonkeyPatch) -> None:
    """A component without a scheme is kept, rows without calibration name none, ratios are to the first row."""
    first = _image_row({"language.layers.1.*": "iq4_nl", "vision.*": "int8-g32", "projector.*": "int8-g32"})
    second = _image_row({"vision.*": "int4-g32"}, layers=0, method="rtn", format="onnx", calibration_tokens=0)
    rows = [first, second | {results.BY_SAMPLE: [0.5, 1.5]}, second | {"weights": {"language.*": "f32"}, "layers": 30}]
    monkeypatch.setattr(images, "load", lambda: {"rows": rows})

    heading, _, *lines = [line.strip("| ").split(" | ") for line in images_table().splitlines()]
    assert [len(line) for line in lines] == [len(heading)] * 3
    assert lines[0][:7] == ["iq4_nl", "1", "int8-g32", "GPTQ", "images and texts, 1,081 tokens", "llama.cpp", "4.50"]
    assert lines[0][7:9] == ["800.00 ± 80.00", "1.000 [1.000, 1.000]"]
    assert lines[1][:6] == ["kept", "0", "int4-g32", "round to nearest", "none", "ONNX Runtime"]
    assert lines[1][8] == "0.500 [0.500, 0.500]"
    assert lines[2][:4] == ["f32", "30", "kept", "not quantized"]
