"""Write the configuration files beside the graphs: those of the checkpoint, with the keys of transformers.js."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcpmq.formats.model_view import ModelView
from mcpmq.formats.onnx.layout import GraphFiles
from mcpmq.system.json_file import read_json

# The class that inserts image tokens into the text; without its name transformers.js creates no tokenizer.
PROCESSOR_CLASSES = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
}
NON_TEXT_KEYS = ("architectures", "vision_config", "text_config", "transformers_version")
TEXT_SIZE_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
# Defaults of transformers, which transformers.js applies only if they are written.
DEFAULT_STEPS = {"do_convert_rgb": True, "do_resize": True, "do_rescale": True, "do_normalize": True}
BICUBIC = 3


def write_config_files(model: ModelView, out: Path, graphs: Mapping[str, GraphFiles]) -> list[str]:
    """Copy tokenizer and preprocessor files and add the keys of transformers.js; return the file names."""
    files = model.artifact.component_files("model")
    for file in files:
        shutil.copyfile(file, out / file.name)
    config = dict(model.config)
    if config.get("model_type") in PROCESSOR_CLASSES:
        _write(out / "preprocessor_config.json", _preprocessor(out, config["model_type"]))
        _write(out / "tokenizer_config.json", _tokenizer(out))
        config = _with_text_sizes(config)
    _write(out / "config.json", {**config, "transformers.js_config": _session_config(graphs)})
    return [file.name for file in files]


def _session_config(graphs: Mapping[str, GraphFiles]) -> dict[str, Any]:
    return {
        "dtype": {graph.stem: graph.dtype_name for graph in graphs.values()},
        "use_external_data_format": {graph.graph_file: len(graph.data_files) for graph in graphs.values()},
    }


def _with_text_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Write the sizes of the language model both at the top level and in `text_config`.

    transformers.js reads the former for Qwen2-VL and the latter for its successors; a checkpoint has one of the two,
    depending on the version of transformers that wrote it.
    """
    top_level = {key: value for key, value in config.items() if key not in NON_TEXT_KEYS}
    text = {**top_level, "model_type": f"{config['model_type']}_text", **(config.get("text_config") or {})}
    return {**{key: text[key] for key in TEXT_SIZE_KEYS if key in text}, **config, "text_config": text}


def _preprocessor(folder: Path, model_type: str) -> dict[str, Any]:
    """Return the preprocessor configuration with the default steps and bounds of transformers written out."""
    from mcpmq.families.qwenvl_inputs import Resizing

    resizing = Resizing.open(folder)
    bounds = {
        "min_pixels": resizing.min_pixels or resizing.size.shortest_edge,
        "max_pixels": resizing.max_pixels or resizing.size.longest_edge,
    }
    explicit = {
        key: value for key, value in read_json(folder / "preprocessor_config.json").items() if value is not None
    }
    sizes = resizing.model_dump(mode="json", exclude={"size", *bounds})
    classes = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": PROCESSOR_CLASSES[model_type]}
    return {**DEFAULT_STEPS, "resample": BICUBIC, "rescale_factor": 1 / 255, **sizes, **bounds, **explicit, **classes}


def _tokenizer(folder: Path) -> dict[str, Any]:
    """Return the tokenizer configuration with the chat template, which checkpoints may have in a separate file."""
    settings = read_json(folder / "tokenizer_config.json")
    newer, older = folder / "chat_template.jinja", folder / "chat_template.json"
    if newer.is_file():
        return {**settings, "chat_template": newer.read_text(encoding="utf-8")}
    return settings | (read_json(older) if older.is_file() else {})


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
