"""Names, dtypes and duplicates of stored tensors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from tests.checkpoint_tools import build_family, edit_json, rewrite_weights, stored_tensors

UP = "model.layers.0.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny Qwen2-VL, whose head is the embedding."""
    return build_family("qwen2-vl", tmp_path_factory.mktemp("checkpoint") / "qwen2-vl")


@pytest.fixture
def qwen(unchanged: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(unchanged, tmp_path / "qwen2-vl"))


def loaded(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {spec.name: checkpoint.load(spec) for spec in checkpoint.specs}


def in_module(name: str) -> str:
    head, _, rest = name.partition(".")
    return {"visual": f"model.visual.{rest}", "model": f"model.language_model.{rest}"}.get(head, name)


RENAMES: dict[str, Callable[[str], str]] = {
    "torch module": in_module,
    "base model": lambda name: in_module(name).removeprefix("model."),
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "torch.compile of layers": lambda name: name.replace(".mlp.", "._orig_mod.mlp."),
    "DistributedDataParallel": lambda name: f"module.{name}",
    "DistributedDataParallel of torch.compile": lambda name: f"module._orig_mod.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{in_module(name)}".replace(".mlp.", "._fsdp_wrapped_module.mlp."),
    "activation checkpoints": lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    "merged peft": lambda name: f"base_model.model.{in_module(name)}",
}


@pytest.mark.parametrize("rename", RENAMES.values(), ids=RENAMES)
def test_names_of_training_tools_are_read(rename: Callable[[str], str], qwen: Path) -> None:
    """Every weight has the value that it has under the published name."""
    before = loaded(Checkpoint.open(qwen))
    rewrite_weights(qwen, {rename(name): value for name, value in stored_tensors(qwen).items()})

    after = loaded(Checkpoint.open(qwen))

    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl", "minicpm-v-4.6", "minicpm3"])
def test_names_of_the_base_model_are_read(family: str, tmp_path: Path) -> None:
    """The classes of transformers accept names with and without the prefix `model.`."""
    path = build_family(family, tmp_path / "checkpoint")
    before = loaded(Checkpoint.open(path))
    rewrite_weights(path, {name.removeprefix("model."): value for name, value in stored_tensors(path).items()})

    after = loaded(Checkpoint.open(path))

    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_unknown_prefix_is_named(qwen: Path) -> None:
    """The error has the stored name and the hint the prefix."""
    rewrite_weights(qwen, {f"student.{name}": value for name, value in stored_tensors(qwen).items()})

    with pytest.raises(CheckpointError, match=r"`student\.") as caught:
        Checkpoint.open(qwen)
    assert "`student.`" in caught.value.hint


def test_two_names_of_a_weight_must_agree(qwen: Path) -> None:
    """An equal copy under another name is accepted, a different one is rejected with both names."""
    values = stored_tensors(qwen)
    rewrite_weights(qwen, {**values, in_module(UP): values[UP].clone(), f"module.{UP}": values[UP].clone()})
    assert torch.equal(loaded(Checkpoint.open(qwen))["language.layers.0.mlp.up"], values[UP])

    for other in (in_module(UP), f"_orig_mod.{UP}"):
        rewrite_weights(qwen, {**values, other: values[UP] * 2})
        with pytest.raises(CheckpointError, match="same weight with different values") as caught:
            Checkpoint.open(qwen)
        assert UP in str(caught.value)
        assert other in str(caught.value)


def test_a_stored_head_that_equals_the_embedding_is_accepted(qwen: Path) -> None:
    """The head stays tied, in the dtype of the embedding or another one."""
    values = stored_tensors(qwen)
    for head in (values[EMBEDDING].clone(), values[EMBEDDING].float()):
        rewrite_weights(qwen, {**values, "lm_head.weight": head})
        checkpoint = Checkpoint.open(qwen)
        assert checkpoint.architecture.language.tied_embeddings
        assert checkpoint.entries["embedding"].dtype == "BF16"


def test_a_tied_embedding_may_be_stored_as_the_head(qwen: Path) -> None:
    """Some tools store only one of the two names."""
    values = stored_tensors(qwen)
    rewrite_weights(qwen, {"lm_head.weight" if name == EMBEDDING else name: value for name, value in values.items()})

    assert torch.equal(loaded(Checkpoint.open(qwen))["embedding"], values[EMBEDDING])


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3-vl", "minicpm3"])
def test_a_stored_head_that_differs_is_kept(family: str, tmp_path: Path) -> None:
    """As in transformers, the model has a head of its own then, and so has the artifact with its configuration."""
    path = build_family(family, tmp_path / "checkpoint")
    values = stored_tensors(path)
    embedding = next(value for name, value in values.items() if name.endswith("embed_tokens.weight"))
    rewrite_weights(path, {**values, "lm_head.weight": embedding * 2})

    checkpoint = Checkpoint.open(path)
    assert torch.equal(loaded(checkpoint)["head"], embedding * 2)
    quantize(make_plan(checkpoint, Recipe.load("full")), tmp_path / "out")

    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False
    assert torch.equal(QuantizedModel.open(tmp_path / "out").load("head"), embedding * 2)  # type: ignore[arg-type]


def test_a_missing_head_has_a_hint_about_tying(qwen: Path) -> None:
    """A configuration without `tie_word_embeddings` asks for a head; the hint names the key."""
    edit_json(qwen / "config.json", tie_word_embeddings=False)

    with pytest.raises(CheckpointError, match=r"lm_head\.weight") as caught:
        Checkpoint.open(qwen)
    assert "tie_word_embeddings" in caught.value.hint


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("qwen2-vl", "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(16)),
        ("qwen2-vl", "model.rotary_emb.original_inv_freq", torch.ones(16)),
        ("qwen2-vl", "visual.rotary_pos_emb.inv_freq", torch.ones(8)),
        ("minicpm-v-2.6", "vpm.embeddings.position_ids", torch.arange(4900)[None]),
        ("minicpm-v-2.6", "resampler.pos_embed", torch.ones(70, 70, 256)),
        ("minicpm-v-4.6", "model.vision_tower.embeddings.position_ids", torch.arange(4900)[None]),
        ("minicpm3", "model.layers.0.self_attn.rotary_emb.cos_cached", torch.ones(4)),
    ],
)
def test_computed_buffers_are_skipped(family: str, name: str, value: Tensor, tmp_path: Path) -> None:
    """Older code stored the values that the model computes, also as integers."""
    path = build_family(family, tmp_path / "checkpoint")
    values = stored_tensors(path)
    rewrite_weights(path, {**values, name: value})

    assert len(Checkpoint.open(path).entries) == len(values)


