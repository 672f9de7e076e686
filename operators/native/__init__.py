"""The parts of DSPy around a model call, reimplemented so that they work without it: signatures, prompts, parsing, metrics.

Of dspex this package imports `bus` only, so that engine, operators and workers can all use it: the engine checks a call before
a worker gets it, and a worker can answer without `import dspy`.
"""
