"""What a request may say of a disk, and how a disk is shown: never with a secret."""

import re
from typing import Annotated, Any, Final, Self

from pydantic import Field, SecretStr, model_validator

from api import rules
from api.rules import Body, InitiatorName, Name, SizeBytes
from sanderling.model.disks import PROBE_USER, Chap, Disk
from sanderling.secrets import Keyring

CHAP_USER_MAX: Final = 64
SCHEDULE_LEAST_S: Final = 60
SCHEDULE_MOST_S: Final = 366 * 86400
SCHEDULE_KEEP_MAX: Final = 100
_REMOVABLE: Final = {"chap", "schedule"}  # by null
_USER = re.compile(r"[!-+\--~]+")  # printable ASCII but the comma, which tgtd's commands part their fields by
_SECRET = re.compile(r"[!-~]{12,16}")  # 12 to 16 bytes: what Windows takes; ESXi and open-iscsi take these, too
_SHORT_FIX: Final = "choose 12 to 16 printable ASCII characters without a space"


class NewChap(Body):
    """`mutual_user` and `mutual_secret` are what the target proves in turn: both, or neither."""

    user: Annotated[str, Field(min_length=1, max_length=CHAP_USER_MAX)]
    secret: SecretStr
    mutual_user: Annotated[str | None, Field(min_length=1, max_length=CHAP_USER_MAX)] = None
    mutual_secret: SecretStr | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for field, user in (("user", self.user), ("mutual_user", self.mutual_user)):
            if user is not None and not _USER.fullmatch(user):
                raise rules.refused("has a space, a comma or a character beyond ASCII", "leave it out", field=f"chap.{field}")
            if user == PROBE_USER:
                raise rules.refused("is the name that checks of an export log in with", "choose another", field=f"chap.{field}")
        for field, secret in (("secret", self.secret), ("mutual_secret", self.mutual_secret)):
            if secret is not None and not _SECRET.fullmatch(secret.get_secret_value()):
                raise rules.refused("must be 12 to 16 bytes of printable ASCII", _SHORT_FIX, field=f"chap.{field}")
        if (self.mutual_user is None) != (self.mutual_secret is None):
            missing = "mutual_secret" if self.mutual_secret is None else "mutual_user"
            raise rules.refused("is missing", "give mutual_user and mutual_secret, or neither", field=f"chap.{missing}")
        if self.mutual_user == self.user:
            raise rules.refused("is the same as user", "choose a name of its own for each", field="chap.mutual_user")
        if self.mutual_secret == self.secret:
            raise rules.refused(
                "is the same as secret, which lets an initiator answer with what it was asked",
                "choose another",
                field="chap.mutual_secret",
            )
        return self

    def sealed(self, keyring: Keyring) -> Chap:
        """As a disk is described with it; `SecretUnreadable` where there is no key."""
        mutual = self.mutual_secret
        return Chap(
            user=self.user,
            secret=keyring.seal(self.secret.get_secret_value()),
            mutual_user=self.mutual_user or "",
            mutual_secret=keyring.seal(mutual.get_secret_value()) if mutual else "",
        )


class NewSchedule(Body):
    """A snapshot each `every_s` seconds, of which the newest `keep` stay."""

    every_s: Annotated[int, Field(ge=SCHEDULE_LEAST_S, le=SCHEDULE_MOST_S)]
    keep: Annotated[int, Field(ge=1, le=SCHEDULE_KEEP_MAX)]


class DiskChange(Body):
    """What is to be different; what is left out stays. `chap` null lets initiators in that prove nothing, `schedule` null ends
    the taking of snapshots by itself.

    `initiators` and `allow_any` say together who may log in: giving one of them takes the other away.
    """

    name: Name | None = None
    size_bytes: SizeBytes | None = None
    initiators: Annotated[list[InitiatorName] | None, Field(max_length=rules.INITIATORS_MAX)] = None
    allow_any: bool | None = None
    chap: NewChap | None = None
    schedule: NewSchedule | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.model_fields_set:
            raise rules.refused("changes nothing", "give what is to be different", field="body")
        for field in self.model_fields_set - _REMOVABLE:
            if getattr(self, field) is None:
                raise rules.refused("is null", "leave it out, or give a value", field=field)
        if self.initiators and self.allow_any:
            raise rules.refused("contradicts the list of initiators", "give one of the two", field="allow_any")
        if self.initiators and len(set(self.initiators)) < len(self.initiators):
            raise rules.refused("names an initiator twice", "name each once", field="initiators")
        return self

    def given(self, keyring: Keyring) -> dict[str, Any]:
        """What is to be, as the records keep it; of CHAP sealed, so that it differs always: nobody can tell."""
        given = {field: getattr(self, field) for field in self.model_fields_set - _REMOVABLE}
        if self.initiators is not None or self.allow_any is not None:
            given |= {"initiators": self.initiators or [], "allow_any": bool(self.allow_any)}
        if "chap" in self.model_fields_set:
            given["chap"] = self.chap.sealed(keyring).model_dump() if self.chap else None
        if "schedule" in self.model_fields_set:
            given["schedule"] = self.schedule.model_dump() if self.schedule else None
        return given


class Source(Body):
    """The snapshot that a new disk begins as a clone of."""

    disk: Annotated[str, Field(min_length=1, max_length=63)]
    snapshot: Annotated[str, Field(min_length=1, max_length=100)]


def show(disk: Disk) -> dict[str, Any]:
    """The disk's description as HTTP shows it: of CHAP the names alone."""
    shown = disk.model_dump(mode="json", exclude={"generation", "presented_at", "rolling_back_to", "cause", "chap"})
    chap = disk.chap
    shown["chap"] = {"user": chap.user, "mutual_user": chap.mutual_user or None} if chap else None
    return shown
