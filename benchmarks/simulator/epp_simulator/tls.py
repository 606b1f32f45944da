"""HTTPS for simulated servers."""

from __future__ import annotations

import ssl
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from epp.transport.certificates import self_signed
from epp_simulator.options import SimOptions


def server_context(options: SimOptions) -> ssl.SSLContext | None:
    """From the files that the options name, or with a certificate made now; None: plain HTTP. ValueError: bad files."""
    if not options.tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if options.ssl_certfile:
        try:
            context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f"--ssl-certfile {options.ssl_certfile}, --ssl-keyfile {options.ssl_keyfile}: {error}"
            ) from error
        return context
    with tempfile.TemporaryDirectory() as folder:  # ssl reads certificates from files only
        certificate, key = Path(folder, "tls.crt"), Path(folder, "tls.key")
        chain, secret = self_signed(datetime.now(UTC))
        certificate.write_bytes(chain)
        key.write_bytes(secret)
        context.load_cert_chain(certificate, key)
    return context
