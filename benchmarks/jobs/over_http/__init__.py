"""Events, calls and streams over HTTP, through `dspex gateway` and beside a FastAPI app that asks the model itself."""
