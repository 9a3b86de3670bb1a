"""Every failure that Sanderling means to report: one tree, and each class is an answer to "what can the caller do now?".

The class is the registry. The HTTP answer (RFC 9457), the generated pages under /problems and the wire form on the bus are all
made from `Problem.by_code`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

Context = Any  # a JSON value


FIELDS_NAMED_MAX: Final = 8  # in the one sentence; `errors` has them all


class Problem(Exception):
    """A failure with a stable code. `detail` is one sentence for a person; `context` holds JSON values for a program."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The service failed"
    by_code: ClassVar[dict[str, type["Problem"]]] = {}

    def __init__(self, detail: str, **context: Context) -> None:
        super().__init__(detail)
        self.detail = detail
        self.context: dict[str, Context] = context

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in vars(cls):  # oslo.messaging subclasses ours at run time; those bring no code
            assert cls.code not in Problem.by_code, f"two problems share the code {cls.code}"
            Problem.by_code[cls.code] = cls

    def to_wire(self) -> dict[str, Any]:
        """The form that crosses the bus and is stored with an operation."""
        return {"code": self.code, "detail": self.detail, "context": self.context}

    @staticmethod
    def from_wire(wire: Mapping[str, Any]) -> "Problem":
        """The problem that `to_wire` described; a code this release does not know becomes a plain `Problem`."""
        kind = Problem.by_code.get(str(wire.get("code")), Problem)
        problem = kind.__new__(kind)
        Problem.__init__(problem, str(wire.get("detail", "")), **dict(wire.get("context") or {}))
        return problem


Problem.by_code[Problem.code] = Problem


class InvalidInput(Problem):
    """What was sent breaks a rule. `errors` lists each field with the rule it breaks and how to mend it."""

    code, status, title = "invalid-input", 422, "The request breaks a rule"

    @classmethod
    def of(cls, field: str, rule: str, fix: str) -> "InvalidInput":
        return cls.of_all([{"field": field, "rule": rule, "fix": fix}])

    @classmethod
    def of_all(cls, errors: Sequence[Mapping[str, str]]) -> "InvalidInput":
        first, others = errors[0], [error["field"] for error in errors[1:]]
        named = ", ".join(others[:FIELDS_NAMED_MAX])
        more = f" (and {len(others)} more: {named}{', …' if len(others) > FIELDS_NAMED_MAX else ''})" if others else ""
        return cls(f"{first['field']}: {first['rule']}; {first['fix']}{more}", errors=[dict(e) for e in errors])


class Malformed(Problem):
    code, status, title = "malformed", 400, "The request cannot be read"


class Unauthenticated(Problem):
    code, status, title = "unauthenticated", 401, "Who you are is not known"


class Forbidden(Problem):
    code, status, title = "forbidden", 403, "Your role does not allow this"


class NotFound(Problem):
    code, status, title = "not-found", 404, "There is no such thing"


class Conflict(Problem):
    """Another thing already holds the name, the address or the place."""

    code, status, title = "conflict", 409, "Something else is in the way"


class Busy(Problem):
    """An operation on the same resource has not ended; its id is in the context."""

    code, status, title = "busy", 409, "Another operation is under way"


class TransitionRefused(Problem):
    code, status, title = "transition-refused", 409, "Not possible in the present state"


class PlanOutdated(Problem):
    """What the plan was made from has changed, as `changes` says, or it is too old. Plan again, and look at that plan first."""

    code, status, title = "plan-outdated", 409, "The plan no longer fits what is there"


class ConfirmationNeeded(Problem):
    """It would leave disks without a gateway, now or after one more loss; the context names them and what to confirm with."""

    code, status, title = "confirmation-needed", 409, "This needs to be confirmed"


class InUse(Problem):
    code, status, title = "in-use", 409, "It is in use"


class IdempotencyMismatch(Problem):
    code, status, title = "idempotency-mismatch", 409, "The idempotency key was used for another request"


class PreconditionFailed(Problem):
    code, status, title = "precondition-failed", 412, "It has changed since you read it"


class TooLarge(Problem):
    code, status, title = "too-large", 413, "The request is too large"


class Exhausted(Problem):
    """A bound was reached: no free address in a subnet, no room in a pool, too many subscribers."""

    code, status, title = "exhausted", 409, "There is no room left"


class TooManyRequests(Problem):
    """Operations are asked for faster than the site allows, or too many have not ended. Ask again after `retry_after_s`."""

    code, status, title = "too-many-requests", 429, "Too many requests"


class Unavailable(Problem):
    """A part this needs cannot be reached; `dependency` names it. Trying again later may work."""

    code, status, title = "unavailable", 503, "A part this needs cannot be reached"


class OutOfSpace(Unavailable):
    """A part this needs has no room left to write; nothing was changed. It goes on by itself once there is room."""

    code, status, title = "out-of-space", 507, "There is no room left to write"


class SessionLost(Problem):
    """The consul session is gone: whatever it locked may already belong to another."""

    code, status, title = "session-lost", 409, "The consul session is gone"


class ClaimLost(Problem):
    """Another conductor has taken the operation: stop at once and write nothing more."""

    code, status, title = "claim-lost", 409, "Another conductor has taken the operation"


class StaleEpoch(Problem):
    """A command carries an epoch older than the one now in force; it has no effect."""

    code, status, title = "stale-epoch", 409, "The command is older than the state it would change"


class StaleTerm(Problem):
    """Who writes led once and leads no more: `term` is the one in force. Nothing was written."""

    code, status, title = "stale-term", 409, "Another has led since"


class DeliveryFailed(Problem):
    """A notification's receiver was not reached, or did not take it."""

    code, status, title = "delivery-failed", 502, "A notification was not delivered"


class DutyFailed(Problem):
    """A duty of the leader cannot be carried out by this process; another may lead."""

    code, status, title = "duty-failed", 500, "A duty of the leader failed"


class NotAuthentic(Problem):
    """A command is not signed by a holder of the key file, or not for this server; it has no effect."""

    code, status, title = "not-authentic", 403, "The command is not authentic"


class CommandExpired(Problem):
    """A signed command came too late, or from a node whose clock is wrong; it has no effect and is sent anew."""

    code, status, title = "command-expired", 409, "The command no longer holds"


class StepTimedOut(Problem):
    code, status, title = "step-timed-out", 504, "A step did not end within its deadline"


class ImageFailed(Problem):
    """The image store refused, for a reason that trying again will not mend."""

    code, status, title = "image-failed", 502, "The image store refused"


class Fenced(Problem):
    """This client of the image store has been fenced; only a new client can go on."""

    code, status, title = "fenced", 409, "This client has been fenced"


class TargetFailed(Problem):
    """A target process could not be started or refused a command."""

    code, status, title = "target-failed", 502, "The target process failed"


class AddressFailed(Problem):
    """An address could not be put on or taken off an interface."""

    code, status, title = "address-failed", 502, "The address could not be set"


class MoveFailed(Problem):
    """An export was not handed on; it is served where it was, or by whoever takes it next."""

    code, status, title = "move-failed", 500, "A path could not be moved"


class SecretUnreadable(Problem):
    """A sealed secret cannot be opened, or none can be sealed: this process has not the key."""

    code, status, title = "secret-unreadable", 409, "A secret cannot be sealed or opened"


class SettingsRefused(Problem):
    """A setting that would look on but do nothing, or contradicts another: the process refuses to start."""

    code, status, title = "settings-refused", 500, "The settings are refused"
