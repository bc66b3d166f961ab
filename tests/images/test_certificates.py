"""A database's certificate is checked against the authorities that our images name."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread

import pytest

IMAGES = sorted((Path(__file__).parents[2] / "images").glob("*.Containerfile"))
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
CONNECT = "import psycopg, sys; psycopg.connect(sys.argv[1])"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """Of localhost; it signs itself, so it is its own authority."""
    directory = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-out", "tls.crt", "-keyout", "tls.key"],
        cwd=directory, check=True, capture_output=True,
    )  # fmt: skip
    return directory / "tls.crt"


@pytest.fixture(scope="module")
def database(certificate) -> Iterator[str]:
    """What looks like PostgreSQL up to the end of its TLS handshake; gives its URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))

    class Handler(BaseRequestHandler):
        def handle(self):
            self.request.recv(8)  # SSLRequest
            self.request.sendall(b"S")
            try:
                with context.wrap_socket(self.request, server_side=True) as wrapped:
                    wrapped.recv(1024)
                    said = b"SFATAL\0Mwe have shaken hands\0\0"
                    wrapped.sendall(b"E" + (len(said) + 4).to_bytes(4, "big") + said)
            except OSError:
                return

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        yield (
            f"postgresql://ann@localhost:{port}/registry?hostaddr=127.0.0.1"
            "&sslmode=verify-full&sslrootcert=system"
        )
        server.shutdown()


def connect(url: str, **environment: str) -> str:
    """What psycopg says, in a process with these variables only."""
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, url],
        env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stderr


def test_the_variable_of_the_images_decides_whom_the_registrys_driver_trusts(database, certificate):
    assert "we have shaken hands" in connect(database, SSL_CERT_FILE=str(certificate))
    for others in ({}, {"SSL_CERT_FILE": BUNDLE}):
        assert "certificate verify failed" in connect(database, **others)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_an_image_trusts_what_debian_does(path):
    final = path.read_text().split("\nFROM ")[-1]

    assert re.search(r"apt-get install [^&]*\bca-certificates\b", final)
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        assert f"{variable}={BUNDLE}" in final
