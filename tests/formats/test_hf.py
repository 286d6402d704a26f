"""What all Hugging Face artifacts share: refusals, shards and index, what is passed through, the card."""

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors import safe_open

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError, MissingExtra, RecipeError
from mcpmq.export import export
from mcpmq.formats import FormatName, check
from mcpmq.formats.gptq.packing import pack
from mcpmq.formats.hf.names import as_pattern, wide_modules
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.formats.hf.writer import Layout, write_model
from mcpmq.plan import make_plan
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.system.progress import silent
from tests.gguf_tools import quantized_by
from tests.hf_tools import hf_artifact, same_weight, tensors_in
from tests.tiny import CONFIG, build_checkpoint

FORMATS_AND_SCHEMES = [
    ("gptq", "int4-g32-asym"),
    ("awq", "int4-g64"),
    ("bnb", "fp4"),
    ("bnb", "int8-row"),
    ("compressed-tensors", "int8-g64"),
]


@pytest.fixture(scope="module")
def quantized(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """The tiny checkpoint, the layers of its language model in 4 bits."""
    return quantized_by(tiny_checkpoint, tmp_path_factory.mktemp("hf"), **{"language.*": "int4-g64"})


def refused(checkpoint: Path, name: str, **weights: str) -> FormatError:
    """The error for a recipe that a format cannot hold."""
    plan = make_plan(Checkpoint.open(checkpoint), Recipe.model_validate({"name": "test", "weights": weights}))
    with pytest.raises(FormatError) as caught:
        check(plan, cast(FormatName, name))
    return caught.value


@pytest.mark.parametrize(
    ("name", "weights", "weight", "hint"),
    [
        ("gptq", {"language.*": "int4-g256"}, "language.layers.0.attention.q", "-g128"),
        ("gptq", {"language.*": "q4_k"}, "language.layers.0.attention.q", "int4"),
        ("gptq", {"vision.*": "int4-g32"}, "vision.position_embedding", "language alone"),
        ("awq", {"language.*": "int8-g64"}, "language.layers.0.attention.q", "int4-g128"),
        ("awq", {"language.*": "int4-row"}, "language.layers.0.attention.q", "int4-g128"),
        ("awq", {"head": "int4-g32"}, "head", "keep"),
        ("bnb", {"language.*": "int4-g64"}, "language.layers.0.attention.q", "nf4"),
        ("bnb", {"language.*": "int8-row", "embedding": "nf4"}, "embedding", "keep"),
        ("bnb", {"projector.*": "nf4"}, "projector.kv", "language and vision"),
        ("compressed-tensors", {"language.*": "int4-g64-asym"}, "language.layers.0.attention.q", "symmetric"),
        ("compressed-tensors", {"vision.layers.*": "int4-g64"}, "vision.layers.0.mlp.down", "144 columns"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_tensor_and_what_would_fit(
    name: str, weights: dict[str, str], weight: str, hint: str, tiny_checkpoint: Path
) -> None:
    """Before a weight is read."""
    error = refused(tiny_checkpoint, name, **weights)

    assert f"`{name}` cannot hold `{weight}` as" in str(error)
    assert hint in error.hint


def test_words_must_come_out_whole(tmp_path: Path) -> None:
    """Kernels take 32 outputs at a time."""
    config = {**CONFIG, "intermediate_size": 528}
    checkpoint = build_checkpoint(tmp_path / "tiny", config)

    for name in ("gptq", "awq"):
        error = refused(checkpoint, name, **{"language.*": "int4-g64"})
        assert "`language.layers.0.mlp.gate`" in str(error)
        assert "528 x 256" in error.hint


@pytest.mark.parametrize("name", ["gptq", "awq", "bnb", "compressed-tensors"])
def test_one_artifact_has_one_grid(name: str, tiny_checkpoint: Path) -> None:
    """A second is refused, and so is a recipe that quantizes nothing."""
    own, other = ("nf4", "fp4") if name == "bnb" else ("int4-g32", "int4-g64")
    error = refused(tiny_checkpoint, name, **{"language.*": own, "language.layers.1.mlp.up": other})

    assert "`language.layers.1.mlp.up`" in str(error)
    assert f"`{own}`, as `language.layers.0.attention.q` has it" in error.hint
    assert "no weight is quantized" in str(refused(tiny_checkpoint, name, head="keep"))


def test_gptq_packs_the_same_in_every_layer(tiny_checkpoint: Path) -> None:
    """Its loader in transformers knows no exceptions; a matrix may be kept in all layers."""
    weights = {"language.*": "int4-g64", "language.layers.1.mlp.down": "keep"}
    error = refused(tiny_checkpoint, "gptq", **weights)

    assert "`language.layers.1.mlp.down` as `bfloat16`" in str(error)
    recipe = Recipe.model_validate(
        {"name": "test", "weights": {"language.*": "int4-g64", "language.*.mlp.down": "keep"}}
    )
    check(make_plan(Checkpoint.open(tiny_checkpoint), recipe), "gptq")


def test_codebooks_are_refused_where_their_blocks_are_not_whole(tiny_checkpoint: Path) -> None:
    """144 columns are no multiple of 64, so the plan is refused already."""
    recipe = Recipe.model_validate({"name": "test", "weights": {"vision.layers.*": "nf4"}})

    with pytest.raises(RecipeError, match=r"vision\.layers\.0\.mlp\.down.*144 columns"):
        make_plan(Checkpoint.open(tiny_checkpoint), recipe)


@pytest.mark.parametrize(("name", "package"), [("bnb", "bitsandbytes"), ("compressed-tensors", "compressed_tensors")])
def test_a_reader_that_is_not_installed_is_said_with_its_extra(
    name: FormatName, package: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a weight is read, with the command that installs it."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("language-nf4"))
    monkeypatch.setattr("mcpmq.formats.find_spec", lambda asked: None if asked == package else object())

    with pytest.raises(MissingExtra, match=package) as caught:
        check(plan, name)

    assert f"mcpmq[{name}]" in caught.value.hint


@pytest.mark.parametrize(("name", "scheme"), FORMATS_AND_SCHEMES)
def test_every_weight_comes_back_to_the_bit(name: str, scheme: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Packed ones as codes, scales and zeros; all others in the dtype and the layout that the original has."""
    quantized, artifact = hf_artifact(tiny_checkpoint, tmp_path, name, **{"language.*": scheme})
    opened, original = HuggingFaceArtifact.open(artifact.path), Checkpoint.open(tiny_checkpoint)
    stored = tensors_in(artifact)

    for spec in original.specs:
        weight, loaded = quantized.load(spec.name), opened.load(spec.name)
        if isinstance(weight, torch.Tensor):
            assert torch.equal(stored[spec.hub_name], original.load_stored(spec))
            assert isinstance(loaded, torch.Tensor)
            assert torch.equal(loaded, weight)
        else:
            assert same_weight(loaded, weight)


@pytest.mark.parametrize("shard_nbytes", [1, 200_000, 10**9])
def test_shards_hold_everything_once(shard_nbytes: int, quantized: Quantized, tmp_path: Path) -> None:
    """Each at most so large, unless one weight alone is larger; what sees and what speaks apart; an index."""
    files = write_model(quantized, tmp_path, Layout({"quant_method": "gptq"}, pack, ""), silent, shard_nbytes)
    shards = sorted(tmp_path.glob("*.safetensors"))
    held = {}
    for shard in shards:
        with safe_open(shard, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            held |= dict.fromkeys(opened.keys(), shard.name)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())

    assert index["weight_map"] == held
    assert [shard.name for shard in shards] == [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]
    assert sorted([*files["vision+projector"], *files["language"]]) == [shard.name for shard in shards]
    assert not {name for name, shard in held.items() if name.startswith("llm.")} & set(files["vision+projector"])
    assert {held[name] for name in held if name.startswith("llm.")} == set(files["language"])
    if shard_nbytes == 10**9:
        assert len(shards) == 2


def test_texts_and_code_go_along(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Code only where config.json asks for it; nothing of it is run."""
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "coded"))
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_minicpmv.MiniCPMV"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "modeling_minicpmv.py").write_text("raise SystemExit('I was run')\n")
    _, artifact = hf_artifact(checkpoint, tmp_path, "gptq", **{"language.*": "int4-g64"})

    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"):
        assert (artifact.path / name).read_bytes() == (tiny_checkpoint / name).read_bytes()
    assert (artifact.path / "modeling_minicpmv.py").read_text().startswith("raise")
    assert artifact.nbytes_by_component()["code"] == 30
    artifact.verify()


def test_code_that_config_does_not_ask_for_stays_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Scripts that lie beside a checkpoint are not its code."""
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "scripts"))
    (checkpoint / "train.py").write_text("")

    assert not Checkpoint.open(checkpoint).code


def test_the_card_says_what_it_is(quantized: Quantized, tmp_path: Path) -> None:
    """Metadata as the hub reads it, readers, sizes, the recipe as it was asked, where it comes from."""
    write_model(quantized, tmp_path, Layout({"quant_method": "awq"}, pack, "Read by nobody."), silent)
    card = (tmp_path / "README.md").read_text()

    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags:\n- mcpmq\n")
    for said in ("- awq\n", "Read by nobody.", '"language.*" = "int4-g64"', quantized.artifact.manifest.source.sha256):
        assert said in card
    assert "| language | 2.36 MB |" in card
    written = card.partition("```toml\n")[2].partition("```")[0]
    assert Recipe.model_validate(tomllib.loads(written)).written() == quantized.artifact.manifest.recipe
    assert card.endswith(
        "## What it cost\n\nNot measured yet: `mcpmq evaluate` measures it and writes the figures here.\n"
    )


def test_the_same_codes_give_the_same_bytes(quantized: Quantized, tmp_path: Path) -> None:
    """Written twice, every file has the same hash."""
    made = [hf_export(quantized, tmp_path / name) for name in ("one", "two")]

    assert made[0].manifest == made[1].manifest


def hf_export(quantized: Quantized, out: Path) -> Artifact:
    """The same as gptq."""
    return export(quantized, "gptq", out)


def test_wide_modules_are_the_outermost(tiny_checkpoint: Path) -> None:
    """A whole tower where nothing in it is packed, single matrices where some are."""
    weights = {"language.*": "int8-row", "language.layers.0.*": "keep", "language.layers.1.attention.o": "keep"}
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.model_validate({"name": "test", "weights": weights}))

    assert wide_modules(plan.steps) == (
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
def test_patterns_end_where_names_end(name: str, matches: bool) -> None:
    """A module and all inside of it, under any model, and no other that begins like it."""
    assert bool(re.match(as_pattern("vpm"), name)) is matches
