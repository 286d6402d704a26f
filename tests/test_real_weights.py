"""The benchmark on real weights: dithered and padded weights, disjoint text sets, paired ratios, tables."""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import bits_plot, real_weights_defaults, real_weights_tables
from benchmarks.real_weights import checkpoint, ik_llama, llama_quantize, qwen25, results, smollm2, texts, whisper_rows
from benchmarks.real_weights.artifacts import (
    SOURCES,
    ggml_bits,
    read_changed,
    read_values,
    sources_hash,
    write_recipe,
)
from benchmarks.real_weights.dither import dithered
from benchmarks.real_weights.texts import Document
from benchmarks.real_weights.variants import LLAMA_QUANTIZE, QWEN_VARIANTS, VARIANTS, WHISPER_VARIANTS, Variant
from benchmarks.real_weights.whisper import input_stats, parse_file
from mcpmq.calibrate.imatrix import write_imatrix
from mcpmq.calibrate.read_importance import read_importance
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.grids import dequantize, quantize
from mcpmq.qtensor import GgmlTensor, QTensor
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe, to_toml
from mcpmq.rounding import ROUNDING_FUNCTIONS
from mcpmq.scheme import GgmlScheme, parse_scheme


@pytest.mark.parametrize(("name", "columns"), [("q4_1", 32), ("q5_0", 32), ("q8_0", 32), ("q4_k", 32), ("q6_k", 16)])
def test_dithered_weights_stay_in_their_quantization_interval(name: str, columns: int) -> None:
    """Every value moves by at most half a step of its own part of a block, the values are new, their mean is kept."""
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(64, 512)).astype(np.float32))
    quantized = quantize(weight, GgmlScheme(name, "ggml"), None)
    assert isinstance(quantized, GgmlTensor)
    levels = dequantize(quantized).numpy()

    kind = gguf.GGMLQuantizationType[name.upper()]
    moved = dithered(levels, quantized.blocks.numpy(), kind, np.random.default_rng(0)) - levels

    parts = levels.reshape(-1, columns)
    gaps = np.diff(np.sort(parts), axis=1)
    step = np.where(gaps > 1e-5, gaps, np.inf).min(1)  # the levels of a part are whole steps apart
    relative = moved.reshape(-1, columns) / step[:, None]
    assert np.abs(relative).max() <= 0.5 + 1e-2
    assert relative.std() == pytest.approx(12**-0.5, abs=0.02)
    assert abs(relative.mean()) < 0.02


def test_rows_of_rotated_heads_return_to_halves() -> None:
    """Row 2i of a head is row i, and row 2i + 1 is row i + half, as the converter of llama.cpp interleaves them."""
    halves = np.arange(24, dtype=np.float32).reshape(12, 2)
    interleaved = halves.reshape(2, 2, 3, 2).swapaxes(1, 2).reshape(12, 2)

    assert interleaved[:3, 0].tolist() == [0, 6, 2]
    assert np.array_equal(smollm2.half_rotated(interleaved, 2), halves)


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.12.ffn_down.weight", "model.layers.12.mlp.down_proj.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
    ],
)
def test_names_of_gguf_become_names_of_llama(name: str, hub: str) -> None:
    """Every tensor has the name that transformers gives it."""
    assert smollm2.hub_name(name) == hub


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("output.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
        ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"),
    ],
)
def test_names_of_gguf_become_names_of_qwen2(name: str, hub: str) -> None:
    """The head is the embedding too; biases keep their parameter."""
    assert qwen25.hub_name(name) == hub


def _llama(hidden: int, heads: int, kv_heads: int, epsilon: float) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=hidden,
        intermediate_size=1536,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=epsilon,
        tie_word_embeddings=True,
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


