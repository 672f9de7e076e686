"""The verb `demo`: `demo.py` runs it, `engine.py` is the engine that it kills, `printed.py` what people see."""
