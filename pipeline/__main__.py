"""`penstock`, and `python -m pipeline`: nothing but what must come before all imports."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line."""
    # The imports take 0.1 s and more, and Ctrl-C would end them in a traceback. Under nohup or & it may be ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pipeline import cli

    cli.main()


if __name__ == "__main__":
    main()
