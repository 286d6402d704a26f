"""Round a block stage by stage: the inputs of a matrix are those that the rounded matrices before it give.

The targets are the outputs of the original model, whose hidden states pass through the original weights of the block
first: only the weights of one model are in memory at a time.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Self

from torch import Tensor, nn

from mcpmq.calibrate.block import BlockStats, InputSummary, RoundedBlock, take_last
from mcpmq.calibrate.exchange import broadcast
from mcpmq.calibrate.forward import CalibrationRun
from mcpmq.calibrate.modalities import LANGUAGE
from mcpmq.calibrate.original_inputs import OriginalInputs
from mcpmq.calibrate.paired_inputs import QuantizedBlock
from mcpmq.calibrate.requirements import check_stats
from mcpmq.calibrate.selection import Candidate
from mcpmq.calibrate.shared_statistics import collect_from_all
from mcpmq.calibrate.stages import Stage, Stream, find_stages
from mcpmq.execution.device import CPU
from mcpmq.execution.layerwise import Replay
from mcpmq.execution.torch_model import to_float
from mcpmq.families.family import TensorSpec
from mcpmq.families.residual import stream_reader
from mcpmq.plan import Plan
from mcpmq.recipe import TokenWeights
from mcpmq.rounding import RoundingMethod
from mcpmq.rounding.smoothing import WeightScaling
from mcpmq.rounding.target import solve_drift
from mcpmq.rounding.weight import NO_SCALING, RoundedWeight, quantize_weight
from mcpmq.system.freed_memory import release_freed_memory
from mcpmq.system.torch_threads import torch_threads

Scalings = Mapping[str, WeightScaling]  # by common name
NO_WEIGHTS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class StagewiseRounder:
    """Rounds one block of a calibration run to the outputs of the original model.

    specs: by parameter. original: weights by parameter, until they are used; on devices other than the CPU always.
    matrices: those that need calibration, and the modules that feed them; see `capture_inputs`. inputs: those of the
    original model. samples: those that calibrate the block. held_out_in_gram: whether held-out samples are in the
    statistics.
    """

    run: CalibrationRun
    plan: Plan
    name: str  # of the block
    block: nn.Module
    specs: Mapping[str, TensorSpec]
    original: dict[str, Tensor]
    matrices: Mapping[str, str | None]
    stages: Sequence[Stage]
    inputs: OriginalInputs
    replay: Replay
    samples: Sequence[int]
    held_out_in_gram: bool

    @classmethod
    def create(
        cls,
        run: CalibrationRun,
        plan: Plan,
        name: str,
        block: nn.Module,
        matrices: Mapping[str, TensorSpec],
        replay: Replay,
        observed: Container[int],
        held_out_in_gram: bool,
    ) -> Self:
        """Find the stages of a block that has its original weights, and let all samples of the original model pass it.

        `observed` are the samples that calibrate it.

        Raises:
            DatasetError: no sample runs a matrix.
        """
        modules, specs = run.input_modules(matrices), run.model.blocks[block]
        pairs = run.sample_pairs(replay, observed)
        samples = [one for _, one in pairs]
        found = find_stages(block, modules, replay, samples) if samples else []
        first = run.indices[samples[0]] if samples else run.num_samples
        stages = _most_complete(run.exchange.gather((first, found)))
        for parameter, spec in matrices.items():
            if not any(parameter in stage.parameters for stage in stages):
                check_stats(spec, (), run.num_samples)
        stages = [replace(one, stream=_find_stream(plan, name, specs, one.parameters)) for one in stages]
        contains_blocks = any(one is not block and one in run.model.blocks for one in block.modules())
        inputs = OriginalInputs.record(
            *(block, stages, modules, replay, pairs, run.spill), contains_blocks=contains_blocks
        )
        replay.advance(run.original_samples)
        original = _parameters(block, specs)
        return cls(run, plan, name, block, specs, original, modules, stages, inputs, replay, samples, held_out_in_gram)

    def round(self, candidate: Candidate, scaling: Scalings, is_last: bool) -> RoundedBlock:
        """Round with a candidate: first the weights without calibration, then one stage after the other."""
        calibrated = {self.specs[parameter].name for parameter in self.matrices}
        names = [tensor.name for tensor in self.plan.blocks[self.name]]
        exchange, others = self.run.exchange, [name for name in names if name not in calibrated]
        rounded = broadcast(exchange, lambda: self._round(others, {}, "rtn", scaling))
        inputs: dict[str, InputSummary] = {}
        weights = self._scaled_originals(scaling) | self._parameters(rounded)
        block = QuantizedBlock(self.block, weights, self.replay, self.samples, self.inputs)
        for stage in self.stages:
            stats = self._collect_stats(block, stage, scaling)
            if is_last:
                self.inputs.free(stage)
            summaries = {name: InputSummary.of_parts(parts) for name, parts in stats.items()}
            loaded = self._loaded(stage)
            if stage is self.stages[-1]:
                self._unload(weights, is_last)
            release_freed_memory()
            _solve_drifts(stats)
            round_stage = partial(self._round, list(stats), stats, candidate.method, scaling, loaded)
            stage_weights, found = broadcast(exchange, lambda: (round_stage(), summaries))  # noqa: B023
            rounded |= stage_weights
            inputs |= found
            if stage is not self.stages[-1]:
                weights |= self._parameters(stage_weights)
            release_freed_memory()
        return RoundedBlock(
            {name: rounded[name] for name in names}, {name: inputs[name] for name in names if name in inputs}
        )

    def _unload(self, weights: dict[str, Tensor], is_last: bool) -> None:
        """Free the weights that no stage needs any more; those of the original if no candidate does."""
        weights.clear()
        if is_last:
            self.original.clear()
        self.run.model.unload_block(self.block)

    def _round(
        self,
        names: Sequence[str],
        stats: BlockStats,
        method: RoundingMethod,
        scaling: Scalings,
        loaded: Mapping[str, Tensor] = NO_WEIGHTS,
    ) -> dict[str, RoundedWeight]:
        """Round weights, of which some are on the device; their statistics are removed at their last use."""
        tensors = {tensor.name: tensor for tensor in self.plan.blocks[self.name]}
        with torch_threads(self.run.threads):
            return {
                name: quantize_weight(
                    *(self.plan, tensors[name], take_last(stats, name), method, scaling.get(name, NO_SCALING)),
                    loaded.get(name),
                )
                for name in names
            }

    def _loaded(self, stage: Stage) -> dict[str, Tensor]:
        """Return original weights [out, in] of a stage by common name, if they are on a device other than the CPU."""
        specs = {parameter: self.specs[parameter] for parameter in stage.parameters}
        return {
            spec.name: self.original[parameter].T if spec.transposed else self.original[parameter]
            for parameter, spec in specs.items()
            if self.run.model.device != CPU
        }

    def _parameters(self, rounded: Mapping[str, RoundedWeight]) -> dict[str, Tensor]:
        """Return rounded weights as parameters of the block."""
        device = self.run.model.device
        return {
            parameter: to_float(rounded[spec.name].stored, spec, device)
            for parameter, spec in self.specs.items()
            if spec.name in rounded
        }

    def _take_originals(self) -> dict[str, Tensor]:
        """Return the original parameters of the block; on the CPU they are read again for the next candidate."""
        if not self.original:
            self.run.load_original(self.block)
            self.original.update(_parameters(self.block, self.specs))
        found = dict(self.original)
        if self.run.model.device == CPU:
            self.original.clear()
        return found

    def _scaled_originals(self, scaling: Scalings) -> dict[str, Tensor]:
        """Return the parameters of the block after scales are applied."""
        weights = self._take_originals()
        for parameter, spec in self.specs.items():
            if spec.name in scaling:
                weight = weights[parameter]
                scaled = scaling[spec.name].apply(weight.T if spec.transposed else weight)
                weights[parameter] = to_float(scaled, spec, self.run.model.device)
        return weights

    def _collect_stats(self, block: QuantizedBlock, stage: Stage, scaling: Scalings) -> BlockStats:
        """Return the statistics of a stage, by common name, with products of the drift that are not solved yet."""
        new_observer = self.run.new_observer(
            self.block, self.plan.recipe.token_weights or TokenWeights(), self.held_out_in_gram
        )
        scales = {one: self._column_scale(scaling, one) for one in stage.parameters}
        collect = partial(block.collect_stats, stage, self.matrices, scales)
        weights = self.run.multiplied_weights(self.block)
        found = collect_from_all(self.run.exchange, new_observer, collect, weights)
        if self.run.exchange.rank:
            return {}
        stats = {self.specs[parameter].name: found.get(parameter, ()) for parameter in stage.parameters}
        for parameter in stage.parameters:
            check_stats(self.specs[parameter], found.get(parameter, ()), self.run.num_samples)
        return stats

    def _column_scale(self, scaling: Scalings, parameter: str) -> Tensor | None:
        scale = scaling.get(self.specs[parameter].name, NO_SCALING).column_scale
        return None if scale is None else scale.to(self.run.model.device)


def _solve_drifts(stats: BlockStats) -> None:
    """Solve the drifts of a stage, whose matrices share statistics; before, the weights of a block are unloaded."""
    for part in {id(part): part for parts in stats.values() for part in parts}.values():
        solve_drift(part)


def _parameters(block: nn.Module, specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    return {parameter: block.get_parameter(parameter).detach() for parameter in specs}


def _find_stream(plan: Plan, block: str, specs: Mapping[str, TensorSpec], stage: Sequence[str]) -> Stream | None:
    """Return the residual stream that the outputs of a stage are added to, if there is one."""
    parameters = {spec.name: parameter for parameter, spec in specs.items()}
    readers = {stream_reader(specs[parameter].name, parameters) for parameter in stage}
    if len(readers) > 1 or (reader := readers.pop()) is None:
        return None
    is_language = block.startswith(f"{LANGUAGE}.")
    scale = plan.checkpoint.architecture.language.residual_scale if is_language else 1.0
    return Stream(parameters[reader].rpartition(".")[0] if reader else reader, scale)


def _most_complete(found: Sequence[tuple[int, Sequence[Stage]]]) -> Sequence[Stage]:
    """Return the stages that have the most matrices, of the process with the first sample if several have."""
    return min(found, key=lambda one: (-sum(len(stage.parameters) for stage in one[1]), one[0]))[1]
