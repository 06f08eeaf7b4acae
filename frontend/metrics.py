"""The metrics that Prometheus reads at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

REGISTRY = CollectorRegistry()

GENERATIONS = Counter(
    "filmstrip_generations", "Generations that ended, by how they ended.", ["outcome"], registry=REGISTRY
)
CHUNK_SECONDS = Histogram(
    "filmstrip_chunk_seconds",
    "Seconds from the start of a chunk until its frames are known.",
    ["pipeline", "slot"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "filmstrip_stage_seconds",
    "Seconds of one stage within a model, as the model reports them.",
    ["model", "stage"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
FRAMES = Counter("filmstrip_frames", "Pixel frames generated.", registry=REGISTRY)
UPLOADED_BYTES = Counter("filmstrip_uploaded_bytes", "Bytes of uploads that were stored.", ["kind"], registry=REGISTRY)
DOWNLOADED_BYTES = Counter("filmstrip_downloaded_bytes", "Bytes of outputs that were sent.", registry=REGISTRY)
SLOTS_IN_USE = Gauge("filmstrip_slot_in_use", "Generations that run.", ["slot"], registry=REGISTRY)
QUEUE_DEPTH = Gauge("filmstrip_queue_depth", "Generations that wait for their turn.", registry=REGISTRY)
QUEUE_WAIT_SECONDS = Histogram(
    "filmstrip_queue_wait_seconds",
    "Seconds that a generation waited for its turn, of those that had to.",
    buckets=(0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
    registry=REGISTRY,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition() -> bytes:
    """All metrics in the Prometheus text format."""
    return generate_latest(REGISTRY)
