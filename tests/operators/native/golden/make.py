"""Write what the installed DSPy makes of the corpus: `python make.py`, with the interpreter of that DSPy.

The newest file has every prompt and is made first; that of another version has those that differ from the next newer one.
A prompt is null where that version refuses the signature or a value, or has no such adapter. The full version stands in the
file. Needs nothing but DSPy: `python -m venv v && v/bin/pip install dspy==3.3.1 && v/bin/python make.py`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VERSIONS = ("3.4", "3.3", "3.2", "3.1", "3.0", "2.6")  # the newest first
ADAPTERS = {"chat": "ChatAdapter", "json": "JSONAdapter", "xml": "XMLAdapter"}


def signature(dspy: Any, case: Any, types: dict[str, Any]) -> Any:
    """DSPy's signature of a case."""
    names = {t: types[t] for t in case.types}
    if isinstance(case.signature, str):
        return dspy.Signature(case.signature, case.instructions or None, custom_types=names or None)
    sides = zip(case.signature, (dspy.InputField, dspy.OutputField), strict=True)
    fields = {
        n: (f.annotation, kind(desc=f.description, **constraints(f)))
        for model, kind in sides
        for n, f in model.model_fields.items()
    }
    return dspy.Signature(fields, case.instructions or None)


def constraints(info: Any) -> dict[str, Any]:
    """Those of a field of a pydantic model, as DSPy's fields take them."""
    return {k: getattr(m, k) for m in info.metadata for k in ("ge", "lt", "max_length") if hasattr(m, k)}


def prompts(dspy: Any, corpus: Any) -> dict[str, list[list[Any]] | None]:
    """[role, content] of each message, by "case | adapter"."""
    made: dict[str, list[list[Any]] | None] = {}
    for name, case in corpus.CASES.items():
        for adapter, kind in ADAPTERS.items():
            try:
                messages = getattr(dspy, kind)().format(signature(dspy, case, corpus.TYPES), case.demos, case.data)
                made[f"{name} | {adapter}"] = [[m["role"], m["content"]] for m in messages]
            except Exception:  # noqa: BLE001  whatever it is, this version refuses it
                made[f"{name} | {adapter}"] = None
    return made


def read(version: str) -> dict[str, Any]:
    """All prompts of a minor version, from the files."""
    made: dict[str, Any] = {}
    for one in VERSIONS[: VERSIONS.index(version) + 1]:
        made |= json.loads((HERE / f"{one}.json").read_text())["prompts"]
    return made


def main() -> None:
    sys.path.insert(0, str(HERE.parents[2] / "support"))
    warnings.simplefilter("ignore")
    os.environ.setdefault("DSPY_CACHEDIR", tempfile.mkdtemp())
    import corpus
    import dspy

    version = ".".join(dspy.__version__.split(".")[:2])
    made = prompts(dspy, corpus)
    if version != VERSIONS[0]:
        newer = read(VERSIONS[VERSIONS.index(version) - 1])
        made = {k: v for k, v in made.items() if v != newer[k]}
    text = json.dumps({"dspy": dspy.__version__, "prompts": made}, indent=0)
    (HERE / f"{version}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
