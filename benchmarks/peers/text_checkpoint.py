"""The language model alone, as tools for text take it: images become rows of its table of embeddings.

Tools that quantize language models take token ids and nothing else. So every image token of every sample gets an id of
its own, after the vocabulary, whose embedding is what vision tower and connector made of it: a tool that knows only
text then sees exactly what the language model sees inside the multimodal forward pass. The longer table is for
calibrating only; nothing of it is quantized or taken over.
"""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.peers.original_model import Original
from mcpmq.dataset import CalibrationSet

TOKENS = "tokens.json"


def write(original: Original, samples: CalibrationSet, out: Path) -> list[list[int]]:
    """A checkpoint of the language model in float32, longer by every image token; the samples' ids, also a file."""
    rows, ids = [original.module.get_input_embeddings().weight], []
    end = len(rows[0])
    for sample in original.inputs(samples):
        tokens, embeddings = torch.from_numpy(sample.tokens).clone(), original.embeddings(sample)[0]
        for bounds in sample.image_bounds.tolist():
            features = embeddings[slice(*bounds)]
            tokens[slice(*bounds)] = torch.arange(end, end + len(features))
            rows.append(features)
            end += len(features)
        ids.append(tokens.tolist())
    _save(original, torch.cat(rows), out)
    (out / TOKENS).write_text(json.dumps(ids))
    return ids


def _save(original: Original, table: Tensor, out: Path) -> None:
    """The language model with another table; the head gets zeros for what can never be said."""
    language = original.module.llm
    own = language.model.embed_tokens, language.lm_head, language.config.vocab_size
    longer = nn.functional.pad(own[1].weight, (0, 0, 0, len(table) - own[2]))
    language.model.embed_tokens, language.lm_head = (
        nn.Embedding.from_pretrained(table),
        nn.Linear(*longer.T.shape, bias=False),
    )
    language.lm_head.weight = nn.Parameter(longer, requires_grad=False)
    language.config.vocab_size = len(table)
    try:
        language.save_pretrained(out)
    finally:
        language.model.embed_tokens, language.lm_head, language.config.vocab_size = own
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(original.checkpoint.path / name, out / name)


def write_without_images(samples: Path, out: Path) -> None:
    """A copy of a calibration set that asks and answers the same, about nothing: what a tool for text is given."""
    out.mkdir(parents=True, exist_ok=True)
    lines = map(json.loads, (samples / "manifest.jsonl").read_text().splitlines())
    kept = [{key: value for key, value in line.items() if not key.startswith("image")} for line in lines]
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
