"""The layers of the language model in float32, whichever tool quantized them, and what their codes weigh.

The GPTQ layout holds int32 words of eight codes along the inputs, the AWQ layout along the outputs in an order of its
own; a zero point stored in the GPTQ layout is one less than it means.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.peers.original_model import PREFIX
from mcpmq.execution.torch_model import floats_of
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import Quantized

LAYERS = "model.layers."
BITS, CODES_A_WORD, GROUP_SIZE = 4, 8, 32
AWQ_ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # the place in its word of each output in turn


@dataclass(frozen=True, slots=True)
class Decoder:
    """Weights by their names in the language model alone.

    `bits_per_weight`, of quantized matrices, counts codes and scales; zero points where they are not all the same; and
    the group of every column, as stored, where groups are no neighbours.
    """

    weights: Mapping[str, Tensor]
    bits_per_weight: float


def written_by_mcpmq(folder: Path) -> Decoder:
    """What `mcpmq quantize` wrote."""
    quantized = Quantized.open(folder)
    weights, nbytes, count = {}, 0, 0
    for spec in quantized.specs.values():
        if spec.component == "language":
            stored = quantized.load(spec.name)
            weights[spec.hub_name.removeprefix(PREFIX)] = floats_of(stored, spec)
            if isinstance(stored, QTensor):
                nbytes += quantized.records[spec.name].nbytes
                count += stored.rows * stored.columns
    return Decoder(weights, 8 * nbytes / count)


@dataclass(frozen=True, slots=True)
class Packed:
    """One matrix [in, out] out of its words: int32 codes, zeros [groups, out], fp16 scales, and the group of a row."""

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    groups: Tensor

    @property
    def nbits(self) -> int:
        zeros = self.zeros.numel() * BITS if self.zeros.unique().numel() > 1 else 0
        groups = 0 if torch.equal(self.groups, self.groups.sort().values) else self.groups.nbytes * 8
        return self.codes.numel() * BITS + self.scales.nbytes * 8 + zeros + groups

    def weight(self) -> Tensor:
        """float32 [out, in]."""
        groups = self.groups.long()
        return ((self.codes - self.zeros[groups]).float() * self.scales.float()[groups]).T.contiguous()


def written_by_peer(folder: Path) -> Decoder:
    """What AutoRound or GPTQModel wrote: all that lies in the layers, for AWQ changes what it does not quantize, too.

    Raises:
        ValueError: a matrix is not of 4 bits in groups of 32 with fp16 scales.
    """
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    stored = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    layers = {name: value for name, value in stored.items() if name.startswith(LAYERS)}
    matrices = [name.removesuffix(".qweight") for name in layers if name.endswith(".qweight")]
    packed = {name: unpacked(layers, name, settings) for name in matrices}
    kept = {name: value.float() for name, value in layers.items() if name.endswith((".weight", ".bias"))}
    count = sum(matrix.codes.numel() for matrix in packed.values())
    nbits = sum(matrix.nbits for matrix in packed.values())
    return Decoder(kept | {f"{name}.weight": matrix.weight() for name, matrix in packed.items()}, nbits / count)


def unpacked(stored: Mapping[str, Tensor], name: str, settings: Mapping[str, object]) -> Packed:
    """One matrix, by the `quantization_config` that stands in config.json."""
    words, zeros, scales = (stored[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
    if settings["quant_method"] == "awq":
        codes, zeros = (_codes(part)[..., AWQ_ORDER].flatten(1) for part in (words, zeros))
        groups = torch.arange(len(codes)) // GROUP_SIZE
    else:
        codes = _codes(words).transpose(1, 2).flatten(0, 1)
        zeros = (_codes(zeros).flatten(1) + (settings.get("checkpoint_format") != "gptq_v2")) % 2**BITS
        groups = stored[f"{name}.g_idx"]
    if settings["bits"] != BITS or scales.dtype != torch.float16 or len(codes) != len(scales) * GROUP_SIZE:
        raise ValueError(f"{name}: {settings['bits']} bits, {len(codes)} inputs, scales {scales.dtype} {scales.shape}")
    return Packed(codes, zeros, scales, groups)


def _codes(words: Tensor) -> Tensor:
    """int32 [rows, columns] to int32 [rows, columns, 8], the lowest four bits first."""
    return words[..., None] >> torch.arange(0, BITS * CODES_A_WORD, BITS, dtype=torch.int32) & 2**BITS - 1
