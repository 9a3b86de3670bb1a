"""What names, sizes, addresses and IQNs may look like. Each refusal says the rule and how to mend it."""

import re
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Strict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from sanderling.model.disks import SECTOR_BYTES, SIZE_MAX_BYTES

INITIATORS_MAX: Final = 64
NOT_KEPT: Final = "leave it out: no name, id or note has one"
IQN_MAX: Final = 223  # RFC 3720, section 3.2.6.1: bytes of an iSCSI name

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_IQN = re.compile(rf"iqn\.[0-9]{{4}}-(0[1-9]|1[0-2])\.{_LABEL}(\.{_LABEL})*(:[a-z0-9.:-]+)?")
_EUI = re.compile(r"eui\.[0-9A-Fa-f]{16}")
_NAA = re.compile(r"naa\.([0-9A-Fa-f]{16}|[0-9A-Fa-f]{32})")
_UNKEPT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")


class Body(BaseModel):
    """A request's body: nothing is converted, nothing unknown is let through, and no text that cannot be kept."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_kept(cls, value: Any, asked: ValidationInfo) -> Any:
        texts = {f"{asked.field_name}[{n}]": each for n, each in enumerate(value)} if isinstance(value, list) else {None: value}
        for field, text in texts.items():
            rule = unkept_character(text) if isinstance(text, str) else None
            if rule is not None:
                raise refused(rule, NOT_KEPT, field=field)
        return value


def refused(rule: str, fix: str, *, field: str | None = None) -> PydanticCustomError:
    """To be raised by a validator. `field` is needed only where the rule is about several."""
    context = {"rule": rule, "fix": fix} | ({"field": field} if field else {})
    return PydanticCustomError("rule", "{rule}", context)


def unkept_character(value: str) -> str | None:
    """What is wrong with text that holds one, as a rule; None for text that does not. Nothing that is kept may: what a database,
    a log or a terminal makes of a control character differs, and half a surrogate pair has no UTF-8."""
    found = _UNKEPT.search(value)
    if found is None:
        return None
    kind = "lone surrogate" if found[0] >= "\ud800" else "control character"
    return f"holds the {kind} U+{ord(found[0]):04X}"


def moment(value: datetime) -> datetime:
    """The same in UTC, as the records keep times."""
    if value.tzinfo is None:
        raise refused("has no zone", "give it with one, e.g. 2026-11-27T12:00:00Z")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise refused("is outside the years 1 to 9999 in UTC", "give a time within them") from None


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise refused(
            "must be 1 to 63 of a-z, 0-9 and '-', and begin and end with a letter or digit", "choose such a name, e.g. db-01"
        )
    return value


def _size(value: int) -> int:
    if value <= 0:
        raise refused("must be more than 0 bytes", "give the size in bytes, e.g. 1073741824 for 1 GiB")
    if value % SECTOR_BYTES:
        raise refused(f"must be a multiple of {SECTOR_BYTES} bytes", "round it to whole sectors")
    if value > SIZE_MAX_BYTES:
        raise refused(f"must be at most {SIZE_MAX_BYTES} bytes (2^63 - 512)", "give a smaller size")
    return value


def _initiator(value: str) -> str:
    if len(value.encode("utf-8", "surrogatepass")) > IQN_MAX:
        raise refused(f"is longer than the {IQN_MAX} bytes that RFC 3720 allows", "give the name that the initiator itself shows")
    if not (_IQN.fullmatch(value) or _EUI.fullmatch(value) or _NAA.fullmatch(value)):
        raise refused(
            "is not an iSCSI name of RFC 3720 (iqn.yyyy-mm.domain[:text] in lower case, eui.<16 hex>, naa.<16 or 32 hex>)",
            "give the name that the initiator itself shows, e.g. iqn.1993-08.org.debian:01:abc",
        )
    return value


def _iqn(value: str) -> str:
    if len(value) > IQN_MAX:
        raise refused(f"is longer than the {IQN_MAX} bytes that RFC 3720 allows", "shorten it")
    if not _IQN.fullmatch(value):
        raise refused(
            "is not an IQN of RFC 3720: iqn.yyyy-mm.reversed-domain[:text], lower case letters, digits, '-', '.', ':'",
            "mend it, or leave it out to get one made of the disk's name",
        )
    return value


def _address(value: str) -> str:
    try:
        address = ip_address(value)
    except ValueError:
        raise refused("is not an IP address", "give an IPv4 or IPv6 address without a prefix length") from None
    if address.version == 6 and address.scope_id:
        raise refused("names a zone", "leave out '%' and what follows")
    return str(address)


def _cidr(value: str) -> str:
    try:
        network = ip_network(value)
    except ValueError as error:
        raise refused(f"is not a network: {error}", "give it as network/prefix, e.g. 10.0.0.0/24") from None
    if "/" not in value or "%" in value or network.prefixlen == 0:
        raise refused("must be one network with its prefix length", "give it as network/prefix, e.g. 10.0.0.0/24")
    if network.is_link_local:
        raise refused("is link-local: no initiator reaches it without naming an interface", "give a network that is routed")
    if network.is_multicast or network.is_unspecified:
        raise refused("holds no addresses of hosts", "give a network of unicast addresses")
    return str(network)


def _interface(value: str) -> str:
    if not _INTERFACE.fullmatch(value):
        raise refused("must be the name of a network interface, at most 15 characters", "give it as `ip link` shows it")
    return value


Moment = Annotated[datetime, AfterValidator(moment)]
Name = Annotated[str, AfterValidator(_name)]
SizeBytes = Annotated[int, Strict(), AfterValidator(_size)]
InitiatorName = Annotated[str, AfterValidator(_initiator)]
Iqn = Annotated[str, AfterValidator(_iqn)]
Address = Annotated[str, AfterValidator(_address)]
Cidr = Annotated[str, AfterValidator(_cidr)]
Interface = Annotated[str, AfterValidator(_interface)]
