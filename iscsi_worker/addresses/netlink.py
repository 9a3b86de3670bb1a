"""Addresses on this node's interfaces, by netlink and raw sockets in process: a command would cost most of a move's gap.

What was lent here is told from what DHCP or a router lent by the address's protocol number, which needs Linux 5.18.
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_NEWADDR
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

from iscsi_worker.addresses.memory import canonical
from sanderling.errors import AddressFailed
from sanderling.model.disks import PORTAL_PORT
from sanderling.model.exports import Connection

PROTOCOL = 83  # ours among the kernel's address protocols: no meaning but "lent by Sanderling"
IFA_F_NODAD = 0x02
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
ARPHRD_ETHER = 1
SIOCGIFHWADDR = 0x8927  # netdevice(7)
ETH_P_ARP = 0x0806
BROADCAST = b"\xff" * 6
ALL_NODES = "ff02::1"
NA_OVERRIDE = 0x20000000
TCP_ACK = 0x10
NLMSGERR = struct.Struct("=16xi")  # netlink(7): the header, then the negative errno, 0 for done
ANSWER_BYTES = 4096


class Netlink:
    """The network namespace is the one that the calling thread is in. A netlink socket lives for one call: pyroute2 keeps one
    for every thread that ever used it, and never closes it."""

    def __init__(self) -> None:
        self._renewed: set[tuple[str, str]] = set()
        self._packets: dict[int, socket.socket] = {}  # by network namespace; closing one takes the kernel 20 ms

    def add(self, address: str, *, prefix_len: int, interface: str, lifetime_s: int) -> None:
        address = canonical(address, prefix_len)
        with _failures(address, interface):
            index = socket.if_nametoindex(interface)
            if (address, interface) not in self._renewed:
                if _is_here(address):
                    _refuse_the_nodes_own(address, interface)
                if isinstance(ip_address(address), IPv4Address):
                    _keep_the_others(interface)
            _lend(address, prefix_len, index, lifetime_s)
            self._renewed.add((address, interface))

    def remove(self, address: str) -> None:
        address = canonical(address)
        with _failures(address, "its interface"), IPRoute() as route:
            for found in route.get_addr():
                if _text(found) == address and _is_lent(found):
                    _take_off(route, found)
                    self._renewed.discard((address, socket.if_indextoname(found["index"])))

    def present(self) -> frozenset[str]:
        with IPRoute() as route:
            return frozenset(_text(found) for found in route.get_addr())

    def lent(self) -> frozenset[str]:
        with IPRoute() as route:
            return frozenset(_text(found) for found in route.get_addr() if _is_lent(found))

    def interfaces(self) -> frozenset[str]:
        with IPRoute() as route:
            links = list(route.get_links())
        usable, carries = IFF_UP | IFF_RUNNING, IFF_UP | IFF_RUNNING | IFF_LOOPBACK
        return frozenset(str(link.get("ifname")) for link in links if link["flags"] & carries == usable)

    def announce(self, address: str, *, interface: str) -> None:
        address = canonical(address)
        with _failures(address, interface):
            mac = _ethernet_address(interface)
            if mac is None:
                return  # nobody resolves addresses there
            if isinstance(ip_address(address), IPv4Address):
                _announce_by_arp(self._packet_socket(), address, interface, mac)
            else:
                _announce_by_neighbour_advertisement(address, interface, mac)

    def _packet_socket(self) -> socket.socket:
        """One that sends on any interface and receives nothing, kept for as long as this object."""
        namespace = os.stat("/proc/thread-self/ns/net").st_ino
        if namespace not in self._packets:
            self._packets[namespace] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        return self._packets[namespace]

    def tickle(self, connections: Sequence[Connection]) -> None:
        failed: list[str] = []
        for connection in connections:
            try:
                with _failures(connection.portal_address, f"the way to {connection.initiator_address}"):
                    _send_ack(connection)
            except AddressFailed as problem:
                failed.append(problem.detail)
        if failed:
            raise AddressFailed(f"{len(failed)} of {len(connections)} initiators could not be told: {failed[0]}", failed=failed)


@contextlib.contextmanager
def _failures(address: str, where: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise AddressFailed(f"{address} on {where}: {os.strerror(error.code)}", address=address, where=where) from error
    except OSError as error:
        raise AddressFailed(f"{address} on {where}: {error.strerror or error}", address=address, where=where) from error


def _is_here(address: str) -> bool:
    """Whether it may be on this node, on any interface. The kernel lets a socket have no other, unless told to, and none of
    IPv6's either before they are known to be nobody else's."""
    if _family(address) is socket.AF_INET6:
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.bind((address, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def _refuse_the_nodes_own(address: str, interface: str) -> None:
    with IPRoute() as route:
        if any(_text(found) == address and not _is_lent(found) for found in route.get_addr()):
            raise AddressFailed(
                f"{address} on {interface}: it is the node's own, and would be lost with the loan", address=address
            )


def _lend(address: str, prefix_len: int, index: int, lifetime_s: int) -> None:
    """Add it, or have it for longer, by one message and its answer: the library's own call takes as long as a whole move may."""
    asked = ifaddrmsg()
    asked["family"], asked["prefixlen"], asked["index"] = _family(address), prefix_len, index
    asked["attrs"] = [
        ("IFA_LOCAL", address),
        ("IFA_ADDRESS", address),
        ("IFA_CACHEINFO", {"ifa_preferred": lifetime_s, "ifa_valid": lifetime_s}),
        ("IFA_FLAGS", IFA_F_NODAD),
        ("IFA_PROTO", PROTOCOL),
    ]
    asked["header"]["type"] = RTM_NEWADDR
    asked["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    asked.encode()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(asked.data)
        (code,) = NLMSGERR.unpack_from(kernel.recv(ANSWER_BYTES))
    if code:
        raise OSError(-code, os.strerror(-code))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET if isinstance(ip_address(address), IPv4Address) else socket.AF_INET6


def _take_off(route: Any, found: Any) -> None:
    try:
        route.addr("del", index=found["index"], address=_text(found), prefixlen=found["prefixlen"])
    except NetlinkError as error:
        if error.code != errno.EADDRNOTAVAIL:  # it ran out in this moment
            raise


def _text(found: Any) -> str:
    return str(found.get("IFA_LOCAL") or found.get("IFA_ADDRESS"))


def _is_lent(found: Any) -> bool:
    return bool(found.get("IFA_PROTO") == PROTOCOL)


def _keep_the_others(interface: str) -> None:
    """Without this, the subnet's first address takes all its others along when it goes."""
    setting = Path("/proc/sys/net/ipv4/conf", interface, "promote_secondaries")
    if setting.read_text().strip() != "1":
        setting.write_text("1")


def _ethernet_address(interface: str) -> bytes | None:
    """The interface's MAC; None when it is of a kind that has none. OSError when it is missing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, SIOCGIFHWADDR, struct.pack("16s24x", interface.encode()))
    kind, mac = struct.unpack("16xH6s", answer[:24])
    return bytes(mac) if kind == ARPHRD_ETHER else None


def _announce_by_arp(packets: socket.socket, address: str, interface: str, mac: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind((address, 0))  # refused when the address has run out meanwhile: it may be another node's by now
    packed = socket.inet_aton(address)
    for operation, sought in ((1, bytes(6)), (2, BROADCAST)):
        head = BROADCAST + mac + struct.pack("!HHHBBH", ETH_P_ARP, 1, 0x0800, 6, 4, operation)
        packets.sendto(head + mac + packed + sought + packed, (interface, ETH_P_ARP))


def _announce_by_neighbour_advertisement(address: str, interface: str, mac: bytes) -> None:
    index = socket.if_nametoindex(interface)
    body = struct.pack("!BBHI", 136, 0, 0, NA_OVERRIDE) + socket.inet_pton(socket.AF_INET6, address) + b"\x02\x01" + mac
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as packets:
        packets.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        packets.bind((address, 0, 0, index))  # refused when the address is not here
        packets.sendto(body, (ALL_NODES, 0, 0, index))


def _send_ack(connection: Connection) -> None:
    """Its sequence number is outside the initiator's window, so the initiator answers with the one it expects."""
    source, initiator = ip_address(canonical(connection.portal_address)), ip_address(canonical(connection.initiator_address))
    family = socket.AF_INET if isinstance(source, IPv4Address) else socket.AF_INET6
    fields = (PORTAL_PORT, connection.initiator_port, 0, 0, 5 << 4, TCP_ACK, 1024)
    bare = struct.pack("!HHIIBBHHH", *fields, 0, 0)
    segment = struct.pack("!HHIIBBHHH", *fields, _checksum(source, initiator, bare), 0)
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as packets:
        packets.bind((str(source), 0))  # refused when the address is not here
        packets.sendto(segment, (str(initiator), 0))


def _checksum(source: IPv4Address | IPv6Address, to: IPv4Address | IPv6Address, segment: bytes) -> int:
    data = source.packed + to.packed + struct.pack("!II", len(segment), socket.IPPROTO_TCP) + segment
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
