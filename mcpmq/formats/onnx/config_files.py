"""Write the configuration files beside the graphs: those of the checkpoint, with the keys of transformers.js."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcpmq.families import family_named
from mcpmq.families.chat_template import read_chat_template
from mcpmq.families.preprocessor import PROCESSOR_CONFIG, PreprocessorConfig, read_preprocessor
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.special_tokens import NAMES, end_token, end_token_ids, named_special_tokens, read_tokenizer_config
from mcpmq.families.tokenizer import complete_tokenizer, read_tokenizer
from mcpmq.formats.model_view import ModelView
from mcpmq.formats.onnx.layout import GraphFiles
from mcpmq.system.json_file import read_optional_json

# The class that inserts image tokens into the text; without its name transformers.js creates no tokenizer.
PROCESSOR_CLASSES = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
    "qwen3_5": "Qwen3VLProcessor",
    "smolvlm": "SmolVLMProcessor",
}
NON_TEXT_KEYS = ("architectures", "vision_config", "text_config", "transformers_version")
TEXT_SIZE_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
# Defaults of transformers, which transformers.js applies only if they are written.
DEFAULT_STEPS = {"do_convert_rgb": True, "do_resize": True, "do_rescale": True, "do_normalize": True}
BICUBIC = 3


def write_config_files(model: ModelView, out: Path, graphs: Mapping[str, GraphFiles]) -> list[str]:
    """Copy tokenizer and preprocessor files and add the keys of transformers.js; return the file names.

    The readers of ONNX artifacts read one file for each fact, so tokenizer.json gets all added tokens,
    tokenizer_config.json the chat template and the special tokens, and generation_config.json the end of sequence.
    """
    files = model.artifact.component_files("model")
    for file in files:
        shutil.copyfile(file, out / file.name)
    config, format_ = dict(model.config), family_named(model.artifact.manifest.family).prompt_format
    added = _tokenizer_files(out, format_)
    if config.get("model_type") in PROCESSOR_CLASSES:
        added.setdefault("tokenizer_config.json", read_optional_json(out / "tokenizer_config.json"))
        if model.architecture.required_vision.kind == "siglip-tiles":
            added |= _tile_processor(model, out)
        else:
            added["preprocessor_config.json"] = _preprocessor(out, config["model_type"])
            config = _with_text_sizes(config)
    added["config.json"] = {**config, "transformers.js_config": _session_config(graphs)}
    for name, content in added.items():
        write_json(out / name, content)
    return list(dict.fromkeys((*(file.name for file in files), *added)))


def _tokenizer_files(folder: Path, prompt_format: PromptFormat) -> dict[str, dict[str, Any]]:
    """Return the tokenizer files that lack a fact which another file or the family has."""
    config, merged = read_optional_json(folder / "tokenizer_config.json"), read_tokenizer_config(folder)
    written: dict[str, dict[str, Any]] = {}
    if tokenizer := complete_tokenizer(folder):
        written["tokenizer.json"] = tokenizer
    facts = {name: text for name, text in named_special_tokens(merged).items() if name in NAMES and name not in config}
    if template := read_chat_template(folder) or prompt_format.default_chat_template:
        facts["chat_template"] = template
    if any(config.get(key) != value for key, value in facts.items()):
        written["tokenizer_config.json"] = {**config, **facts}
    if not end_token_ids(folder):
        opened = read_tokenizer(folder)
        end = opened.token_to_id(end_token(folder, merged, opened, prompt_format.end_of_turn))
        generation = read_optional_json(folder / "generation_config.json")
        written["generation_config.json"] = {**generation, "eos_token_id": end}
    return written


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
    from mcpmq.families.qwenvl_resizing import Resizing

    resizing = Resizing.open(folder)
    bounds = {"min_pixels": resizing.size.shortest_edge, "max_pixels": resizing.size.longest_edge}
    explicit, _ = read_preprocessor(folder)
    sizes = resizing.model_dump(mode="json", exclude={"size", "image_processor_type", *bounds})
    classes = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": PROCESSOR_CLASSES[model_type]}
    return {**DEFAULT_STEPS, "resample": BICUBIC, "rescale_factor": 1 / 255, **sizes, **bounds, **explicit, **classes}


def _tile_processor(model: ModelView, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the configurations of the image processor, with its defaults, and of the processor."""
    settings = family_named(model.artifact.manifest.family).open_vision_inputs(folder)
    assert isinstance(settings, PreprocessorConfig)
    explicit, _ = read_preprocessor(folder)
    processor_class = PROCESSOR_CLASSES[model.config["model_type"]]
    image_class = f"{processor_class.removesuffix('Processor')}ImageProcessor"
    classes = {"image_processor_type": image_class, "processor_class": processor_class}
    count = model.architecture.required_vision.num_queries
    given = read_optional_json(folder / PROCESSOR_CONFIG)
    return {
        "preprocessor_config.json": {**DEFAULT_STEPS, **settings.model_dump(mode="json"), **explicit, **classes},
        PROCESSOR_CONFIG: {**given, "processor_class": processor_class, "image_seq_len": count},
    }


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a configuration file."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
