"""What a server counts, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        shared = {"namespace": "perturbjax", "registry": self.registry}
        self.requests = Counter("requests", "Requests by route and status.", ["route", "status"], **shared)
        self.seconds = Histogram(
            "request_seconds", "From the first byte of a request to the last of its answer.", ["route"], **shared, buckets=_SECONDS
        )
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of accepted prompts.", **shared)
        self.generated_tokens = Counter("generated_tokens", "Tokens generated, by all members.", **shared)
        self.votes = Counter("votes", "Votes cast by members.", **shared)
        self.votes_saved = Counter("votes_saved", "Votes that early exit did without.", **shared)
        self.batch_size = Histogram("batch_size", "Requests answered together.", **shared, buckets=_SIZES)
        self.queue_depth = Gauge("queue_depth", "Requests that wait.", **shared)

    def text(self) -> bytes:
        return generate_latest(self.registry)
