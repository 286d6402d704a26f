"""Files of ONNX Runtime GenAI beside the graphs, for the families with a model type there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer

from mcpmq.families import family_named
from mcpmq.families.preprocessor import PreprocessorConfig, image_settings
from mcpmq.families.special_tokens import end_token_ids, named_special_tokens, read_tokenizer_config
from mcpmq.families.tokenizer import placeholder_id, read_tokenizer
from mcpmq.formats.model_view import ModelView
from mcpmq.formats.onnx.config_files import write_json
from mcpmq.formats.onnx.genai_graphs import (
    VISION_CHANGES,
    Change,
    insert_image_features,
    keep_last_logits,
    write_variant,
)
from mcpmq.formats.onnx.genai_processor import FILTERS, processor_config
from mcpmq.formats.onnx.layout import FOLDER, VISION, GraphFiles
from mcpmq.system.json_file import read_optional_json

CONFIG, PROCESSOR = "genai_config.json", "genai_processor_config.json"
SEARCH_KEYS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")  # of generation_config.json
# GenAI masks padding tokens also inside of a prompt, so the end of a turn cannot be one.
PADDING_TOKENS = ("<|endoftext|>", "<pad>", "<|pad|>")  # for a checkpoint without another one
GEMMA_IMAGE_TOKENS = 256  # a constant of GenAI
Section = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelType:
    """A model type of GenAI."""

    name: str
    image_token: str  # which its processor inserts
    tokenizer_class: str  # of transformers, for a checkpoint without one: GenAI then reads no chat template


_QWEN = "<|image_pad|>", "Qwen2Tokenizer"
MODEL_TYPES: Mapping[str, ModelType] = MappingProxyType(
    {
        "qwen2_vl": ModelType("qwen2_5_vl", *_QWEN),  # only the vision graphs of the two differ
        "qwen2_5_vl": ModelType("qwen2_5_vl", *_QWEN),
        "qwen3_vl": ModelType("qwen3_vl", *_QWEN),
        "qwen3_5": ModelType("qwen3_5", *_QWEN),
        "gemma3": ModelType("gemma3", "<image_soft_token>", "GemmaTokenizer"),
        "lfm2_vl": ModelType("lfm2_vl", "<image>", "PreTrainedTokenizerFast"),
    }
)


def write_genai_files(model: ModelView, out: Path, graphs: Mapping[str, GraphFiles]) -> tuple[list[str], list[str]]:
    """Write graphs and configurations beside those of an artifact; nothing for a model that GenAI does not run.

    Return the paths of the graphs and the names of the other new files.
    """
    kind = MODEL_TYPES.get(str(model.config.get("model_type")))
    if kind is None:
        return [], []
    settings = image_settings(family_named(model.artifact.manifest.family).open_vision_inputs(out))
    if not _is_supported(model, settings):
        return [], []
    tokenizer = read_tokenizer(out)
    image_token = placeholder_id(tokenizer, kind.image_token, model.architecture.language.vocab_size)
    written = _write_graphs(model, out / FOLDER, graphs, image_token)
    write_json(out / CONFIG, _genai_config(model, out, kind, tokenizer, written))
    write_json(out / PROCESSOR, processor_config(settings))
    _add_tokenizer_class(out / "tokenizer_config.json", kind)
    new = set(written.values()) - {one.graph_file for one in graphs.values()}
    return [f"{FOLDER}/{name}" for name in sorted(new)], [CONFIG, PROCESSOR]


def _is_supported(model: ModelView, settings: PreprocessorConfig) -> bool:
    """Return whether GenAI has the filter that resizes images, and the number of tokens of an image."""
    shape = model.architecture.required_vision
    has_tokens = shape.kind != "siglip-pooled" or shape.num_queries == GEMMA_IMAGE_TOKENS
    return has_tokens and settings.resample in FILTERS


def _write_graphs(model: ModelView, folder: Path, graphs: Mapping[str, GraphFiles], image_token: int) -> dict[str, str]:
    """Write the variants of the graphs; return the graph file of each component, changed or not."""
    kind = model.architecture.required_vision.kind
    changes: dict[str, Change] = {
        "embedding": partial(insert_image_features, image_token=image_token, separate=kind == "siglip-pooled"),
        "language": partial(keep_last_logits, image_token=image_token),
    }
    if change := VISION_CHANGES.get(kind):
        changes[VISION] = change
    files = {component: folder / graphs[component].graph_file for component in changes}
    written = {component: write_variant(files[component], change) for component, change in changes.items()}
    return {VISION: graphs[VISION].graph_file, **written}


def _genai_config(
    model: ModelView, out: Path, kind: ModelType, tokenizer: Tokenizer, files: Mapping[str, str]
) -> Section:
    language = model.architecture.language
    generation = read_optional_json(out / "generation_config.json")
    search = {key: generation[key] for key in SEARCH_KEYS if generation.get(key) is not None}
    return {
        "model": {
            "type": kind.name,
            "context_length": language.context_length,
            "vocab_size": language.vocab_size,
            **_token_ids(model, out, tokenizer, kind),
            "decoder": _decoder(model, f"{FOLDER}/{files['language']}"),
            "embedding": {
                "filename": f"{FOLDER}/{files['embedding']}",
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds"},
            },
            "vision": _vision(model, f"{FOLDER}/{files[VISION]}"),
        },
        "search": {"max_length": language.context_length, "past_present_share_buffer": False, **search},
    }


def _token_ids(model: ModelView, folder: Path, tokenizer: Tokenizer, kind: ModelType) -> dict[str, int | list[int]]:
    named, ends = named_special_tokens(read_tokenizer_config(folder)), end_token_ids(folder)
    end_of_turn = family_named(model.artifact.manifest.family).prompt_format.end_of_turn
    padding = (text for text in (named.get("pad_token"), *PADDING_TOKENS) if text != end_of_turn)
    texts = {
        "bos_token_id": (named.get("bos_token"),),
        "pad_token_id": padding,
        "image_token_id": (kind.image_token,),
        "video_token_id": ("<|video_pad|>",),
        "vision_start_token_id": ("<|vision_start|>",),
    }
    found = {key: _first_id(tokenizer, candidates) for key, candidates in texts.items()}
    known = {key: number for key, number in found.items() if number is not None}
    return {"eos_token_id": ends, "pad_token_id": ends[0], **known}


def _first_id(tokenizer: Tokenizer, texts: Iterable[str | None]) -> int | None:
    ids = (tokenizer.token_to_id(text) for text in texts if text is not None)
    return next((number for number in ids if number is not None), None)


def _decoder(model: ModelView, file: str) -> Section:
    """Return the section of the decoder; its width is that of its input, with the features for later layers."""
    language, deepstack = model.architecture.language, model.architecture.num_deepstack_layers
    names = {"key": "past_key_values.%d.key", "value": "past_key_values.%d.value"}
    if language.linear_attention or language.short_convolution:
        names["conv"] = "past_conv.%d"
    if language.linear_attention:
        names["recurrent"] = "past_recurrent.%d"
    same = ("inputs_embeds", "attention_mask", "position_ids")
    section: Section = {
        "filename": file,
        "head_size": language.head_dim,
        "hidden_size": (1 + deepstack) * language.hidden_size,
        "num_attention_heads": language.num_heads,
        "num_key_value_heads": language.num_kv_heads,
        "num_hidden_layers": language.num_layers,
        "inputs": {name: name for name in same} | {f"past_{key}_names": name for key, name in names.items()},
        "outputs": {"logits": "logits"} | {f"present_{key}_names": _present(name) for key, name in names.items()},
    }
    if language.short_convolution:
        kinds = ("conv" if language.is_convolution(layer) else "full_attention" for layer in range(language.num_layers))
        section |= {"layer_types": list(kinds), "conv_cache_size": language.short_convolution.kernel_size - 1}
    return section


def _present(past: str) -> str:
    """Return the name of the output of a state: `present.%d.key`, `present_conv.%d`."""
    return past.replace("past_key_values", "present").replace("past", "present")


def _vision(model: ModelView, file: str) -> Section:
    shape = model.architecture.required_vision
    inputs = {"pixel_values": "pixel_values"}
    if shape.temporal_patch_size:
        inputs["image_grid_thw"] = "image_grid_thw"
    if shape.kind == "siglip-naflex":
        inputs |= {"attention_mask": "pixel_attention_mask", "image_sizes": "spatial_shapes"}
    return {
        "filename": file,
        "config_filename": PROCESSOR,
        "patch_size": shape.patch_size,
        "spatial_merge_size": shape.spatial_merge_size,
        "inputs": inputs,
        "outputs": {"image_features": "image_features"},
    }


def _add_tokenizer_class(file: Path, kind: ModelType) -> None:
    config = read_optional_json(file)
    if not config.get("tokenizer_class"):
        write_json(file, {**config, "tokenizer_class": kind.tokenizer_class})
