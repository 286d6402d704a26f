"""The campaign of the test suite: `python -m tests.campaign.short FOLDER` prints the cases with a problem."""

import sys
from pathlib import Path

from tests.campaign import isolation
from tests.campaign.__main__ import case_of, run_case
from tests.campaign.interruptions import FAST
from tests.campaign.workspace import build_inputs

SEED = 14
CASES = {"fuzz": 24, "kill": 3, "fault": 3}


def main(work: Path) -> None:
    """Run a few cases of every kind."""
    isolation.preload()
    inputs = build_inputs(work / "inputs")
    for kind, count in CASES.items():
        for number in range(count):
            label, problem = run_case(case_of(kind, FAST), f"{SEED}-{kind}-{number}", inputs, work)
            if problem:
                print(f"{kind}-{number}: {label}: {problem}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
