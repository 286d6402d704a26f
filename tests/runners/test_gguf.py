"""llama.cpp gives the losses of the torch model, and says clearly what it cannot do."""

import json
import shutil
import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError, EngineError
from mcpmq.families.family import Inputs
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.formats.gguf import files
from mcpmq.quantized_model import Quantized
from mcpmq.runners.gguf import GgufRunner, open_runner
from mcpmq.runners.llamacpp.vision import Sight
from mcpmq.runners.torch import open_runner as open_torch_runner
from tests.gguf_tools import exported, quantized_by
from tests.loss_tools import losses_of
from tests.tiny import CONFIG, build_checkpoint


@pytest.fixture(scope="module")
def full(tiny_full: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny checkpoint as unquantized GGUF."""
    return exported(tiny_full, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def int4(tiny_int4: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny checkpoint as phone-int4 GGUF."""
    return exported(tiny_int4, tmp_path_factory.mktemp("int4"))


def losses(runner: GgufRunner, samples: list[Inputs]) -> np.ndarray:
    """Of every answer token, one sample after the other."""
    taken = losses_of(runner, samples)
    assert [len(loss) for loss in taken] == [len(sample.tokens) - sample.answer_start for sample in samples]
    assert {loss.dtype for loss in taken} == {np.dtype(np.float64)}
    return np.concatenate(taken)


def torch_losses(path: Path, samples: list[Inputs]) -> np.ndarray:
    """The same of a checkpoint, or of a quantized artifact dequantized, in torch."""
    return np.concatenate(losses_of(open_torch_runner(path, 1), samples))


def test_unquantized_losses_are_those_of_torch(
    full: Artifact, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """Token by token, text, one slice and many: the artifact is exact, what remains is llama.cpp's GELU in F16."""
    expected = torch_losses(tiny_checkpoint, tiny_samples)
    text = len(tiny_samples[0].tokens) - tiny_samples[0].answer_start

    exact = np.abs(losses(open_runner(full.path, 1, exact=True), tiny_samples) - expected)

    assert exact[:text].max() < 1e-5
    assert exact.max() < 5e-4


def test_as_llama_cpp_sets_itself_little_changes(
    full: Artifact, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """Its attention rounds to F16 by default: a few thousandths on a random model."""
    runner = open_runner(full.path, 1)

    assert np.abs(losses(runner, tiny_samples) - torch_losses(tiny_checkpoint, tiny_samples)).max() < 1e-2
    assert runner.notes == ()


def test_phases_are_timed_without_changing_anything(full: Artifact, tiny_samples: list[Inputs]) -> None:
    """Images, prompt and answer token by token; a text has no images to encode."""
    runner = open_runner(full.path, 1)
    before = losses(runner, tiny_samples[:2])
    seeing, reading = runner.phases(tiny_samples[1]), runner.phases(tiny_samples[0])

    assert seeing.encode_seconds_per_slice > reading.encode_seconds_per_slice == 0
    assert min(seeing.prefill_tokens_per_second, reading.decode_tokens_per_second) > 0
    np.testing.assert_array_equal(losses(runner, tiny_samples[:2]), before)


@pytest.mark.parametrize(
    ("tensor", "block"), [("blk.1.ffn_down.weight", "language.layers.1"), ("output.weight", "head")]
)
def test_the_layer_of_the_first_value_that_is_no_number_is_named(
    tensor: str, block: str, full: Artifact, tiny_samples: list[Inputs], tmp_path: Path
) -> None:
    """Found by running the sample once more, layer by layer."""
    shutil.copytree(full.path, tmp_path / "spoilt")
    [file] = Artifact.open(tmp_path / "spoilt").files_of("language")
    reader = gguf.GGUFReader(file, "r+")
    [weight] = [one for one in reader.tensors if one.name == tensor]
    weight.data[:] = np.inf
    reader.data.flush()

    with pytest.raises(EngineError, match=f"`text`: values that are not finite first come out of `{block}`"):
        losses(open_runner(tmp_path / "spoilt", 1), tiny_samples[:1])


def test_images_change_the_losses(full: Artifact, tiny_samples: list[Inputs]) -> None:
    """Another picture under the same tokens is another answer."""
    sample = tiny_samples[1]
    black = Inputs(
        sample.id,
        sample.tokens,
        sample.answer_start,
        tuple(np.zeros_like(part) for part in sample.slices),
        sample.image_bounds,
    )
    runner = open_runner(full.path, 1)

    assert np.abs(losses(runner, [sample]) - losses(runner, [black])).max() > 0.1


def test_quantized_losses_are_near_those_of_the_dequantized_weights(
    int4: Artifact, tiny_int4: Quantized, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """llama.cpp rounds activations to 8 bits too: closer to the quantized model than the original is."""
    taken, quantized = losses(open_runner(int4.path, 1), tiny_samples), torch_losses(tiny_int4.path, tiny_samples)

    distance = np.abs(taken - quantized).mean()

    assert distance < 0.05
    assert distance < np.abs(torch_losses(tiny_checkpoint, tiny_samples) - quantized).mean() / 3


def test_losses_are_the_same_every_time_and_in_any_order(int4: Artifact, tiny_samples: list[Inputs]) -> None:
    """No sample sees another one; the cache has the size of the longest."""
    first, second = open_runner(int4.path, 1), open_runner(int4.path, 2)
    forwards, backwards = losses_of(first, tiny_samples), losses_of(second, tiny_samples[::-1])

    for one, other in zip(forwards, backwards[::-1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_long_text_is_read_in_batches(full: Artifact, tiny_checkpoint: Path) -> None:
    """More tokens than llama.cpp takes in one call, without a seam in the losses."""
    tokens = np.random.default_rng(0).integers(0, 300, 2100)
    sample = Inputs("long", tokens, 1, (), np.zeros((0, 2), np.int64))

    difference = losses(open_runner(full.path, 1, exact=True), [sample]) - torch_losses(tiny_checkpoint, [sample])

    assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize("size", [(42, 56), (56, 42), (56, 56), (70, 56), (14, 14), (98, 42), (14, 224), (28, 28)])
def test_llama_cpp_sees_every_slice_as_it_is(
    size: tuple[int, int], full: Artifact, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """Sizes that it would resize by itself included."""
    sample = tiny_samples[1]
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    changed = Inputs("size", sample.tokens, sample.answer_start, (pixels,), sample.image_bounds)
    runner = open_runner(full.path, 1, exact=True)

    assert np.abs(losses(runner, [changed]) - torch_losses(tiny_checkpoint, [changed])).max() < 5e-4
    assert runner.notes == ()


def test_where_slices_must_be_resized_the_notes_say_so(
    full: Artifact, tiny_samples: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that hides the engine's side of a slice is used all the same, and told apart."""
    monkeypatch.setattr(Sight, "_find_slice_side", lambda *_: None)
    odd = np.zeros((42, 56, 3), np.uint8)
    samples = [
        Inputs(name, sample.tokens, sample.answer_start, (odd,), sample.image_bounds)
        for name, sample in (("a", tiny_samples[1]), ("b", tiny_samples[1]))
    ]
    runner = open_runner(full.path, 1)
    losses(runner, [tiny_samples[1], *samples])

    [note] = runner.notes
    assert "2 samples" in note
    assert "`a`" in note


def test_a_widened_ffn_changes_nothing(
    tiny_full: Quantized, full: Artifact, tiny_samples: list[Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """160 columns where the model has 144: the same losses to the last bits of F32."""
    monkeypatch.setattr(files, "widened_ffn", lambda _: 160)
    widened = exported(tiny_full, tmp_path)

    assert widened.nbytes_by_component()["vision+projector"] > full.nbytes_by_component()["vision+projector"]
    np.testing.assert_allclose(
        losses(open_runner(widened.path, 1), tiny_samples), losses(open_runner(full.path, 1), tiny_samples), atol=1e-5
    )


def test_a_square_ffn_is_not_turned_around(tmp_path: Path, tiny_samples: list[Inputs]) -> None:
    """Where llama.cpp would take the two matrices of the FFN for each other, they are not square in the file."""
    vision = {**CONFIG["vision_config"], "intermediate_size": CONFIG["vision_config"]["hidden_size"]}
    checkpoint = build_checkpoint(tmp_path / "tiny", {**CONFIG, "vision_config": vision})
    artifact = exported(quantized_by(checkpoint, tmp_path, _all="f32"), tmp_path)

    taken = losses(open_runner(artifact.path, 1, exact=True), tiny_samples)

    assert np.abs(taken - torch_losses(checkpoint, tiny_samples)).max() < 5e-4


@pytest.mark.parametrize("scheme", ["keep", "f16", "int8-row", "int4-g64", "q4_1", "q5_0", "iq4_nl"])
def test_every_scheme_runs(scheme: str, tiny_checkpoint: Path, tiny_samples: list[Inputs], tmp_path: Path) -> None:
    """Tables, vision and resampler included: close to torch on the same codes."""
    quantized = quantized_by(tiny_checkpoint, tmp_path, _all=scheme)
    taken = losses(open_runner(exported(quantized, tmp_path).path, 1), tiny_samples)

    assert np.abs(taken - torch_losses(quantized.path, tiny_samples)).mean() < 0.05


@pytest.mark.parametrize("scheme", ["q4_k", "q5_k", "q6_k"])
def test_k_quants_run(scheme: str, tiny_checkpoint: Path, tiny_samples: list[Inputs], tmp_path: Path) -> None:
    """On what 256 divides, and on the widened vision FFN."""
    schemes = {"language__*": scheme, "embedding": scheme, "head": scheme, "vision__layers__*__mlp__down": scheme}
    quantized = quantized_by(tiny_checkpoint, tmp_path, **schemes)
    taken = losses(open_runner(exported(quantized, tmp_path).path, 1), tiny_samples)

    assert np.abs(taken - torch_losses(quantized.path, tiny_samples)).mean() < 0.05


CHAT = """
import json, sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.mmproj.path = sys.argv[1:3]
parameters.n_ctx, parameters.n_parallel, parameters.warmup = 512, 1, False
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
content = [{"type": "image_url", "image_url": {"url": sys.argv[3]}}, {"type": "text", "text": "What does it say?"}]
request = {"max_tokens": 4, "temperature": 0, "logprobs": True, "messages": [{"role": "user", "content": content}]}
request["grammar"] = "root ::= [a-z]+"  # of a random model's tokens, those that are text
print(json.dumps(xllamacpp.Server(parameters).handle_chat_completions(request)))
"""


def test_unmodified_llama_cpp_answers_about_an_image(int4: Artifact, tiny_checkpoint: Path) -> None:
    """Its own server, template and preprocessing: the first token of the answer is as likely as the runner says."""
    picture, pixels = BytesIO(), np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    Image.fromarray(pixels).save(picture, "png")
    url = "data:image/png;base64," + b64encode(picture.getvalue()).decode()
    files = [str(file) for component in ("language", "vision+projector") for file in int4.files_of(component)]
    done = subprocess.run([sys.executable, "-c", CHAT, *files, url], capture_output=True, text=True, check=True)

    [choice] = json.loads(done.stdout)["choices"]
    first = choice["logprobs"]["content"][0]
    processor = MiniCpmVProcessor.open(tiny_checkpoint)
    content = f"<image>{'<unk>' * CONFIG['query_num']}</image>What does it say?"
    prompt = processor.tokenizer.encode(processor.template.render([{"role": "user", "content": content}])).ids
    start = prompt.index(processor.special["<image>"]) + 1
    bounds = np.array([[start, start + CONFIG["query_num"]]])
    sample = Inputs("chat", np.array([*prompt, first["id"]]), len(prompt), (pixels,), bounds)

    assert choice["message"]["content"]
    assert losses(open_runner(int4.path, 1), [sample])[0] == pytest.approx(-first["logprob"], abs=2e-2)


def broken(artifact: Artifact, folder: Path, component: str, content: bytes) -> Path:
    """A copy of an artifact with one file of other content."""
    shutil.rmtree(folder / "broken", ignore_errors=True)
    shutil.copytree(artifact.path, folder / "broken")
    (folder / "broken" / artifact.files_of(component)[0].name).write_bytes(content)
    return folder / "broken"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(component=st.sampled_from(["language", "vision+projector"]), kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_an_error(component: str, kept: float, int4: Artifact, tmp_path: Path) -> None:
    """Wherever it ends, llama.cpp's own reason is told and nothing crashes."""
    whole = int4.files_of(component)[0].read_bytes()
    path = broken(int4, tmp_path, component, whole[: int(kept * len(whole))])

    with pytest.raises(EngineError, match="does not load") as caught:
        open_runner(path, 1)

    assert "llama.cpp says" in str(caught.value)


@pytest.mark.parametrize("component", ["language", "vision+projector"])
def test_garbage_is_an_error(component: str, int4: Artifact, tmp_path: Path) -> None:
    """No magic number, no model."""
    with pytest.raises(EngineError, match="invalid magic"):
        open_runner(broken(int4, tmp_path, component, b"no GGUF at all" * 1000), 1)


def test_the_other_file_is_an_error(int4: Artifact, tmp_path: Path) -> None:
    """What sees cannot read, and what reads cannot see."""
    language, sight = (int4.files_of(component)[0].read_bytes() for component in ("language", "vision+projector"))

    for component, content in (("language", sight), ("vision+projector", language)):
        with pytest.raises(EngineError, match="does not load"):
            open_runner(broken(int4, tmp_path, component, content), 1)


def test_another_artifact_is_refused(tiny_int4: Quantized) -> None:
    """A quantized artifact is no GGUF artifact."""
    with pytest.raises(ArtifactError, match="no GGUF artifact"):
        open_runner(tiny_int4.path, 1)


def test_a_slice_of_too_many_tokens_is_an_error(full: Artifact, tiny_samples: list[Inputs]) -> None:
    """A sample made for another number of image tokens is not measured."""
    sample = tiny_samples[1]
    bounds = sample.image_bounds - [0, 1]

    with pytest.raises(EngineError, match=r"made 4 tokens of a slice, not 3"):
        losses(
            open_runner(full.path, 1),
            [Inputs(sample.id, sample.tokens, sample.answer_start, sample.slices, bounds)],
        )


def test_the_runner_needs_no_torch() -> None:
    """The process that measures llama.cpp holds llama.cpp only."""
    code = "import sys, mcpmq.runners.gguf, mcpmq.runners.llamacpp as l; l.llamacpp(); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _with_whole(samples: list[Inputs]) -> list[Inputs]:
    """The samples with images to be cut by the engine; the pixels of `tiny_samples`, drawn again."""
    sizes = {"image-56": (56, 56), "image-150": (90, 150), "image-60": (200, 60)}
    return [
        replace(one, image=np.random.default_rng(int(one.id[6:])).integers(0, 256, (*sizes[one.id], 3), np.uint8))
        if one.slices
        else one
        for one in samples
    ]


def test_llama_cpp_cuts_images_itself_when_it_is_let(full: Artifact, tiny_samples: list[Inputs]) -> None:
    """One slice of the right size stays what it is; a larger image is cut alike but resized by another filter."""
    runner = open_runner(full.path, 1, exact=True)
    ours = losses_of(runner, tiny_samples)

    theirs = losses_of(runner, _with_whole(tiny_samples))

    assert [len(loss) for loss in theirs] == [len(loss) for loss in ours]
    for text_or_square in (0, 1):
        np.testing.assert_allclose(theirs[text_or_square], ours[text_or_square], atol=1e-6)
    assert any(np.abs(theirs[number] - ours[number]).max() > 1e-4 for number in (2, 3))
    np.testing.assert_allclose(losses_of(runner, tiny_samples)[2], ours[2], atol=1e-6)  # and back again
