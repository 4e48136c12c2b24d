"""``python -m codi_engine``, and the console script: Ctrl-C ends the command in one line even while it is imported."""

import sys


def entry() -> None:
    """Run the command line."""
    try:
        from codi_engine.cli.main import entry as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(130)


if __name__ == "__main__":
    entry()
