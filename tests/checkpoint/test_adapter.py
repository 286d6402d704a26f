"""LoRA adapters: merged weights equal those of PEFT; adapters that cannot be merged are errors."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcpmq.checkpoint import Checkpoint
from mcpmq.compression_tables import VocabularyTable
from mcpmq.errors import CheckpointError
from mcpmq.execution.torch_model import build_module
from mcpmq.system.torch_threads import torch_threads
from mcpmq.vocabulary import trim_vocabulary
from tests.tiny import SMALL_CONFIG, build_checkpoint
from tests.tiny_families import QWEN2_VL, TINY_FAMILIES, TinyFamily

LANGUAGE = ["q_proj", "v_proj", "down_proj"]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": LANGUAGE, "r": 5, "lora_alpha": 7},
    "rslora": {"target_modules": LANGUAGE, "r": 6, "lora_alpha": 7, "use_rslora": True},
    "patterns": {
        "target_modules": LANGUAGE,
        "r": 3,
        "lora_alpha": 5,
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 4},
        "alpha_pattern": {r"layers\.\d+\.mlp\.down_proj": 11, "layers.0.self_attn.v_proj": 2},
    },
    "dora": {"target_modules": [*LANGUAGE, "patch_embedding"], "r": 3, "use_dora": True},
    "dora-rslora": {"target_modules": ["fc1", "o_proj"], "r": 4, "use_dora": True, "use_rslora": True},
    "biases-of-layers": {"target_modules": ["q_proj", "fc2"], "r": 2, "bias": "lora_only"},
    "all-biases": {"target_modules": ["k_proj"], "r": 2, "bias": "all"},
    "product-with-bias": {"target_modules": ["fc1", "q_proj"], "r": 2, "lora_alpha": 3, "lora_bias": True},
    "saved-modules": {"target_modules": ["q_proj"], "r": 2, "modules_to_save": ["embed_tokens", "resampler"]},
    "embedding": {"target_modules": ["embed_tokens", "lm_head"], "r": 3, "lora_alpha": 5},
    "convolution": {"target_modules": ["patch_embedding"], "r": 3, "lora_alpha": 5},
    "attention": {"target_modules": ["resampler.attn"], "r": 3, "lora_alpha": 5},
    "stored-as-in-out": {"target_modules": ["q_proj"], "r": 3, "fan_in_fan_out": True},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small MiniCPM-V 2.6 whose rows are more than one tile of a merge."""
    config = {**SMALL_CONFIG, "intermediate_size": 700}
    return Checkpoint.open(build_checkpoint(tmp_path_factory.mktemp("base") / "base", config))


def _module(checkpoint: Checkpoint) -> nn.Module:
    """Return the torch module with the stored values, in their dtype."""
    module = build_module(checkpoint.family, checkpoint.config)
    values = {name: checkpoint.load_stored(spec) for spec in checkpoint.specs for name in spec.parameter_names}
    known = dict(module.named_parameters(remove_duplicate=False))
    module.load_state_dict({name: value for name, value in values.items() if name in known}, assign=True, strict=False)
    return module


