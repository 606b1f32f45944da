"""Whose certificates are believed: fixed ones, or a file that is replaced when a cluster's authority is rotated.

The kubelet puts a new bundle into the pod while the process runs. The file is read for each call, as the token's is: it
has a few KB. A client that read it once would lose the API server with the first server certificate that only the new
authority has signed.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

log = logging.getLogger(__name__)


class Authorities:
    """PEM of the authorities. `file`: where they are read from, None for what does not change; "" those of the system.

    A file that cannot be read, or holds no certificates (somebody is just writing it), leaves the last ones in use.
    """

    def __init__(self, pem: str = "", file: Path | None = None) -> None:
        self._pem = pem
        self._file = file
        self._refused: bytes | None = None
        self._unreadable = False

    def pem(self) -> str:
        """What counts now."""
        if self._file is None:
            return self._pem
        try:
            said = self._file.read_bytes()
        except OSError as error:
            if not self._unreadable:
                log.warning("the last authorities stay in use: %s", error)
            self._unreadable = True
            return self._pem
        self._unreadable = False
        if said not in (self._pem.encode(), self._refused):
            self._take(said)
        return self._pem

    def _take(self, said: bytes) -> None:
        try:
            self._pem = checked(said)
        except ValueError as error:
            self._refused = said
            log.warning("the last authorities stay in use, %s has none: %s", self._file, error)
        else:
            self._refused = None
            log.info("new authorities from %s", self._file)


def checked(pem: bytes) -> str:
    """As text, once OpenSSL has understood it. `ValueError`: these are no certificates."""
    try:
        text = pem.decode("ascii")
        if not text.strip():
            raise ValueError("it is empty")
        ssl.create_default_context(cadata=text)
    except ssl.SSLError as error:
        raise ValueError(f"{error}") from error
    return text
