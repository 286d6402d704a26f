"""Long fault-injection campaign: `make campaign SEED=1 COUNT=50 TIME_LIMIT=3600`.

One round has six kills, one hundred fuzzed inputs, two file system faults, one disk fault and one pair of concurrent
runs. The result is written to benchmarks/results/campaign.json. Every case has its own seed, so it can be repeated:
`python -m tests.campaign --seed 1 --repeat kill-17`.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.commands import provenance, write_result
from tests.campaign import interruptions, isolation
from tests.campaign.fuzz import fuzz
from tests.campaign.workspace import build_inputs

Case = Callable[[Path, Path, random.Random], tuple[str, str]]
KINDS = ("kill", "fuzz", "fault", "disk", "pair")
CASES_PER_ROUND = {"kill": 6, "fuzz": 100, "fault": 2, "disk": 1, "pair": 1}
MAX_LISTED_PROBLEMS = 40


@dataclass(slots=True)
class Tally:
    """Cases of one kind, and those with a problem."""

    cases: int = 0
    seconds: float = 0.0
    problems: list[dict[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and the first problems."""
        listed = self.problems[:MAX_LISTED_PROBLEMS]
        return {
            "cases": self.cases,
            "seconds": round(self.seconds, 1),
            "problems": len(self.problems),
            "listed_problems": listed,
        }


def case_of(kind: str, names: tuple[str, ...] = tuple(interruptions.SCENARIOS)) -> Case:
    """Return the function that runs a case; `names` are the scenarios of kills, faults and pairs."""
    if kind == "fuzz":
        return fuzz
    run = {name: getattr(interruptions, name) for name in KINDS if name != "fuzz"}[kind]

    def case(inputs: Path, folder: Path, generator: random.Random) -> tuple[str, str]:
        found: tuple[str, str] = run(inputs, folder, generator, names)
        return found

    return case


def run_case(case: Case, seed: str, inputs: Path, work: Path) -> tuple[str, str]:
    """Run one case with its seed in a new folder of `work`; return a description and the problem, if any."""
    folder = work / "case"
    try:
        return case(inputs, folder, random.Random(seed))
    except OSError as error:  # of the campaign itself; the other cases go on
        return seed, f"the case failed: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for log in work.glob("log-*"):
            shutil.rmtree(log)


def campaign(seed: int, rounds: int, time_limit: float, kinds: Sequence[str], work: Path) -> Iterator[dict[str, Tally]]:
    """Run all cases, or as many as start within `time_limit` seconds; yield the tallies after every round."""
    inputs, tallies = build_inputs(work / "inputs"), {kind: Tally() for kind in kinds}
    end = time.monotonic() + time_limit
    for number in range(rounds):
        for kind in kinds:
            first = number * CASES_PER_ROUND[kind]
            for index in range(first, first + CASES_PER_ROUND[kind]):
                if time.monotonic() < end:
                    _count(tallies[kind], f"{kind}-{index}", seed, inputs, work)
        yield tallies
        if time.monotonic() > end:
            return


def _count(tally: Tally, name: str, seed: int, inputs: Path, work: Path) -> None:
    start = time.monotonic()
    label, problem = run_case(case_of(name.partition("-")[0]), f"{seed}-{name}", inputs, work)
    tally.cases, tally.seconds = tally.cases + 1, tally.seconds + time.monotonic() - start
    if problem:
        tally.problems.append({"case": name, "input": label, "problem": problem})
        print(f"{name}: {label}: {problem}", flush=True)


def main() -> None:
    """Run a campaign, write its result, and exit with 1 if a case has a problem."""
    options = _options()
    isolation.preload()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        work = Path(folder)
        if options.repeat:
            kind, _, _ = options.repeat.partition("-")
            inputs = build_inputs(work / "inputs")
            label, problem = run_case(case_of(kind), f"{options.seed}-{options.repeat}", inputs, work)
            print(f"{label}: {problem or 'no problem'}")
            sys.exit(bool(problem))
        kinds = [kind for kind in options.kinds if kind != "disk" or interruptions.can_mount(work / "case")]
        tallies: dict[str, Tally] = {}
        for tallies in campaign(options.seed, options.count, options.time_limit, kinds, work):
            facts = {kind: tally.to_dict() for kind, tally in tallies.items()}
            write_result(options.result, provenance("tests.campaign") | facts)
    sys.exit(any(tally.problems for tally in tallies.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=50, help="rounds")
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds after which no further case starts")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--repeat", metavar="CASE", help="run one case, for example `kill-17`, and write no result")
    parser.add_argument("--result", default="campaign", help="name in benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
