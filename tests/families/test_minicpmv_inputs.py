"""Slicing, prompt and packing of MiniCPM-V, compared with published values and with transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil, ensure_divide

from mcpmq.errors import CheckpointError, DatasetError
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.families.slicing import MergedSlicing, Slicing, choose_grid, pack_patches, slice_image, target_sizes
from tests.tiny import SPECIAL_TOKENS, SPLIT_REGEX

PUBLISHED = Slicing()
WORDS = ["system", "You", " are", " a", " helpful", " assistant", "user", "assistant", "what"]
ODD_SIZES = [(1, 1), (1, 200), (37, 5000), (5000, 37), (447, 449), (448, 448), (449, 448), (896, 448), (3000, 2999)]


class Oracle(MiniCPMV4_6ImageProcessorPil):
    """Transformers processor of 4.6 with the size factor of 2.6, one patch."""

    def find_best_resize(
        self, image_size: tuple[float, float], scale_resolution: int, patch_size: int, *_: Any, **options: Any
    ) -> tuple[int, int]:
        height, width = map(int, image_size)
        if height * width > scale_resolution**2 or options.get("allow_upscale"):
            ratio = width / height
            height = int(scale_resolution / ratio**0.5)
            width = int(height * ratio)
        return ensure_divide(height, patch_size), ensure_divide(width, patch_size)


def noise(width: int, height: int) -> Image.Image:
    """Return a random image."""
    pixels = np.random.default_rng(width * 7919 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def with_whole_words(path: Path) -> None:
    """Write a tokenizer with single tokens for the words of the system prompt, as the published one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = list(alphabet), []
    for word in WORDS:
        token = word.replace(" ", "Ġ")
        for end in range(2, len(token) + 1):
            merge = (token[: end - 1], token[end - 1])
            if merge not in merges:
                merges.append(merge)
                pieces.append(token[:end])
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(SPLIT_REGEX), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.save(str(path / "tokenizer.json"))


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def texts(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """Copy of the text files of the tiny checkpoint, to be changed."""
    for file in tiny_checkpoint.glob("*.json"):
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


@pytest.fixture
def published(texts: Path) -> MiniCpmVProcessor:
    """Processor with the published sizes and a tokenizer with the same number of tokens."""
    with_whole_words(texts)
    edit_json(texts / "config.json", query_num=64, image_size=448, vocab_size=1000)
    edit_json(texts / "preprocessor_config.json", scale_resolution=448, image_feature_size=64)
    return MiniCpmVProcessor.open(texts)


@pytest.fixture
def image_file(tmp_path: Path) -> Callable[[int, int], Path]:
    """Function that writes an image of a given size."""

    def write(width: int, height: int) -> Path:
        noise(width, height).save(tmp_path / "image.png")
        return tmp_path / "image.png"

    return write


def test_the_published_example_has_619_tokens(
    published: MiniCpmVProcessor, image_file: Callable[[int, int], Path]
) -> None:
    """1604x752 has 4 columns and 2 rows; target sizes and prompt length are those of the published code."""
    inputs = published.encode("a", image_file(1604, 752), "what", "x")
    assert choose_grid(1604, 752, PUBLISHED) == (4, 2)
    assert target_sizes(inputs.slices, 14).tolist() == [[22, 47], *[[31, 33]] * 8]
    assert inputs.answer_start == 619
    assert published.tokenizer.decode(inputs.tokens[-2:].tolist(), skip_special_tokens=False) == "x<|im_end|>"


def test_a_square_of_nine_slices_has_640_image_tokens(
    published: MiniCpmVProcessor, image_file: Callable[[int, int], Path]
) -> None:
    """1344x1344 has a 3x3 grid; the overview and each slice have 64 image tokens."""
    inputs = published.encode("a", image_file(1344, 1344), "what", "x")
    spans = [inputs.tokens[start:end] for start, end in inputs.image_bounds]
    assert choose_grid(1344, 1344, PUBLISHED) == (3, 3)
    assert [len(span) for span in spans] == [64] * 10
    assert set(np.concatenate(spans).tolist()) == {published.special_tokens["<unk>"]}


def test_an_image_prompt_is_as_published(tiny_checkpoint: Path, image_file: Callable[[int, int], Path]) -> None:
    """The prompt has image id, overview, one line per row of slices and question; the answer ends the turn."""
    processor = MiniCpmVProcessor.open(tiny_checkpoint)
    inputs = processor.encode("a", image_file(168, 112), "Red?", "Yes")
    part = "<unk>" * 4
    row = f"<slice>{part}</slice>" * 3
    question = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<image_id>0</image_id><image>{part}</image>{row}\n{row}\nRed?<|im_end|>\n<|im_start|>assistant\n"
    )
    decoded = [
        processor.tokenizer.decode(part.tolist(), skip_special_tokens=False)
        for part in np.split(inputs.tokens, [inputs.answer_start])
    ]
    assert decoded == [question, "Yes<|im_end|>"]
    assert inputs.modality == "image"


