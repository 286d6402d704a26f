"""Quantize a text checkpoint with AutoRound, in the environment of AutoRound; this script does not import mcpmq.

python with_autoround.py CHECKPOINT OUT '{"iters": 200}'
python with_autoround.py CHECKPOINT OUT '{"iters": 200, "layers": [5, 15]}'    these layers
python with_autoround.py CHECKPOINT OUT '{"iters": 200, "scheme": "GGUF:Q4_0"}'    values on this type, as float32
"""

import json
import sys
from pathlib import Path

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

GROUP_SIZE = 32
SAMPLES_PER_STEP = 8  # the default batch size, reached by gradient accumulation because samples have different lengths


def main(checkpoint: Path, out: Path, options: dict[str, object]) -> None:
    """Quantize to symmetric int4 in groups of 32, or to a type of GGUF, one sample at a time, without padding.

    A GGUF file would have all layers on the type; the format `fake` has the values of the chosen ones.
    """
    samples = [torch.tensor(ids) for ids in json.loads((checkpoint / "tokens.json").read_text())]
    data = [{"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]} for ids in samples]
    if layers := options.pop("layers", None):
        count = json.loads((checkpoint / "config.json").read_text())["num_hidden_layers"]
        options["ignore_layers"] = ",".join(f"layers.{number}" for number in range(count) if number not in layers)
    scheme = {} if "scheme" in options else {"scheme": "W4A16", "group_size": GROUP_SIZE}
    output_format = "fake" if "scheme" in options else "auto_gptq"
    tool = AutoRound(
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        AutoTokenizer.from_pretrained(checkpoint),
        **scheme,
        dataset=data,
        nsamples=len(data),
        seqlen=min(map(len, samples)),  # AutoRound drops shorter samples
        batch_size=1,
        gradient_accumulate_steps=SAMPLES_PER_STEP,
        device_map="cpu",
        enable_torch_compile=False,
        **options,
    )
    tool.quantize_and_save(str(out), format=output_format)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
