"""The comparison with other tools: equal calibration inputs, and correct unpacking of their artifacts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2ForCausalLM

from benchmarks.peers import text_checkpoint
from benchmarks.peers.decoders import read_mcpmq_decoder, read_peer_decoder
from benchmarks.peers.metrics import compare_logprobs, sample_groups, summarize
from benchmarks.peers.original_model import OriginalModel
from mcpmq.dataset import SampleSet
from mcpmq.quantized_model import QuantizedModel


@pytest.fixture(scope="module")
def original(tiny_checkpoint: Path) -> OriginalModel:
    """The tiny checkpoint with all weights in memory."""
    return OriginalModel.open(tiny_checkpoint)


def test_text_checkpoint_reproduces_multimodal_logits(original: OriginalModel, tiny_set: Path, tmp_path: Path) -> None:
    """With image features as rows of the embedding table, the text model returns the exact multimodal logits."""
    samples = SampleSet.open(tiny_set)

    text_checkpoint.write_text_checkpoint(original, samples, tmp_path)

    model = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = json.loads((tmp_path / text_checkpoint.TOKENS_FILE).read_text())
    own = original.module.config.text_config.vocab_size
    assert model.config.vocab_size > own
    with torch.inference_mode():
        for tokens, sample in zip(ids, original.encode(samples), strict=True):
            arrays = original.processor.model_inputs(sample)
            tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
            expected = original.module(**tensors, use_cache=False).logits
            assert torch.equal(model(torch.tensor([tokens])).logits[..., :own], expected)


def test_text_only_set_keeps_prompts_and_answers(original: OriginalModel, tiny_set: Path, tmp_path: Path) -> None:
    """The set without images has all prompts and answers, and adds no row to the embedding table."""
    samples = SampleSet.open(tiny_set)

    text_checkpoint.write_text_only_set(tiny_set, tmp_path / "set")
    text_only = SampleSet.open(tmp_path / "set")
    text_checkpoint.write_text_checkpoint(original, text_only, tmp_path / "model")

    assert [(one.id, one.prompt, one.answer) for one in text_only] == [
        (one.id, one.prompt, one.answer) for one in samples
    ]
    assert not any(one.image for one in text_only)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["vocab_size"] == original.module.config.text_config.vocab_size


def test_original_weights_are_restored(original: OriginalModel, mixed_set: SampleSet) -> None:
    """Other weights change the log-probabilities; loading no weights restores those of the checkpoint."""
    inputs = original.encode(mixed_set)[:2]
    embeddings = [original.embeddings(sample) for sample in inputs]
    before = original.answer_logprobs(inputs, embeddings)

    original.load_decoder({"model.layers.0.mlp.down_proj.weight": torch.zeros(256, 512)})
    other = original.answer_logprobs(inputs, embeddings)
    original.load_decoder({})

    assert not torch.equal(before[0], other[0])
    assert all(map(torch.equal, before, original.answer_logprobs(inputs, embeddings)))
    with pytest.raises(ValueError, match=r"no weight `llm\.model\.layers\.9\.mlp\.down_proj\.weight`, and 0 others"):
        original.load_decoder({"model.layers.9.mlp.down_proj.weight": torch.zeros(256, 512)})


def test_mcpmq_decoder_has_all_layer_weights(tiny_int4: QuantizedModel, original: OriginalModel) -> None:
    """The decoder has every layer weight, at 4 bits per code and 16 bits per group of 32."""
    decoder = read_mcpmq_decoder(tiny_int4.path)

    assert decoder.bits_per_weight == 4.5
    names = [spec.hub_name for spec in original.checkpoint.specs if spec.component == "language"]
    assert sorted(f"llm.{name}" for name in decoder.weights) == sorted(names)


def pack_word(codes: list[int]) -> int:
    """Pack eight codes into an int32, the first one in the lowest bits."""
    unsigned = sum(code << 4 * place for place, code in enumerate(codes))
    return unsigned - 2**32 if unsigned >= 2**31 else unsigned


def pack_gptq(codes: list[list[int]], zeros: list[list[int]], zero_offset: int) -> dict[str, Tensor]:
    """Pack codes and zero points [in][out] in the GPTQ layout; `zero_offset` is subtracted from zero points."""
    down = [[pack_word([codes[row + i][column] for i in range(8)]) for column in range(8)] for row in range(0, 64, 8)]
    across = [[pack_word([(zero - zero_offset) % 16 for zero in row])] for row in zeros]
    return {"qweight": torch.tensor(down, dtype=torch.int32), "qzeros": torch.tensor(across, dtype=torch.int32)}


def pack_awq(codes: list[list[int]], zeros: list[list[int]]) -> dict[str, Tensor]:
    """Pack codes and zero points in the AWQ layout: a word contains outputs 0, 2, 4, 6, 1, 3, 5, 7."""

    def across(rows: list[list[int]]) -> Tensor:
        return torch.tensor(
            [[pack_word([row[i] for i in (0, 2, 4, 6, 1, 3, 5, 7)])] for row in rows], dtype=torch.int32
        )

    return {"qweight": across(codes), "qzeros": across(zeros)}


def test_the_layout_of_compressed_tensors_is_unpacked(tmp_path: Path) -> None:
    """Codes minus 8 are packed along the inputs, the lowest four bits first; every group has its scale."""
    name, random = "model.layers.0.mlp.up_proj", torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (2, 64), generator=random)
    scales = torch.tensor([[0.5, 2.0], [1.0, 0.25]], dtype=torch.float16)
    words = [[pack_word(row[start : start + 8]) for start in range(0, 64, 8)] for row in codes.tolist()]
    parts = {"weight_packed": torch.tensor(words, dtype=torch.int32), "weight_scale": scales}
    save_file({f"{name}.{key}": value for key, value in parts.items()}, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "compressed-tensors"}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    decoder = read_peer_decoder(tmp_path)

    assert torch.equal(decoder.weights[f"{name}.weight"], (codes - 8) * scales.float().repeat_interleave(32, 1))
    assert decoder.bits_per_weight == 4.5
    assert decoder.quantized == (f"{name}.weight",)


CODE = st.integers(0, 15)
QUANTIZATION_CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4},
}


@pytest.mark.parametrize("layout", QUANTIZATION_CONFIGS)
@settings(max_examples=10, deadline=None)
@given(
    codes=st.lists(st.lists(CODE, min_size=8, max_size=8), min_size=64, max_size=64),
    zeros=st.lists(st.lists(CODE, min_size=8, max_size=8), min_size=2, max_size=2),
    interleaved=st.booleans(),
)
def test_peer_layouts_are_unpacked(
    layout: str,
    codes: list[list[int]],
    zeros: list[list[int]],
    interleaved: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Weights are (code - zero) * scale, [out, in], for contiguous and other groups; norms are unchanged."""
    name, folder = "model.layers.0.mlp.down_proj", tmp_path_factory.mktemp("peer")
    groups = [row % 2 if interleaved and layout != "awq" else row // 32 for row in range(64)]
    scales = torch.arange(1, 17).reshape(2, 8).half() / 64
    parts = pack_awq(codes, zeros) if layout == "awq" else pack_gptq(codes, zeros, int(layout == "gptq"))
    parts |= {"scales": scales, "g_idx": torch.tensor(groups, dtype=torch.int32)}
    norm = {"model.layers.0.input_layernorm.weight": torch.ones(4), "lm_head.weight": torch.zeros(3)}
    save_file({f"{name}.{key}": value for key, value in parts.items()} | norm, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": QUANTIZATION_CONFIGS[layout]}))

    decoder = read_peer_decoder(folder)

    expected = [
        [(codes[row][out] - zeros[groups[row]][out]) * float(scales[groups[row], out]) for row in range(64)]
        for out in range(8)
    ]
    assert decoder.weights[f"{name}.weight"].tolist() == expected
    assert sorted(decoder.weights) == ["model.layers.0.input_layernorm.weight", f"{name}.weight"]
    same = len({zero for row in zeros for zero in row}) == 1
    order = 64 * 32 if groups != sorted(groups) else 0
    assert decoder.bits_per_weight == (512 * 4 + 16 * 16 + (0 if same else 16 * 4) + order) / 512


def _compressed(folder: Path, scales: torch.Tensor) -> torch.Tensor:
    """Write a matrix of 8 outputs and 64 inputs as compressed-tensors does; return its codes [out, in]."""
    codes = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(1))
    words = (codes.reshape(8, 8, 8) << 4 * torch.arange(8)).sum(-1)
    packed = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    parts = {"weight_packed": packed, "weight_scale": scales, "weight_shape": torch.tensor([8, 64])}
    save_file({f"model.layers.0.x.{key}": value for key, value in parts.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "compressed-tensors"}}))
    return codes


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_compressed_tensors_are_unpacked(dtype: torch.dtype, tmp_path: Path) -> None:
    """Scales count as 16 bits, also if they are stored as float32 with the values of float16."""
    scales = (torch.arange(1, 17).reshape(8, 2) / 64).to(dtype)
    codes = _compressed(tmp_path, scales)

    decoder = read_peer_decoder(tmp_path)

    assert torch.equal(
        decoder.weights["model.layers.0.x.weight"], (codes - 8) * scales.float().repeat_interleave(32, 1)
    )
    assert decoder.bits_per_weight == 4.5


