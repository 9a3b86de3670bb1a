"""Who may do what: one rule for each route, denied unless the rule says otherwise, and open to a site's own policy file."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from oslo_config import cfg
from oslo_policy import policy as oslo

from sanderling.errors import Forbidden, SettingsRefused
from sanderling.model.operations import OperationKind
from sanderling.records.tokens import Role

_DENY = "!"  # what decides where there is no rule; no rule can have this name

_ROLES: Final = [
    oslo.RuleDefault("admin", "role:admin", "May do everything"),
    oslo.RuleDefault("operator", "role:operator or rule:admin", "May change what is served"),
    oslo.RuleDefault("reader", "role:reader or rule:operator", "May look"),
]


def _rule(name: str, role: Role, meaning: str, *routes: str) -> oslo.DocumentedRuleDefault:
    operations = [oslo.Operation(method=route.split()[0], path=route.split()[1]) for route in routes]
    return oslo.DocumentedRuleDefault(name, f"rule:{role.value}", meaning, operations)


# fmt: off
RULES: Final = [
    _rule("disk:read", Role.READER, "See disks", "GET /v1/disks", "GET /v1/disks/{disk}"),
    _rule("disk:create", Role.OPERATOR, "Create a disk", "POST /v1/disks"),
    _rule("disk:start", Role.OPERATOR, "Start serving a disk", "POST /v1/disks/{disk}/start"),
    _rule("disk:stop", Role.OPERATOR, "Stop serving a disk", "POST /v1/disks/{disk}/stop"),
    _rule("disk:delete", Role.OPERATOR, "Delete a disk with its data", "DELETE /v1/disks/{disk}"),
    _rule("disk:change", Role.OPERATOR, "Rename or grow a disk, or say who may log in", "PATCH /v1/disks/{disk}"),
    _rule("disk:recover", Role.ADMIN, "Rebuild the index of disks from their images", "POST /v1/recoveries"),
    _rule("initiator:read", Role.READER, "See who is connected to a disk, and how to set initiators up for it",
          "GET /v1/disks/{disk}/connections", "GET /v1/disks/{disk}/initiator-settings"),
    _rule("disk:usage", Role.READER, "Have counted what a disk takes up", "GET /v1/disks/{disk}/usage"),
    _rule("snapshot:read", Role.READER, "See the snapshots of a disk", "GET /v1/disks/{disk}/snapshots"),
    _rule("snapshot:create", Role.OPERATOR, "Take a snapshot", "POST /v1/disks/{disk}/snapshots"),
    _rule("snapshot:rollback", Role.OPERATOR, "Make a disk hold what a snapshot does",
          "POST /v1/disks/{disk}/snapshots/{snapshot}/rollback"),
    _rule("snapshot:delete", Role.OPERATOR, "Delete a snapshot", "DELETE /v1/disks/{disk}/snapshots/{snapshot}"),
    _rule("path:read", Role.READER, "See paths and who serves them", "GET /v1/paths"),
    _rule("assignment:read", Role.READER, "See who moved where, and what a loss would do", "GET /v1/assignments",
          "GET /v1/assignments/{assignment}", "GET /v1/whatif", "GET /v1/score"),
    _rule("assignment:plan", Role.OPERATOR, "Plan moves of paths", "POST /v1/assignments",
          "POST /v1/assignments/{assignment}/undo"),
    _rule("assignment:apply", Role.OPERATOR, "Move paths, without ?dry_run=true also by the requests that plan",
          "POST /v1/assignments/{assignment}/cancel"),
    _rule("gateway:drain", Role.OPERATOR, "Empty a gateway, and let it serve again", "POST /v1/gateways/{gateway}/drain",
          "POST /v1/gateways/{gateway}/undrain"),
    _rule("disk:mark", Role.OPERATOR, "Say where a disk is to be, or must not be", "PUT /v1/disks/{disk}/marks"),
    _rule("subnet:read", Role.READER, "See subnets", "GET /v1/subnets", "GET /v1/subnets/{subnet}"),
    _rule("subnet:create", Role.ADMIN, "Add a subnet", "POST /v1/subnets"),
    _rule("subnet:delete", Role.ADMIN, "Remove a subnet", "DELETE /v1/subnets/{subnet}"),
    _rule("gateway:read", Role.READER, "See the live gateways", "GET /v1/gateways", "GET /v1/gateways/{gateway}"),
    _rule("operation:read", Role.READER, "See operations", "GET /v1/operations", "GET /v1/operations/{operation}",
          "GET /v1/operations/{operation}/explain"),
    _rule("operation:cancel", Role.OPERATOR, "Ask that an operation be undone, by who may ask for such a one",
          "POST /v1/operations/{operation}/cancel"),
    _rule("event:read", Role.READER, "Follow the history", "GET /v1/events"),
    _rule("leader:read", Role.READER, "See who leads", "GET /v1/leaders", "GET /v1/leaders/{service}"),
    _rule("statistics:read", Role.READER, "See what was measured", "GET /v1/statistics"),
    _rule("notification:read", Role.ADMIN, "See notification rules, never their URLs", "GET /v1/notifications",
          "GET /v1/notifications/{rule}"),
    _rule("notification:create", Role.ADMIN, "Have events told to a receiver", "POST /v1/notifications"),
    _rule("notification:delete", Role.ADMIN, "Take a notification rule away", "DELETE /v1/notifications/{rule}"),
    _rule("notification:test", Role.ADMIN, "Send a test message", "POST /v1/notifications/{rule}/test"),
    _rule("token:read", Role.ADMIN, "See tokens, never their secrets", "GET /v1/tokens"),
    _rule("token:create", Role.ADMIN, "Make a token", "POST /v1/tokens"),
    _rule("token:delete", Role.ADMIN, "Take a token away", "DELETE /v1/tokens/{token}"),
    _rule("metrics:read", Role.READER, "Read the process's metrics", "GET /metrics"),
]
# fmt: on


RIGHT_TO_ASK: Final[Mapping[OperationKind, str]] = {
    OperationKind.CREATE_DISK: "disk:create",
    OperationKind.START_DISK: "disk:start",
    OperationKind.STOP_DISK: "disk:stop",
    OperationKind.DELETE_DISK: "disk:delete",
    OperationKind.CHANGE_DISK: "disk:change",
    OperationKind.CREATE_SNAPSHOT: "snapshot:create",
    OperationKind.ROLL_BACK_DISK: "snapshot:rollback",
    OperationKind.DELETE_SNAPSHOT: "snapshot:delete",
    OperationKind.RECOVER_DISKS: "disk:recover",
    OperationKind.ASSIGN_PATHS: "assignment:apply",
    OperationKind.DRAIN_GATEWAY: "gateway:drain",
    OperationKind.UNDRAIN_GATEWAY: "gateway:drain",
    OperationKind.MARK_DISK: "disk:mark",
}
"""The rule for asking for an operation, and so for cancelling it, too, whichever way that is asked for."""


def defaults() -> list[oslo.RuleDefault]:
    """Every rule with its default, for the generated sample."""
    return [*_ROLES, *RULES]


def sample() -> str:
    """The rules with their defaults, commented out, as a file to start one's own from (`make sample` writes it to etc)."""
    lines = ["# Each rule as it is without a file ([api] policy_file). Uncomment a line to change it.", ""]
    for rule in defaults():
        routes = [f"{each['method']} {each['path']}" for each in getattr(rule, "operations", ())]
        lines += [f"# {rule.description}", *(f"#   {route}" for route in routes), f'#"{rule.name}": "{rule.check_str}"', ""]
    return "\n".join(lines)