def _save(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """Write an adapter with random values, as PEFT saves it after a training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(_module(checkpoint), LoraConfig(**settings))
        generator = torch.Generator().manual_seed(3)
        for name, value in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name or (name.endswith("bias") and value.requires_grad):
                noise = torch.randn(value.shape, generator=generator)
                value.data = (value.data.float() * (1 + 0.3 * noise) + 0.05 * noise).to(value.dtype)
        model.save_pretrained(str(folder))
    if dtype != torch.float32:
        _edit_weights(folder, lambda tensors: {name: value.to(dtype) for name, value in tensors.items()})
    return folder


def _edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(file)).items()}, file)


def _edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _merged_by_peft(checkpoint: Checkpoint, *folders: Path) -> dict[str, Tensor]:
    """Return all parameters of the module with merged adapters."""
    module = _module(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for folder in folders:
            module = PeftModel.from_pretrained(module, str(folder)).merge_and_unload()
    return dict(module.named_parameters(remove_duplicate=False))


def _assert_equal(merged: Checkpoint, base: Checkpoint, expected: Mapping[str, Tensor]) -> int:
    """Compare every tensor with the parameter of PEFT; return the number of changed ones.

    The sum of a product may be rounded in another order: at most one value in a thousand differs, by one step.
    """
    changed = 0
    for spec in merged.specs:
        if spec.parameter_names[0] not in expected:
            continue
        value, oracle = merged.load_stored(spec), expected[spec.parameter_names[0]].detach()
        assert value.dtype == base.load_stored(spec).dtype
        torch.testing.assert_close(value, oracle.to(value.dtype), rtol=2**-7, atol=1e-6)
        assert (value != oracle).float().mean() < 1e-3, spec.name
        changed += not torch.equal(value, base.load_stored(spec))
    return changed


@pytest.mark.parametrize("kind", SETTINGS)
def test_merged_weights_equal_those_of_peft(kind: str, base: Checkpoint, tmp_path: Path) -> None:
    """Every weight is that of `merge_and_unload`, in the dtype of the checkpoint."""
    folder = _save(base, tmp_path / kind, **SETTINGS[kind])

    merged = Checkpoint.open(base.path, adapters=[folder])

    changed = _assert_equal(merged, base, _merged_by_peft(base, folder))
    assert changed == len(merged.adapters[0].changes) > 0


def test_an_adapter_in_bfloat16_is_merged_in_float32(base: Checkpoint, tmp_path: Path) -> None:
    """The dtype of the adapter changes its values only: products and sums are those of float32."""
    folder = _save(base, tmp_path / "half", torch.bfloat16, **SETTINGS["plain"])

    _assert_equal(Checkpoint.open(base.path, adapters=[folder]), base, _merged_by_peft(base, folder))


@pytest.mark.parametrize("family", TINY_FAMILIES, ids=lambda family: family.name + family.variant)
def test_adapters_of_all_families(family: TinyFamily, tmp_path: Path) -> None:
    """An adapter of every linear layer of the module of a family matches the published names of its checkpoint."""
    base = Checkpoint.open(family.build(tmp_path / "base"))
    tied = {name for spec in base.specs if spec.alias for name in spec.parameter_names}
    attention = [name for name, part in _module(base).named_modules() if isinstance(part, nn.MultiheadAttention)]
    targets = [
        name
        for name, part in _module(base).named_modules()
        if isinstance(part, nn.Linear) and f"{name}.weight" not in tied and not name.startswith(tuple(attention or "-"))
    ]
    folder = _save(base, tmp_path / "adapter", target_modules=targets, r=2)

    merged = Checkpoint.open(base.path, adapters=[folder])

    assert _assert_equal(merged, base, _merged_by_peft(base, folder)) == len(targets)


def _rename(folder: Path, old: str, new: str) -> None:
    _edit_weights(folder, lambda tensors: {name.replace(old, new, 1): value for name, value in tensors.items()})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model.model.model.language_model.", "base_model.model.model."),  # before transformers 4.52
        ("base_model.model.model.language_model.", "base_model.model.language_model."),
        ("base_model.model.", "module.base_model.model."),  # DistributedDataParallel
        ("lora_A.weight", "lora_A.default.weight"),
        ("q_proj.", "q_proj._checkpoint_wrapped_module."),
    ],
)
def test_names_of_other_versions_and_tools(old: str, new: str, tmp_path: Path) -> None:
    """Adapters with the names of older versions of transformers and of training tools give the same weights."""
    base = Checkpoint.open(QWEN2_VL.build(tmp_path / "base"))
    folder = _save(base, tmp_path / "adapter", **SETTINGS["plain"])
    expected = Checkpoint.open(base.path, adapters=[folder])
    renamed = Path(shutil.copytree(folder, tmp_path / "renamed"))
    _rename(renamed, old, new)
    assert (
        load_file(renamed / "adapter_model.safetensors").keys()
        != load_file(folder / "adapter_model.safetensors").keys()
    )

    merged = Checkpoint.open(base.path, adapters=[renamed])

    assert merged.adapters[0].changes.keys() == expected.adapters[0].changes.keys()
    assert all(torch.equal(merged.load(spec), expected.load(spec)) for spec in base.specs)


def test_two_adapters_are_merged_in_order(base: Checkpoint, tmp_path: Path) -> None:
    """The second adapter is merged into the result of the first, also if that replaces a weight."""
    first = _save(base, tmp_path / "first", **SETTINGS["plain"])
    second = _save(base, tmp_path / "second", **SETTINGS["dora"])

    merged = Checkpoint.open(base.path, adapters=[first, second])

    _assert_equal(merged, base, _merged_by_peft(base, first, second))
    reversed_order = Checkpoint.open(base.path, adapters=[second, first])
    assert merged.sha256 != reversed_order.sha256


def test_all_ways_of_reading_give_equal_values(base: Checkpoint, tmp_path: Path) -> None:
    """Chunks of any size, every n-th row, the whole weight and its float32 values are equal, with any threads."""
    folder = _save(base, tmp_path / "adapter", **SETTINGS["dora"])
    merged = Checkpoint.open(base.path, adapters=[folder])
    spec = next(spec for spec in merged.specs if spec.name == "language.layers.0.mlp.down")
    up = next(spec for spec in merged.specs if spec.name == "language.layers.1.attention.q")

    for one in (spec, up):
        with torch_threads(2):
            whole = merged.load(one)
        assert torch.equal(torch.cat(list(merged.load_rows(one, 7 * one.shape[1]))), whole)
        assert torch.equal(torch.cat(list(merged.load_rows(one, 300 * one.shape[1]))), whole)
        assert torch.equal(merged.load_every(one, 3), whole[::3])
        assert torch.equal(merged.load_float32(one), whole.float())


def test_trimming_merged_weights_equals_merging_and_trimming(base: Checkpoint, tmp_path: Path) -> None:
    """With a trimmed vocabulary every weight is that of the checkpoint that PEFT merged before, however it is read."""
    folder = _save(base, tmp_path / "tables", target_modules=[*LANGUAGE, "embed_tokens", "lm_head"], r=3)
    merged = Path(shutil.copytree(base.path, tmp_path / "merged"))
    parameters, names = _merged_by_peft(base, folder), {one.hub_name: one.parameter_names[0] for one in base.specs}
    for shard in merged.glob("*.safetensors"):
        tensors = {name: parameters[names[name]].to(value.dtype) for name, value in load_file(shard).items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, shard)
    table = VocabularyTable(max_tokens=288)

    with (
        trim_vocabulary(Checkpoint.open(base.path, adapters=[folder]), table) as view,
        trim_vocabulary(Checkpoint.open(merged), table) as expected,
    ):
        assert view.vocabulary == expected.vocabulary
        for spec, other in zip(view.specs, expected.specs, strict=True):
            _assert_close(view.load(spec), expected.load(other))
        for spec in view.specs:
            if spec.name in ("embedding", "head"):
                assert view.load(spec).shape == (288, spec.shape[1])
                _assert_close(view.load_every(spec, 7), expected.load_every(spec, 7))
                chunks = view.load_rows(spec, 5 * spec.shape[1])
                _assert_close(torch.cat(list(chunks)), expected.load(spec))


def _assert_close(value: Tensor, expected: Tensor) -> None:
    """Compare a tensor with an oracle up to one step of a value in a thousand."""
    assert value.dtype == expected.dtype
    torch.testing.assert_close(value, expected, rtol=2**-7, atol=1e-6)
    assert (value != expected).float().mean() < 1e-3


def test_the_adapter_belongs_to_the_identity(base: Checkpoint, tmp_path: Path) -> None:
    """The SHA-256 of the checkpoint changes with the adapter, with one value of it and with its configuration."""
    folder = _save(base, tmp_path / "adapter", **SETTINGS["plain"])
    hashes = {base.sha256, Checkpoint.open(base.path, adapters=[folder]).sha256}
    _edit_weights(folder, lambda tensors: {name: value * 1.5 for name, value in tensors.items()})
    hashes.add(Checkpoint.open(base.path, adapters=[folder]).sha256)
    _edit_config(folder, lora_alpha=9)
    hashes.add(Checkpoint.open(base.path, adapters=[folder]).sha256)

    assert len(hashes) == 4


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "of the kind `LOHA`"),
    ({"peft_type": "ADALORA"}, "of the kind `ADALORA`"),
    ({"init_lora_weights": "pissa"}, "`pissa` has changed the weights of the base model"),
    ({"init_lora_weights": "loftq"}, "`loftq` has changed"),
    ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ({"use_qalora": True}, "use_qalora"),
    ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
    ({"new_setting": {"a": 1}}, "`new_setting`, which is unknown"),
    ({"r": 0}, "r: Input should be greater than 0"),
    ({"rank_pattern": {"(a*)*": 2}}, "nested repetition"),
    ({"alpha_pattern": {"(": 2}}, "not a regular expression"),
]


@pytest.mark.parametrize(("changes", "message"), UNSUPPORTED, ids=[next(iter(one)) for one, _ in UNSUPPORTED])
def test_adapters_that_cannot_be_merged_are_rejected(
    changes: dict[str, Any], message: str, base: Checkpoint, tmp_path: Path
) -> None:
    """The error names the setting; no weight is read."""
    folder = _save(base, tmp_path / "adapter", **SETTINGS["plain"])
    _edit_config(folder, **changes)

    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(base.path, adapters=[folder])

    assert message in str(caught.value)


def _without(part: str) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]]:
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


BROKEN: list[tuple[Callable[[dict[str, Tensor]], Mapping[str, Tensor]], str]] = [
    (lambda tensors: tensors | {"base_model.model.llm.other.lora_A.weight": torch.ones(5, 4)}, "match no weight"),
    (lambda tensors: tensors | {"base_model.model.token_adapter.delta": torch.ones(5)}, "`base_model.model.token_ada"),
    (lambda tensors: {}, "no tensors"),
    (_without("layers.1.self_attn.q_proj.lora_B"), "incomplete set of tensors"),
    (lambda tensors: {name: value[:3] for name, value in tensors.items()}, "require floating-point values of shape"),
    (lambda tensors: {name: value.int() for name, value in tensors.items()}, "dtype I32"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_tensors_that_do_not_match_are_rejected(
    change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], message: str, base: Checkpoint, tmp_path: Path
) -> None:
    """Unmatched, missing and wrong tensors are errors with their names."""
    folder = _save(base, tmp_path / "adapter", **SETTINGS["plain"])
    _edit_weights(folder, change)

    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(base.path, adapters=[folder])

    assert message in str(caught.value)


def test_a_change_of_one_of_embedding_and_head_is_rejected(tmp_path: Path) -> None:
    """A tied embedding cannot have a value of its own; the same value for both can be merged."""
    base = Checkpoint.open(QWEN2_VL.build(tmp_path / "base"))
    low_rank = _save(base, tmp_path / "low-rank", target_modules=["embed_tokens"], r=2)
    saved = _save(base, tmp_path / "saved", target_modules=["q_proj"], r=2, modules_to_save=["embed_tokens"])
    both = Path(shutil.copytree(saved, tmp_path / "both"))
    name = "base_model.model.model.language_model.embed_tokens.weight"
    _edit_weights(both, lambda tensors: tensors | {"base_model.model.lm_head.weight": tensors[name].clone()})

    for folder in (low_rank, saved):
        with pytest.raises(CheckpointError, match="one of embedding and head"):
            Checkpoint.open(base.path, adapters=[folder])
    merged = Checkpoint.open(base.path, adapters=[both])

    [embedding] = [spec for spec in merged.specs if spec.alias]
    expected = load_file(both / "adapter_model.safetensors")[name]
    assert torch.equal(merged.load(embedding), expected.to(torch.bfloat16))


def test_dora_of_an_embedding_is_rejected(base: Checkpoint, tmp_path: Path) -> None:
    """DoRA of an embedding scales columns, which cannot be read row by row."""
    folder = _save(base, tmp_path / "adapter", target_modules=["embed_tokens"], r=2, use_dora=True)

    with pytest.raises(CheckpointError, match="scales its columns"):
        Checkpoint.open(base.path, adapters=[folder])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", None, "no `adapter_config.json`"),
        ("adapter_model.safetensors", None, "no `adapter_model.safetensors`"),
        ("adapter_config.json", "[1]", "adapter_config.json"),
        ("vit.safetensors", "", "weights beside"),
    ],
)
def test_folders_without_the_files_of_an_adapter(
    name: str, content: str | None, message: str, base: Checkpoint, tmp_path: Path
) -> None:
    """Missing and additional files are errors."""
    folder = _save(base, tmp_path / "adapter", **SETTINGS["plain"])
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)

    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(base.path, adapters=[folder])

    assert message in str(caught.value)


def test_pickled_adapters_are_rejected(base: Checkpoint, tmp_path: Path) -> None:
    """`adapter_model.bin` is not opened."""
    folder = _save(base, tmp_path / "adapter", **SETTINGS["plain"])
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")

    with pytest.raises(CheckpointError, match="pickled weights"):
        Checkpoint.open(base.path, adapters=[folder])


def test_the_configuration_keys_of_peft_are_known() -> None:
    """Every setting of the installed PEFT is read, has no influence, or is rejected if it is set."""
    from mcpmq.checkpoint.adapter_config import OTHER_KEYS, UNSUPPORTED, AdapterConfig

    known = OTHER_KEYS.union(UNSUPPORTED, AdapterConfig.model_fields)

    assert known >= LoraConfig().to_dict().keys(), peft.__version__
