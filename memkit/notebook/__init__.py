"""``%load_ext memkit``, ``memkit lab``, the HTML report, the demo incident, the tables of the notebooks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memkit.notebook import triage as triage
    from memkit.notebook import ttl_semantics as ttl_semantics
    from memkit.notebook.extension import InlineTestsFailed as InlineTestsFailed
    from memkit.notebook.extension import Status as Status
    from memkit.notebook.extension import expectations as expectations
    from memkit.notebook.extension import incident as incident
    from memkit.notebook.extension import is_demo as is_demo
    from memkit.notebook.extension import remaining_ttls as remaining_ttls
    from memkit.notebook.extension import running as running
    from memkit.notebook.extension import server as server
    from memkit.notebook.extension import server_with_expire_options as server_with_expire_options
    from memkit.notebook.extension import url as url

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
