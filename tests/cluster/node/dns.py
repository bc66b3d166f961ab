"""DNS of the test node: answers for Services and headless endpoints, and forwards the rest.

dns.py KUBECONFIG ADDRESS
"""

from __future__ import annotations

import socket
import socketserver
import sys
from pathlib import Path

from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from kubernetes import client, config

DOMAIN = ["svc", "cluster", "local"]
TTL_SECONDS = 5


def addresses(core: client.CoreV1Api, name: str) -> list[str] | None:
    """The addresses of a name in the cluster's domain; None for a name outside of it."""
    parts = name.rstrip(".").lower().split(".")
    if parts[-3:] != DOMAIN:
        return None
    if len(parts) not in (5, 6):
        return []
    *host, service, namespace = parts[:-3]
    try:
        spec = core.read_namespaced_service(service, namespace).spec
        if not host and spec.cluster_ip not in (None, "", "None"):
            return [spec.cluster_ip]
        subsets = core.read_namespaced_endpoints(service, namespace).subsets or []
    except client.ApiException:
        return []
    found = []
    for subset in subsets:
        found += subset.addresses or []
        if spec.publish_not_ready_addresses:
            found += subset.not_ready_addresses or []
    return [a.ip for a in found if not host or a.hostname == host[0]]


def upstream() -> str | None:
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    return next((line.split()[1] for line in lines if line.startswith("nameserver")), None)


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, reply_to = self.request
        request = DNSRecord.parse(data)
        found = addresses(self.server.core, str(request.q.qname))  # type: ignore[attr-defined]
        answer = self.forwarded(data) if found is None else self.answered(request, found)
        if answer:
            reply_to.sendto(answer, self.client_address)

    def answered(self, request: DNSRecord, found: list[str]) -> bytes:
        reply = request.reply()
        if not found:
            reply.header.rcode = RCODE.NXDOMAIN
        if request.q.qtype == QTYPE.A:
            for address in found:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=TTL_SECONDS))
        return reply.pack()

    def forwarded(self, data: bytes) -> bytes | None:
        server = upstream()
        if server is None:
            return None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
            query.settimeout(5)
            query.sendto(data, (server, 53))
            try:
                return query.recv(4096)
            except OSError:
                return None


class Server(socketserver.ThreadingUDPServer):
    allow_reuse_address = True
    daemon_threads = True


def main(kubeconfig: str, address: str) -> None:
    config.load_kube_config(kubeconfig)
    server = Server((address, 53), Handler)
    server.core = client.CoreV1Api()  # type: ignore[attr-defined]
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
