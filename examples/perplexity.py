"""Compute the perplexity of a served model from the log-probabilities of OpenAI's chat completions.

    mcpmq serve build/demo/int4/gguf
    python examples/perplexity.py --tokenizer calibration/reference/tokenizer.json --set calibration/heldout
    python examples/perplexity.py ... --report build/demo/int4/report.json    compares with the measured perplexity

The answer of every sample is given token by token: the request has the answer up to a token as the begin of the last
message, and a bias that makes the server return this token with its log-probability, which is that before the bias. So
the program needs no access to the model but a llama.cpp server that continues messages, such as `mcpmq serve`.
"""

import argparse
import json
import math
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tokenizers import Tokenizer

BIAS = 100  # in favor of the token whose log-probability is requested
END_OF_TURN = "<|im_end|>"


def samples(folder: Path, group: str) -> Iterator[dict[str, Any]]:
    """Yield the samples of a set that are images or texts, in order."""
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        sample = json.loads(line)
        tags = sample.get("tags", ())
        if group == ("nonsquare" if "nonsquare" in tags else "image" if sample.get("image") else "text"):
            yield sample


def question(sample: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the message of the user."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": sample["prompt"]}]
    if sample.get("image"):
        content = b64encode((folder / sample["image"]).read_bytes()).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}})
    return {"role": "user", "content": parts}


def logprob(url: str, messages: list[dict[str, Any]], token: int) -> float:
    """Return the log-probability of a token after the messages, in nats.

    Raises:
        RuntimeError: the server returned another token.
    """
    body = {"messages": messages, "max_tokens": 1, "logprobs": True, "logit_bias": {str(token): BIAS}}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as response:
        [found] = json.load(response)["choices"][0]["logprobs"]["content"]
    if found["id"] != token:
        raise RuntimeError(f"the server returned token {found['id']}, not {token}")
    return float(found["logprob"])


def losses(url: str, tokenizer: Tokenizer, sample: dict[str, Any], folder: Path) -> Iterator[float]:
    """Yield the loss of every token of an answer and of the end of its turn, in nats."""
    tokens = tokenizer.encode(sample["answer"], add_special_tokens=False).ids
    end = tokenizer.encode(END_OF_TURN, add_special_tokens=False).ids
    for number, token in enumerate([*tokens, *end]):
        begin = [{"role": "assistant", "content": tokenizer.decode(tokens[:number])}] if number else []
        yield -logprob(url, [question(sample, folder), *begin], token)


def measured(report: Path, ids: set[str]) -> float:
    """Return the perplexity of samples of the GGUF artifact in a report."""
    artifacts = json.loads(report.read_text())["artifacts"]
    [artifact] = [artifact for artifact in artifacts if artifact["kind"] == "gguf"]
    chosen = [sample["losses"] for sample in artifact["measurement"]["samples"] if sample["id"] in ids]
    return perplexity([loss for sample in chosen for loss in sample])


def perplexity(losses: list[float]) -> float:
    """Return the exponential of the mean loss."""
    return math.exp(sum(losses) / len(losses))


def main() -> None:
    """Print the perplexity, and its ratio to that of the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--set", type=Path, required=True)
    parser.add_argument("--group", default="text", choices=("image", "nonsquare", "text"))
    parser.add_argument("--limit", type=int, help="number of samples; default: all")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    chosen = list(samples(options.set, options.group))[: options.limit]
    found = [loss for sample in chosen for loss in losses(options.url, tokenizer, sample, options.set)]
    sys.stdout.write(f"perplexity of {len(found)} tokens: {perplexity(found):.4f}\n")
    if options.report:
        expected = measured(options.report, {sample["id"] for sample in chosen})
        sys.stdout.write(f"in the report: {expected:.4f}, ratio {perplexity(found) / expected:.4f}\n")


if __name__ == "__main__":
    main()
