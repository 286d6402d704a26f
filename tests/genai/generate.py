"""Run an artifact in ONNX Runtime GenAI: chats as JSON on the standard input, their answers on the standard output."""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime_genai as genai


def answer(model: Any, tokenizer: Any, chat: dict[str, Any], count: int) -> dict[str, Any]:
    """Return inputs and greedy answer of one chat, with the logits before each token."""
    prompt = tokenizer.apply_chat_template(json.dumps(chat["messages"]), add_generation_prompt=True)
    images = genai.Images.open(*chat["images"]) if chat["images"] else None
    inputs = model.create_multimodal_processor()(prompt, images=images)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.set_inputs(inputs)
    generated, logits = decode(generator, count)
    return {
        "type": model.type,
        "tokens": inputs["input_ids"].as_numpy()[0].tolist(),
        "pixels": inputs["pixel_values"].as_numpy().ravel().tolist() if images else [],
        "generated": generated,
        "logits": logits,
    }


def decode(generator: Any, count: int) -> tuple[list[int], list[list[float]]]:
    """Return at most `count` greedy tokens, and the logits before each."""
    generated: list[int] = []
    logits: list[list[float]] = []
    while not generator.is_done() and len(generated) < count:
        logits.append(np.array(generator.get_logits()).ravel().tolist())
        generator.generate_next_token()
        generated.append(int(generator.get_next_tokens()[0]))
    return generated, logits


# Threads that spin slow down every other process; all graphs have the options of the decoder.
ONE_THREAD = {"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}

request = json.load(sys.stdin)
config = genai.Config(request["model"])
config.overlay(json.dumps(ONE_THREAD))
model = genai.Model(config)
tokenizer = genai.Tokenizer(model)
json.dump([answer(model, tokenizer, chat, request["count"]) for chat in request["chats"]], sys.stdout)
