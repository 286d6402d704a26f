"""A checkpoint with a trimmed vocabulary is the original without the rows of removed tokens, in all formats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.checkpoint.kept_vocabulary import KeptVocabulary
from mcpmq.compression_tables import VocabularyTable
from mcpmq.dataset import SampleSet
from mcpmq.errors import CheckpointError, DatasetError, OutputError, RecipeError
from mcpmq.estimate.forecast import forecast
from mcpmq.families.inputs import Inputs
from mcpmq.formats import FormatName
from mcpmq.one_pass import convert_in_one_pass
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.runners.llamacpp import llamacpp
from mcpmq.runners.llamacpp.artifact_files import artifact_files
from mcpmq.runners.llamacpp.language import LanguageModel
from mcpmq.runners.torch import open_checkpoint
from mcpmq.vocabulary import trim_vocabulary, trimmed_view
from tests.commands import Command
from tests.gguf_tools import llama_cpp_tokens
from tests.tiny_families import TINY_FAMILIES

TABLE = VocabularyTable(max_tokens=288)
PHONE = Recipe.load("phone-int4").model_copy(update={"vocabulary": TABLE})
BY_NAME = {family.name: family for family in TINY_FAMILIES}
SENTENCEPIECE = ("minicpm-v-2.0", "minicpm-v-4.0", "minicpm3", "gemma-3")


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that families cut into slices."""
    file = tmp_path_factory.mktemp("image") / "wide.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 150, 3), np.uint8)).save(file)
    return file


def encode(checkpoint: Checkpoint, image_file: Path) -> list[Inputs]:
    """Encode a sample with an image where the family has vision, and one without."""
    processor, image = checkpoint.family.open_processor(checkpoint.path), [image_file] * checkpoint.family.has_vision
    return [processor.encode(str(one), one, "7 + 1 ?", "8 !") for one in (None, *image)]


def logits_of(checkpoint: Checkpoint, samples: list[Inputs]) -> list[NDArray[np.float32]]:
    """Return the logits of the answer tokens of every sample: float32 [tokens, vocab_size]."""
    runner = open_checkpoint(checkpoint, 1)
    return list(runner.run(samples, lambda _, rows: np.stack([row.copy() for row in rows])))


def test_every_family_has_the_logits_of_the_original(family_checkpoint: Checkpoint, image_file: Path) -> None:
    """Tokens are those of the original by the map of ids, and logits are those of the kept tokens.

    Tokenizers with SentencePiece conventions are rejected before a weight is read.
    """
    if family_checkpoint.family.name in SENTENCEPIECE:
        with (
            pytest.raises(CheckpointError, match="sets `byte_fallback`, as SentencePiece does"),
            _trimmed(family_checkpoint),
        ):
            pass
        return
    with _trimmed(family_checkpoint) as view:
        assert view.vocabulary is not None
        ids = view.vocabulary.ids
        original, trimmed = encode(family_checkpoint, image_file), encode(view, image_file)
        for before, after in zip(original, trimmed, strict=True):
            assert ids[after.tokens].tolist() == before.tokens.tolist()
            assert after.image_bounds.tolist() == before.image_bounds.tolist()
        pairs = zip(logits_of(family_checkpoint, original), logits_of(view, trimmed), strict=True)
        for expected, found in pairs:
            np.testing.assert_allclose(found, expected[:, ids], rtol=0, atol=1e-4)
        assert len(ids) == view.architecture.language.vocab_size == 288


def _trimmed(checkpoint: Checkpoint) -> Any:
    return trim_vocabulary(checkpoint, TABLE)


