"""Read the quantized decoder layers of mcpmq, AutoRound, GPTQModel and llm-compressor as float32, with their bits.

The GPTQ layout packs eight codes along the inputs into an int32 word, the AWQ layout along the outputs in a permuted
order. The GPTQ layout stores zero points minus one. compressed-tensors packs [out, in] along the inputs, without zero
points if they are all 8.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.peers.original_model import LANGUAGE_PREFIX
from mcpmq.execution.torch_model import to_float
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import QuantizedModel

LAYERS = "model.layers."
BITS, CODES_PER_WORD, GROUP_SIZE = 4, 8, 32
AWQ_ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # position in the word, by output


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """Weights by their names in the language model.

    `bits_per_weight` of the quantized matrices counts codes and scales; zero points if they differ; and the group index
    of every column if groups are not contiguous. `quantized` are the names of these matrices.
    """

    weights: Mapping[str, Tensor]
    bits_per_weight: float
    quantized: tuple[str, ...]


def read_mcpmq_decoder(folder: Path) -> DecoderWeights:
    """Read the output of `mcpmq quantize`."""
    quantized = QuantizedModel.open(folder)
    weights, quantized_names, nbytes, count = {}, [], 0, 0
    for spec in quantized.specs.values():
        if spec.component == "language":
            stored = quantized.load(spec.name)
            weights[spec.hub_name.removeprefix(LANGUAGE_PREFIX)] = to_float(stored, spec)
            if isinstance(stored, QTensor):
                quantized_names.append(spec.hub_name.removeprefix(LANGUAGE_PREFIX))
                nbytes += quantized.records[spec.name].nbytes
                count += stored.rows * stored.columns
    return DecoderWeights(weights, 8 * nbytes / count, tuple(quantized_names))


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """One matrix [in, out]: int32 codes, zero points and fp16 scales [groups, out], and the group of every row."""

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    groups: Tensor

    @property
    def storage_bits(self) -> int:
        zeros = self.zeros.numel() * BITS if self.zeros.unique().numel() > 1 else 0
        groups = 0 if torch.equal(self.groups, self.groups.sort().values) else self.groups.nbytes * 8
        return self.codes.numel() * BITS + self.scales.nbytes * 8 + zeros + groups

    def dequantize(self) -> Tensor:
        """Return float32 [out, in]."""
        groups = self.groups.long()
        return ((self.codes - self.zeros[groups]).float() * self.scales.float()[groups]).T.contiguous()


def read_peer_decoder(folder: Path) -> DecoderWeights:
    """Read all layer tensors of another tool; AWQ also changes tensors that it does not quantize.

    Raises:
        ValueError: a matrix does not have 4 bits in groups of 32 with scales of 16 bits.
    """
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    stored = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    layers = {name: value for name, value in stored.items() if name.startswith(LAYERS)}
    suffix, unpack = (
        (".weight_packed", unpack_compressed)
        if settings["quant_method"] == "compressed-tensors"
        else (".qweight", unpack_matrix)
    )
    matrices = [name.removesuffix(suffix) for name in layers if name.endswith(suffix)]
    packed = {f"{name}.weight": unpack(layers, name, settings) for name in matrices}
    kept = {name: value.float() for name, value in layers.items() if name.endswith((".weight", ".bias"))}
    count = sum(matrix.codes.numel() for matrix in packed.values())
    nbits = sum(matrix.storage_bits for matrix in packed.values())
    weights = kept | {name: matrix.dequantize() for name, matrix in packed.items()}
    return DecoderWeights(weights, nbits / count, tuple(packed))


def unpack_compressed(stored: Mapping[str, Tensor], name: str, _: Mapping[str, object]) -> PackedMatrix:
    """Unpack one matrix of compressed-tensors with symmetric groups.

    llm-compressor stores scales that it rounded to 16 bits in the dtype of the model, float32 here.
    """
    codes, scales = _codes(stored[f"{name}.weight_packed"]).flatten(1).T, stored[f"{name}.weight_scale"].T
    if torch.equal(scales.half().float(), scales.float()):
        scales = scales.half()
    if scales.element_size() != 2 or len(codes) != len(scales) * GROUP_SIZE or f"{name}.weight_zero_point" in stored:
        raise ValueError(f"{name}: {len(codes)} inputs, scales {scales.dtype} {tuple(scales.shape)}, or zero points")
    zeros = torch.full(scales.shape, 2 ** (BITS - 1), dtype=torch.int32)
    return PackedMatrix(codes, zeros, scales, torch.arange(len(codes)) // GROUP_SIZE)


def unpack_matrix(stored: Mapping[str, Tensor], name: str, settings: Mapping[str, object]) -> PackedMatrix:
    """Unpack one matrix as the `quantization_config` of config.json describes it."""
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
    return PackedMatrix(codes, zeros, scales, groups)


def _codes(words: Tensor) -> Tensor:
    """Unpack int32 [rows, columns] to int32 [rows, columns, 8], the lowest four bits first."""
    codes: Tensor = words[..., None] >> torch.arange(0, BITS * CODES_PER_WORD, BITS, dtype=torch.int32) & 2**BITS - 1
    return codes
