"""What stands around a platform on a cluster, for tests: TLS at its edge, an identity provider."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import oidc_provider_mock
from werkzeug.serving import make_server

CHUNK = 1 << 16


@dataclass(frozen=True)
class Certificate:
    """A certificate that signs itself: who trusts it trusts its names."""

    certificate: Path
    key: Path


def make_certificate(directory: Path, host: str, address: str) -> Certificate:
    made = Certificate(directory / "tls.crt", directory / "tls.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host},IP:{address}",
         "-out", str(made.certificate), "-keyout", str(made.key)],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


@contextmanager
def identity_provider(
    address: str, certificate: Certificate, users: Sequence[oidc_provider_mock.User]
) -> Iterator[str]:
    """An OpenID Connect provider of these users; gives its issuer."""
    server = make_server(
        address, 0, oidc_provider_mock.app(user_claims=users), threaded=True,
        ssl_context=(str(certificate.certificate), str(certificate.key)),
    )  # fmt: skip
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://{address}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def tls_edge(upstream: str, certificate: Certificate) -> Iterator[int]:
    """A port of this machine that ends TLS before `host:port`, as an ingress controller does."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.certificate, certificate.key)
    host, port = upstream.rsplit(":", 1)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, int(port))
            await asyncio.gather(carry(reader, back), carry(there, writer))
        finally:
            writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(connect, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