def test_float64_is_loaded_as_float32(qwen: Path, tmp_path: Path) -> None:
    """Weights in float64 have the values of float32, whole or by rows, and artifacts the dtype float32."""
    values = stored_tensors(qwen)
    rewrite_weights(qwen, {name: value.double() for name, value in values.items()})
    checkpoint = Checkpoint.open(qwen)
    spec = next(spec for spec in checkpoint.specs if spec.hub_name == UP)

    assert checkpoint.dtype(spec) == "float32"
    assert torch.equal(checkpoint.load(spec), values[UP].float())
    assert torch.equal(torch.cat(list(checkpoint.load_rows(spec, 300))), values[UP].float())
    plan = make_plan(checkpoint, Recipe.load("full"))
    assert plan.nbytes == 4 * sum(value.numel() for value in values.values())
    quantized = quantize(plan, tmp_path / "out")
    assert {record.dtype for record in quantized.records.values()} == {"float32"}
    assert torch.equal(quantized.load("language.norm"), values["model.norm.weight"].float())  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_of_other_dtypes_are_rejected(dtype: torch.dtype, qwen: Path) -> None:
    """Packed weights are not rounded as if they were weights; the hint names the dtypes of full precision."""
    values = stored_tensors(qwen)
    rewrite_weights(qwen, {**values, UP: torch.ones(256, 128).to(dtype)})

    with pytest.raises(CheckpointError, match=UP) as caught:
        Checkpoint.open(qwen)
    assert "BF16" in caught.value.hint
    assert "U8" not in caught.value.hint


@pytest.mark.parametrize(
    "part", ["qweight", "qzeros", "weight.absmax", "weight_packed", "weight_scale", "weight_scale_inv", "SCB"]
)
def test_tensors_of_quantized_checkpoints_are_recognized(part: str, qwen: Path) -> None:
    """Also without a declaration in config.json, the error names the tensor."""
    rewrite_weights(qwen, {**stored_tensors(qwen), f"model.layers.0.mlp.up_proj.{part}": torch.ones(2)})

    with pytest.raises(CheckpointError, match=f"already quantized.*{part}"):
        Checkpoint.open(qwen)


@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.default.weight", "base_layer.weight", "modules_to_save.w"])
def test_unmerged_adapters_are_rejected(part: str, qwen: Path) -> None:
    """The hint is to merge them."""
    name = f"base_model.model.model.layers.0.mlp.up_proj.{part}"
    rewrite_weights(qwen, {**stored_tensors(qwen), name: torch.ones(2)})

    with pytest.raises(CheckpointError, match="not merged") as caught:
        Checkpoint.open(qwen)
    assert "merge_and_unload" in caught.value.hint


def test_passed_through_tensors_may_be_integers(tmp_path: Path) -> None:
    """Audio components have buffers that are copied unchanged."""
    path = build_family("minicpm-o-2.6", tmp_path / "checkpoint")
    count = torch.tensor([7])
    rewrite_weights(path, {**stored_tensors(path), "tts.batches": count})

    quantized = quantize(make_plan(Checkpoint.open(path), Recipe.load("full")), tmp_path / "out")

    assert torch.equal(quantized.load("speech.tts.batches"), count)  # type: ignore[arg-type]
