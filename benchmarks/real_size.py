"""Write a random checkpoint with the published widths of MiniCPM-V 2.6, for measurements of memory and speed.

python -m benchmarks.real_size build/real --layers 2
"""

import argparse
import json
import shutil
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mcpmq.families import family_of
from mcpmq.families.family import TensorSpec

REFERENCE = Path(__file__).parent.parent / "calibration" / "reference"
PUBLISHED_CONFIG: dict[str, Any] = {
    "architectures": ["MiniCPMV"],
    "model_type": "minicpmv",
    "version": 2.6,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 151666,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "query_num": 64,
    "image_size": 448,
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "image_size": 980,
        "patch_size": 14,
    },
}


def write_checkpoint(
    out: Path, layers: int, config: Mapping[str, Any] = PUBLISHED_CONFIG, reference: Path = REFERENCE
) -> None:
    """Write a checkpoint of `layers` language layers with the tokenizer and processor of a reference checkpoint."""
    _fill(*write_sparse_checkpoint(out, layers, config, reference))


def write_random_weights(folder: Path) -> None:
    """Write the weights that the config.json of a folder describes."""
    config = json.loads((folder / "config.json").read_text())
    family = family_of(config)
    _fill(*_write_header(folder / "model.safetensors", family.tensor_specs(family.parse_architecture(config))))


def _fill(file: Path, begin: int, end: int) -> None:
    """Fill a part of a file with noise, piece by piece."""
    noise = _bf16_noise(1 << 24)
    with file.open("r+b") as stream:
        stream.seek(begin)
        for start in range(begin, end, len(noise)):
            stream.write(noise[: end - start])


def write_sparse_checkpoint(
    out: Path, layers: int, published: Mapping[str, Any] = PUBLISHED_CONFIG, reference: Path = REFERENCE
) -> tuple[Path, int, int]:
    """Write the checkpoint with a sparse weights file; return the file and the first and last byte of its weights."""
    out.mkdir(parents=True)
    config = {**published, "num_hidden_layers": layers}
    family = family_of(config)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(reference / name, out / name)
    preprocessor = json.loads((reference / "preprocessor_config.json").read_text())
    preprocessor |= {"scale_resolution": config["image_size"], "image_feature_size": config["query_num"]}
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1))
    return _write_header(out / "model.safetensors", family.tensor_specs(family.parse_architecture(config)))


def _write_header(path: Path, specs: Iterable[TensorSpec]) -> tuple[Path, int, int]:
    header, end = {}, 0
    for spec in specs:
        begin, end = end, end + 2 * prod(spec.shape)
        header[spec.hub_name] = {"dtype": "BF16", "shape": spec.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    start = 8 + len(text)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(start + end)
    return path, start, start + end


def _bf16_noise(nbytes: int) -> bytes:
    values = np.random.default_rng(0).standard_normal(nbytes // 2).astype(np.float32) * 0.02
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    arguments = parser.parse_args()
    write_checkpoint(arguments.out, arguments.layers)
