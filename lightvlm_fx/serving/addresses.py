"""Which addresses are public: a server must not fetch from the network that it stands in on a stranger's behalf."""

from __future__ import annotations

import ipaddress
import socket

from lightvlm_fx.serving.problems import Refusal

NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether anyone can reach the address: not of this machine, a private network, a link, or several machines."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast


def resolve(host: str, port: int, *, private: bool) -> str:
    """An address of `host`. Raises Refusal (400) where it has none, or, unless `private`, where one of them is not public.

    The connection has to go to the address that was looked at: a name may lead elsewhere the next time.
    """
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise Refusal(400, f"the host {host!r} of a picture is not known", code="invalid_image_url") from error
    if not private and not all(is_public(address) for address in found):
        raise Refusal(400, f"the host {host!r} of a picture is not at a public address; send the picture as a data: URL",
                      code="invalid_image_url")  # fmt: skip
    return found[0]
