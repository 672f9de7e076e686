"""What happens, for other people's tools: OpenTelemetry traces and metrics, and metrics as Prometheus reads them.

It listens to `bus/telemetry.py`, and is imported by the command line alone. Off until somebody asks for it.
"""