class Policy:
    """The rules in force: the defaults, and over them those of the policy file, which is read again when it changes."""

    def __init__(self, policy_file: str) -> None:
        if policy_file and not Path(policy_file).is_file():
            raise SettingsRefused(f"[api] policy_file: {policy_file} is not a file; name one, or leave it empty for the defaults")
        conf = cfg.ConfigOpts()
        conf([], project="sanderling", default_config_files=[], default_config_dirs=[])
        self._enforcer = oslo.Enforcer(conf, policy_file=policy_file or None, default_rule=_DENY, use_conf=bool(policy_file))
        self._enforcer.register_defaults(defaults())
        self._reading = threading.Lock()  # while the enforcer reads its file again, rules are missing for a moment
        self._load(policy_file)

    def check(self, rule: str, role: Role) -> None:
        """Return when the role may; `Forbidden` names the rule otherwise."""
        with self._reading:
            allowed = self._enforcer.enforce(rule, {}, {"roles": [role.value]})
        if not allowed:
            raise Forbidden(
                f"the role {role} of your token is not allowed {rule}; use a token of a role that is", rule=rule, role=role.value
            )

    def _load(self, policy_file: str) -> None:
        try:
            self._enforcer.load_rules(force_reload=bool(policy_file))
            for rule in defaults():
                self._enforcer.rules.setdefault(rule.name, rule.check)
            self._enforcer.check_rules(raise_on_violation=True)
        except (oslo.InvalidDefinitionError, cfg.Error, ValueError, OSError, AttributeError) as error:  # the last: no mapping
            raise SettingsRefused(f"[api] policy_file: {policy_file} cannot be used: {error}") from error
        unknown = set(self._enforcer.file_rules) - {rule.name for rule in defaults()}
        if unknown:
            raise SettingsRefused(
                f"[api] policy_file: {policy_file} has rules that nothing asks for: {', '.join(sorted(unknown))}"
            )
