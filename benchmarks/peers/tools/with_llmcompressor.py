"""Quantize a text checkpoint with llm-compressor, in the environment of llm-compressor; this script does not import
mcpmq.

python with_llmcompressor.py CHECKPOINT OUT '{"dampening_frac": 0.01}'
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def main(checkpoint: Path, out: Path, options: dict[str, Any]) -> None:
    """Quantize with GPTQ to symmetric int4 in groups of 32, one sample at a time, without padding.

    `layers` of the options are the numbers of the quantized layers, by default all.
    """
    layers = "|".join(map(str, options.pop("layers", ())))
    targets = [f"re:.*\\.layers\\.({layers})\\..*_proj$"] if layers else ["Linear"]
    samples = [torch.tensor([ids]) for ids in json.loads((checkpoint / "tokens.json").read_text())]
    inputs = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in samples]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    groups = {"group_0": {"targets": targets, "weights": WEIGHTS | {"scale_dtype": torch.float16}}}
    method = GPTQModifier(config_groups=groups, ignore=["lm_head"], **options)
    oneshot(
        model=model, dataset=DataLoader(inputs, batch_size=None), recipe=method, num_calibration_samples=len(inputs)
    )
    model.save_pretrained(out, save_compressed=True)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
