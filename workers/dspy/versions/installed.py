"""What differs between the versions of DSPy that an interpreter may have, 2.6 to 3.4. No other module asks for the version.

The rest of this package is written for the newest one. Here is what older ones lack, and what they do by themselves that a
worker must not do: ask a model twice, read a file, mix up the settings of two calls. What a version cannot do is refused.
"""

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import dspy
from dspy.utils import exceptions

from dspex.bus.errors import ProgramError
from dspex.operators.native.lm.response_format import response_format
from dspex.operators.native.signature import as_signature

VERSION: str = dspy.__version__
MINOR = tuple(int(part) for part in re.findall(r"\d+", VERSION)[:2])
if MINOR < (2, 6):
    raise ImportError(f"DSPy {VERSION} is too old: workers need 2.6 or newer", name="dspy")

_BY_LITELLM = MINOR < (3, 3)  # models are asked, and fail, by LiteLLM, without errors of DSPy's own
_ASKS_TWICE = MINOR < (3, 4)  # an adapter asks the model again by itself where a reply does not fit
_OWN = ("Image", "Audio", "File", "History", "Tool", "ToolCalls", "Code", "Reasoning")

TYPES: Mapping[str, Any] = {name: getattr(dspy, name) for name in _OWN if hasattr(dspy, name)}
TYPE: Any = dspy.Type if hasattr(dspy, "Type") else dspy.BaseType  # what DSPy's own types of inputs are made from


def need_type(name: str) -> None:
    """Raise ProgramError for a type of DSPy's that this version has not."""
    if name in _OWN and name not in TYPES:
        raise ProgramError(
            f"DSPy {VERSION} has no dspy.{name}",
            fix="call it in a pool whose interpreter has a newer DSPy: pools.<pool>.python",
        )


def client(name: str) -> Any:
    """The module of this name by which DSPy asks models itself; None before 3.4, where LiteLLM does."""
    return None if MINOR < (3, 4) else import_module(f"dspy.clients.{name}")


# -- errors --------------------------------------------------------------------------------------------------------
def error(name: str) -> type[BaseException] | None:
    """DSPy's error class of this name, if it has one."""
    modules = [exceptions, *([import_module("dspy.primitives.code_interpreter")] if MINOR >= (3, 1) else [])]
    return next((found for m in modules if (found := getattr(m, name, None)) is not None), None)


def by_litellm(error: BaseException) -> bool:
    """Whether LiteLLM raised it, which versions before 3.3 do not hide."""
    return _BY_LITELLM and type(error).__module__.startswith("litellm.")


def _errors() -> tuple[type[BaseException], ...]:
    if not _BY_LITELLM:
        return (exceptions.DSPyError,)
    import litellm

    litellm.suppress_debug_info = True  # it prints advertisements
    own = (getattr(exceptions, name, None) for name in ("AdapterParseError", "ContextWindowExceededError"))
    return (*(e for e in own if e is not None), *litellm.exceptions.LITELLM_EXCEPTION_TYPES)


ERRORS: tuple[type[BaseException], ...] = _errors()  # what DSPy raises where a model, or its reply, is to blame


# -- the settings of a call ----------------------------------------------------------------------------------------
def settings() -> dict[str, Any]:
    """What `dspy.context` needs for one call so that nothing of it is kept behind its end."""
    # 2.6 knows no `max_trace_size`: its one list would grow for as long as the process lives
    return {"trace": []} if MINOR < (3, 0) else {"max_trace_size": 0}


@cache
def separate_calls() -> None:
    """Have each task, and each thread of `dspy.Parallel`, see the settings of its own call."""
    module: Any = import_module("dspy.dsp.utils.settings")  # the package has an object of this name
    if MINOR < (3, 0):
        _by_task(module)
    elif MINOR == (3, 0):
        module.thread_local_overrides = _Overrides(module.thread_local_overrides)


class _Overrides:
    """The settings of DSPy 3.0 with the attribute `overrides`: where tokens are counted, its threads ask for that, and what
    they were to do came to nothing, without a word.
    """

    def __init__(self, settings: contextvars.ContextVar[Any]) -> None:
        self.get, self.set, self.reset = settings.get, settings.set, settings.reset

    @property
    def overrides(self) -> Any:
        return self.get()


def _by_task(module: Any) -> None:
    """Have DSPy 2.6 keep settings by task. It keeps one set a thread, so calls of one loop got each other's model."""
    kind: Any = type(module.thread_local_overrides)
    current: contextvars.ContextVar[Any] = contextvars.ContextVar("dspy_settings")

    def get(_: object) -> Any:
        return current.get(None) or module.dotdict()

    def put(_: object, overrides: Any) -> None:
        current.set(overrides)

    del kind.__init__  # it would clear the settings of a task in each thread that it enters
    kind.overrides = property(get, put)


