"""An initiator in process: libiscsi, driven without its own waiting, so that every call ends by its deadline to the millisecond.

The worker reads LBA 0 through an export's own portal with it; the tests write and read whole disks.
"""

import ctypes
import select
from types import TracebackType
from typing import Any, Final

from sanderling.clock import Clock
from sanderling.errors import TargetFailed
from sanderling.model.disks import SECTOR_BYTES

_NORMAL_SESSION: Final = 2
_GOOD, _CHECK_CONDITION = 0, 2
_NOTHING, _IN, _OUT = 0, 1, 2
_UNIT_ATTENTION: Final = 6
_READ_10: Final = 0x28
_ATTENTIONS_MAX: Final = 8

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
LIBRARY: Final = "libiscsi.so.7"


class _Buffer(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("data", ctypes.c_void_p))


class _Task(ctypes.Structure):
    """The first members of struct scsi_task of libiscsi 1.19, up to the sense."""

    _fields_ = (
        ("status", ctypes.c_int),
        ("cdb_size", ctypes.c_int),
        ("xfer_dir", ctypes.c_int),
        ("expxferlen", ctypes.c_int),
        ("cdb", ctypes.c_ubyte * 16),
        ("residual_status", ctypes.c_int),
        ("residual", ctypes.c_size_t),
        ("sense_type", ctypes.c_ubyte),
        ("sense_key", ctypes.c_int),
        ("ascq", ctypes.c_int),
    )


