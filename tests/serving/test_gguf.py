"""Tests of llama.cpp as a chat engine, with and without the preprocessing of the original."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.dataset import Sample
from mcpmq.errors import ArtifactError, CheckpointError, DatasetError, EngineError
from mcpmq.families import family_named
from mcpmq.runners.gguf import open_runner
from mcpmq.serving.artifacts import open_engine, text_files
from mcpmq.serving.decoding import DecodingEngine
from mcpmq.serving.engine import Message, Sampling, gather
from mcpmq.serving.gguf import PREPROCESSING_NOTE, LlamaCppEngine, engine_messages
from tests.serving.chats import ask, most_probable_tokens, question
from tests.serving.conftest import ROOT


@pytest.fixture(scope="module")
def engine(reference_gguf: Artifact) -> Iterator[LlamaCppEngine]:
    """The reference in llama.cpp, which preprocesses images itself."""
    opened = open_engine(reference_gguf.path, threads=1)
    assert isinstance(opened, LlamaCppEngine)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def exact(reference_gguf: Artifact) -> Iterator[DecodingEngine]:
    """The reference in llama.cpp with the slices and tokens of the original."""
    opened = open_engine(reference_gguf.path, threads=1, exact=True)
    assert isinstance(opened, DecodingEngine)
    yield opened
    opened.close()


def test_the_context_is_that_of_the_model(engine: LlamaCppEngine, reference_gguf: Artifact) -> None:
    """A longer requested context is reduced to the training context, a shorter one is used."""
    assert engine.context_length == 2048
    assert engine.label.startswith("llama.cpp, xllamacpp 2026.")
    assert engine.has_vision
    short = open_engine(reference_gguf.path, threads=1, context=512)
    assert short.context_length == 512
    short.close()


def test_prompts_have_the_tokens_of_the_processor(
    engine: LlamaCppEngine, exact: DecodingEngine, held_out: list[Sample]
) -> None:
    """Number of the image and line feed are added: square images and texts have the tokens of the original."""
    for sample in (held_out[0], held_out[3]):
        assert ask(engine, sample, max_tokens=2)[1].prompt_tokens == ask(exact, sample, max_tokens=2)[1].prompt_tokens


def test_answers_equal_those_on_exact_slices(
    engine: LlamaCppEngine, exact: DecodingEngine, held_out: list[Sample]
) -> None:
    """For an image of the size of a slice and for a text, llama.cpp's own preprocessing changes nothing."""
    for sample in (held_out[0], held_out[3]):
        text, end = ask(engine, sample)
        assert (text, end.finish_reason, end.notes) == (ask(exact, sample)[0], "stop", ())
        assert end.completion_tokens == ask(exact, sample)[1].completion_tokens


def test_exact_answers_are_the_greedy_ones_of_the_evaluation(
    exact: DecodingEngine, reference_gguf: Artifact, held_out: list[Sample]
) -> None:
    """Given the generated answer, the evaluation finds the same most probable token at every position."""
    runner = open_runner(reference_gguf.path, 1)
    samples = [exact.processor.encode(one.id, one.image, one.prompt, ask(exact, one)[0]) for one in held_out]

    found = list(runner.run(samples, most_probable_tokens))

    assert found == [sample.tokens[sample.answer_start :].tolist() for sample in samples]
    runner.close()


def test_resized_images_are_noted(engine: LlamaCppEngine, held_out: list[Sample]) -> None:
    """The note names the option that uses the slices of the original."""
    assert ask(engine, held_out[2], max_tokens=1)[1].notes == (PREPROCESSING_NOTE,)
    assert "--exact" in PREPROCESSING_NOTE


def test_a_closed_answer_is_cancelled(engine: LlamaCppEngine, held_out: list[Sample]) -> None:
    """The engine answers the next chat after a generator was closed."""
    answer = engine.generate(question(held_out[0]), Sampling(temperature=4.0, max_tokens=2000))
    next(answer)
    answer.close()

    assert ask(engine, held_out[0])[0] == ask(engine, held_out[0])[0] != ""


def test_equal_seeds_give_equal_answers(engine: LlamaCppEngine, held_out: list[Sample]) -> None:
    """With a high temperature, answers depend on the seed only."""
    settings = {"temperature": 3.0, "max_tokens": 12}
    first, again, other = (ask(engine, held_out[0], **settings, seed=seed)[0] for seed in (5, 5, 6))

    assert first == again != other


def test_limits_and_stop_texts_end_the_answer(engine: LlamaCppEngine, held_out: list[Sample]) -> None:
    """Length and stop are reported."""
    whole, _ = ask(engine, held_out[0])

    assert ask(engine, held_out[0], max_tokens=3)[1].finish_reason == "length"
    assert ask(engine, held_out[0], stop=(whole[6:9],))[0] == whole[: whole.index(whole[6:9])]


