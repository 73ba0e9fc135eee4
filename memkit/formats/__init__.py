"""How memory stores lay out their keys: pure decoders without I/O, one module or one data entry a store."""

from __future__ import annotations

from memkit.formats.registry import (
    FORMATS,
    VOCABULARY,
    decode,
    deletes_own_keys,
    format_of,
    is_housekeeping,
    leads,
    recognise,
    store_name,
    stores,
)

__all__ = [
    "FORMATS",
    "VOCABULARY",
    "decode",
    "deletes_own_keys",
    "format_of",
    "is_housekeeping",
    "leads",
    "recognise",
    "store_name",
    "stores",
]
