"""Does an LLM application's memory in Redis last as long as it was meant to. See README.md."""
