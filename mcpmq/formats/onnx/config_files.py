"""The texts beside the graphs: those of the checkpoint, with what transformers.js must be told to read them rightly."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcpmq.formats.model_view import Declared
from mcpmq.formats.onnx.layout import Written
from mcpmq.system.json_file import read_json

# The class that puts an image's tokens into the text; where none is named transformers.js has no tokenizer.
PROCESSORS = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
NOT_OF_TEXT = ("architectures", "vision_config", "text_config", "transformers_version")
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
# What transformers does unless told otherwise, and transformers.js does if told.
DONE = {"do_convert_rgb": True, "do_resize": True, "do_rescale": True, "do_normalize": True}
BICUBIC = 3


def write_texts(quantized: Declared, out: Path, written: Mapping[str, Written]) -> list[str]:
    """Copy tokenizer and preprocessor files, and write those in which transformers.js must find more; their names."""
    files = quantized.artifact.files_of("model")
    for file in files:
        shutil.copyfile(file, out / file.name)
    config = dict(quantized.config)
    if config.get("model_type") in PROCESSORS:
        _write(out / "preprocessor_config.json", _preprocessor(out, config["model_type"]))
        _write(out / "tokenizer_config.json", _tokenizer(out))
        config = _sizes_in_both_places(config)
    _write(out / "config.json", {**config, "transformers.js_config": _session_settings(written)})
    return [file.name for file in files]


def _session_settings(written: Mapping[str, Written]) -> dict[str, Any]:
    return {
        "dtype": {one.stem: one.type_name for one in written.values()},
        "use_external_data_format": {one.graph: len(one.chunks) for one in written.values()},
    }


def _sizes_in_both_places(config: dict[str, Any]) -> dict[str, Any]:
    """transformers.js looks for the sizes of the language model beside the others for 2, for later ones in a table;
    checkpoints of either kind have them in one of the places, by the version of transformers that wrote them."""
    beside = {key: value for key, value in config.items() if key not in NOT_OF_TEXT}
    text = {**beside, "model_type": f"{config['model_type']}_text", **(config.get("text_config") or {})}
    return {**{key: text[key] for key in SIZES if key in text}, **config, "text_config": text}


def _preprocessor(folder: Path, model_type: str) -> dict[str, Any]:
    """With the steps and bounds that transformers has by default, as the measured pixels were made."""
    from mcpmq.families.qwenvl_inputs import Resizing

    resizing = Resizing.open(folder)
    bounds = {
        "min_pixels": resizing.min_pixels or resizing.size.shortest_edge,
        "max_pixels": resizing.max_pixels or resizing.size.longest_edge,
    }
    told = {key: value for key, value in read_json(folder / "preprocessor_config.json").items() if value is not None}
    sizes = resizing.model_dump(mode="json", exclude={"size", *bounds})
    classes = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": PROCESSORS[model_type]}
    return {**DONE, "resample": BICUBIC, "rescale_factor": 1 / 255, **sizes, **bounds, **told, **classes}


def _tokenizer(folder: Path) -> dict[str, Any]:
    """With the chat template that counts: newer checkpoints have it in a file of its own, older ones in another."""
    settings = read_json(folder / "tokenizer_config.json")
    newer, older = folder / "chat_template.jinja", folder / "chat_template.json"
    if newer.is_file():
        return {**settings, "chat_template": newer.read_text(encoding="utf-8")}
    return settings | (read_json(older) if older.is_file() else {})


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
