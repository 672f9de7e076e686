"""What the tests of the gateway stand on is in gateway_bench.py, which they import."""

from gateway_bench import http, model, project  # noqa: F401 - fixtures
from page_bench import browser, shown  # noqa: F401 - fixtures
