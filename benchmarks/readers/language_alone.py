"""The language model of an exported MiniCPM-V as a checkpoint of its own: what readers without the family can load."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

PREFIX = "llm."
LANGUAGE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
)


def write_language_alone(artifact: Path, out: Path) -> Path:
    """The same tensors byte for byte, under the names that a plain Qwen2 has; the tokenizer with them."""
    out.mkdir()
    tensors = {name: tensor for shard in artifact.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    held = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    save_file(held, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((artifact / "config.json").read_text())
    alone = {key: config[key] for key in LANGUAGE_KEYS}
    alone |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "dtype": "float16"}
    settings = json.dumps(config["quantization_config"]).replace("llm\\\\.", "").replace("llm.", "")
    alone["quantization_config"] = json.loads(settings)
    (out / "config.json").write_text(json.dumps(alone))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (out / name).write_bytes((artifact / name).read_bytes())
    return out
