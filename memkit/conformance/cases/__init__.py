"""The cases by theme; the docstring of a case is its meaning, a sentence about the store."""
