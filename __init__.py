"""dspex: DSPy programs on streams of events."""

__version__ = "0.1.0"
