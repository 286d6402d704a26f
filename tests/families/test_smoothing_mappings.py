"""Smoothing mappings of all families, checked against their tensors."""

import pytest

from mcpmq.families import family_of
from mcpmq.families.blocks import block_name
from mcpmq.families.family import SmoothingMapping, TensorSpec
from tests.tiny_families import TINY_FAMILIES, TinyFamily

MAPPINGS = [(tiny, mapping) for tiny in TINY_FAMILIES for mapping in family_of(tiny.config).smoothing_mappings]


@pytest.mark.parametrize(
    ("tiny", "mapping"),
    [
        pytest.param(
            tiny,
            mapping,
            id=f"{tiny.name}, {mapping.component}: {mapping.smooth_layer} {' '.join(mapping.balance_layers)}",
        )
        for tiny, mapping in MAPPINGS
        if tiny.variant == ""
    ],
)
def test_mapped_layers_have_the_same_channels(tiny: TinyFamily, mapping: SmoothingMapping) -> None:
    """Balance layers have the columns of the smooth layer, times the query heads per value head."""
    family = family_of(tiny.config)
    architecture = family.parse_architecture(tiny.config)
    specs = {spec.name: spec for spec in family.tensor_specs(architecture)}
    language, blocks = architecture.language, {block_name(name) for name in specs if name.startswith(mapping.component)}
    mappings = [mapping.in_block(block) for block in sorted(blocks)]
    mappings = [full for full in mappings if specs.keys() >= {full.smooth_layer, *full.balance_layers}]

    assert mappings
    for full in mappings:
        channels, remainder = divmod(specs[full.smooth_layer].shape[0], mapping.row_chunk[1])
        repeats_values = (mapping.component, mapping.smooth_layer) == ("language", "attention.v")
        repeats = language.num_heads // language.num_kv_heads if repeats_values else 1
        assert remainder == 0
        assert {_columns(specs[name]) for name in full.balance_layers} == {channels * repeats}
        assert all(block_name(name) == block_name(full.smooth_layer) for name in full.balance_layers)


def _columns(spec: TensorSpec) -> int:
    assert len(spec.shape) == 2
    return spec.shape[0 if spec.transposed else 1]