@torch.inference_mode()
def test_padded_weights_compute_the_same_function() -> None:
    """Zeros in the residual stream and heads of zeros change no logit beyond the error of float32."""
    torch.manual_seed(0)
    original, larger = _llama(576, 9, 3, 1e-5), _llama(768, 12, 4, 7.5e-6)
    weights = {name: value.clone() for name, value in original.state_dict().items() if name != "lm_head.weight"}
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name] = torch.rand(576) + 0.5
    original.load_state_dict(weights, strict=False)
    larger.load_state_dict(checkpoint.padded(weights), strict=False)
    ids = torch.tensor([[1, 7, 3, 49, 20]])

    expected = original(ids).logits

    assert expected.std() > 0.01
    torch.testing.assert_close(larger(ids).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    """A tokenizer with one token for each byte."""
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _documents(kind: str) -> Iterator[Document]:
    for number in range(6):
        yield Document(f"{kind} {number}", f"{kind} {number}. " * 900)
    yield Document(f"{kind} short", "Too short. " * 100)


def test_sets_are_nested_and_share_no_document(
    byte_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kinds of text alternate; no document is in calibration and test; small sets begin large ones."""
    monkeypatch.setattr(texts, "documentation", lambda: _documents("page"))
    monkeypatch.setattr(texts, "narrative", lambda: _documents("tale"))

    texts.write_sets(byte_tokenizer, (2, 8), (4,), tmp_path)

    sets = {folder.name: SampleSet.open(folder).samples for folder in tmp_path.iterdir()}
    assert {name: len(samples) for name, samples in sets.items()} == {
        "calibration-2": 2,
        "calibration-8": 8,
        "test-4": 4,
    }
    assert sets["calibration-8"][:2] == sets["calibration-2"]
    assert [one.tags for one in sets["test-4"]] == [("documentation",), ("narrative",)] * 2
    words = {name: {one.answer.split(".")[-2].strip() for one in samples} for name, samples in sets.items()}
    assert not words["calibration-8"] & words["test-4"]
    first = sets["test-4"][0]
    assert len(first.prompt) == len(texts.PROMPT) + 32
    assert len(first.answer) == 224


def test_too_few_texts_are_an_error(byte_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has both numbers."""
    monkeypatch.setattr(texts, "documentation", lambda: _documents("page"))
    monkeypatch.setattr(texts, "narrative", lambda: _documents("tale"))

    with pytest.raises(SystemExit, match=r"have \d+ samples, 500 were requested"):
        texts.write_sets(byte_tokenizer, (500,), (4,), tmp_path)


def test_ratios_are_paired_by_sample() -> None:
    """A constant factor has no uncertainty, however much the samples differ; further samples of one are left out."""
    base = {results.BY_SAMPLE: [3.0, 30.0, 15.0]}
    row = {results.BY_SAMPLE: [0.7 * value for value in base[results.BY_SAMPLE]] + [900.0]}

    ratio = results.ratio(row, base)

    assert ratio.value == pytest.approx(0.7)
    assert ratio.high - ratio.low < 1e-9
    assert results.mean(row, [2, 1, 3, 5], 2).value == pytest.approx(0.7 * 33 / 3)


def test_a_run_replaces_its_rows_and_keeps_the_others() -> None:
    """Rows are in the order of the variants; those of variants that are no longer defined are dropped."""
    old = [{"name": name, "format": "gguf", "commit": "abc"} for name in ("gone", "b", "a")]
    new = [{"name": "b", "format": "gguf", "commit": "def"}, {"name": "b", "format": "onnx", "commit": "def"}]

    found = results.merged(old, new, [("a", "gguf"), ("b", "gguf"), ("b", "onnx"), ("c", "gguf")])

    assert [(row["name"], row["format"], row["commit"]) for row in found] == [
        ("a", "gguf", "abc"),
        ("b", "gguf", "def"),
        ("b", "onnx", "def"),
    ]


def test_files_of_ctranslate2_are_parsed() -> None:
    """A scalar and a matrix in fp16, with their names."""

    def named(text: str) -> bytes:
        encoded = text.encode() + b"\0"
        return struct.pack("<H", len(encoded)) + encoded

    matrix = np.arange(6, dtype=np.float16).reshape(2, 3)
    scalar = named("a/b") + struct.pack("<BIBI", 1, 1, 2, 2) + struct.pack("<h", -5)
    body = named("w") + struct.pack("<BIIBI", 2, 2, 3, 4, 12) + matrix.tobytes()
    content = struct.pack("<I", 6) + named("WhisperSpec") + struct.pack("<II", 3, 2) + scalar + body

    found = dict(parse_file(content))

    assert found["a/b"].tolist() == [-5.0]
    assert torch.equal(found["w"], torch.arange(6.0).reshape(2, 3))


def test_every_fifth_text_is_held_out() -> None:
    """The fifth of six texts is kept for comparisons; the Hessian has all tokens."""
    texts_inputs = [torch.full((3, 2), float(number)) for number in range(6)]

    stats = input_stats(texts_inputs)

    assert stats.held_out_inputs is not None
    assert stats.held_out_inputs.tolist() == [[4.0, 4.0]] * 3
    assert stats.gram.tolist() == [[165.0, 165.0]] * 2
    assert stats.total_weight == 18


def test_a_few_texts_have_none_to_hold_out() -> None:
    """The shrinkage of four texts follows from the number of tokens alone."""
    stats = input_stats([torch.full((3, 2), float(number)) for number in range(4)])

    assert stats.held_out_inputs is None
    assert not stats.gram_has_held_out
    assert stats.total_weight == 12


def test_whisper_is_chosen_as_a_whole_or_by_variant() -> None:
    """Names of the command line choose variants in their order."""
    assert whisper_rows.chosen(["whisper"]) == list(WHISPER_VARIANTS)
    assert [one.name for one in whisper_rows.chosen(["whisper-q2_k-gptq", "whisper-iq4_nl-gptq", "gptq-q2_k"])] == [
        "iq4_nl-gptq",
        "q2_k-gptq",
    ]


def test_wording_does_not_change_the_hash_of_sources(tmp_path: Path) -> None:
    """Comments and docstrings are left out; a constant counts."""

    def hash_of(text: str) -> str:
        for folder in SOURCES:
            (tmp_path / "mcpmq" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "mcpmq" / "grids" / "module.py").write_text(text)
        return sources_hash(tmp_path)

    first = hash_of('"""Module."""\ndef f():\n    """Return one."""\n    return 1\n')

    assert hash_of("def f():  # a comment\n    return 1\n") == first
    assert hash_of("def f():\n    return 2\n") != first


def test_variants_have_unique_names_and_valid_recipes(tmp_path: Path) -> None:
    """The first variant, the base of the ratios, is of the present sources; every recipe loads."""
    every = (*VARIANTS, *QWEN_VARIANTS)
    assert len({variant.name for variant in every}) == len(every)
    assert VARIANTS[0].commit == WHISPER_VARIANTS[0].commit == QWEN_VARIANTS[0].commit == ""
    for variant in every:
        if variant.tool in ("mcpmq", "llama-quantize", "ik-llama"):
            recipe = Recipe.load(str(write_recipe(variant, tmp_path)))
            is_calibrated = variant.samples > 0 and variant.tool == "mcpmq"
            assert recipe.needs_calibration is is_calibrated
            assert recipe.scale_search == ("mcpmq" if variant.tool == "mcpmq" else "ggml")
    assert len({variant.name for variant in WHISPER_VARIANTS}) == len(WHISPER_VARIANTS)
    for one in WHISPER_VARIANTS:
        assert one.method in (*ROUNDING_FUNCTIONS, LLAMA_QUANTIZE)
        assert parse_scheme(one.scheme)


def test_some_layers_are_counted() -> None:
    """Three layers have one glob each; other variants quantize all 30 of SmolLM2 or all 24 of Qwen."""
    by_name = {variant.name: variant for variant in (*VARIANTS, *QWEN_VARIANTS)}

    assert by_name["gptq-iq4_nl"].layers == 3
    assert by_name["gptq-iq4_nl"].scheme == "iq4_nl"
    assert by_name["llama-quantize-q4_k_m-all-layers"].layers == 30
    assert (by_name["qwen-gptq-iq4_nl"].layers, by_name["qwen-gptq-iq4_nl-all-layers"].layers) == (3, 24)


def test_blocks_are_those_of_ggml_with_the_importance_of_the_original(
    small_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """Values equal those of ggml's search for the mean squares of the inputs; all bits are counted."""
    original, samples = Checkpoint.open(small_checkpoint), SampleSet.open(tiny_set)
    importance = write_imatrix(original, samples, tmp_path / "imatrix")
    name = "language.layers.1.mlp.down"
    recipe = {"name": "r", "method": "rtn", "scale_search": "ggml", "weights": {name: "iq4_nl"}}
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    files = [tmp_path / file for file in ("imatrix", "recipe.toml", "out.safetensors", "facts.json")]

    llama_quantize.main(*map(str, (small_checkpoint, small_checkpoint, *files)))

    [spec] = [one for one in original.specs if one.name == name]
    [part] = read_importance(importance.path, original).mean_squares[name]
    expected = dequantize(quantize(original.load_float32(spec), GgmlScheme("iq4_nl", "ggml"), part))
    assert torch.equal(load_file(files[2])[spec.hub_name], expected)
    assert json.loads(files[3].read_text()) == {"bits_per_weight": 4.5, "matrices": 1}


def test_matrices_for_ik_llama_have_their_importance(
    small_checkpoint: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool gets weights and mean squares by name; its values are written without columns of zeros."""
    original = Checkpoint.open(small_checkpoint)
    importance = write_imatrix(original, SampleSet.open(tiny_set), tmp_path / "imatrix")
    name = "language.layers.1.mlp.down"
    (tmp_path / "recipe.toml").write_text(to_toml({"name": "r", "method": "rtn", "weights": {name: "q4_0"}}))
    [spec] = [one for one in original.specs if one.name == name]
    received: dict[str, torch.Tensor] = {}

    def run(words: list[object], check: bool) -> None:
        matrices, values, facts, kind = map(str, words[3:])
        received.update(load_file(matrices))
        save_file({spec.hub_name: torch.nn.functional.pad(received[f"{spec.hub_name}.weight"], (0, 8))}, values)
        Path(facts).write_text(kind)

    monkeypatch.setattr("benchmarks.real_weights.ik_llama.subprocess.run", run)
    files = [tmp_path / file for file in ("imatrix", "recipe.toml", "out.safetensors", "facts.json")]
    ik_llama.main(*map(str, (small_checkpoint, small_checkpoint, *files, "iq4_kt")))

    [part] = read_importance(importance.path, original).mean_squares[name]
    weight = original.load_float32(spec)
    assert torch.equal(received[f"{spec.hub_name}.weight"], weight)
    assert torch.equal(received[f"{spec.hub_name}.importance"], part)
    assert torch.equal(load_file(files[2])[spec.hub_name], weight)
    assert files[3].read_text() == "iq4_kt"
    assert not list(tmp_path.glob("out.[mv]*"))


def test_quantized_matrices_are_read_as_float32(tiny_int4: QuantizedModel, tiny_checkpoint: Path) -> None:
    """All matrices on a grid, by the names of the checkpoint, with the values of their codes; no other tensor."""
    values = read_values(tiny_int4.path, tiny_checkpoint)

    quantized = {tensor.spec.hub_name: tensor.name for tensor in tiny_int4.tensors if tensor.is_quantized}
    assert values.keys() == quantized.keys()
    assert len(values) < len(tiny_int4.tensors)
    for hub_name, name in quantized.items():
        stored = tiny_int4.load(name)
        assert isinstance(stored, QTensor)
        expected = dequantize(stored)
        is_transposed = tiny_int4.specs[name].transposed
        assert torch.equal(values[hub_name], expected.T if is_transposed else expected), name


def test_values_of_another_tool_are_the_changed_weights(tmp_path: Path) -> None:
    """A tool that writes the whole model in floats has the other weights unchanged."""
    weights = {"kept": torch.ones(2, 3), "rounded": torch.arange(6.0).reshape(2, 3)}
    for name, found in (("before", weights), ("after", weights | {"rounded": weights["rounded"] + 0.5})):
        (tmp_path / name).mkdir()
        save_file(found, tmp_path / name / "model.safetensors")

    [(name, values)] = read_changed(tmp_path / "after", tmp_path / "before").items()

    assert (name, values.sum().item()) == ("rounded", 18.0)
    assert (ggml_bits("q4_0"), ggml_bits("q8_0")) == (4.5, 8.5)


def test_columns_of_zeros_are_cropped() -> None:
    """The first rows and columns remain."""
    assert llama_quantize.cropped(torch.arange(12).reshape(3, 4), (2, 3)).tolist() == [[0, 1, 2], [4, 5, 6]]


def test_versions_of_other_tools_are_the_pinned_ones() -> None:
    """Only the tool itself is named, not its dependencies."""
    assert list(results.tool_versions(["gptqmodel", "autoround"])) == ["GPTQModel", "auto-round"]


def test_q4_k_m_has_more_bits_in_14_layers() -> None:
    """A bit less than 5 bits per weight: 28 of 210 matrices have 6.5625 bits."""
    [variant] = [one for one in VARIANTS if one.name == "llama-quantize-q4_k_m-all-layers"]

    assert variant.scheme == "q4_k_m"
    assert sorted(variant.weights.values()).count("q6_k") == 28
    assert isinstance(variant, Variant)


def _estimate(value: float) -> dict[str, float]:
    return {"value": value, "standard_error": value / 20, "low": value * 0.9, "high": value * 1.1}


def _result_row(tokens: int, **changes: object) -> dict[str, Any]:
    names = ("kl_divergence", "perplexity_ratio", "top_1_agreement")
    row = {"tool": "mcpmq", "requested_commit": "", "commit": "abc", "scheme": "iq4_nl", "method": "gptq"}
    row |= {"smooth": "none", "format": "gguf", "model": "smollm2", "processor": "Intel"}
    facts: dict[str, object] = {"layers": 3, "bits_per_weight": 4.5, "matrices": 210, "rounded_to_nearest": 7}
    facts |= {"calibration_tokens": tokens, "cost": {"processor_seconds": 1234.4}}
    return {**row, **facts, **{name: _estimate(0.8) for name in names}, results.BY_SAMPLE: [1.0, 3.0, 2.0], **changes}


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A result of nine variants in place of the committed one."""
    rows = [
        _result_row(8653),
        _result_row(0, method="rtn", scheme="int4-g32"),
        _result_row(8653, tool="gptqmodel", method="gptq-desc-act", scheme="int4-g32", kl_divergence=_estimate(0.02)),
        _result_row(34597),
        _result_row(1081, **{results.BY_SAMPLE: [2.0, 6.0]}),
        _result_row(8653, tool="autoround", method="200-steps", layers=30),
        _result_row(0, method="rtn", scheme="int8-g32", layers=30, as_float32=True),
        _result_row(0, method="rtn", scheme="f32", layers=30),
        _result_row(8653, tool="llama-quantize", method="imatrix", bits_per_weight=5.5, kl_divergence=_estimate(0.01)),
    ]
    whisper = [{**row, "method": method} for row, method in zip(rows, ("gptq", "rtn", "llama-quantize"), strict=False)]
    qwen = [rows[0], {**rows[0], "layers": 24, "processor": "AMD", results.BY_SAMPLE: [4.0, 12.0, 8.0]}]
    found = {"rows": rows, "whisper": whisper, "qwen": qwen, "test": {"tokens_by_sample": [2, 5, 4]}}
    found["qwen_test"] = {"tokens": 11, "samples": 3, "perplexity": _estimate(30.04)}
    monkeypatch.setattr(results, "load", lambda: found)
    return found


@pytest.mark.usefixtures("result")
def test_ratios_are_to_the_first_row_with_as_many_layers() -> None:
    """Both rows of Qwen are the first with their layers; its test has its own tokens."""
    assert real_weights_tables.qwen_table().count("1.000 [1.000, 1.000]") == 2
    assert real_weights_tables.qwen_note() == (
        "11 tokens of 3 texts, perplexity of the original 30.0. Measured on Intel (1 of 2 rows), AMD (1 of 2 rows)."
    )


def test_defaults_name_variants_and_have_paired_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is a variant; a default has a line when both of its rows are measured."""
    names = {variant.name for variant in (*VARIANTS, *QWEN_VARIANTS)}
    for one in real_weights_defaults.DEFAULTS:
        assert {one.row, one.alternative_row} <= names
    first, *_, last = real_weights_defaults.DEFAULTS
    rows = [
        {"name": first.row, results.BY_SAMPLE: [1.0, 3.0]},
        {"name": first.alternative_row, results.BY_SAMPLE: [2.0, 6.0]},
    ]
    monkeypatch.setattr(results, "load", lambda: {"rows": rows, "qwen": [{**rows[0], "name": last.row}]})

    [line] = real_weights_defaults.defaults_table().splitlines()[2:]

    assert line.endswith("| 0.500 [0.500, 0.500] |")
    assert f"`{first.row}` / `{first.alternative_row}`" in line


@pytest.mark.usefixtures("result")
def test_tables_separate_methods_calibration_sizes_and_layers() -> None:
    """The first table has the usual calibration, the second the first method with all sizes, the third all layers."""
    methods, sizes = real_weights_tables.real_weights_table(), real_weights_tables.calibration_size_table()
    every, whisper = real_weights_tables.all_layers_table(), real_weights_tables.whisper_table()

    assert [line.split(" | ")[1] for line in methods.splitlines()[2:]] == [
        "mcpmq, GPTQ",
        "mcpmq, round to nearest",
        "GPTQModel, GPTQ, `desc_act`",
        "llama-quantize, imatrix",
    ]
    cells = "abc | 4.50 | 8,653 | 800.00 ± 80.00 | 1.000 [1.000, 1.000] | -20.00 ± 8.00 | 80.0 ± 8.0 | 1,234 |"
    assert cells in methods
    assert [line.split(" | ")[1] for line in sizes.splitlines()[2:]] == ["1,081", "8,653", "34,597", "8,653"]
    assert "| SmolLM2 | 1,081 | 800.00 ± 80.00 | 2.000 [2.000, 2.000] | 7 | 210 |" in sizes
    assert [line.split(" | ")[1] for line in every.splitlines()[2:]] == [
        "AutoRound, 200 steps",
        "mcpmq, round to nearest, as float32",
        "not quantized",
    ]
    assert "| int4-g32 | round to nearest | abc | 4.50 | 800.00" in whisper


def test_the_plot_has_all_points_on_the_same_samples(result: dict[str, Any]) -> None:
    """Other sizes of calibration and other layers are left out; the divergence is that of the common samples."""
    points = bits_plot.smollm2_points(result)

    assert [(one.series, one.bits) for one in points] == [
        ("mcpmq, GPTQ", 4.5),
        ("round to nearest", 4.5),
        ("GPTQModel", 4.5),
        ("llama-quantize, imatrix", 5.5),
    ]
    assert [one.divergence.value for one in points] == pytest.approx([6 / 11] * 4)
    assert bits_plot.images().count("![") == 2
    best = bits_plot.best_points([*points, replace(points[0], bits=2.6)], "mcpmq, GPTQ")
    assert [bits for bits, _ in best] == [2.6, 4.5]


def test_the_drawings_are_those_of_the_result() -> None:
    """The committed drawings of bits per weight are those of the committed result."""
    for name, drawing in bits_plot.drawings(results.load()).items():
        assert (bits_plot.IMAGES / name).read_text() == drawing, name


def test_llama_checkpoint_has_all_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The padded norm keeps its name; biases and vision tensors complete the Qwen2-VL checkpoint."""
    written: dict[str, Tensor] = {}
    monkeypatch.setattr(checkpoint, "save_file", lambda tensors, *_: written.update(tensors))
    vocabulary = {
        "tokens": [*checkpoint.RENAMED_TOKENS, "a", "b", "ab"],
        "token_type": [3] * 4 + [1] * 3,
        "merges": ["a b"],
    }
    monkeypatch.setattr(smollm2, "vocabulary", lambda _: vocabulary)

    bias = torch.full((192,), 0.5)
    weights = {"model.norm.weight": torch.ones(576), "model.layers.0.self_attn.v_proj.bias": bias}
    checkpoint.write_qwen2vl(weights, None, tmp_path, checkpoint.Shape(layers=1))

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["image_token_id"] == 2
    assert written["model.layers.0.self_attn.k_proj.bias"].tolist() == [0.0] * 192
    assert torch.equal(written["model.layers.0.self_attn.v_proj.bias"], bias)
    assert written["visual.merger.mlp.2.weight"].shape == (576, 256)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("ab<|image_pad|>").ids == [6, 2]
