"""API keys: the service knows only their hashes.  A key is 256 random bits, so a plain SHA-256 of it cannot be searched backwards.

The file holds one line a key, `NAME HASH`; blank lines and lines that begin with # are left alone.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from pathlib import Path

from pocketqa.errors import OptionsError

log = logging.getLogger("pocketqa.service")

_PREFIX = "pqa_"
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})[ \t]+(?P<hash>[0-9a-f]{64})", re.ASCII)
_MORE = "`pocketqa serve --new-key NAME` prints a key and the line for it."


class KeyRing:
    """The keys that may ask.  A changed file counts from the next request on, and lets nobody in where no key is left; one that is gone or holds
    other lines is told in the log and changes nothing.
    """

    def __init__(self, file: Path) -> None:
        """Raises OptionsError naming each line that is no key, and a file without any."""
        self._file, self._stamp = file, _stamp(file)
        self._names_by_hash = self._read(file)
        if not self._names_by_hash:
            raise OptionsError(f"Expected lines of a name and a SHA-256 in {file}, found none. {_MORE}")

    @staticmethod
    def _read(file: Path) -> dict[bytes, str]:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise OptionsError(f"Expected a file of key hashes, found that {file} cannot be read: {reason}. {_MORE}") from None
        names_by_hash: dict[bytes, str] = {}
        bad: list[str] = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if found := _LINE.fullmatch(line.strip()):
                names_by_hash[bytes.fromhex(found["hash"])] = found["name"]
            else:
                bad.append(str(number))  # never the line itself: somebody may have put a key there
        if bad:
            raise OptionsError(f"Expected lines of a name and a SHA-256 in {file}, found others (line {', '.join(bad)}). {_MORE}")
        return names_by_hash

    def owner(self, key: bytes) -> str | None:
        """The name that goes with a key, or None.  Takes the same time whichever key it is, and whether it is one."""
        if (stamp := _stamp(self._file)) != self._stamp:
            self._stamp = stamp
            try:
                self._names_by_hash = self._read(self._file)
            except OptionsError as error:
                log.error("The keys stay as they were: %s", error)
        presented = hashlib.sha256(key).digest()
        owner = None
        for known, name in self._names_by_hash.items():
            if hmac.compare_digest(known, presented):
                owner = name
        return owner


def _stamp(file: Path) -> tuple[int, ...] | None:
    """What changes when a file does; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def new_key(name: str) -> tuple[str, str]:
    """A new key and the line that makes a service know it.  Raises OptionsError for a name that no line can hold."""
    key = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {hashlib.sha256(key.encode()).hexdigest()}"
    if not _LINE.fullmatch(line):
        raise OptionsError(f"Expected a name of at most 64 letters, digits, dots, hyphens and underscores for the key, found {name!r}.")
    return key, line
