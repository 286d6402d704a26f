"""Quantizes a text checkpoint with AutoRound, in AutoRound's own environment: nothing of mcpmq is imported here.

python with_autoround.py CHECKPOINT OUT '{"iters": 200}'
"""

import json
import sys
from pathlib import Path

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

GROUP_SIZE = 32
SAMPLES_A_STEP = 8  # its default batch size, reached by adding up gradients: samples of unlike length share no batch


def main(checkpoint: Path, out: Path, options: dict[str, object]) -> None:
    """Symmetric int4 in groups of 32, one sample at a time, so that no padding is ever seen."""
    samples = [torch.tensor(ids) for ids in json.loads((checkpoint / "tokens.json").read_text())]
    data = [{"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]} for ids in samples]
    tool = AutoRound(
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        AutoTokenizer.from_pretrained(checkpoint),
        scheme="W4A16",
        group_size=GROUP_SIZE,
        dataset=data,
        nsamples=len(data),
        seqlen=min(map(len, samples)),  # it leaves out what is shorter
        batch_size=1,
        gradient_accumulate_steps=SAMPLES_A_STEP,
        device_map="cpu",
        enable_torch_compile=False,
        **options,
    )
    tool.quantize_and_save(str(out), format="auto_gptq")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
