"""memkit: does an LLM application's memory in Redis last as long as it was meant to?"""
