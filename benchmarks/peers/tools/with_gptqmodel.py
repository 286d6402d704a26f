"""Quantize a text checkpoint with GPTQModel, in the environment of GPTQModel; this script does not import mcpmq.

python with_gptqmodel.py CHECKPOINT OUT '{"mse": 2.4}'         GPTQ
python with_gptqmodel.py CHECKPOINT OUT '{"layers": [5, 15]}'  GPTQ of these layers
python with_gptqmodel.py CHECKPOINT OUT '{"method": "awq"}'    AWQ
"""

import json
import os
import sys
from pathlib import Path

os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # on two cores the default leaves one worker, which is too few

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization.config import AWQConfig, GPTQConfig

GROUP_SIZE = 32


def main(checkpoint: Path, out: Path, options: dict[str, object]) -> None:
    """Quantize to int4 in groups of 32, one sample at a time, without padding."""
    tokens = json.loads((checkpoint / "tokens.json").read_text())
    samples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in tokens]
    awq = options.pop("method", "gptq") == "awq"
    if layers := options.pop("layers", None):
        count = json.loads((checkpoint / "config.json").read_text())["num_hidden_layers"]
        skipped = "|".join(str(number) for number in range(count) if number not in layers)
        options["dynamic"] = {rf"-:model\.layers\.(?:{skipped})\..*": {}}
    config = (AWQConfig if awq else GPTQConfig)(bits=4, group_size=GROUP_SIZE, **options)
    dtype = torch.float16 if awq else torch.float32  # AWQ of GPTQModel does not support float32
    tool = GPTQModel.load(str(checkpoint), config, device="cpu", dtype=dtype)
    tool.quantize(
        samples, batch_size=1, **({"backend": BACKEND.AWQ_TORCH} if awq else {})
    )  # the default backend needs CUDA
    tool.save(str(out))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
