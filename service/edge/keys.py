"""API keys: the service knows only their hashes.  A key is 256 random bits, so a plain SHA-256 of it cannot be searched backwards.

The file holds one line a key, `NAME HASH`; blank lines and lines that begin with # are left alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from pocketqa.errors import OptionsError

_PREFIX = "pqa_"
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})[ \t]+(?P<hash>[0-9a-f]{64})", re.ASCII)
_MORE = "`pocketqa serve --new-key NAME` prints a key and the line for it."


class KeyRing:
    """The keys that may ask.  Lives as long as the process; a changed file is read at the next start."""

    def __init__(self, names_by_hash: dict[bytes, str]) -> None:
        self._names_by_hash = names_by_hash

    @classmethod
    def load(cls, file: Path) -> KeyRing:
        """Raises OptionsError naming each line that is no key, and a file without any."""
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
        if bad or not names_by_hash:
            found_instead = f"others (line {', '.join(bad)})" if bad else "none"
            raise OptionsError(f"Expected lines of a name and a SHA-256 in {file}, found {found_instead}. {_MORE}")
        return cls(names_by_hash)

    def owner(self, key: bytes) -> str | None:
        """The name that goes with a key, or None.  Takes the same time whichever key it is, and whether it is one."""
        presented = hashlib.sha256(key).digest()
        owner = None
        for known, name in self._names_by_hash.items():
            if hmac.compare_digest(known, presented):
                owner = name
        return owner


def new_key(name: str) -> tuple[str, str]:
    """A new key and the line that makes a service know it.  Raises OptionsError for a name that no line can hold."""
    key = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {hashlib.sha256(key.encode()).hexdigest()}"
    if not _LINE.fullmatch(line):
        raise OptionsError(f"Expected a name of at most 64 letters, digits, dots, hyphens and underscores for the key, found {name!r}.")
    return key, line
