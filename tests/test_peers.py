"""The comparison with other tools: they are shown what the multimodal model sees, and what they wrote is read right."""

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
from benchmarks.peers.decoders import written_by_mcpmq, written_by_peer
from benchmarks.peers.metrics import distance, estimates, kinds_of
from benchmarks.peers.original_model import Original
from mcpmq.dataset import CalibrationSet
from mcpmq.quantized_model import Quantized


@pytest.fixture(scope="module")
def original(tiny_checkpoint: Path) -> Original:
    """The tiny checkpoint, whole."""
    return Original.open(tiny_checkpoint)


def test_a_tool_for_text_sees_what_the_multimodal_model_sees(
    original: Original, tiny_set: Path, tmp_path: Path
) -> None:
    """Image tokens are rows of a longer table: the logits of all samples are exactly those of the whole model."""
    samples = CalibrationSet.open(tiny_set)

    text_checkpoint.write(original, samples, tmp_path)

    model = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = json.loads((tmp_path / text_checkpoint.TOKENS).read_text())
    own = original.module.config.text_config.vocab_size
    assert model.config.vocab_size > own
    with torch.inference_mode():
        for tokens, sample in zip(ids, original.inputs(samples), strict=True):
            given = {name: torch.from_numpy(value) for name, value in original.processor.arguments(sample).items()}
            expected = original.module(**given, use_cache=False).logits
            assert torch.equal(model(torch.tensor([tokens])).logits[..., :own], expected)


def test_without_images_the_same_is_asked_and_answered(original: Original, tiny_set: Path, tmp_path: Path) -> None:
    """Every sample is there; the table grows by nothing."""
    samples = CalibrationSet.open(tiny_set)

    text_checkpoint.write_without_images(tiny_set, tmp_path / "set")
    blind = CalibrationSet.open(tmp_path / "set")
    text_checkpoint.write(original, blind, tmp_path / "model")

    assert [(one.id, one.prompt, one.answer) for one in blind] == [(one.id, one.prompt, one.answer) for one in samples]
    assert not any(one.image for one in blind)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["vocab_size"] == original.module.config.text_config.vocab_size


def test_the_original_takes_its_own_weights_back(original: Original, mixed_set: CalibrationSet) -> None:
    """Other weights change the answers, and leave nothing behind."""
    inputs = original.inputs(mixed_set)[:2]
    embeddings = [original.embeddings(sample) for sample in inputs]
    before = original.answers(inputs, embeddings)

    original.wear({"model.layers.0.mlp.down_proj.weight": torch.zeros(256, 512)})
    other = original.answers(inputs, embeddings)
    original.wear({})

    assert not torch.equal(before[0], other[0])
    assert all(map(torch.equal, before, original.answers(inputs, embeddings)))
    with pytest.raises(ValueError, match=r"1 weights have no place, first llm\.model\.layers\.9"):
        original.wear({"model.layers.9.mlp.down_proj.weight": torch.zeros(256, 512)})


def test_what_mcpmq_wrote_is_read_as_it_dequantizes(tiny_int4: Quantized, original: Original) -> None:
    """All layers of the language model, with 4 bits a code and 16 a group of 32."""
    decoder = written_by_mcpmq(tiny_int4.path)

    assert decoder.bits_per_weight == 4.5
    names = [spec.hub_name for spec in original.checkpoint.specs if spec.component == "language"]
    assert sorted(f"llm.{name}" for name in decoder.weights) == sorted(names)


def word(codes: list[int]) -> int:
    """Eight codes in an int32, the first one lowest."""
    unsigned = sum(code << 4 * place for place, code in enumerate(codes))
    return unsigned - 2**32 if unsigned >= 2**31 else unsigned


def packed_gptq(codes: list[list[int]], zeros: list[list[int]], less: int) -> dict[str, Tensor]:
    """Codes and zeros [in][out] in the GPTQ layout, one code after the other; `less` is taken off zeros."""
    down = [[word([codes[row + i][column] for i in range(8)]) for column in range(8)] for row in range(0, 64, 8)]
    across = [[word([(zero - less) % 16 for zero in row])] for row in zeros]
    return {"qweight": torch.tensor(down, dtype=torch.int32), "qzeros": torch.tensor(across, dtype=torch.int32)}