# -- replies -------------------------------------------------------------------------------------------------------
def watch(look: Callable[[Mapping[str, Any]], None], watched: Callable[[], bool]) -> None:
    """Have `look` called with each entry of a model's history ("response", "usage") in place of keeping it.

    Done once a process; `watched`: whether the code that runs is one whose replies are looked at.
    """
    base: Any = dspy.BaseLM
    if MINOR < (3, 0):  # 2.6 has no method that does only this
        whole = base._process_lm_response

        def _process_lm_response(self: Any, response: Any, prompt: Any, messages: Any, **kwargs: Any) -> Any:
            if not watched():
                return whole(self, response, prompt, messages, **kwargs)
            with dspy.context(disable_history=True):
                outputs = whole(self, response, prompt, messages, **kwargs)
            look({"response": response, "usage": dict(response.usage)})
            return outputs

        base._process_lm_response = _process_lm_response
        return
    keep = base.update_history

    def update_history(self: Any, entry: Mapping[str, Any]) -> None:
        (look if watched() else keep.__get__(self))(entry)

    base.update_history = update_history


# -- adapters ------------------------------------------------------------------------------------------------------
_ADAPTERS = {"chat": "ChatAdapter", "json": "JSONAdapter", "xml": "XMLAdapter"}
ADAPTERS: Mapping[str, Any] = {kind: getattr(dspy, name) for kind, name in _ADAPTERS.items() if hasattr(dspy, name)}


_ADAPTER: Any = dspy.Adapter


class _Once:
    """An adapter that asks the model once: retries belong to the engine, which counts and records them."""

    schema = False  # whether the model's server is known to follow a JSON schema

    def __call__(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        return _ADAPTER.__call__(self, lm, self._wanted(lm, lm_kwargs, signature), signature, demos, inputs)

    async def acall(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        return await _ADAPTER.acall(self, lm, self._wanted(lm, lm_kwargs, signature), signature, demos, inputs)

    def _wanted(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> dict[str, Any]:
        if isinstance(self, dspy.JSONAdapter) and (form := _response_format(lm, signature, self)) is not None:
            return {**lm_kwargs, "response_format": form}
        return lm_kwargs


def _response_format(lm: Any, signature: Any, adapter: Any) -> Any:
    """What the JSON adapter asks for first, by the same questions; None for nothing."""
    import litellm

    json_adapter: Any = import_module("dspy.adapters.json_adapter")
    provider = lm.model.split("/", 1)[0]
    if "response_format" not in (litellm.get_supported_openai_params(model=lm.model, custom_llm_provider=provider) or ()):
        return None
    by_tools = getattr(adapter, "use_native_function_calling", True)
    calls = any(field.annotation == dspy.ToolCalls for field in signature.output_fields.values())
    follows = adapter.schema or litellm.supports_response_schema(model=lm.model, custom_llm_provider=provider)
    if json_adapter._has_open_ended_mapping(signature) or (calls and not by_tools) or not follows:
        return {"type": "json_object"}
    if adapter.schema and MINOR < (3, 0):  # with pydantic 2.12 and newer, its own way makes no schema of anything
        return response_format(as_signature(signature))
    make: Any = json_adapter._get_structured_outputs_response_format
    try:
        return make(signature) if MINOR < (3, 0) else make(signature, by_tools)
    except (ValueError, TypeError, RecursionError):  # a type that a strict schema cannot express
        return {"type": "json_object"}


def adapter(kind: str, *, schema: bool) -> Any:
    """DSPy's adapter "chat", "json" or "xml". `schema`: the model's server follows a JSON schema, whatever catalogs say.

    Raises ProgramError where this version has none.
    """
    own = ADAPTERS.get(kind)
    if own is None:
        raise ProgramError(f"DSPy {VERSION} has no {kind} adapter", fix='adapter="chat" or "json", or a newer DSPy in the pool')
    if not _ASKS_TWICE:
        return own() if kind == "json" else own(use_json_adapter_fallback=False)
    made = type(own.__name__, (_Once, own), {"__module__": own.__module__})()
    made.schema = schema
    return made


# -- the local model -----------------------------------------------------------------------------------------------
def local_model(model: str) -> str:
    """What DSPy is to call a model of this machine, `local/…`, so that it speaks OpenAI's API with it."""
    if _ASKS_TWICE:
        return f"openai/{model.partition('/')[2]}"  # LiteLLM knows no provider `local`
    from dspy import lm15

    access = lm15.AccessPolicy(
        provider="local",
        supports=lm15.EndpointSupport(complete=True, stream=True),
        base_url="http://127.0.0.1/v1",  # required, and not used: each LM has its own api_base
    )
    definition = lm15.ProviderDefinition.chat(access, compat=lm15.OpenAIChatCompat(), placeholder_key="none")
    # that it follows a JSON schema: without it the JSON adapter would not send one
    lm15.register_provider(definition, supports=lm15.ModelSupport(response_schema=True))
    return model