@pytest.mark.parametrize("name", ["minicpm-v-2.6", "qwen2-vl", "minicpm-v-4.6"])
def test_every_reference_to_a_token_is_renumbered(name: str, tmp_path: Path) -> None:
    """Ids in configuration files refer to the token of the original; other numbers do not change."""
    checkpoint = Checkpoint.open(BY_NAME[name].build(tmp_path / "tiny"))
    _add_files(checkpoint.path)
    checkpoint = Checkpoint.open(checkpoint.path)
    with _trimmed(checkpoint) as view:
        old, new = (Tokenizer.from_file(str(one.path / "tokenizer.json")) for one in (checkpoint, view))
        config = json.loads((view.path / "config.json").read_text())
        for key in ("image_token_id", "video_token_id", "vision_start_token_id"):
            if key in checkpoint.config:
                assert new.id_to_token(config[key]) == old.id_to_token(checkpoint.config[key]) is not None
        if "insert_layer_id" in config:
            assert config["insert_layer_id"] == checkpoint.config["insert_layer_id"] == 0
        assert config.get("text_config", config)["vocab_size"] == 288
        generation = json.loads((view.path / "generation_config.json").read_text())
        assert [new.id_to_token(one) for one in generation["eos_token_id"]] == ["<|im_end|>", old.id_to_token(258)]
        assert (generation["pad_token_id"], generation["top_k"], generation["bos_token_id"]) == (-1, 258, None)
        vocabulary = json.loads((view.path / "vocab.json").read_text())
        assert vocabulary == {token: new.token_to_id(token) for token in vocabulary}
        merges = (view.path / "merges.txt").read_text().splitlines()
        kept = [" ".join(pair) for pair in json.loads((view.path / "tokenizer.json").read_text())["model"]["merges"]]
        assert merges == ["#version: 0.2", *kept]
        added = json.loads((view.path / "added_tokens.json").read_text())
        assert added == {"<|im_end|>": new.token_to_id("<|im_end|>")}


def _add_files(folder: Path) -> None:
    """Add the older tokenizer files and more keys of generation_config.json."""
    content = json.loads((folder / "tokenizer.json").read_text())
    end = next(token["id"] for token in content["added_tokens"] if token["content"] == "<|im_end|>")
    generation = {"eos_token_id": [end, 258], "pad_token_id": -1, "bos_token_id": None, "top_k": 258}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": end}))


FORMATS: list[tuple[str, FormatName, str]] = [
    ("minicpm-v-2.6", "gguf", "phone-int4"),
    ("qwen2-vl", "gguf", "phone-int4"),
    ("minicpm-v-4.6", "gguf", "phone-int4"),
    ("minicpm-v-2.5", "gguf", "phone-int4"),
    ("qwen3.5", "gguf", "phone-int4"),
    ("minicpm-v-2.6", "onnx", "phone-int4"),
    ("qwen2-vl", "onnx", "phone-int4"),
    ("qwen2-vl", "compressed-tensors", "language-int8"),
    ("minicpm-v-2.6", "gptq", "language-int8"),
]


@pytest.mark.parametrize(("family", "name", "recipe"), FORMATS)
def test_every_format_has_its_forecast_size_and_the_ids(
    family: str, name: FormatName, recipe: str, tmp_path: Path, image_file: Path
) -> None:
    """Files have the forecast bytes, the same in one pass and in two, and the engine's tokens are the original's."""
    checkpoint = Checkpoint.open(BY_NAME[family].build(tmp_path / "tiny"))
    loaded = Recipe.load(recipe).model_copy(update={"vocabulary": TABLE})
    with _trimmed(checkpoint) as view:
        plan = make_plan(view, loaded)
        [estimate] = forecast(plan, [name], 1024).formats
        artifact = convert_in_one_pass(plan, name, tmp_path / name)
    written = {(one.path, one.component, one.nbytes) for one in artifact.manifest.files}
    assert {(one.path, one.component, one.nbytes) for one in estimate.files.files} == written
    assert artifact.manifest.vocabulary is not None
    assert "removed by script" in artifact.manifest.notes[0]
    text = "how do you say user\n\n 31415 circles! Übung 猫"
    original = Tokenizer.from_file(str(checkpoint.path / "tokenizer.json"))
    tokens = [artifact.manifest.vocabulary.ids[token] for token in _engine_tokens(artifact, text)]
    assert original.decode(tokens) == text


def _engine_tokens(artifact: Artifact, text: str) -> list[int]:
    if artifact.manifest.kind == "gguf":
        return llama_cpp_tokens(LanguageModel(llamacpp(), artifact_files(artifact.path).language), text)
    tokens: list[int] = Tokenizer.from_file(str(artifact.path / "tokenizer.json")).encode(text).ids
    return tokens


def test_quantization_resumes_and_depends_on_the_vocabulary(small_checkpoint: Path, tmp_path: Path) -> None:
    """A finished quantized model is returned for the same vocabulary, and is in the way of another one."""
    checkpoint = Checkpoint.open(small_checkpoint)
    with _trimmed(checkpoint) as view:
        first = quantize(make_plan(view, PHONE), tmp_path / "quantized")
    with _trimmed(checkpoint) as view:
        assert quantize(make_plan(view, PHONE), tmp_path / "quantized").artifact.sha256 == first.artifact.sha256
    assert first.artifact.manifest.source.sha256 == checkpoint.sha256
    assert first.artifact.manifest.source.nbytes == checkpoint.nbytes
    assert first.specs["embedding"].shape[0] == first.specs["head"].shape[0] == 288
    with pytest.raises(OutputError):
        quantize(make_plan(checkpoint, Recipe.load("phone-int4")), tmp_path / "quantized")
    with pytest.raises(RecipeError, match=r"has a \[vocabulary\], the checkpoint has all tokens"):
        make_plan(checkpoint, PHONE)
    with _trimmed(checkpoint) as view, pytest.raises(RecipeError, match=r"has no \[vocabulary\]"):
        make_plan(view, Recipe.load("phone-int4"))