def test_scales_of_more_bits_are_rejected(tmp_path: Path) -> None:
    """Another tool would otherwise have more bits for equal bytes."""
    _compressed(tmp_path, torch.full((8, 2), 0.1))
    with pytest.raises(ValueError, match=r"x: 64 inputs, scales torch\.float32"):
        read_peer_decoder(tmp_path)


def test_other_storage_is_rejected(tmp_path: Path) -> None:
    """Scales of another dtype and groups of another size raise ValueError."""
    parts = pack_gptq([[0] * 8] * 64, [[8] * 8] * 2, 1) | {"g_idx": torch.arange(64, dtype=torch.int32) // 32}
    for scales in (torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(1, 8).half()):
        stored = {f"model.layers.0.x.{key}": value for key, value in (parts | {"scales": scales}).items()}
        save_file(stored, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": QUANTIZATION_CONFIGS["gptq"]}))

        with pytest.raises(ValueError, match=r"model\.layers\.0\.x: 4 bits, 64 inputs"):
            read_peer_decoder(tmp_path)


def test_kl_divergence_agrees_with_torch(original: OriginalModel, mixed_set: SampleSet) -> None:
    """The mean KL divergence equals torch.nn.functional.kl_div; it is zero for equal log-probabilities."""
    inputs, random = original.encode(mixed_set), torch.Generator().manual_seed(0)
    counts = [len(sample.tokens) - sample.answer_start for sample in inputs]
    one, other = (
        [torch.randn(count, 320, generator=random).double().log_softmax(-1) for count in counts] for _ in range(2)
    )
    chosen = [kind == "image" for kind in sample_groups(mixed_set)]

    different, equal = compare_logprobs(one, other, inputs), compare_logprobs(one, one, inputs)
    means = summarize(different, equal, chosen)

    together = [
        torch.cat([part for part, include in zip(parts, chosen, strict=True) if include]) for parts in (one, other)
    ]
    expected = torch.nn.functional.kl_div(together[1], together[0], reduction="batchmean", log_target=True)
    assert means["kl_divergence"].value == pytest.approx(float(expected))
    assert means["kl_divergence_increase"] == means["kl_divergence"]
    same = summarize(equal, different, chosen)
    assert (same["kl_divergence"].value, same["top_1_agreement"].value, same["perplexity_ratio"].value) == (0, 1, 1)
