"""What the service counts and times, for Prometheus: names, labels and buckets stand here and nowhere else.

Each app has a registry of its own.  Every label takes its values from a small closed set (two models, five stages, the error codes, the routes), so
that no caller can make the number of series grow.  Recording is some microseconds of arithmetic; the text is written by GET /metrics, in a thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

import pocketqa
from pocketqa.types import StageTimings
from service.errors import TABLE

ROLES = ("teacher", "student")
SHADOW_OUTCOMES = ("compared", "dropped", "failed")
# What passed in none of the four named stages is the fifth, so that the stages of a request add up to its whole time.
STAGES = ("tokenise", "queue", "forward", "decode", "overhead")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
OTHER = "other"

_STAGE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# Those of OpenTelemetry's http.server.request.duration, and one for the default deadline.
_HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
_ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS_BUCKETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_DRIFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
_F1_BUCKETS = (0.0, 0.25, 0.5, 0.75, 0.999, 1.0)


Workers = Callable[[], Sequence[Mapping[str, object]]]


class Metrics:
    """Counters, histograms and gauges of one running app.  Every method may be called from any thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Gauge("pocketqa_build_info", "The version of PocketQA; always 1.", ["version"], registry=registry).labels(pocketqa.__version__).set(1)
        self._define_requests(registry)
        self._define_batches(registry)
        self._define_queue(registry)
        self._define_shadow(registry)

    def _define_requests(self, registry: CollectorRegistry) -> None:
        self._reasons = frozenset(kind.code for kind in TABLE.values())
        stage = Histogram(
            "pocketqa_stage_duration_seconds", "Time of an answered request in each stage; its stages add up to its whole time.",
            ["model", "stage"], buckets=_STAGE_BUCKETS, registry=registry,
        )  # fmt: skip
        answer = Histogram(
            "pocketqa_answer_duration_seconds", "Time of an answered request, from the first stage to the last.", ["model"],
            buckets=_STAGE_BUCKETS, registry=registry,
        )  # fmt: skip
        rejected = Counter("pocketqa_rejected", "Requests answered with an error, by the code in its body.", ["reason"], registry=registry)
        cancelled = Counter("pocketqa_cancelled", "Requests whose client left before the answer.", ["model"], registry=registry)
        same = Counter("pocketqa_comparisons", "Comparisons, by whether both models gave the same span.", ["same_span"], registry=registry)
        # A child is looked up once, here: it costs more than the counting, and a series that shows 0 is a series that can be watched.
        self._stages = {role: {name: stage.labels(role, name) for name in STAGES} for role in ROLES}
        self._answers = {role: answer.labels(role) for role in ROLES}
        self._rejected = {reason: rejected.labels(reason) for reason in (*sorted(self._reasons), OTHER)}
        self._cancelled = {role: cancelled.labels(role) for role in ROLES}
        self._compared = {answer: same.labels(str(answer).lower()) for answer in (True, False)}
        self._f1 = Histogram(
            "pocketqa_comparison_f1_ratio", "Word F1 of the student's best answer against the teacher's.", buckets=_F1_BUCKETS, registry=registry
        )
        self._http = Histogram(
            "pocketqa_http_request_duration_seconds", "Time of an HTTP request, from its headers to the end of its response.",
            ["route", "method", "status"], buckets=_HTTP_BUCKETS, registry=registry,
        )  # fmt: skip

    def _define_batches(self, registry: CollectorRegistry) -> None:
        seconds = Histogram("pocketqa_batch_duration_seconds", "Time of a forward pass.", ["model"], buckets=_BATCH_BUCKETS, registry=registry)
        rows = Histogram("pocketqa_batch_rows", "Windows of a forward pass.", ["model"], buckets=_ROWS_BUCKETS, registry=registry)
        tokens = Histogram("pocketqa_batch_tokens", "Tokens of a forward pass; no padding.", ["model"], buckets=_TOKENS_BUCKETS, registry=registry)
        padding = Counter("pocketqa_padding_tokens", "Positions of forward passes that held padding.", ["model"], registry=registry)
        retries = Counter("pocketqa_batch_retries", "Batches that failed and whose requests were tried one by one.", ["model"], registry=registry)
        self._batch_seconds = {role: seconds.labels(role) for role in ROLES}
        self._batch_rows = {role: rows.labels(role) for role in ROLES}
        self._batch_tokens = {role: tokens.labels(role) for role in ROLES}
        self._padding = {role: padding.labels(role) for role in ROLES}
        self._retries = {role: retries.labels(role) for role in ROLES}

    def _define_queue(self, registry: CollectorRegistry) -> None:
        self._workers = _Workers()
        registry.register(self._workers)
        self._restarts = Counter("pocketqa_worker_restarts", "Workers that died and were started again.", registry=registry)
        self._queue_tokens = Gauge("pocketqa_queue_tokens", "Tokens that wait for a forward pass.", ["model"], registry=registry)
        words = (
            "Predicted seconds until a request that came now would be computed; refused are those that would wait longer than the service lets them."
        )
        self._queue_seconds = Gauge("pocketqa_queue_seconds", words, registry=registry)
        self._queue_requests = Gauge("pocketqa_queue_requests", "Requests that wait for a forward pass.", ["model"], registry=registry)
        for role in ROLES:
            self._queue_tokens.labels(role)
            self._queue_requests.labels(role)

    def _define_shadow(self, registry: CollectorRegistry) -> None:
        requests = Counter(
            "pocketqa_shadow_requests", "Student's requests drawn for the shadow: compared, dropped for want of quiet time, or failed.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        agreed = Counter("pocketqa_shadow_agreement", "Those compared, by whether both models gave the same span.", ["agreed"], registry=registry)
        self._shadow_requests = {outcome: requests.labels(outcome) for outcome in SHADOW_OUTCOMES}
        self._shadow_agreed = {answer: agreed.labels(str(answer).lower()) for answer in (True, False)}
        self._shadow_f1 = Histogram(
            "pocketqa_shadow_f1", "Word F1 of the student's answer against the teacher's, in the shadow.", buckets=_F1_BUCKETS, registry=registry
        )
        self._shadow_drift = Histogram(
            "pocketqa_shadow_score_drift", "How far the scores of both models' best answers are apart.", buckets=_DRIFT_BUCKETS, registry=registry
        )

    def stages(self, role: str, timings: StageTimings, total: float) -> None:
        """One answered request: the seconds of its stages and its whole time."""
        stages = self._stages[role]
        stages["tokenise"].observe(timings.tokenise)
        stages["queue"].observe(timings.queue)
        stages["forward"].observe(timings.forward)
        stages["decode"].observe(timings.decode)
        stages["overhead"].observe(max(0.0, total - timings.total))
        self._answers[role].observe(total)

    def batch(self, role: str, rows: int, tokens: int, padded: int, seconds: float) -> None:
        """One forward pass.  tokens: without padding.  padded: all positions that were computed."""
        self._batch_seconds[role].observe(seconds)
        self._batch_rows[role].observe(rows)
        self._batch_tokens[role].observe(tokens)
        self._padding[role].inc(padded - tokens)

    def rejected(self, reason: str) -> None:
        """A request was answered with the error of this code; a code outside the table counts as "other"."""
        self._rejected[reason if reason in self._reasons else OTHER].inc()

    def cancelled(self, role: str) -> None:
        """A client left before its answer."""
        self._cancelled[role].inc()

    def compared(self, same_span: bool, f1: float) -> None:
        """Both models answered one question.  f1: of the student's words against the teacher's, between 0 and 1."""
        self._compared[same_span].inc()
        if math.isfinite(f1):
            self._f1.observe(f1)

    def shadow(self, outcome: str) -> None:
        """What became of a request that was drawn for the shadow: one of SHADOW_OUTCOMES."""
        self._shadow_requests[outcome].inc()

    def shadowed(self, same_span: bool, f1: float, drift: float) -> None:
        """Both models answered a request in the shadow.  drift: of the scores of their best answers, between 0 and 1."""
        self._shadow_agreed[same_span].inc()
        if math.isfinite(f1):
            self._shadow_f1.observe(f1)
        self._shadow_drift.observe(drift)

    def restarted(self) -> None:
        """A worker was started again."""
        self._restarts.inc()

    def retried(self, role: str) -> None:
        """A batch failed and its items were tried one by one."""
        self._retries[role].inc()

    def watch_wait(self, seconds: Callable[[], float]) -> None:
        """Read the predicted wait from this whenever the metrics are."""
        self._queue_seconds.set_function(seconds)

    def watch_queue(self, role: str, tokens: Callable[[], int], requests: Callable[[], int]) -> None:
        """Read the length of a model's queue from these whenever the metrics are."""
        self._queue_tokens.labels(role).set_function(tokens)
        self._queue_requests.labels(role).set_function(requests)

    def watch_workers(self, workers: Workers, wanted: int) -> None:
        """Read the memory of the processes that compute ("rss_bytes" of each "worker") from this whenever the metrics are.

        wanted: how many there are when none is missing.
        """
        self._workers.read, self._workers.wanted = workers, wanted

    def http(self, route: str, method: str, status: int, seconds: float) -> None:
        """One HTTP request.  route: the template of the path ("/v1/answer"), never the path itself."""
        self._http.labels(route, method if method in METHODS else OTHER, str(status)).observe(seconds)

    def exposition(self) -> tuple[bytes, str]:
        """Everything in Prometheus' text format, and the content type of that."""
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4


class _Workers(Collector):
    """How many processes compute, and what memory they hold: looked up when it is asked for, since they come and go."""

    def __init__(self) -> None:
        self.read: Workers | None = None
        self.wanted = 0

    def collect(self) -> Iterator[Metric]:
        """Gauges for their number and for the one wanted, one of memory with a label for each."""
        if self.read is None:  # they are being started
            return
        workers = self.read()
        yield GaugeMetricFamily("pocketqa_workers", "Processes that compute.", len(workers))
        yield GaugeMetricFamily("pocketqa_workers_wanted", "Processes that compute when none is missing.", self.wanted)
        memory = GaugeMetricFamily("pocketqa_worker_resident_memory_bytes", "Resident memory of each process that computes.", labels=["worker"])
        for worker in workers:
            if isinstance(held := worker["rss_bytes"], int):
                memory.add_metric([str(worker["worker"])], held)
        yield memory