def test_the_table_decides_what_is_kept(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """A corpus of text files and the calibration set keeps its tokens; missing inputs are errors with a hint."""
    checkpoint, samples = Checkpoint.open(tiny_checkpoint), SampleSet.open(tiny_set)
    (tmp_path / "text.txt").write_text("we do")
    original = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    with trim_vocabulary(checkpoint, VocabularyTable(corpus=[str(tmp_path / "*.txt")])) as view:
        assert view.vocabulary is not None
        assert original.token_to_id("Ġdo") in view.vocabulary.ids
        assert list(view.vocabulary.corpus) == ["text.txt"]
    with trim_vocabulary(checkpoint, VocabularyTable(corpus=["calibration"], max_tokens=288), samples) as view:
        assert view.vocabulary is not None
        assert view.vocabulary.corpus == {"calibration": samples.sha256}
    _check_error(checkpoint, DatasetError, "no calibration set is given", corpus=["calibration"])
    _check_error(checkpoint, RecipeError, "matches no file", corpus=["missing/*.txt"])
    _check_error(checkpoint, RecipeError, "the language `xx` .* is not known", languages=["xx"])
    _check_error(checkpoint, RecipeError, "keeps all", languages=["en"])
    _check_error(checkpoint, RecipeError, r"`max_tokens` .* is 100, rounded down .* are 2\d\d", max_tokens=100)


def _check_error(checkpoint: Checkpoint, error: type[Exception], message: str, **table: Any) -> None:
    with pytest.raises(error, match=message), trim_vocabulary(checkpoint, VocabularyTable(**table)):
        pass


def test_a_damaged_record_is_an_error(small_checkpoint: Path) -> None:
    """The kept ids survive the manifest; another size, or a vocabulary of another model, is an error."""
    record = KeptVocabulary.from_ids(np.array([0, 3, 9]), 11, {"Common": 3}, {"Common": 8}, {})
    assert KeptVocabulary.model_validate_json(record.model_dump_json()).ids.tolist() == [0, 3, 9]
    assert record.new_ids.tolist() == [0, -1, -1, 1, -1, -1, -1, -1, -1, 2, -1]
    for change in ({"size": 4}, {"original_size": 30}, {"kept": "eJw="}, {"kept": "?"}):
        with pytest.raises(ValueError, match="`kept`"):
            KeptVocabulary.model_validate({**record.model_dump(), **change})
    with pytest.raises(CheckpointError, match="11"), trimmed_view(Checkpoint.open(small_checkpoint), record):
        pass


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe with a [vocabulary] table."""
    file = tmp_path / "small.toml"
    file.write_text('name = "small"\n[vocabulary]\nmax_tokens = 288\n[weights]\n"language.*" = "int4-g32"\n')
    return file


def test_commands(mcpmq: Command, tiny_checkpoint: Path, recipe_file: Path, tmp_path: Path) -> None:
    """`plan` and `quantize` trim by recipe and by option, with equal results; inspect shows the numbers."""
    by_option = mcpmq("plan", tiny_checkpoint, "--bits", 4, "--format", "gguf", "--trim-vocabulary", "288", "--json")
    by_recipe = mcpmq("plan", tiny_checkpoint, "--recipe", recipe_file, "--format", "gguf", "--json")
    shapes = [
        {one["name"]: one["shape"] for one in json.loads(found.stdout)["weights"]} for found in (by_option, by_recipe)
    ]
    assert shapes[0]["embedding"] == shapes[1]["head"] == [288, 256]

    out = tmp_path / "gguf"
    options = ("--bits", 8, "--format", "gguf", "--trim-vocabulary", "288")
    assert mcpmq("quantize", tiny_checkpoint, out, *options).exit_code == 0
    assert "288 of 320 tokens (90.0%)" in mcpmq("inspect", out).stdout
    wrong = mcpmq("plan", tiny_checkpoint, "--bits", 4, "--trim-vocabulary", "klingon")
    assert wrong.exit_code == 2
    assert "`klingon` is not one of" in wrong.stderr
