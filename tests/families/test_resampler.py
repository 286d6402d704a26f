"""The tensors of the resampler, against the module that computes it."""

from mcpmq.families import family_named
from mcpmq.families.modeling_minicpmv import Resampler
from mcpmq.families.resampler import resampler
from tests.tiny import CONFIG


def test_tensors_are_those_of_the_module() -> None:
    """Names and shapes; the last matrix is stored the other way round."""
    architecture = family_named("minicpm-v-2.6").architecture(CONFIG)
    module = Resampler(architecture.sees.queries, architecture.language.hidden, architecture.sees.hidden)

    specs = list(resampler(architecture, "anywhere"))

    assert {spec.hub_name.removeprefix("anywhere."): spec.shape for spec in specs} == {
        name: tuple(parameter.shape) for name, parameter in module.named_parameters()
    }
    assert [spec.name for spec in specs if spec.transposed] == ["projector.out"]
