"""Run many samples through a model with one block in memory at a time.

Every sample's ordinary forward pass runs in a greenlet, which pauses at each block until all samples have reached it.
A block is loaded once for all samples, and models need no description of the tensors between their blocks.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from mcpmq.execution.spilling import SpillFile

# Whether the sample in its forward pass replays a block; each sample runs in a context of its own.
_is_replay: ContextVar[bool] = ContextVar("is_replay", default=False)


class ReplayStopped(Exception):
    """Raised in a block to end its replay for one sample."""


class Replay(Protocol):
    """Runs the samples that wait before a block through it and discards the outputs.

    With `only`, the indices of samples, it runs these samples only.
    """

    def __call__(self, only: Container[int] | None = None) -> None: ...

    def waiting(self) -> list[int]:
        """Return the indices of the samples that wait."""

    def advance(self, only: Container[int]) -> None:
        """Let these samples pass through the block now, before the others."""

    def advance_with_hooks(self, only: Container[int]) -> None:
        """Let samples pass as `advance`, with hooks that were registered on the block while they waited.

        Not for a block that contains others.
        """


class BlockVisitor(Protocol):
    """Called with each block when all samples wait before it; may replay it any number of times and change it."""

    def __call__(self, block: nn.Module, replay: Replay) -> None: ...


def keep(block: nn.Module) -> None:
    """Do not load or release a block."""


def ignore(block: nn.Module, replay: Replay) -> None:
    """Do not visit a block."""


def own_position(position: int) -> int:
    """Return the position of the next block of this process."""
    return position


def find_blocks(model: nn.Module, parameters: Iterable[str]) -> list[nn.Module]:
    """Return the blocks that contain these parameters, in their order.

    A block is a layer of an nn.ModuleList, or else the outermost module with parameters of its own.
    """
    return list(dict.fromkeys(_find_block(model, name) for name in parameters))


def _find_block(model: nn.Module, parameter: str) -> nn.Module:
    module = model
    for name in parameter.split(".")[:-1]:
        in_list = isinstance(module, nn.ModuleList)
        module = module.get_submodule(name)
        if in_list or next(module.parameters(recurse=False), None) is not None:
            break
    return module


def run_layerwise(
    forward: Callable[..., Any],
    blocks: Sequence[nn.Module],
    samples: Sequence[Mapping[str, Any]],
    *,
    load: Callable[[nn.Module], None] = keep,
    release: Callable[[nn.Module], None] = keep,
    visit: BlockVisitor = ignore,
    spill: SpillFile | None = None,
    next_position: Callable[[int], int] = own_position,
) -> list[Any]:
    """Return the results of `forward(**sample)` for every sample, equal to those of separate runs.

    When all samples wait at a block, `load(block)` and `visit(block, replay)` are called, the samples pass through the
    block, and `release(block)` is called, also after an error. Samples may skip blocks, as a text sample skips the
    vision encoder. `blocks` are in the order of the forward pass. Samples need `use_cache=False`, because a replay
    would fill the cache twice.

    A block that contains others, as a layer contains experts, is followed by them, and needs none of its own weights
    after the first of them. Samples pass through it up to the inner blocks; in a replay of it, the outputs of inner
    blocks are zeros of the size of their inputs.

    `spill` takes the hidden states of waiting samples: the first argument of a block, and those of earlier blocks that
    the forward pass still refers to. `next_position` maps the position of the next block that a sample waits at, the
    number of blocks after the last one, to that of the next block: processes that share work load the same blocks.

    Raises:
        RuntimeError: a sample calls a block again after it passed: the visitor has seen a part of its inputs only.
    """
    with _pausing(blocks, spill):
        runs = [
            _Run(index, greenlet(lambda _, sample=sample: forward(**sample))) for index, sample in enumerate(samples)
        ]
        try:
            order = {block: position for position, block in enumerate(blocks)}
            for run in runs:
                run.resume("start")
            passed = set[int]()
            while (position := next_position(_position(order, runs))) < len(blocks):
                block = blocks[position]
                if position in passed:
                    raise RuntimeError(f"a sample calls block {position}, {type(block).__name__}, more than once")
                passed.add(position)
                _pass_block(block, [run for run in runs if run.state is block], load, release, visit)
            return [run.state for run in runs]
        finally:
            for run in runs:
                run.thread.throw(GreenletExit)


def _position(order: Mapping[nn.Module, int], runs: Sequence["_Run"]) -> int:
    """Return the position of the first block that a sample waits at, or the number of blocks."""
    return min((order[run.state] for run in runs if not run.thread.dead), default=len(order))


@dataclass(slots=True)
class _Run:
    """The forward pass of one sample; `state` is the block that it waits at, and its result after the last block."""

    index: int  # of the sample
    thread: greenlet
    state: Any = None

    def resume(self, command: str) -> None:
        self.state = self.thread.switch(command)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The samples that wait before one block: the `Replay` of its visitor."""

    block: nn.Module
    runs: Sequence[_Run]

    def __call__(self, only: Container[int] | None = None) -> None:
        self._resume("replay", only)

    def waiting(self) -> list[int]:
        return [run.index for run in self.runs if run.state is self.block]

    def advance(self, only: Container[int] | None = None) -> None:
        self._resume("continue", only)

    def advance_with_hooks(self, only: Container[int]) -> None:
        self._resume("continue with hooks", only)

    def _resume(self, command: str, only: Container[int] | None) -> None:
        for run in self.runs:
            if run.state is self.block and (only is None or run.index in only):
                run.resume(command)


def _pass_block(
    block: nn.Module,
    runs: Sequence[_Run],
    load: Callable[[nn.Module], None],
    release: Callable[[nn.Module], None],
    visit: BlockVisitor,
) -> None:
    waiting = _Waiting(block, runs)
    try:
        load(block)
        visit(block, waiting)
        waiting.advance()
    finally:
        release(block)


@contextmanager
def _pausing(blocks: Sequence[nn.Module], spill: SpillFile | None) -> Iterator[None]:
    main = getcurrent()
    overrides = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            vars(block)["forward"] = _pausing_forward(block, block.forward, main, spill)
        yield
    finally:
        for block, override in zip(blocks, overrides, strict=True):
            vars(block).pop("forward", None)
            if override is not None:
                vars(block)["forward"] = override


def _pausing_forward(
    block: nn.Module, forward: Callable[..., Any], main: greenlet, spill: SpillFile | None
) -> Callable[..., Any]:
    """Return a forward that first switches to the main greenlet, and replays until the command is to continue."""
    replaying = False

    def command(states: Tensor | None) -> Any:
        """Wait for the next command."""
        with nullcontext() if spill is None else spill.without_memory(getcurrent(), states):
            return main.switch(block)

    def paused(*args: Any, **kwargs: Any) -> Any:
        """Wait, replay until the sample may continue, and pass through the block."""
        nonlocal replaying
        states = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
        if _is_replay.get() and not replaying and states is not None:  # inside of the block that is replayed
            return torch.zeros_like(states)
        while not replaying and getcurrent() is not main and (given := command(states)) != "continue":
            replaying, reset = True, _is_replay.set(True)
            try:
                with suppress(ReplayStopped):  # a call of the module, so that hooks on the block itself run as well
                    output = block(*args, **kwargs)
                if given == "continue with hooks":
                    return output
            finally:
                replaying = False
                _is_replay.reset(reset)
        return forward(*args, **kwargs)

    return paused
