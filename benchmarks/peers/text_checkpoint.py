"""Write the language model as a text checkpoint whose embedding table contains the image features.

Tools for language models take only token ids. Every image token of every sample therefore gets its own id after the
vocabulary; the embedding of that id is the output of vision tower and connector. A text-only tool then computes exactly
the activations of the multimodal forward pass. The longer table is used for calibration only; it is not quantized.
"""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.peers.original_model import OriginalModel
from mcpmq.dataset import SampleSet

TOKENS_FILE = "tokens.json"


def write_text_checkpoint(original: OriginalModel, samples: SampleSet, out: Path) -> list[list[int]]:
    """Write the float32 checkpoint and the token ids of the samples; return the ids."""
    rows, ids = [original.module.get_input_embeddings().weight], []
    end = len(rows[0])
    for sample in original.encode(samples):
        tokens, embeddings = torch.from_numpy(sample.tokens).clone(), original.embeddings(sample)[0]
        for bounds in sample.image_bounds.tolist():
            features = embeddings[slice(*bounds)]
            tokens[slice(*bounds)] = torch.arange(end, end + len(features))
            rows.append(features)
            end += len(features)
        ids.append(tokens.tolist())
    _save(original, torch.cat(rows), out)
    (out / TOKENS_FILE).write_text(json.dumps(ids))
    return ids


def _save(original: OriginalModel, table: Tensor, out: Path) -> None:
    """Save the language model with another embedding table; the head gets zero rows for the image tokens."""
    language = original.module.llm
    own = language.model.embed_tokens, language.lm_head, language.config.vocab_size
    longer = nn.functional.pad(own[1].weight, (0, 0, 0, len(table) - own[2]))
    language.model.embed_tokens = nn.Embedding.from_pretrained(table)
    language.lm_head = nn.Linear(longer.shape[1], longer.shape[0], bias=False)
    language.lm_head.weight = nn.Parameter(longer, requires_grad=False)
    language.config.vocab_size = len(table)
    try:
        language.save_pretrained(out)
    finally:
        language.model.embed_tokens, language.lm_head, language.config.vocab_size = own
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(original.checkpoint.path / name, out / name)


def write_text_only_set(samples: Path, out: Path) -> None:
    """Write a copy of a calibration set without its images."""
    out.mkdir(parents=True, exist_ok=True)
    lines = map(json.loads, (samples / "manifest.jsonl").read_text().splitlines())
    kept = [{key: value for key, value in line.items() if not key.startswith("image")} for line in lines]
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