def test_a_text_prompt_has_no_image_tags(tiny_checkpoint: Path) -> None:
    """A text sample has no image tokens, bounds or pixels."""
    processor = MiniCpmVProcessor.open(tiny_checkpoint)
    inputs = processor.encode("a", None, "Red?", "Yes")
    text = processor.tokenizer.decode(inputs.tokens.tolist(), skip_special_tokens=False)
    assert "user\nRed?<|im_end|>" in text
    assert inputs.modality == "text"
    assert inputs.image_bounds.shape == (0, 2)
    assert processor.model_inputs(inputs).keys() == {"input_ids"}


def test_image_id_and_slicing_can_be_disabled(texts: Path, image_file: Callable[[int, int], Path]) -> None:
    """`use_image_id` and `slice_mode` of the checkpoint are applied."""
    edit_json(texts / "preprocessor_config.json", use_image_id=False, slice_mode=False)
    processor = MiniCpmVProcessor.open(texts)
    inputs = processor.encode("a", image_file(300, 300), "Red?", "Yes")
    assert len(inputs.slices) == 1
    assert processor.special_tokens["<image_id>"] not in inputs.tokens


def test_grids_are_those_of_transformers() -> None:
    """Grids of hundreds of image sizes are equal to those of transformers."""
    oracle = Oracle()
    generator = np.random.default_rng(0)
    sizes = [*ODD_SIZES, *generator.integers(20, 4000, (600, 2)).tolist(), *generator.integers(1, 60, (50, 2)).tolist()]
    for width, height in sizes:
        expected = oracle.get_sliced_grid((height, width), 9, 448)
        assert choose_grid(width, height, PUBLISHED) == (tuple(expected[::-1]) if expected else None), (width, height)