def test_log_probabilities_are_requested(engine: LlamaCppEngine, held_out: list[Sample]) -> None:
    """Greedy tokens are the first alternative."""
    pieces = list(engine.generate(question(held_out[0]), Sampling(top_logprobs=2)))

    tokens = [token for piece in pieces for token in piece.tokens]
    assert all(token.alternatives[0] == (token.text, token.logprob) for token in tokens)
    assert "".join(token.text for token in tokens) == "".join(piece.text for piece in pieces)


def test_a_chat_longer_than_the_context_is_an_error(engine: LlamaCppEngine) -> None:
    """The error has both numbers and the option."""
    with pytest.raises(DatasetError, match="a context of 2,048 leaves no space") as caught:
        gather(engine.generate([Message("user", ("one " * 3000,))], Sampling()))
    assert "--context" in caught.value.hint


def test_special_tokens_in_a_text_are_an_error(engine: LlamaCppEngine) -> None:
    """llama.cpp would read them as the end of the turn, or as an image."""
    for token in ("<|im_end|>", "<|im_start|>", "<unk>", "<__media__>"):
        with pytest.raises(DatasetError, match="special token"):
            gather(engine.generate([Message("user", (f"a{token}",))], Sampling()))


def test_messages_alternate_texts_and_images() -> None:
    """Images have their number, and a line feed separates them from the text; Qwen has neither."""
    image = Image.new("RGB", (4, 4))
    chat = [Message("user", (image, "A?")), Message("assistant", ("b",)), Message("user", ("c", image, image))]

    def texts(name: str) -> list[list[str]]:
        contents = [one["content"] for one in engine_messages(family_named(name), chat)]
        parts = [[{"text": one}] if isinstance(one, str) else one for one in contents]
        return [[part.get("text", "IMAGE") for part in content] for content in parts]

    assert texts("minicpm-v-2.6") == [
        ["<image_id>0</image_id>", "IMAGE", "\nA?"],
        ["b"],
        ["c\n<image_id>1</image_id>", "IMAGE", "\n<image_id>2</image_id>", "IMAGE"],
    ]
    assert texts("qwen2-vl") == [["IMAGE", "A?"], ["b"], ["c", "IMAGE", "IMAGE"]]


def test_exact_slices_need_the_files_of_the_original(reference_gguf: Artifact, tmp_path: Path) -> None:
    """A GGUF artifact alone has no preprocessor settings; `source` names them, and must be of the same family."""
    alone = shutil.copytree(reference_gguf.path, tmp_path / "alone" / "gguf")

    with pytest.raises(ArtifactError, match="files of the original, `reference`$") as caught:
        open_engine(alone, threads=1, exact=True)
    assert "--source" in caught.value.hint
    open_engine(alone, threads=1, exact=True, source=reference_gguf.path.parent / "onnx").close()
    with pytest.raises(CheckpointError):
        open_engine(alone, threads=1, exact=True, source=tmp_path)


def test_exact_slices_use_the_original_in_the_cache_of_the_hub(
    reference_gguf: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit in the manifest selects the folder; another commit, and another name, are not used."""
    alone, commit = shutil.copytree(reference_gguf.path, tmp_path / "alone" / "gguf"), "0123456789" * 4
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / commit
    shutil.copytree(ROOT / "calibration" / "reference", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def folder(**source: str) -> Path:
        record = reference_gguf.manifest.source.model_copy(update=source)
        return text_files(Artifact(alone, reference_gguf.manifest.model_copy(update={"source": record})))

    assert folder(name="owner/name", revision=commit) == snapshot
    for other in ({"revision": "f" * 40}, {"name": "owner/other"}, {"name": "../x"}):
        with pytest.raises(ArtifactError, match="nor the cache of the hub"):
            folder(**({"name": "owner/name", "revision": commit} | other))


def test_a_damaged_file_is_an_error(reference_gguf: Artifact, tmp_path: Path) -> None:
    """A file without its tensors is an error of the user."""
    damaged = shutil.copytree(reference_gguf.path, tmp_path / "gguf")
    [file] = Artifact.open(damaged).component_files("language")
    file.write_bytes(file.read_bytes()[:400_000])

    with pytest.raises(EngineError, match="cannot load"):
        open_engine(damaged, threads=1)


def test_a_missing_mmproj_file_is_an_error(reference_gguf: Artifact, tmp_path: Path) -> None:
    """A vision model without its vision encoder is not opened."""
    damaged = shutil.copytree(reference_gguf.path, tmp_path / "gguf")
    [file] = Artifact.open(damaged).component_files("vision+projector")
    file.unlink()

    with pytest.raises(ArtifactError, match=f"`{file.name}` is missing"):
        open_engine(damaged, threads=1)
