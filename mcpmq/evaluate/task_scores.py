"""Comparison of task scores by sample: means, and the change with its interval."""

from collections.abc import Mapping

from mcpmq.evaluate.bootstrap import bootstrap_mean
from mcpmq.evaluate.schema import Estimate, TaskScores


def compare_scores(metric: str, original: Mapping[str, float], artifact: Mapping[str, float]) -> TaskScores:
    """Compare the scores of the same samples; the order of the samples does not matter."""
    pairs = {name: (original[name], artifact[name]) for name in sorted(original)}
    return TaskScores(
        metric=metric,
        original=bootstrap_mean([[before] for before, _ in pairs.values()]),
        artifact=bootstrap_mean([[after] for _, after in pairs.values()]),
        score_change=bootstrap_mean([[after - before] for before, after in pairs.values()]),
        scores=pairs,
    )


def score_changes(earlier: Mapping[str, TaskScores], later: Mapping[str, TaskScores]) -> dict[str, Estimate]:
    """Return, by task, the change of an artifact's score to a later artifact, for tasks with the same samples."""
    changed = {}
    for task, after in later.items():
        before = earlier.get(task)
        if before and before.metric == after.metric and before.scores.keys() == after.scores.keys():
            pairs = [(before.scores[name][1], scores[1]) for name, scores in after.scores.items()]
            changed[task] = bootstrap_mean([[new - old] for old, new in pairs])
    return changed