@pytest.mark.parametrize(
    ("width", "height"),
    [(448, 448), (30, 20), (200, 700), (500, 450), (1604, 752), (97, 2113), (1500, 1500), (37, 5000)],
)
def test_pixels_are_those_of_transformers(width: int, height: int) -> None:
    """Target sizes and packed pixels are equal to those of transformers."""
    oracle = Oracle(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image = noise(width, height)
    expected = oracle(images=image, return_tensors="np")
    _, slices = slice_image(image, PUBLISHED)
    packed = np.concatenate([pack_patches(part, [0.5] * 3, [0.5] * 3, 14) for part in slices], axis=-1)
    assert target_sizes(slices, 14).tolist() == expected["target_sizes"].tolist()
    np.testing.assert_allclose(packed[None], expected["pixel_values"], rtol=0, atol=2e-7)


def test_patches_are_packed_row_by_row() -> None:
    """The n-th packed patch is the n-th patch of the slice in row-major order."""
    part = np.random.default_rng(0).integers(0, 256, (28, 42, 3), np.uint8)
    packed = pack_patches(part, [0.0] * 3, [1.0] * 3, 14)
    assert packed.shape == (3, 14, 14 * 6)
    for number in range(6):
        row, column = divmod(number, 3)
        patch = part[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14].transpose(2, 0, 1)
        np.testing.assert_allclose(packed[:, :, number * 14 : number * 14 + 14] * 255, patch, atol=1e-4)


@pytest.mark.parametrize("text", ["<image>", "see <slice> there", "a<|im_end|>b", "<unk>", "<|endoftext|>"])
def test_special_tokens_in_a_text_are_rejected(tiny_checkpoint: Path, text: str) -> None:
    """A special token in a prompt or an answer raises an error with the sample id."""
    processor = MiniCpmVProcessor.open(tiny_checkpoint)
    for prompt, answer in ((text, "Yes"), ("Red?", text)):
        with pytest.raises(DatasetError, match=r"`sign-7`.*special token"):
            processor.encode("sign-7", None, prompt, answer)


@pytest.mark.parametrize("part", ["prompt", "answer"])
def test_special_tokens_of_content_are_encoded(texts: Path, part: str) -> None:
    """Tokens such as `<box>`, which no template and no configuration uses, have their ids in prompts and answers."""
    tokenizer = Tokenizer.from_file(str(texts / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<box>", "</box>", "<|video|>")])
    tokenizer.save(str(texts / "tokenizer.json"))
    edit_json(texts / "config.json", vocab_size=330, video_token_id=tokenizer.token_to_id("<|video|>"))
    processor = MiniCpmVProcessor.open(texts)
    sample = {"prompt": "Where?", "answer": "Here"} | {part: "<box>1 2 3 4</box>"}

    tokens = processor.encode("a", None, **sample).tokens.tolist()

    assert [tokens.count(tokenizer.token_to_id(token)) for token in ("<box>", "</box>")] == [1, 1]
    for control in ("<image>", "<|im_start|>", "<|endoftext|>", "<|video|>"):
        with pytest.raises(DatasetError, match="special token"):
            processor.encode("a", None, **sample | {part: f"<box>{control}</box>"})


def test_a_sample_longer_than_the_context_is_rejected(tiny_checkpoint: Path) -> None:
    """The error has the number of tokens and the context length."""
    with pytest.raises(DatasetError, match=r"4\d\d\d tokens, more than the context length of 2048"):
        MiniCpmVProcessor.open(tiny_checkpoint).encode("a", None, "q" * 4000, "Yes")


def test_narrow_and_invalid_images_are_rejected(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """An extreme aspect ratio and an invalid file raise DatasetError."""
    processor = MiniCpmVProcessor.open(tiny_checkpoint)
    Image.new("RGB", (1, 500)).save(tmp_path / "narrow.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    with pytest.raises(DatasetError, match="1x500"):
        processor.encode("a", tmp_path / "narrow.png", "Red?", "Yes")
    with pytest.raises(DatasetError, match=r"`broken.png` cannot be read"):
        processor.encode("a", tmp_path / "broken.png", "Red?", "Yes")


def test_images_of_all_modes_become_rgb(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Gray, transparent, palette, bilevel and CMYK images are converted."""
    processor = MiniCpmVProcessor.open(tiny_checkpoint)
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        Image.new(mode, (60, 60)).save(tmp_path / f"{mode}.tiff")
        assert processor.encode("a", tmp_path / f"{mode}.tiff", "Red?", "Yes").slices[0].shape == (56, 56, 3)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("preprocessor_config.json", {"max_slice_nums": 0}, "max_slice_nums"),
        ("preprocessor_config.json", {"max_slice_nums": 10**9}, "max_slice_nums"),
        ("preprocessor_config.json", {"scale_resolution": 10**6}, "scale_resolution"),
        ("preprocessor_config.json", {"norm_std": [0, 0, 0]}, "norm_std"),
        ("preprocessor_config.json", {"patch_size": 16}, "`patch_size` is 14 .* 16"),
        ("preprocessor_config.json", {"image_feature_size": 64}, "`query_num` is 4 .* 64"),
        ("config.json", {"vocab_size": 300}, "tokenizer has no token"),
        ("config.json", {"vocab_size": None}, "vocab_size"),
        ("tokenizer.json", {"model": {"type": "nothing"}}, "not a valid tokenizer"),
        ("tokenizer_config.json", {"chat_template": "{% if %}"}, "template"),
    ],
)
def test_invalid_settings_are_rejected_when_opened(
    texts: Path, file: str, changes: dict[str, object], message: str
) -> None:
    """Missing, contradictory and out-of-range values raise an error that names them."""
    edit_json(texts / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        MiniCpmVProcessor.open(texts)


def test_a_template_that_drops_image_tokens_is_rejected(texts: Path, image_file: Callable[[int, int], Path]) -> None:
    """A rendered prompt without the image tokens of all slices raises CheckpointError."""
    edit_json(texts / "tokenizer_config.json", chat_template="user: {{ messages[0].content[-4:] }}")
    with pytest.raises(CheckpointError, match="has 0 of 1 slices"):
        MiniCpmVProcessor.open(texts).encode("a", image_file(56, 56), "Red?", "Yes")


def test_a_missing_tokenizer_is_reported(texts: Path) -> None:
    """The error names the missing file."""
    (texts / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no `tokenizer.json`"):
        MiniCpmVProcessor.open(texts)


@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize("size", [(448, 448), (300, 200), (1000, 640), (60, 900)])
def test_merged_slices_are_those_of_transformers(mode: str, size: tuple[int, int]) -> None:
    """Sizes, pixels and token counts of 4.6 agree with transformers."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    slicing = MergedSlicing.model_validate({"downsample_mode": mode})

    expected = MiniCPMV4_6ImageProcessorPil(downsample_mode=mode)(Image.fromarray(noise), return_tensors="np")
    _, slices = slice_image(Image.fromarray(noise), slicing)

    np.testing.assert_array_equal(target_sizes(slices, 14), expected["target_sizes"])
    np.testing.assert_allclose(slicing.pack_slices(slices)[None], expected["pixel_values"], rtol=0, atol=1e-6)
    merged = {"16x": 16, "4x": 4}[mode]
    tokens = [slicing.num_tokens(part, 0) for part in slices]
    assert tokens == (expected["target_sizes"].prod(-1) // merged).tolist()
