"""Which servers a source may be on: schemes, and network addresses.

Lists of URLs are untrusted, and a build may run inside a private network. Link-local addresses (where clouds serve
credentials) and multicast are always refused, private ones (also loopback) unless `sources.allow_private` is set. The
address is checked on the connected socket: redirects and changing DNS answers are covered. Behind an HTTP proxy the
proxy decides.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import parse_qs, urlsplit

from pipeline.storage.store import REMOTE

WEB = ("http://", "https://")
NETWORK_FILES = frozenset(("ftp", "sftp", "ssh", "smb", "hdfs", "webhdfs"))  # by fsspec, with a host
OTHER_FILES = frozenset(("file", "hf", "oci", "oss", "memory"))  # by fsspec, without a host of the list's choosing
METADATA = frozenset(map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200")))  # of clouds
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(ValueError):
    """An address that sources are not read from. A ValueError, which urllib3 does not retry."""


def check_address(address: str, allow_private: bool) -> None:
    """Raise AddressRefused for an IP address that sources are not read from."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if inner := ip.ipv4_mapped or ip.sixtofour:
            return check_address(str(inner), allow_private)
        if ip in _NAT64:
            return check_address(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)), allow_private)
    if ip in METADATA or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        raise AddressRefused(f"{address} is no address of a source (link-local, multicast or cloud metadata)")
    if not allow_private and not ip.is_global:
        raise AddressRefused(f"{address} is a private address: sources.allow_private=true reads from it")
    return None


def check_host(host: str | None, allow_private: bool) -> None:
    """Check every address of `host`. A name that does not resolve passes: nothing can be read from it."""
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)} if host else set()
    except (OSError, UnicodeError):
        return
    for address in addresses:
        check_address(address, allow_private)


def check_scheme(url: str, allow_private: bool) -> None:
    """Raise AddressRefused for a URL that is not HTTP's, with a scheme that sources may not have (also of chained
    fsspec URLs), or with a refused host; and for an S3 URL whose endpoint_override is such a host."""
    parts = urlsplit(url)
    schemes = NETWORK_FILES | OTHER_FILES | {prefix.removesuffix("://") for prefix in (*REMOTE, *WEB)}
    if "::" in url.partition("://")[0] or parts.scheme not in schemes:
        raise AddressRefused(f"{parts.scheme or url.partition(':')[0]}: is no scheme of a source")
    if parts.scheme in NETWORK_FILES:
        check_host(parts.hostname, allow_private)
    for endpoint in parse_qs(parts.query).get("endpoint_override", ()):
        check_host(urlsplit(f"//{endpoint.rpartition('//')[2]}").hostname, allow_private)
