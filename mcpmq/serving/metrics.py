"""Counters of the server, in the text format of Prometheus."""

import json
from collections import Counter
from collections.abc import Mapping

from mcpmq.serving.admission import Admission
from mcpmq.serving.engine_process import EngineProcess

ROUTES = ("/", "/ping", "/invocations", "/metrics", "/v1/models", "/v1/chat/completions")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TIMINGS = {
    "prompt_n": "mcpmq_prompt_tokens_total",
    "prompt_ms": "mcpmq_prompt_milliseconds_total",
    "predicted_n": "mcpmq_generated_tokens_total",
    "predicted_ms": "mcpmq_generation_milliseconds_total",
}


class Metrics:
    """Counts responses by route and status, and tokens and time of the engine."""

    def __init__(self, admission: Admission, engine: EngineProcess) -> None:
        self._admission, self._engine = admission, engine
        self._responses: Counter[tuple[str, int]] = Counter()
        self._totals: Counter[str] = Counter(dict.fromkeys(TIMINGS.values(), 0))

    def count_response(self, path: str, status: int) -> None:
        """Count a response; paths that are not routes are counted together."""
        self._responses[path if path in ROUTES else "other", status] += 1

    def count_event(self, event: bytes) -> None:
        """Add the tokens and the time in the last event of an answer."""
        if b'"timings"' in event:
            timings: Mapping[str, float] = json.loads(event).get("timings", {})
            for name, metric in TIMINGS.items():
                self._totals[metric] += timings.get(name, 0)  # type: ignore[assignment]

    def to_text(self) -> str:
        """Return all metrics."""
        admission, engine = self._admission, self._engine
        gauges = {
            "mcpmq_engine_up": int(engine.socket is not None),
            "mcpmq_requests_answering": admission.answering,
            "mcpmq_requests_waiting": admission.admitted - admission.answering,
        }
        totals = {**self._totals, "mcpmq_engine_restarts_total": max(engine.starts - 1, 0)}
        lines = [line for name, value in gauges.items() for line in (f"# TYPE {name} gauge", f"{name} {value}")]
        lines += [line for name, value in totals.items() for line in (f"# TYPE {name} counter", f"{name} {value:g}")]
        lines.append("# TYPE mcpmq_responses_total counter")
        for (route, status), number in sorted(self._responses.items()):
            lines.append(f'mcpmq_responses_total{{route="{route}",status="{status}"}} {number}')
        return "\n".join(lines) + "\n"
