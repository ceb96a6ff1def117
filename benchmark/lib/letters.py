"""What is printed and written has letters beyond ASCII, whatever the locale."""

import locale
import os
import sys


def in_utf8() -> None:
    """Starts this program anew in Python's UTF-8 mode where the locale has ASCII only, as in containers."""
    if locale.getpreferredencoding(False) in ("ANSI_X3.4-1968", "US-ASCII", "ascii"):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.argv])
