"""Where scales may move: every place that a family names exists in its models, and the widths agree."""

import pytest

from mcpmq.families import family_of
from mcpmq.families.family import Fold, TensorSpec
from mcpmq.plan import block_of
from tests.tiny_families import TINY_FAMILIES, TinyFamily

PLACES = [(tiny, fold) for tiny in TINY_FAMILIES for fold in family_of(tiny.config).folds]


@pytest.mark.parametrize(
    ("tiny", "fold"),
    [
        pytest.param(tiny, fold, id=f"{tiny.name}{tiny.variant}, {fold.component}: {fold.source} {' '.join(fold.into)}")
        for tiny, fold in PLACES
        if tiny.variant == ""
    ],
)
def test_neighbours_have_as_many_channels(tiny: TinyFamily, fold: Fold) -> None:
    """What a norm or some rows put out is what matrices read; query heads may share the channels of a value head."""
    family = family_of(tiny.config)
    architecture = family.architecture(tiny.config)
    specs = {spec.name: spec for spec in family.tensors(architecture)}
    blocks = {block_of(name) for name in specs if name.startswith(fold.component)}
    places = [fold.within(block) for block in sorted(blocks)]
    places = [whole for whole in places if specs.keys() >= {whole.source, *whole.into}]

    assert places
    for whole in places:
        channels, left = divmod(specs[whole.source].shape[0], fold.part[1])
        shared = architecture.language.heads // architecture.language.kv_heads if fold.source == "attention.v" else 1
        shared = shared if fold.component == "language" else 1
        assert left == 0
        assert {_columns(specs[name]) for name in whole.into} == {channels * shared}
        assert all(block_of(name) == block_of(whole.source) for name in whole.into)


def _columns(spec: TensorSpec) -> int:
    assert len(spec.shape) == 2
    return spec.shape[0 if spec.transposed else 1]