def _load() -> Any:
    library = ctypes.CDLL(LIBRARY)
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    for name, result, arguments in (
        ("iscsi_create_context", pointer, (text,)),
        ("iscsi_destroy_context", number, (pointer,)),
        ("iscsi_set_targetname", number, (pointer, text)),
        ("iscsi_set_initiator_username_pwd", number, (pointer, text, text)),
        ("iscsi_set_target_username_pwd", number, (pointer, text, text)),
        ("iscsi_set_session_type", number, (pointer, number)),
        ("iscsi_set_noautoreconnect", None, (pointer, number)),
        ("iscsi_full_connect_async", number, (pointer, text, number, _CALLBACK, pointer)),
        ("iscsi_scsi_command_async", number, (pointer, number, pointer, _CALLBACK, pointer, pointer)),
        ("iscsi_get_fd", number, (pointer,)),
        ("iscsi_which_events", number, (pointer,)),
        ("iscsi_service", number, (pointer, number)),
        ("iscsi_get_error", text, (pointer,)),
        ("scsi_create_task", pointer, (number, text, number, number)),
        ("scsi_task_add_data_in_buffer", number, (pointer, number, pointer)),
        ("scsi_free_scsi_task", None, (pointer,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class IscsiSession:
    """One session with one target, logged in when it is made. Not for two threads. Every failure is `TargetFailed`."""

    _library: Any = None

    def __init__(
        self,
        portal: str,
        iqn: str,
        *,
        lun: int,
        initiator: str,
        timeout_s: float,
        clock: Clock,
        login: tuple[str, str] | None = None,
        target_login: tuple[str, str] | None = None,
    ) -> None:
        """`portal` is address:port. `login` is the CHAP name and secret to prove, `target_login` those that the target must.

        Raises when login has not succeeded in time.
        """
        if IscsiSession._library is None:
            IscsiSession._library = _load()
        self._lib, self._clock, self._lun = IscsiSession._library, clock, lun
        self._kept: list[Any] = []  # what libiscsi may still call or fill
        self._context = self._lib.iscsi_create_context(initiator.encode())
        assert self._context, "libiscsi has no memory"
        try:
            self._lib.iscsi_set_targetname(self._context, iqn.encode())
            if login is not None:
                self._lib.iscsi_set_initiator_username_pwd(self._context, *(part.encode() for part in login))
            if target_login is not None:
                self._lib.iscsi_set_target_username_pwd(self._context, *(part.encode() for part in target_login))
            self._lib.iscsi_set_session_type(self._context, _NORMAL_SESSION)
            self._lib.iscsi_set_noautoreconnect(self._context, 1)
            answered, done = self._answer()
            if self._lib.iscsi_full_connect_async(self._context, portal.encode(), lun, done, None) != 0:
                raise self._lost("login")
            if self._wait(answered, timeout_s, "login") != _GOOD:
                raise self._lost("login refused")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "IscsiSession":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection. Closing twice is no error."""
        context, self._context = self._context, None
        if context:
            self._lib.iscsi_destroy_context(context)
        self._kept.clear()

    def command(self, cdb: bytes, *, read_bytes: int = 0, write: bytes = b"", timeout_s: float) -> bytes:
        """One SCSI command; what it read. A CHECK CONDITION is `TargetFailed` with `sense` = (key, code) in its context.

        Unit attentions (a login, a reset) are taken note of by asking again. After silence or a lost connection the session is
        closed, and whether the command ran is not known.
        """
        deadline = self._clock.monotonic() + timeout_s
        for _ in range(_ATTENTIONS_MAX):
            try:
                return self._once(cdb, read_bytes, write, deadline - self._clock.monotonic())
            except TargetFailed as refused:
                if refused.context.get("sense", (0, 0))[0] != _UNIT_ATTENTION:
                    raise
        raise TargetFailed("it has one unit attention after another")

    def read_first_sector(self, *, timeout_s: float) -> bytes:
        cdb = bytes([_READ_10, 0, 0, 0, 0, 0, 0, 0, 1, 0])
        return self.command(cdb, read_bytes=SECTOR_BYTES, timeout_s=timeout_s)

    def _once(self, cdb: bytes, read_bytes: int, write: bytes, timeout_s: float) -> bytes:
        if not self._context:
            raise TargetFailed("the session is closed")
        direction = _OUT if write else _IN if read_bytes else _NOTHING
        task = self._lib.scsi_create_task(len(cdb), cdb, direction, len(write) or read_bytes)
        buffer = ctypes.create_string_buffer(write or b"", len(write) or max(1, read_bytes))
        data = _Buffer(len(write), ctypes.cast(buffer, ctypes.c_void_p))
        answered, done = self._answer()
        self._kept += [buffer, data]
        try:
            if read_bytes:
                self._lib.scsi_task_add_data_in_buffer(task, read_bytes, buffer)
            out = ctypes.byref(data) if write else None
            if self._lib.iscsi_scsi_command_async(self._context, self._lun, task, done, out, None) != 0:
                raise self._lost("command")
            try:
                status = self._wait(answered, timeout_s, "command")
            except TargetFailed:
                self.close()  # libiscsi gives the task back
                raise
            if status != _GOOD:
                raise self._refused(status, task)
            self._kept.clear()
            return buffer.raw[:read_bytes]
        finally:
            self._lib.scsi_free_scsi_task(task)

    def _refused(self, status: int, task: int) -> TargetFailed:
        if status != _CHECK_CONDITION:
            return self._lost(f"status {status:#x}")
        seen = _Task.from_address(task)
        key, code = int(seen.sense_key), int(seen.ascq)
        return TargetFailed(f"CHECK CONDITION, sense key {key}, code {code:#06x}", sense=(key, code))

    def _answer(self) -> tuple[list[int], Any]:
        answered: list[int] = []
        done = _CALLBACK(lambda _context, status, _data, _private: answered.append(status))
        self._kept.append(done)
        return answered, done

    def _wait(self, answered: list[int], timeout_s: float, what: str) -> int:
        deadline = self._clock.monotonic() + timeout_s
        while not answered:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise TargetFailed(f"no answer to {what} within {timeout_s:.3f} s")
            poll = select.poll()
            poll.register(self._lib.iscsi_get_fd(self._context), self._lib.iscsi_which_events(self._context))
            happened = poll.poll(max(1, left * 1000))
            if happened and self._lib.iscsi_service(self._context, happened[0][1]) < 0 and not answered:
                raise self._lost(what)
        return answered[0]

    def _lost(self, what: str) -> TargetFailed:
        said = self._lib.iscsi_get_error(self._context) if self._context else b""
        return TargetFailed(f"{what}: {(said or b'the connection is gone').decode(errors='replace')}")
