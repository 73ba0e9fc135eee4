"""Hides the package of this name from jsonschema, and so from nbformat and JupyterLab, in the tests' processes.

jsonschema checks IRIs with it, which notebooks do not have, and its import takes 0.9 s of CPU to compile grammars.
"""

raise ImportError("the tests run without rfc3987_syntax")
