"""What DSPy does around a model call, without DSPy: signatures, prompts, parsing, metrics, Predict.

This room imports `bus` and nothing else of ours, so that engine, operators and workers can all use it: the engine checks
what a worker will be asked, and a worker answers without paying for `import dspy`.
"""
