"""Adapters of stores that people run; each imports its library inside its functions, in that library's environment."""
