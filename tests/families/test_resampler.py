"""Tensors of the resampler, compared with the torch module."""

from mcpmq.families import family_named
from mcpmq.families.modeling_minicpmv import Resampler
from mcpmq.families.resampler import resampler_specs
from tests.tiny import CONFIG


def test_tensors_are_those_of_the_torch_module() -> None:
    """Names and shapes are equal, and only the output projection is stored transposed."""
    architecture = family_named("minicpm-v-2.6").parse_architecture(CONFIG)
    module = Resampler(
        architecture.required_vision.num_queries,
        architecture.language.hidden_size,
        architecture.required_vision.hidden_size,
    )

    specs = list(resampler_specs(architecture, "anywhere"))

    assert {spec.hub_name.removeprefix("anywhere."): spec.shape for spec in specs} == {
        name: tuple(parameter.shape) for name, parameter in module.named_parameters()
    }
    assert [spec.name for spec in specs if spec.transposed] == ["projector.out"]
