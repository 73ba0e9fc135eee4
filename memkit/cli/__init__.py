"""The command line. Exit codes: 0 nothing wrong, 1 findings, 2 no verdict: could not run, or too little to judge."""

import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (None: that of ``sys.argv``) and return its exit code."""
    try:
        # Imported here, because Ctrl-C while anything is imported is no traceback.
        from memkit.cli.parser import WRONG_USE, command_line, parsed

        parser = command_line()
        given = parsed(parser, arguments)
        if given.command is None:
            parser.print_help(sys.stderr)
            return WRONG_USE
        from memkit.cli.commands import run

        return run(given)
    except KeyboardInterrupt:
        return INTERRUPTED
