"""How memory stores lay out their keys: pure decoders without I/O, one module or data entry for each store."""

from memkit.formats.parsing.langgraph_common import deletes_own_keys, is_housekeeping, superseded
from memkit.formats.registry import (
    FORMATS,
    VOCABULARY,
    decode,
    format_of,
    lacking,
    leads,
    recognise,
    spellings_of_id,
    store_name,
)

__all__ = [
    "FORMATS",
    "VOCABULARY",
    "decode",
    "deletes_own_keys",
    "format_of",
    "is_housekeeping",
    "lacking",
    "leads",
    "recognise",
    "spellings_of_id",
    "store_name",
    "superseded",
]
