"""The GGUF runner: losses against torch, image sizes, and errors."""

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
from mcpmq.families import family_named
from mcpmq.families.family import Processor
from mcpmq.families.inputs import Inputs
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.formats.gguf import files
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners.gguf import GgufRunner, open_runner
from mcpmq.runners.llamacpp.vision import VisionEncoder
from mcpmq.runners.torch import open_runner as open_torch_runner
from mcpmq.serving.preprocessing import EnginePreprocessing
from tests.checkpoint_tools import build_family
from tests.gguf_tools import export_gguf, quantize_with
from tests.loss_tools import answer_losses
from tests.tiny import CONFIG, build_checkpoint


@pytest.fixture(scope="module")
def full(tiny_full: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The unquantized tiny checkpoint as GGUF."""
    return export_gguf(tiny_full, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def int4(tiny_int4: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny checkpoint quantized with phone-int4 as GGUF."""
    return export_gguf(tiny_int4, tmp_path_factory.mktemp("int4"))


def losses(runner: GgufRunner, samples: list[Inputs]) -> np.ndarray:
    """Return the losses of all answer tokens of all samples."""
    taken = answer_losses(runner, samples)
    assert [len(loss) for loss in taken] == [len(sample.tokens) - sample.answer_start for sample in samples]
    assert {loss.dtype for loss in taken} == {np.dtype(np.float64)}
    return np.concatenate(taken)


def torch_losses(path: Path, samples: list[Inputs]) -> np.ndarray:
    """Return the losses of a checkpoint or a dequantized quantized model in torch."""
    return np.concatenate(answer_losses(open_torch_runner(path, 1), samples))


def test_unquantized_losses_equal_those_of_torch(
    full: Artifact, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """With F32 attention the only remaining difference is the F16 GELU of llama.cpp, in the vision encoder."""
    expected = torch_losses(tiny_checkpoint, tiny_samples)
    text = len(tiny_samples[0].tokens) - tiny_samples[0].answer_start

    exact = np.abs(losses(open_runner(full.path, 1, f32_attention=True), tiny_samples) - expected)

    assert exact[:text].max() < 1e-5
    assert exact.max() < 5e-4


def test_default_settings_change_the_losses_a_little(
    full: Artifact, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """F16 attention, the default of llama.cpp, changes the losses of a random model by less than 0.01 nats."""
    runner = open_runner(full.path, 1)

    assert np.abs(losses(runner, tiny_samples) - torch_losses(tiny_checkpoint, tiny_samples)).max() < 1e-2
    assert runner.notes == ()


def test_timing_phases_does_not_change_the_losses(full: Artifact, tiny_samples: list[Inputs]) -> None:
    """The timings are positive, and the encode time of a text sample is 0."""
    runner = open_runner(full.path, 1)
    before = losses(runner, tiny_samples[:2])
    image, text = runner.time_phases(tiny_samples[1]), runner.time_phases(tiny_samples[0])

    assert image.encode_seconds_per_slice > text.encode_seconds_per_slice == 0
    assert min(image.prefill_tokens_per_second, text.decode_tokens_per_second) > 0
    np.testing.assert_array_equal(losses(runner, tiny_samples[:2]), before)


@pytest.mark.parametrize(
    ("tensor", "block"), [("blk.1.ffn_down.weight", "language.layers.1"), ("output.weight", "head")]
)
def test_the_first_non_finite_value_is_reported_with_its_layer(
    tensor: str, block: str, full: Artifact, tiny_samples: list[Inputs], tmp_path: Path
) -> None:
    """The layer is found in a second run that observes every layer."""
    shutil.copytree(full.path, tmp_path / "damaged")
    [file] = Artifact.open(tmp_path / "damaged").component_files("language")
    reader = gguf.GGUFReader(file, "r+")
    [weight] = [one for one in reader.tensors if one.name == tensor]
    weight.data[:] = np.inf
    reader.data.flush()

    with pytest.raises(EngineError, match=f"`text`: first non-finite values in the output of `{block}`"):
        losses(open_runner(tmp_path / "damaged", 1), tiny_samples[:1])


def test_pixels_change_the_losses(full: Artifact, tiny_samples: list[Inputs]) -> None:
    """A black image with the same tokens has other losses."""
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


def test_quantized_losses_are_close_to_those_of_dequantized_weights(
    int4: Artifact, tiny_int4: QuantizedModel, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """llama.cpp also quantizes activations, with less than a third of the effect of the weight quantization."""
    taken, quantized = losses(open_runner(int4.path, 1), tiny_samples), torch_losses(tiny_int4.path, tiny_samples)

    distance = np.abs(taken - quantized).mean()

    assert distance < 0.05
    assert distance < np.abs(torch_losses(tiny_checkpoint, tiny_samples) - quantized).mean() / 3


def test_losses_do_not_depend_on_order_or_threads(int4: Artifact, tiny_samples: list[Inputs]) -> None:
    """Samples are independent, although they use one context with the size of the longest sample."""
    first, second = open_runner(int4.path, 1), open_runner(int4.path, 2)
    forwards, backwards = answer_losses(first, tiny_samples), answer_losses(second, tiny_samples[::-1])

    for one, other in zip(forwards, backwards[::-1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_long_text_is_decoded_in_batches(full: Artifact, tiny_checkpoint: Path) -> None:
    """A text longer than one llama_decode call has the losses of torch."""
    tokens = np.random.default_rng(0).integers(0, 300, 2100)
    sample = Inputs("long", tokens, 1, (), np.zeros((0, 2), np.int64))

    difference = losses(open_runner(full.path, 1, f32_attention=True), [sample]) - torch_losses(
        tiny_checkpoint, [sample]
    )

    assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize("size", [(42, 56), (56, 42), (56, 56), (70, 56), (14, 14), (98, 42), (14, 224), (28, 28)])
def test_slices_of_any_size_are_encoded_without_resizing(
    size: tuple[int, int], full: Artifact, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """Sizes that llama.cpp resizes by default have the losses of torch, and no note is added."""
    sample = tiny_samples[1]
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    changed = Inputs("size", sample.tokens, sample.answer_start, (pixels,), sample.image_bounds)
    runner = open_runner(full.path, 1, f32_attention=True)

    assert np.abs(losses(runner, [changed]) - torch_losses(tiny_checkpoint, [changed])).max() < 5e-4
    assert runner.notes == ()


def test_a_note_reports_resized_slices(
    full: Artifact, tiny_samples: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that does not export the slice size resizes slices; the note has their number and the first sample."""
    monkeypatch.setattr(VisionEncoder, "_find_slice_side", lambda *_: None)
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


def test_a_padded_ffn_gives_equal_losses(
    tiny_full: QuantizedModel,
    full: Artifact,
    tiny_samples: list[Inputs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An intermediate size of 160 instead of 144 changes the losses by rounding errors only."""
    monkeypatch.setattr(files, "padded_intermediate_size", lambda _: 160)
    padded = export_gguf(tiny_full, tmp_path)

    assert padded.nbytes_by_component()["vision+projector"] > full.nbytes_by_component()["vision+projector"]
    np.testing.assert_allclose(
        losses(open_runner(padded.path, 1), tiny_samples), losses(open_runner(full.path, 1), tiny_samples), atol=1e-5
    )


def test_a_square_ffn_is_read_in_the_right_orientation(tmp_path: Path, tiny_samples: list[Inputs]) -> None:
    """A square FFN is padded, because llama.cpp distinguishes the two matrices by their shape."""
    vision = {**CONFIG["vision_config"], "intermediate_size": CONFIG["vision_config"]["hidden_size"]}
    checkpoint = build_checkpoint(tmp_path / "tiny", {**CONFIG, "vision_config": vision})
    artifact = export_gguf(quantize_with(checkpoint, tmp_path, _all="f32"), tmp_path)

    taken = losses(open_runner(artifact.path, 1, f32_attention=True), tiny_samples)

    assert np.abs(taken - torch_losses(checkpoint, tiny_samples)).max() < 5e-4


@pytest.mark.parametrize("scheme", ["keep", "f16", "int8-row", "int4-g64", "q4_1", "q5_0", "iq4_nl"])
def test_every_scheme_has_losses_close_to_torch(
    scheme: str, tiny_checkpoint: Path, tiny_samples: list[Inputs], tmp_path: Path
) -> None:
    """Embedding, vision tower and resampler in one scheme have losses close to the dequantized weights in torch."""
    quantized = quantize_with(tiny_checkpoint, tmp_path, _all=scheme)
    taken = losses(open_runner(export_gguf(quantized, tmp_path).path, 1), tiny_samples)

    assert np.abs(taken - torch_losses(quantized.path, tiny_samples)).mean() < 0.05


@pytest.mark.parametrize("scheme", ["q4_k", "q5_k", "q6_k", "iq4_xs", "q3_k", "q2_k", "iq3_s"])
def test_blocks_of_256_columns_have_losses_close_to_torch(
    scheme: str, tiny_checkpoint: Path, tiny_samples: list[Inputs], tmp_path: Path
) -> None:
    """K-quants and `iq4_xs` run on matrices with rows of a multiple of 256, and on the padded vision FFN."""
    schemes = {"language__*": scheme, "embedding": scheme, "head": scheme, "vision__layers__*__mlp__down": scheme}
    quantized = quantize_with(tiny_checkpoint, tmp_path, **schemes)
    taken = losses(open_runner(export_gguf(quantized, tmp_path).path, 1), tiny_samples)

    assert np.abs(taken - torch_losses(quantized.path, tiny_samples)).mean() < 0.05


CHAT = """
import json, sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.mmproj.path = sys.argv[1:3]
parameters.n_ctx, parameters.n_parallel, parameters.warmup = 512, 1, False
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
content = [{"type": "image_url", "image_url": {"url": sys.argv[3]}}, {"type": "text", "text": "What does it say?"}]
request = {"max_tokens": 4, "temperature": 0, "logprobs": True, "messages": [{"role": "user", "content": content}]}
request["grammar"] = "root ::= [a-z]+"  # a random model also generates tokens that are not text
print(json.dumps(xllamacpp.Server(parameters).handle_chat_completions(request)))
"""


def test_the_llama_cpp_server_answers_about_an_image(int4: Artifact, tiny_checkpoint: Path) -> None:
    """With the template and preprocessing of llama.cpp, the first token has the probability of the runner."""
    png, pixels = BytesIO(), np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    Image.fromarray(pixels).save(png, "png")
    url = "data:image/png;base64," + b64encode(png.getvalue()).decode()
    files = [str(file) for component in ("language", "vision+projector") for file in int4.component_files(component)]
    done = subprocess.run([sys.executable, "-c", CHAT, *files, url], capture_output=True, text=True, check=True)

    [choice] = json.loads(done.stdout)["choices"]
    first = choice["logprobs"]["content"][0]
    processor = MiniCpmVProcessor.open(tiny_checkpoint)
    content = f"<image>{'<unk>' * CONFIG['query_num']}</image>What does it say?"
    prompt = processor.tokenizer.encode(processor.template.render([{"role": "user", "content": content}])).ids
    start = prompt.index(processor.special_tokens["<image>"]) + 1
    bounds = np.array([[start, start + CONFIG["query_num"]]])
    sample = Inputs("chat", np.array([*prompt, first["id"]]), len(prompt), (pixels,), bounds)

    assert choice["message"]["content"]
    assert losses(open_runner(int4.path, 1), [sample])[0] == pytest.approx(-first["logprob"], abs=2e-2)


def with_replaced_file(artifact: Artifact, folder: Path, component: str, content: bytes) -> Path:
    """Copy an artifact and replace the content of one file."""
    shutil.rmtree(folder / "copy", ignore_errors=True)
    shutil.copytree(artifact.path, folder / "copy")
    (folder / "copy" / artifact.component_files(component)[0].name).write_bytes(content)
    return folder / "copy"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(component=st.sampled_from(["language", "vision+projector"]), kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_an_error(component: str, kept: float, int4: Artifact, tmp_path: Path) -> None:
    """A file truncated at any byte raises an error with the log of llama.cpp and does not crash."""
    whole = int4.component_files(component)[0].read_bytes()
    path = with_replaced_file(int4, tmp_path, component, whole[: int(kept * len(whole))])

    with pytest.raises(EngineError, match="cannot load") as caught:
        open_runner(path, 1)

    assert "log of llama.cpp" in str(caught.value)


@pytest.mark.parametrize("component", ["language", "vision+projector"])
def test_a_file_without_magic_number_is_an_error(component: str, int4: Artifact, tmp_path: Path) -> None:
    """The error has the reason of llama.cpp."""
    with pytest.raises(EngineError, match="invalid magic"):
        open_runner(with_replaced_file(int4, tmp_path, component, b"not a GGUF file" * 1000), 1)


def test_swapped_files_are_an_error(int4: Artifact, tmp_path: Path) -> None:
    """An mmproj file is not a language model file, and vice versa."""
    language, mmproj = (
        int4.component_files(component)[0].read_bytes() for component in ("language", "vision+projector")
    )

    for component, content in (("language", mmproj), ("vision+projector", language)):
        with pytest.raises(EngineError, match="cannot load"):
            open_runner(with_replaced_file(int4, tmp_path, component, content), 1)


def test_an_artifact_of_another_format_is_an_error(tiny_int4: QuantizedModel) -> None:
    """A quantized model is not a GGUF artifact."""
    with pytest.raises(ArtifactError, match="is not a GGUF artifact with a language model file and an mmproj file"):
        open_runner(tiny_int4.path, 1)


def test_an_unexpected_number_of_image_tokens_is_an_error(full: Artifact, tiny_samples: list[Inputs]) -> None:
    """A sample encoded for another number of tokens per slice raises an error."""
    sample = tiny_samples[1]
    bounds = sample.image_bounds - np.array([0, 1])

    with pytest.raises(EngineError, match=r"encoded a slice to 4 tokens; expected 3"):
        losses(
            open_runner(full.path, 1),
            [Inputs(sample.id, sample.tokens, sample.answer_start, sample.slices, bounds)],
        )


def test_the_runner_does_not_import_torch() -> None:
    """The memory of the measured process does not include torch."""
    code = "import sys, mcpmq.runners.gguf, mcpmq.runners.llamacpp as l; l.llamacpp(); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _with_uncut_images(samples: list[Inputs]) -> list[Inputs]:
    """Add to each sample its image before slicing, with the pixels of `tiny_samples`."""
    sizes = {"image-56": (56, 56), "image-150": (90, 150), "image-60": (200, 60)}
    images = {
        name: np.random.default_rng(int(name[6:])).integers(0, 256, (*size, 3), np.uint8)
        for name, size in sizes.items()
    }
    return [replace(one, images=(images[one.id],)) if one.slices else one for one in samples]


def test_llama_cpp_can_preprocess_images(full: Artifact, tiny_samples: list[Inputs]) -> None:
    """An image of the slice size has equal losses; a larger one has as many slices, but another resize filter."""
    runner = open_runner(full.path, 1, f32_attention=True)
    expected = answer_losses(runner, tiny_samples)

    found = answer_losses(runner, _with_uncut_images(tiny_samples))

    assert [len(loss) for loss in found] == [len(loss) for loss in expected]
    for text_or_square in (0, 1):
        np.testing.assert_allclose(found[text_or_square], expected[text_or_square], atol=1e-6)
    assert any(np.abs(found[number] - expected[number]).max() > 1e-4 for number in (2, 3))
    np.testing.assert_allclose(answer_losses(runner, tiny_samples)[2], expected[2], atol=1e-6)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Processor]:
    """Unquantized tiny SmolVLM2, whose images are cut into tiles, and its processor."""
    folder = tmp_path_factory.mktemp("tiled")
    quantized = quantize_with(build_family("smolvlm2", folder / "tiny"), folder)
    return export_gguf(quantized, folder), family_named("smolvlm2").open_processor(quantized.path)


def test_llama_cpp_cuts_an_image_into_the_tiles_of_the_original(
    tiled: tuple[Artifact, Processor], tmp_path: Path
) -> None:
    """Its tokens around tiles and its embeddings are those of tiles that are given one by one, and no notice is due."""
    artifact, processor = tiled
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8))
    image.save(tmp_path / "image.png")
    sample = processor.encode("image", tmp_path / "image.png", "What does it say?", "red sign")
    runner = open_runner(artifact.path, 1)
    [mmproj] = artifact.component_files("vision+projector")
    whole = replace(sample, images=(np.asarray(image),))

    assert len(sample.slices) == 7
    np.testing.assert_allclose(losses(runner, [whole]), losses(runner, [sample]), rtol=0, atol=1e-5)
    assert not EnginePreprocessing.read(mmproj).resizes(image)


def test_a_build_without_the_longest_edge_is_an_error(
    tiled: tuple[Artifact, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, llama.cpp would enlarge every tile without a note."""
    monkeypatch.setattr("mcpmq.runners.llamacpp.vision.MAX_HPARAMS_NBYTES", 8)

    with pytest.raises(EngineError, match="the image sizes of llama.cpp have an unknown layout"):
        open_runner(tiled[0].path, 1)
