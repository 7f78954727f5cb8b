"""Command lines of the verbs."""

from __future__ import annotations

import argparse


def verb_parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is a module's docstring.  Options are typed in full, so that another program that reads a command line reads it alike."""
    return argparse.ArgumentParser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
