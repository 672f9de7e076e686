"""What telemetry costs: off, and on with spans and metrics that go to a server which takes OTLP."""
