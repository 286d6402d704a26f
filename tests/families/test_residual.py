"""The residual streams of all families are those of `stream_reader`, by a forward pass."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mcpmq.checkpoint import Checkpoint
from mcpmq.execution.torch_model import build_model, to_float
from mcpmq.families.blocks import block_name
from mcpmq.families.residual import LAYER_OUTPUT, stream_reader

LAYERS = ("language.layers.", "vision.layers.")


@torch.inference_mode()
def test_outputs_are_added_to_the_stream_that_the_reader_gets(family_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The stream is the input of the layer, plus the scaled outputs of attention, plus those of the MLP."""
    model = build_model(family_checkpoint.family, family_checkpoint.config, family_checkpoint.specs)
    seen: dict[str, Tensor] = {}
    writers: dict[str, list[str]] = {}  # by layer
    for block, specs in model.blocks.items():
        model.load_block(block, lambda spec: to_float(family_checkpoint.load(spec), spec))
        parameters = {spec.name: parameter for parameter, spec in specs.items()}
        layer = block_name(next(iter(parameters)))
        if layer.startswith(LAYERS):
            writers[layer] = [name for name in parameters if stream_reader(name, parameters) is not None]
            _observe(block, parameters, layer, writers[layer], seen)
    _run(family_checkpoint, model.module, tmp_path / "image.png")

    layers = {block_name(spec.name) for spec in family_checkpoint.specs if spec.name.startswith(LAYERS)}
    assert writers.keys() == layers
    for layer, names in writers.items():
        changed = {f"{layer}.attention.scale", f"{layer}.attention.norm_output"}
        if changed & {spec.name for spec in family_checkpoint.specs}:
            assert names == []  # scaled by channel or normalized before the addition
            continue
        scale = family_checkpoint.architecture.language.residual_scale if layer.startswith("language") else 1.0
        attention, down = sorted(names, key=lambda name: name.endswith("mlp.down"))
        stream = seen[layer]
        for name in (attention, down):
            expected = stream + scale * seen[f"{name} outputs"]
            stream = seen[f"{name} stream"]
            assert float((stream - expected).abs().max()) < 1e-5 * float(expected.abs().max()), name
            assert seen[f"{name} outputs"].any()


def _observe(
    block: nn.Module, parameters: Mapping[str, str], layer: str, writers: list[str], seen: dict[str, Tensor]
) -> None:
    """Keep the input of a layer, the outputs of its writers, and the streams that their readers get."""

    def keep(name: str, value: Any) -> None:
        seen[name] = (value[0] if isinstance(value, tuple) else value).flatten(0, -2).clone()

    block.register_forward_pre_hook(lambda _, args: keep(layer, args))
    for name in writers:
        reader = stream_reader(name, parameters)
        module = block.get_submodule(parameters[name].rpartition(".")[0])
        module.register_forward_hook(lambda _, __, output, name=name: keep(f"{name} outputs", output))
        if reader == LAYER_OUTPUT:
            block.register_forward_hook(lambda _, __, output, name=name: keep(f"{name} stream", output))
        elif reader:
            norm = block.get_submodule(parameters[reader].rpartition(".")[0])
            norm.register_forward_pre_hook(lambda _, args, name=name: keep(f"{name} stream", args))


def _run(checkpoint: Checkpoint, module: nn.Module, file: Path) -> None:
    """Run one sample, with an image if the family has vision."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    processor = checkpoint.family.open_processor(checkpoint.path)
    inputs = processor.encode("one", file if checkpoint.family.has_vision else None, "What is it?", "a red sign")
    arguments = {name: torch.from_numpy(value) for name, value in processor.model_inputs(inputs).items()}
    module(**arguments, use_cache=False)


def test_other_matrices_have_no_stream() -> None:
    """Matrices outside of layers, and those whose outputs other matrices of the layer read."""
    names = ["language.layers.3.post_attention_norm", "language.layers.3.mlp.down"]
    assert stream_reader("language.layers.3.attention.o", names) == names[0]
    assert stream_reader("language.layers.3.linear.o", names) == names[0]
    assert stream_reader("vision.layers.3.attention.o", ["vision.layers.3.norm2"]) == "vision.layers.3.norm2"
    assert stream_reader("language.layers.3.mlp.down", names) == LAYER_OUTPUT
    for name in ("language.layers.3.mlp.up", "projector.attention.o", "vision.merger.down", "head"):
        assert stream_reader(name, names) is None
