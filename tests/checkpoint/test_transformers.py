"""Checkpoints that transformers writes and reads: the same weights, tokens and logits, or an error."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import McpmqError
from mcpmq.execution.torch_model import build_module
from mcpmq.families.inputs import Inputs
from mcpmq.families.text_inputs import TextProcessor
from mcpmq.runners.torch import open_runner
from tests.checkpoint_tools import build_family
from tests.tiny_families import TINY_FAMILIES, TinyFamily

pytestmark = pytest.mark.filterwarnings("ignore")
MODEL_CLASSES = {
    "qwen2-vl": "Qwen2VLForConditionalGeneration",
    "qwen2.5-vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3-vl": "Qwen3VLForConditionalGeneration",
    "qwen3.5": "Qwen3_5ForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "gemma-3": "Gemma3ForConditionalGeneration",
    "lfm2-vl": "Lfm2VlForConditionalGeneration",
    "smolvlm2": "SmolVLMForConditionalGeneration",
    "minicpm-v-4.6": "MiniCPMV4_6ForConditionalGeneration",
    "minicpm-v-4.7": "MiniCPMV4_7ForConditionalGeneration",
    "minicpm3": "MiniCPM3ForCausalLM",
}
PROMPT, ANSWER = "How many circles are there? cafe\u0301", "three"


def load(path: Path) -> Any:
    """Load a checkpoint with its class in transformers, or with that of mcpmq for a family without one."""
    checkpoint = Checkpoint.open(path)
    if name := MODEL_CLASSES.get(checkpoint.family.name):
        return getattr(transformers, name).from_pretrained(path, dtype=torch.float32).eval()
    empty = cast(Any, build_module(checkpoint.family, checkpoint.config))
    return type(empty).from_pretrained(path, config=empty.config, dtype=torch.float32).eval()


def resave(path: Path, out: Path) -> Path:
    """Load a checkpoint with transformers and write it with `save_pretrained`."""
    model = load(path)
    model.save_pretrained(out)
    if Checkpoint.open(path).family.name not in MODEL_CLASSES:  # the published configuration, which the class extends
        shutil.copyfile(path / "config.json", out / "config.json")
    config = None if model.config.model_type.endswith("_thinker") else model.config  # part of the published one
    tokenizer = AutoTokenizer.from_pretrained(out if (out / "tokenizer.json").exists() else path, config=config)
    tokenizer.save_pretrained(out)
    if (path / "preprocessor_config.json").is_file():
        try:
            AutoImageProcessor.from_pretrained(path).save_pretrained(out)
        except (ValueError, ImportError):  # the published code has the class, or it needs torchvision
            shutil.copyfile(path / "preprocessor_config.json", out / "preprocessor_config.json")
    return out


def answer_logits(path: Path, inputs: Inputs) -> NDArray[np.float32]:
    """Return the logits of mcpmq for the answer tokens."""

    def collect(_: Inputs, rows: Any) -> NDArray[np.float32]:
        return np.stack(list(rows))

    [logits] = open_runner(path, 1).run([inputs], collect)
    return logits


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A random image."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.mark.parametrize("family", [tiny for tiny in TINY_FAMILIES if not tiny.variant], ids=lambda tiny: tiny.name)
def test_a_checkpoint_that_transformers_wrote_has_its_logits(family: TinyFamily, image: Path, tmp_path: Path) -> None:
    """Names, configuration and processor files of `save_pretrained` are read; tokens are those of the source."""
    source = family.build(tmp_path / "source")
    saved = resave(source, tmp_path / "saved")
    checkpoint = Checkpoint.open(saved)
    processors = [checkpoint.family.open_processor(path) for path in (source, saved)]
    file = None if isinstance(processors[0], TextProcessor) else image
    before, inputs = (processor.encode("a", file, PROMPT, ANSWER) for processor in processors)

    assert inputs.tokens.tolist() == before.tokens.tolist()
    arguments = {name: torch.from_numpy(value) for name, value in processors[1].model_inputs(inputs).items()}
    with torch.inference_mode():
        expected = load(saved)(**arguments, use_cache=False).logits[0, inputs.answer_start - 1 : -1].numpy()
    np.testing.assert_allclose(answer_logits(saved, inputs), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", ["qwen2-vl", "minicpm-v-4.6", "minicpm3"])
def test_a_text_has_the_tokens_of_the_chat_template_in_transformers(family: str, tmp_path: Path) -> None:
    """`apply_chat_template` of the saved tokenizer gives the prompt."""
    saved = resave(build_family(family, tmp_path / "source"), tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(saved)
    inputs = Checkpoint.open(saved).family.open_processor(saved).encode("a", None, PROMPT, ANSWER)

    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, tokenize=True, return_dict=False
    )

    assert inputs.tokens[: inputs.answer_start].tolist() == expected


def delete(file: Path) -> None:
    file.unlink()


def move(file: Path) -> None:
    (file.parent / "other").mkdir()
    file.rename(file.parent / "other" / file.name)


def duplicate(file: Path) -> None:
    shutil.copyfile(file, file.with_name(f"copy-{file.name}"))


def put_under_another_name(file: Path) -> None:
    file.rename(file.with_name(f"old-{file.name}"))


@pytest.fixture(scope="module", params=["published", "saved by transformers"])
def layout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny Qwen2-VL in shards, with the template in tokenizer_config.json; or one file, with the template beside it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    source = build_family("qwen2-vl", folder / "source")
    return source if request.param == "published" else resave(source, folder / "saved")


def opened(path: Path) -> tuple[Checkpoint, Inputs] | McpmqError:
    """Open a checkpoint and encode a text, or return the error."""
    try:
        checkpoint = Checkpoint.open(path)
        return checkpoint, checkpoint.family.open_processor(path).encode("a", None, PROMPT, ANSWER)
    except McpmqError as error:
        return error


@pytest.mark.parametrize(
    "change", [delete, move, duplicate, put_under_another_name], ids=lambda change: change.__name__
)
def test_changed_files_give_the_model_of_transformers_or_an_error(
    change: Callable[[Path], None], layout: Path, tmp_path: Path
) -> None:
    """After a change of any file, weights and prompt tokens are those of transformers, or an error has a hint."""
    for number, name in enumerate(sorted(file.name for file in layout.iterdir())):
        copy = Path(shutil.copytree(layout, tmp_path / str(number)))
        change(copy / name)
        result = opened(copy)
        if isinstance(result, McpmqError):
            assert result.hint, f"{name}: {result}"
            continue
        checkpoint, inputs = result
        weights = load(copy).state_dict()
        for spec in checkpoint.specs:
            assert torch.equal(checkpoint.load(spec).float(), weights[spec.parameter_names[0]]), f"{name}: {spec.name}"
        expected = AutoTokenizer.from_pretrained(copy).apply_chat_template(
            [{"role": "user", "content": PROMPT}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert inputs.tokens[: inputs.answer_start].tolist() == expected, name
