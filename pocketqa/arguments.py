"""Command lines of the verbs."""

from __future__ import annotations

import argparse


def verb_parser(prog: str, doc: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose --help keeps the lines of its texts.  Options are typed in full: other programs that read a command line then read it alike.

    doc: what stands before the options, a module's docstring most often; epilog: what stands after them.
    """
    lines = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=prog, description=doc, epilog=epilog, formatter_class=lines, allow_abbrev=False)
