"""Shared by all Hugging Face formats: supported plans, shards and index, copied files, the model card."""

import json
import re
import shutil
import tomllib
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, FormatError, MissingExtra, RecipeError
from mcpmq.export import export
from mcpmq.formats import FormatName, check_plan
from mcpmq.formats.gptq import LAYOUT as GPTQ
from mcpmq.formats.hf.card import render_card
from mcpmq.formats.hf.layout import HfLayout
from mcpmq.formats.hf.names import module_pattern, unquantized_modules
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.formats.hf.shards import ShardLayout
from mcpmq.formats.hf.writer import write_model
from mcpmq.formats.model_view import PlannedModel
from mcpmq.plan import make_plan
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.system.progress import silent
from tests.gguf_tools import quantize_with
from tests.hf_tools import export_hf_artifact, load_tensors, same_weight
from tests.tiny import CONFIG, build_checkpoint

FORMATS_AND_SCHEMES = [
    ("gptq", "int4-g32-asym"),
    ("awq", "int4-g64"),
    ("bnb", "fp4"),
    ("bnb", "int8-row"),
    ("compressed-tensors", "int8-g64"),
]


@pytest.fixture(scope="module")
def quantized(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The tiny checkpoint with its language model in 4 bits."""
    return quantize_with(tiny_checkpoint, tmp_path_factory.mktemp("hf"), **{"language.*": "int4-g64"})


def fake_layout(method: str = "gptq", usage: str = "") -> HfLayout:
    """A layout with GPTQ's tensors and a minimal quantization config."""
    return HfLayout(
        components=("language",),
        quantization_config=lambda model: {"quant_method": method},
        packed_nbytes=lambda tensor: {},
        packing="mcpmq.formats.gptq.packing",
        usage=usage,
    )


def format_error(checkpoint: Path, name: str, **weights: str) -> FormatError:
    """Return the error for a recipe that a format does not support."""
    plan = make_plan(Checkpoint.open(checkpoint), Recipe.model_validate({"name": "test", "weights": weights}))
    with pytest.raises(FormatError) as caught:
        check_plan(plan, cast(FormatName, name))
    return caught.value


@pytest.mark.parametrize(
    ("name", "weights", "weight", "hint"),
    [
        ("gptq", {"language.*": "int4-g256"}, "language.layers.0.attention.q", "-g128"),
        ("gptq", {"language.*": "q4_k"}, "language.layers.0.attention.q", "int4"),
        ("gptq", {"vision.*": "int4-g32"}, "vision.position_embedding", "of language can be quantized"),
        ("awq", {"language.*": "int8-g64"}, "language.layers.0.attention.q", "int4-g128"),
        ("awq", {"language.*": "int4-row"}, "language.layers.0.attention.q", "int4-g128"),
        ("awq", {"head": "int4-g32"}, "head", "keep"),
        ("bnb", {"language.*": "int4-g64"}, "language.layers.0.attention.q", "nf4"),
        ("bnb", {"language.*": "int8-row", "embedding": "nf4"}, "embedding", "keep"),
        ("bnb", {"projector.*": "nf4"}, "projector.kv", "linear layers of language and vision"),
        ("compressed-tensors", {"language.*": "int4-g64-asym"}, "language.layers.0.attention.q", "symmetric"),
        ("compressed-tensors", {"vision.layers.*": "int4-g64"}, "vision.layers.0.mlp.down", "64 x 144 is not"),
    ],
)
def test_unsupported_weights_are_errors_with_alternatives(
    name: str, weights: dict[str, str], weight: str, hint: str, tiny_checkpoint: Path
) -> None:
    """The check of a plan names the first unsupported weight and the supported schemes or components."""
    error = format_error(tiny_checkpoint, name, **weights)

    assert f"`{name}` cannot store `{weight}` as" in str(error)
    assert hint in error.hint


def test_shapes_must_be_multiples_of_the_kernels_block(tmp_path: Path) -> None:
    """GPTQ and AWQ do not support 528 rows, which are not a multiple of 32."""
    config = {**CONFIG, "intermediate_size": 528}
    checkpoint = build_checkpoint(tmp_path / "tiny", config)

    for name in ("gptq", "awq"):
        error = format_error(checkpoint, name, **{"language.*": "int4-g64"})
        assert "`language.layers.0.mlp.gate`" in str(error)
        assert "528 x 256" in error.hint


@pytest.mark.parametrize("name", ["gptq", "awq", "bnb", "compressed-tensors"])
def test_an_artifact_has_one_scheme(name: str, tiny_checkpoint: Path) -> None:
    """A second scheme is an error, and so is a recipe that quantizes no weight."""
    own, other = ("nf4", "fp4") if name == "bnb" else ("int4-g32", "int4-g64")
    error = format_error(tiny_checkpoint, name, **{"language.*": own, "language.layers.1.mlp.up": other})

    assert "`language.layers.1.mlp.up`" in str(error)
    assert f"use `{own}`, as `language.layers.0.attention.q` does" in error.hint
    assert "no weight is quantized" in str(format_error(tiny_checkpoint, name, head="keep"))


def test_gptq_packs_the_same_modules_in_every_layer(tiny_checkpoint: Path) -> None:
    """A matrix can be unquantized in all layers but not in one."""
    weights = {"language.*": "int4-g64", "language.layers.1.mlp.down": "keep"}
    error = format_error(tiny_checkpoint, "gptq", **weights)

    assert "`language.layers.1.mlp.down` as `bfloat16`" in str(error)
    recipe = Recipe.model_validate(
        {"name": "test", "weights": {"language.*": "int4-g64", "language.*.mlp.down": "keep"}}
    )
    check_plan(make_plan(Checkpoint.open(tiny_checkpoint), recipe), "gptq")


def test_codebooks_require_whole_blocks(tiny_checkpoint: Path) -> None:
    """A plan with `nf4` for 144 columns is an error, since 144 is not a multiple of 64."""
    recipe = Recipe.model_validate({"name": "test", "weights": {"vision.layers.*": "nf4"}})

    with pytest.raises(RecipeError, match=r"vision\.layers\.0\.mlp\.down.*144 columns"):
        make_plan(Checkpoint.open(tiny_checkpoint), recipe)


@pytest.mark.parametrize(("name", "package"), [("bnb", "bitsandbytes"), ("compressed-tensors", "compressed_tensors")])
def test_a_missing_package_is_reported_with_its_extra(
    name: FormatName, package: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of a plan names the missing package and the extra that installs it."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("language-nf4"))
    monkeypatch.setattr("mcpmq.formats.find_spec", lambda name: None if name == package else object())

    with pytest.raises(MissingExtra, match=package) as caught:
        check_plan(plan, name)

    assert f"mcpmq[{name}]" in caught.value.hint


@pytest.mark.parametrize(("name", "scheme"), FORMATS_AND_SCHEMES)
def test_every_weight_reads_back_exactly(name: str, scheme: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Quantized weights read back as the same codes, scales and zero points, others in the dtype of the original."""
    quantized, artifact = export_hf_artifact(tiny_checkpoint, tmp_path, name, **{"language.*": scheme})
    opened, original = HuggingFaceArtifact.open(artifact.path), Checkpoint.open(tiny_checkpoint)
    stored = load_tensors(artifact)

    for spec in original.specs:
        weight, loaded = quantized.load(spec.name), opened.load(spec.name)
        if isinstance(weight, torch.Tensor):
            assert torch.equal(stored[spec.hub_name], original.load_stored(spec))
            assert isinstance(loaded, torch.Tensor)
            assert torch.equal(loaded, weight)
        else:
            assert same_weight(loaded, weight)


def test_artifacts_of_other_formats_are_errors(tiny_exports: list[Artifact]) -> None:
    """Opening a GGUF or an ONNX artifact as a Hugging Face one is an error that lists the formats."""
    for artifact in tiny_exports:
        with pytest.raises(ArtifactError, match=f"is a {artifact.manifest.kind} artifact") as caught:
            HuggingFaceArtifact.open(artifact.path)
        assert caught.value.hint == "expected one of: gptq, awq, bnb, compressed-tensors, mlx"


@pytest.mark.parametrize("shard_nbytes", [1, 200_000, 10**9])
def test_shards_contain_every_tensor_once(shard_nbytes: int, quantized: QuantizedModel, tmp_path: Path) -> None:
    """The index has every tensor once, file names count the shards, and vision and language have separate shards."""
    files = write_model(quantized, tmp_path, fake_layout(), silent, shard_nbytes)
    shards = sorted(tmp_path.glob("*.safetensors"))
    shard_of: dict[str, str] = {}
    for shard in shards:
        with safe_open(shard, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            shard_of |= dict.fromkeys(opened.keys(), shard.name)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())

    assert index["weight_map"] == shard_of
    assert [shard.name for shard in shards] == [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]
    assert sorted([*files["vision+projector"], *files["language"]]) == [shard.name for shard in shards]
    assert {shard for name, shard in shard_of.items() if name.startswith("llm.")} == set(files["language"])
    assert {shard for name, shard in shard_of.items() if name.startswith("vpm.")} <= set(files["vision+projector"])
    assert not set(files["language"]) & set(files["vision+projector"])
    if shard_nbytes == 10**9:
        assert len(shards) == 2


def test_the_tensors_of_a_weight_stay_in_one_shard() -> None:
    """A shard is full when the next weight would exceed the maximum; a larger weight has a shard of its own."""
    layout = ShardLayout(max_nbytes=100)
    layout.begin("language", 17)
    for name, nbytes in (("a", 48), ("b", 48), ("c", 16), ("d", 304), ("e", 8)):
        layout.add({f"{name}.codes": nbytes - 8, f"{name}.scales": 8})

    assert [layout.shard_of[f"{name}.scales"] for name in "abcde"] == [0, 0, 1, 2, 3]
    assert [shard.file_nbytes for shard in layout.shards] == [8 + 24 + nbytes for nbytes in (96, 16, 304, 8)]
    assert layout.file_name(1) == "model-00002-of-00004.safetensors"
    assert layout.index()["metadata"] == {"total_size": 424}


def test_a_forecast_of_several_shards_is_exact(
    quantized: QuantizedModel, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forecast and files have the same names and sizes when the weights do not fit in one shard."""
    monkeypatch.setattr("mcpmq.formats.hf.sizes.ShardLayout", partial(ShardLayout, 200_000))
    write_model(quantized, tmp_path, GPTQ, silent, 200_000)

    recipe = Recipe.model_validate(quantized.artifact.manifest.recipe)
    model = PlannedModel(make_plan(Checkpoint.open(tiny_checkpoint), recipe))
    forecast = {file.path: file.nbytes for file in GPTQ.forecast(model).files}
    assert forecast == {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert len(list(tmp_path.glob("*.safetensors"))) > 5


def test_text_files_and_code_are_copied(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Tokenizer and preprocessor files are copied, and the code that config.json names; none of it is executed."""
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "with_code"))
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_minicpmv.MiniCPMV"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "modeling_minicpmv.py").write_text("raise SystemExit('executed')\n")
    _, artifact = export_hf_artifact(checkpoint, tmp_path, "gptq", **{"language.*": "int4-g64"})

    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"):
        assert (artifact.path / name).read_bytes() == (tiny_checkpoint / name).read_bytes()
    assert (artifact.path / "modeling_minicpmv.py").read_text().startswith("raise")
    assert artifact.nbytes_by_component()["code"] == 29
    artifact.verify()


def test_other_code_is_not_copied(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A script that config.json does not name is not part of the checkpoint."""
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "scripts"))
    (checkpoint / "train.py").write_text("")

    assert not Checkpoint.open(checkpoint).code_files


def test_the_model_card_has_metadata_sizes_and_provenance(quantized: QuantizedModel, tmp_path: Path) -> None:
    """The card has the metadata of the hub, the usage note, sizes, the recipe and the hash of the original."""
    write_model(quantized, tmp_path, fake_layout("awq", "No software loads it."), silent)
    card = (tmp_path / "README.md").read_text()

    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags:\n- mcpmq\n")
    for text in (
        "- awq\n",
        "No software loads it.",
        '"language.*" = "int4-g64"',
        quantized.artifact.manifest.source.sha256,
    ):
        assert text in card
    assert "| language | 2.36 MB |" in card
    recipe = card.partition("```toml\n")[2].partition("```")[0]
    assert Recipe.model_validate(tomllib.loads(recipe)).to_dict() == quantized.artifact.manifest.recipe
    assert card.endswith("## Evaluation\n\nNot evaluated yet: `mcpmq evaluate` writes the results here.\n")


def test_export_is_reproducible(quantized: QuantizedModel, tmp_path: Path) -> None:
    """Two exports of one quantized model have equal hashes."""
    first, second = (export(quantized, "gptq", tmp_path / name) for name in ("first", "second"))

    assert first.manifest == second.manifest


def test_the_model_card_names_the_repository_of_a_hub_cache(quantized: QuantizedModel) -> None:
    """The name of the source is `owner/name` then."""
    source = quantized.artifact.manifest.source.model_copy(update={"name": "owner/model"})
    manifest = quantized.artifact.manifest.model_copy(update={"source": source})
    data: Any = ModelCard(render_card(manifest, quantized.config, quantized.tensors, "gptq", "")).data

    assert data.base_model == "owner/model"


@pytest.mark.parametrize(
    ("name", "base_model"),
    [("openbmb/MiniCPM-V-2_6", "openbmb/MiniCPM-V-2_6"), ("./openbmb/MiniCPM", None), ("a/b/c", None), (None, None)],
)
def test_the_model_card_names_a_base_model_on_the_hub(
    name: str | None, base_model: str | None, quantized: QuantizedModel
) -> None:
    """A hub id in config.json becomes `base_model` of the card's metadata; local paths do not."""
    text = render_card(quantized.artifact.manifest, {"_name_or_path": name}, quantized.tensors, "gptq", "")
    data: Any = ModelCard(text).data

    assert data.base_model == base_model
    assert data.to_dict().get("base_model_relation") == ("quantized" if base_model else None)


def test_unquantized_modules_are_the_outermost(tiny_checkpoint: Path) -> None:
    """A module without packed matrices is listed itself, otherwise its unquantized submodules are."""
    weights = {"language.*": "int8-row", "language.layers.0.*": "keep", "language.layers.1.attention.o": "keep"}
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.model_validate({"name": "test", "weights": weights}))

    assert unquantized_modules(plan.tensors) == (
        "vpm",
        "resampler",
        "llm.model.embed_tokens",
        "llm.model.layers.0",
        "llm.model.layers.1.self_attn.o_proj",
        "llm.lm_head",
    )


@pytest.mark.parametrize(
    ("name", "matches"),
    [("vpm", True), ("vpm.encoder.layers.0", True), ("model.vpm.a", True), ("vpmx", False), ("xvpm.a", False)],
)
def test_module_patterns_match_whole_names(name: str, matches: bool) -> None:
    """A pattern matches a module and its submodules under any prefix, and no module with a longer name."""
    assert bool(re.match(module_pattern("vpm"), name)) is matches
