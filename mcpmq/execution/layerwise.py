"""Many samples through a model, one block in memory at a time.

Lockstep: every sample's ordinary forward runs in a greenlet that pauses at each block until all the others are there
too. So a block is loaded once for all samples, and no model has to say what it hands from block to block.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn


class Replay(Protocol):
    """Runs every sample that waits before a block through it and drops what comes out; or only those whose numbers are
    among `only`."""

    def __call__(self, only: Container[int] | None = None) -> None: ...


class Visit(Protocol):
    """Watches a block, and may change its weights, while every sample waits before it; replays as often as wanted."""

    def __call__(self, block: nn.Module, replay: Replay) -> None: ...


def leave(block: nn.Module) -> None:
    """Neither load nor release."""


def pass_by(block: nn.Module, replay: Replay) -> None:
    """Watch nothing."""


def blocks_of(model: nn.Module, parameters: Iterable[str]) -> list[nn.Module]:
    """The blocks that hold these parameters, in their order, none inside another: each layer of a list of layers, and
    outside of such lists the outermost module that owns a parameter itself."""
    return list(dict.fromkeys(_holder(model, name) for name in parameters))


def _holder(model: nn.Module, parameter: str) -> nn.Module:
    module = model
    for name in parameter.split(".")[:-1]:
        layered = isinstance(module, nn.ModuleList)
        module = module.get_submodule(name)
        if layered or next(module.parameters(recurse=False), None) is not None:
            break
    return module


def lockstep(
    forward: Callable[..., Any],
    blocks: Sequence[nn.Module],
    samples: Sequence[Mapping[str, Any]],
    *,
    load: Callable[[nn.Module], None] = leave,
    release: Callable[[nn.Module], None] = leave,
    visit: Visit = pass_by,
) -> list[Any]:
    """What `forward(**sample)` returns, for every sample in order, exactly as if each had run alone.

    At each block, when all samples wait: `load(block)`, `visit(block, replay)`, then the samples go through it with
    the weights as they now are, then `release(block)`, which is called even if something failed. `blocks` come in
    the order of the forward pass; none lies inside another. A sample may skip some, as one without an image skips the
    vision tower: the others catch up first. Samples must carry `use_cache=False`: replay would feed a cache twice.
    """
    with _pausing(blocks):
        runs = [
            _Run(number, greenlet(lambda _, sample=sample: forward(**sample))) for number, sample in enumerate(samples)
        ]
        try:
            for run in runs:
                run.resume("start")
            while waiting := [run.at for run in runs if not run.thread.dead]:
                block = min(waiting, key=blocks.index)
                _pass(block, [run for run in runs if run.at is block], load, release, visit)
            return [run.at for run in runs]
        finally:
            for run in runs:
                run.thread.throw(GreenletExit)


@dataclass(slots=True)
class _Run:
    """One sample's forward; `at` is the block it waits before, at last its result."""

    number: int  # of the sample
    thread: greenlet
    at: Any = None

    def resume(self, order: str) -> None:
        self.at = self.thread.switch(order)


def _pass(
    block: nn.Module,
    runs: Sequence[_Run],
    load: Callable[[nn.Module], None],
    release: Callable[[nn.Module], None],
    visit: Visit,
) -> None:
    def replay(only: Container[int] | None = None) -> None:
        for run in runs:
            if only is None or run.number in only:
                run.resume("look")

    try:
        load(block)
        visit(block, replay)
        for run in runs:
            run.resume("go")
    finally:
        release(block)


@contextmanager
def _pausing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    main = getcurrent()
    replaced = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            vars(block)["forward"] = _pauses_first(block, block.forward, main)
        yield
    finally:
        for block, forward in zip(blocks, replaced, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                vars(block)["forward"] = forward


def _pauses_first(block: nn.Module, forward: Callable[..., Any], main: greenlet) -> Callable[..., Any]:
    looking = False

    def paused(*args: Any, **kwargs: Any) -> Any:
        nonlocal looking
        while not looking and getcurrent() is not main and main.switch(block) == "look":
            looking = True
            try:
                block(*args, **kwargs)  # called anew, so that a visitor's hooks on the block itself are met too
            finally:
                looking = False
        return forward(*args, **kwargs)

    return paused
