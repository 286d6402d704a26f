"""Random weights of real widths in two layouts with equal values: multimodal for mcpmq, text only for other tools."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.commands import REFERENCE
from benchmarks.peers.text_checkpoint import TOKENS_FILE, write_text_only_set
from benchmarks.real_size import PUBLISHED_CONFIG, write_checkpoint
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.families.encoding import encode_sample

LANGUAGE_PREFIX = "llm."
# The widths of Qwen2-1.5B with fewer layers and a smaller vocabulary; the vision encoder is as small as possible.
WIDTHS: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 32768,
}
MULTIMODAL_KEYS = {"version", "query_num", "image_size", "vision_config"}  # of the configuration: not of a text model
VISION = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 1}


def write_multimodal(out: Path, layers: int) -> None:
    """Write the checkpoint of mcpmq, with the layout of MiniCPM-V 2.6."""
    vision = PUBLISHED_CONFIG["vision_config"] | VISION
    write_checkpoint(out, layers, PUBLISHED_CONFIG | WIDTHS | {"vision_config": vision})


def write_text(multimodal: Path, out: Path) -> None:
    """Write the language model of a multimodal checkpoint in the layout of Qwen2."""
    out.mkdir(parents=True)
    tensors = load_file(multimodal / "model.safetensors")
    language = {
        name.removeprefix(LANGUAGE_PREFIX): value for name, value in tensors.items() if name.startswith(LANGUAGE_PREFIX)
    }
    save_file(language, out / "model.safetensors", {"format": "pt"})
    config = json.loads((multimodal / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key in PUBLISHED_CONFIG.keys() - MULTIMODAL_KEYS}
    kept |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu"}
    (out / "config.json").write_text(json.dumps(kept, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(REFERENCE / name, out / name)


def write_samples(source: Path, out: Path, multimodal: Path, text: Path, count: int) -> int:
    """Write a set of `count` samples without images, and their token ids for text tools; return the tokens."""
    write_text_only_set(source, out)
    lines = (out / "manifest.jsonl").read_text().splitlines()[:count]
    (out / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    checkpoint = Checkpoint.open(multimodal)
    processor = checkpoint.family.open_processor(multimodal)
    ids = [encode_sample(processor, sample).tokens.tolist() for sample in SampleSet.open(out)]
    (text / TOKENS_FILE).write_text(json.dumps(ids))
    return sum(map(len, ids))
