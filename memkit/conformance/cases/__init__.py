"""The conformance cases, by theme."""
