"""Where scales may move: every place that a family names exists in its models, and the widths agree."""

import pytest

from mcpmq.families import FAMILIES
from mcpmq.families.family import Fold, TensorSpec
from mcpmq.plan import block_of
from tests.tiny import CONFIG

TINY = FAMILIES[0]


@pytest.mark.parametrize("fold", TINY.folds, ids=lambda fold: f"{fold.component}: {fold.source}")
def test_neighbours_have_as_many_channels(fold: Fold) -> None:
    """What a norm or some rows put out is what matrices read; query heads may share the channels of a value head."""
    architecture = TINY.architecture(CONFIG)
    specs = {spec.name: spec for spec in TINY.tensors(architecture)}
    blocks = {block_of(name) for name in specs if name.startswith(fold.component)}
    places = [whole for block in sorted(blocks) if (whole := fold.within(block)).source in specs]

    assert places
    for whole in places:
        channels, left = divmod(specs[whole.source].shape[0], fold.part[1])
        shared = architecture.language.heads // architecture.language.kv_heads if fold.source == "attention.v" else 1
        shared = shared if fold.component == "language" else 1
        assert left == 0
        assert {_columns(specs[name]) for name in whole.into} == {channels * shared}
        assert all(block_of(name) == block_of(whole.source) for name in whole.into)


def _columns(spec: TensorSpec) -> int:
    assert spec.role == "matrix"
    return spec.shape[0 if spec.transposed else 1]