def packed_awq(codes: list[list[int]], zeros: list[list[int]]) -> dict[str, Tensor]:
    """The same in the AWQ layout: the places of a word hold outputs 0, 2, 4, 6, 1, 3, 5, 7."""

    def across(rows: list[list[int]]) -> Tensor:
        return torch.tensor([[word([row[i] for i in (0, 2, 4, 6, 1, 3, 5, 7)])] for row in rows], dtype=torch.int32)

    return {"qweight": across(codes), "qzeros": across(zeros)}


CODE = st.integers(0, 15)
SETTINGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4},
}


@pytest.mark.parametrize("layout", SETTINGS)
@settings(max_examples=10, deadline=None)
@given(
    codes=st.lists(st.lists(CODE, min_size=8, max_size=8), min_size=64, max_size=64),
    zeros=st.lists(st.lists(CODE, min_size=8, max_size=8), min_size=2, max_size=2),
    turned=st.booleans(),
)
def test_other_tools_layouts_are_read_code_by_code(
    layout: str, codes: list[list[int]], zeros: list[list[int]], turned: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """(code - zero) * scale, [out, in], with groups that need be no neighbours, and norms as they were written."""
    name, folder = "model.layers.0.mlp.down_proj", tmp_path_factory.mktemp("peer")
    groups = [row % 2 if turned and layout != "awq" else row // 32 for row in range(64)]
    scales = torch.arange(1, 17).reshape(2, 8).half() / 64
    parts = packed_awq(codes, zeros) if layout == "awq" else packed_gptq(codes, zeros, int(layout == "gptq"))
    parts |= {"scales": scales, "g_idx": torch.tensor(groups, dtype=torch.int32)}
    norm = {"model.layers.0.input_layernorm.weight": torch.ones(4), "lm_head.weight": torch.zeros(3)}
    save_file({f"{name}.{key}": value for key, value in parts.items()} | norm, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": SETTINGS[layout]}))

    decoder = written_by_peer(folder)

    expected = [
        [(codes[row][out] - zeros[groups[row]][out]) * float(scales[groups[row], out]) for row in range(64)]
        for out in range(8)
    ]
    assert decoder.weights[f"{name}.weight"].tolist() == expected
    assert sorted(decoder.weights) == ["model.layers.0.input_layernorm.weight", f"{name}.weight"]
    same = len({zero for row in zeros for zero in row}) == 1
    order = 64 * 32 if groups != sorted(groups) else 0
    assert decoder.bits_per_weight == (512 * 4 + 16 * 16 + (0 if same else 16 * 4) + order) / 512


def test_other_bits_are_refused(tmp_path: Path) -> None:
    """What is not 4 bits in groups of 32 with fp16 scales is no fair match."""
    parts = packed_gptq([[0] * 8] * 64, [[8] * 8] * 2, 1) | {"g_idx": torch.arange(64, dtype=torch.int32) // 32}
    for scales in (torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(1, 8).half()):
        stored = {f"model.layers.0.x.{key}": value for key, value in (parts | {"scales": scales}).items()}
        save_file(stored, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": SETTINGS["gptq"]}))

        with pytest.raises(ValueError, match=r"model\.layers\.0\.x: 4 bits, 64 inputs"):
            written_by_peer(tmp_path)


def test_distances_are_those_of_torch(original: Original, mixed_set: CalibrationSet) -> None:
    """Divergence as torch.nn.functional.kl_div has it, token by token; none from a model to itself."""
    inputs, random = original.inputs(mixed_set), torch.Generator().manual_seed(0)
    counts = [len(sample.tokens) - sample.answer_start for sample in inputs]
    one, other = (
        [torch.randn(count, 320, generator=random).double().log_softmax(-1) for count in counts] for _ in range(2)
    )
    chosen = [kind == "image" for kind in kinds_of(mixed_set)]

    found, none = distance(one, other, inputs), distance(one, one, inputs)
    means = estimates(found, none, chosen)

    together = [
        torch.cat([part for part, wanted in zip(all_of, chosen, strict=True) if wanted]) for all_of in (one, other)
    ]
    expected = torch.nn.functional.kl_div(together[1], together[0], reduction="batchmean", log_target=True)
    assert means["kl_divergence"].value == pytest.approx(float(expected))
    assert means["excess"] == means["kl_divergence"]
    same = estimates(none, found, chosen)
    assert (same["kl_divergence"].value, same["top_1_agreement"].value, same["perplexity_ratio"].value) == (0, 1, 1)
