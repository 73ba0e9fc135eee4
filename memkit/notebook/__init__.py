"""``%load_ext memkit``, ``memkit lab``, the HTML report, the demo incident, the tables of the notebooks."""

from importlib import import_module
from typing import Any

__all__ = [
    "InlineTestsFailed",
    "Status",
    "expectations",
    "incident",
    "is_demo",
    "remaining_ttls",
    "running",
    "server",
    "server_with_expire_options",
    "triage",
    "ttl_semantics",
    "url",
]


def __getattr__(name: str) -> Any:
    # Lazily, because `memkit lab` needs neither IPython nor pytest.
    if name in ("triage", "ttl_semantics"):
        return import_module(f"memkit.notebook.{name}")
    if name in __all__:
        return getattr(import_module("memkit.notebook.extension"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
