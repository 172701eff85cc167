"""Counters of a server, in Prometheus' text format, by its own client library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_sdk.errors import Error

if TYPE_CHECKING:
    from edge_sdk.server.limits import Slots

_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


class Metrics:
    """One server's, in a registry of their own. Any thread may count."""

    def __init__(self) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as e:
            raise Error("the server needs the package prometheus-client: pip install 'edge_sdk[server]'") from e
        self._prometheus = prometheus
        self._registry = prometheus.CollectorRegistry()

        def made(kind: Any, name: str, text: str, *labels: str, **more: Any) -> Any:
            return kind(f"edge_sdk_{name}", text, labels, registry=self._registry, **more)

        counter, gauge, histogram = prometheus.Counter, prometheus.Gauge, prometheus.Histogram
        self.sessions = made(gauge, "sessions", "Websocket sessions that are open")
        self.sessions_opened = made(counter, "sessions_opened", "Websocket sessions since the start")
        self.refused = made(counter, "refused", "Requests that were not let in", "reason")
        self.shed = made(counter, "shed", "Clients that were cut off", "reason")
        self.messages = made(counter, "messages", "Messages from clients")
        self.received_bytes = made(counter, "received_bytes", "Bytes of messages from clients")
        self.sent_bytes = made(counter, "sent_bytes", "Bytes of events to clients")
        self.errors = made(counter, "errors", "Error events", "code")
        self.responses = made(counter, "responses", "Responses by how they ended", "status")
        self.audio_in = made(counter, "audio_in_seconds", "Sound from clients")
        self.audio_out = made(counter, "audio_out_seconds", "Sound to clients")
        self.log_dropped = made(counter, "log_lines_dropped", "Lines of the log that nobody read in time")
        self.queue_s = made(histogram, "queue_seconds", "Wait for a place to generate", buckets=_SECONDS)
        self.first_audio_s = made(
            histogram, "first_audio_seconds", "From the request for a response to its first sound", buckets=_SECONDS
        )
        self._slots_taken = made(gauge, "slots_taken", "Responses that are generated now")
        self._slots_waiting = made(gauge, "slots_waiting", "Responses that wait for a place to generate")

    def watch(self, slots: Slots) -> None:
        self._slots_taken.set_function(lambda: slots.taken)
        self._slots_waiting.set_function(lambda: slots.waiting)

    def text(self) -> bytes:
        return bytes(self._prometheus.generate_latest(self._registry))
