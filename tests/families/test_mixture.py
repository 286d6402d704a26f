"""Families with a mixture of experts: published sizes, configurations that are rejected, and stacks."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError
from mcpmq.estimate.forecast import forecast
from mcpmq.families import family_named, family_of
from mcpmq.families.family import TensorSpec
from mcpmq.formats import FormatName
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from tests.expert_tools import MATRIX
from tests.families.published import PUBLISHED
from tests.tiny import write_tokenizer
from tests.tiny_families import EXPERT_FAMILIES, QWEN3_VL_MOE

GIGABYTE = 10**9
# Qwen/Qwen3-VL-30B-A3B-Instruct, as published.
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_vl_moe",
    "tie_word_embeddings": False,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "text_config": {
        "model_type": "qwen3_vl_moe_text",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    },
    "vision_config": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}
PUBLISHED_MIXTURES = {
    "Qwen3-VL-30B-A3B": (CONFIG, 31_070_754_032),
    "Qwen3.5-35B-A3B": PUBLISHED["Qwen3.5-35B-A3B"][1:],
    "MiniCPM-V-4.7-35B-A3B": (
        PUBLISHED["MiniCPM-V-4.7-35B-A3B"][1]
        | {f"{name}_id": 0 for name in ("image_start", "image_end", "slice_start", "slice_end", "newline")},
        PUBLISHED["MiniCPM-V-4.7-35B-A3B"][2],
    ),
}


def specs_of(config: dict[str, Any]) -> tuple[TensorSpec, ...]:
    family = family_of(config)
    return family.tensor_specs(family.parse_architecture(config))


@pytest.mark.parametrize(
    ("name", "recipe", "format_name"),
    [
        ("Qwen3-VL-30B-A3B", "calibrated-gguf-int4", "gguf"),
        ("Qwen3.5-35B-A3B", "calibrated-gguf-int4", "gguf"),
        ("MiniCPM-V-4.7-35B-A3B", "calibrated-language-int4", "compressed-tensors"),
    ],
)
def test_published_models_are_planned_within_8_gigabytes(
    name: str, recipe: str, format_name: FormatName, tmp_path: Path
) -> None:
    """Headers alone give the published number of weights, exact files, and the memory of calibration."""
    config, weights = PUBLISHED_MIXTURES[name]
    plan = make_plan(Checkpoint.open(header_only(tmp_path / "published", config)), Recipe.load(recipe))
    result = forecast(plan, [format_name], 4096)
    [layout] = result.formats
    tokens, hidden_state_nbytes = 32_768, 32  # of all samples; per channel, with targets of the original model

    assert plan.checkpoint.nbytes == 2 * weights
    assert 0.55 < layout.nbytes / weights < 0.60
    assert 4.4 < layout.bits_per_weight < 4.8
    assert result.quantize_peak_rss_bytes + hidden_state_nbytes * 2048 * tokens < 8 * GIGABYTE
    block = max(plan.blocks, key=lambda name: sum(prod(tensor.spec.shape) for tensor in plan.blocks[name]))
    assert block in ("embedding", "head")  # no block has the experts of a layer


def header_only(folder: Path, config: dict[str, Any]) -> Path:
    """Write the headers of the published layout and a sparse file of weights; stacks of Qwen3-VL are transposed."""
    folder.mkdir()
    family = next(one for one in EXPERT_FAMILIES if one.name == family_of(config).name)
    write_tokenizer(folder, family.tokenizer)
    (folder / "preprocessor_config.json").write_text(json.dumps(family.preprocessor))
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {spec.hub_name: spec.shape for spec in specs_of(config) if not MATRIX.fullmatch(spec.hub_name)}
    language = family_of(config).parse_architecture(config).language
    assert language.experts
    count, inner, hidden = language.experts.count, language.experts.intermediate_size, language.hidden_size
    gate_up, down = (2 * inner, hidden), (hidden, inner)
    if family is QWEN3_VL_MOE:
        gate_up, down = gate_up[::-1], down[::-1]
    for layer in range(language.num_layers):
        prefix = f"model.language_model.layers.{layer}.mlp.experts"
        shapes |= {f"{prefix}.gate_up_proj": (count, *gate_up), f"{prefix}.down_proj": (count, *down)}
    header, end = dict[str, Any](), 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    written = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(file.tell() + end)
    return folder


@pytest.mark.parametrize("family", EXPERT_FAMILIES, ids=lambda family: family.name)
def test_matrices_of_experts_are_parts_of_stacks(family: Any, tmp_path: Path) -> None:
    """A matrix of an expert is read from a stack in both layouts, whole, in rows, and every other row."""
    path = family.build(tmp_path / "tiny")
    stored = {name: value for shard in path.glob("*.safetensors") for name, value in load_file(shard).items()}
    checkpoint, prefix = Checkpoint.open(path), "model.language_model.layers.1.mlp.experts"
    gate_up, down = (stored[f"{prefix}.{name}"][3] for name in ("gate_up_proj", "down_proj"))
    if family is QWEN3_VL_MOE:
        gate_up, down = gate_up.T, down.T
    for part, expected in zip(("gate", "up", "down"), (*gate_up.chunk(2), down), strict=True):
        [spec] = [one for one in checkpoint.specs if one.name == f"language.layers.1.experts.3.mlp.{part}"]
        assert torch.equal(checkpoint.load(spec), expected)
        assert torch.equal(checkpoint.load_float32(spec), expected.float())
        assert torch.equal(torch.cat(list(checkpoint.load_rows(spec, 200))), expected)
        assert torch.equal(checkpoint.load_every(spec, 2), expected[::2])


def test_a_stack_of_another_shape_is_rejected(tmp_path: Path) -> None:
    """The error names the stack, its shape, and the required one."""
    path = QWEN3_VL_MOE.build(tmp_path / "tiny")
    for shard in path.glob("*.safetensors"):
        tensors = load_file(shard)
        changed = {name: value[:4] if name.endswith("experts.down_proj") else value for name, value in tensors.items()}
        save_file(changed, shard, metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=r"experts\.down_proj.*\[4, 96, 128\].*\[8, 128, 96\]"):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_sparse_step": 2},
        {"mlp_only_layers": [0]},
        {"norm_topk_prob": False},
        {"num_experts_per_tok": 9},
        {"num_experts": 0},
        {"moe_intermediate_size": None},
    ],
)
@pytest.mark.parametrize("family", EXPERT_FAMILIES, ids=lambda family: family.name)
def test_configurations_that_formats_do_not_have_are_rejected(family: Any, changes: dict[str, Any]) -> None:
    """Layers without experts, weights that do not add up to 1, and impossible numbers of experts."""
    config = {**family.config, "text_config": {**family.config["text_config"], **changes}}

    with pytest.raises(CheckpointError, match="|".join((*changes, "9 for every token"))):
        family_named(family.name).parse_architecture(config)
