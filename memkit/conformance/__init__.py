"""Does your store forget: a pytest suite over a small adapter."""
