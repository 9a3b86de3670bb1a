"""How an initiator is set up: made of one disk and of the cluster's own bounds, so that it waits as long as it must.

Each text can be pasted into a shell of the system it is for. What is said of tgt here was measured with tgt 1.0.85.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sanderling.model.disks import PORTAL_PORT, Access, Disk
from sanderling.settings import Settings

VENDOR: Final = "SANDRLNG"
PRODUCT: Final = "DISK"
_GOSSIP_S: Final = 3.0  # a dead node is seen by gossip within 2.1 to 2.7 s with etc/consul/sanderling.json's timing
_CHECKER_S: Final = 2
_REGISTRY: Final = r"HKLM:\SYSTEM\CurrentControlSet\Control\Class\{4d36e97b-e325-11ce-bfc1-08002be10318}"  # SCSI adapters


class System(StrEnum):
    OPEN_ISCSI = "open-iscsi"
    ESXI = "esxi"
    WINDOWS = "windows"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long initiators may find nobody who answers: `failover_s` after the worst single loss, `move_s` in a planned move."""

    failover_s: int
    move_s: int

    @classmethod
    def of(cls, settings: Settings) -> "Bounds":
        """A node is noticed dead by gossip, or by its worker's silence; then somebody fences it and starts the export; and where
        the first that should does not, the next does after a grace. Each may take as long as it is allowed to."""
        worker, images = settings.iscsi_worker, settings.images
        noticed_s = max(_GOSSIP_S, settings.coordination.check_ttl_s)
        fenced_s = images.connect_timeout_s + images.operation_timeout_s
        failover_s = noticed_s + worker.grace_s + fenced_s + worker.target_start_timeout_s
        return cls(math.ceil(failover_s), math.ceil(worker.move_drain_s + worker.move_linger_s))

    @property
    def wait_s(self) -> int:
        """How long an initiator is to hold operations back before it fails them: twice the longest gap."""
        return 2 * self.failover_s


def settings_for(system: System, disk: Disk, bounds: Bounds) -> str:
    """What to type there, with the reasons as comments. Secrets are never in it."""
    text = {System.OPEN_ISCSI: _open_iscsi, System.ESXI: _esxi, System.WINDOWS: _windows}[system](disk, bounds)
    return text.strip() + "\n"


def _portals(disk: Disk) -> list[str]:
    return [path.address for path in disk.paths]


def _open_iscsi(disk: Disk, bounds: Bounds) -> str:
    login = "\n".join(
        f"iscsiadm -m discovery -t sendtargets -p {_bracketed(address)}:{PORTAL_PORT}" for address in _portals(disk)
    )
    update = f"iscsiadm -m node -T {disk.iqn} -o update"
    chap = ""
    if disk.chap:
        chap = f"""
# CHAP: type the secrets where they are asked for; they are in no argument and in no history.
{update} -n node.session.auth.authmethod -v CHAP
{update} -n node.session.auth.username -v {_quoted(disk.chap.user)}
{_typed(disk, "CHAP secret", "password")}"""
    if disk.chap and disk.chap.mutual_user:
        chap += f"""
{update} -n node.session.auth.username_in -v {_quoted(disk.chap.mutual_user)}
{_typed(disk, "mutual CHAP secret", "password_in")}"""
    grouping, why = _grouping(disk)
    retries = math.ceil(bounds.wait_s / _CHECKER_S)
    return f"""
# open-iscsi with dm-multipath, for disk {disk.name}. The cluster's longest gap is {bounds.failover_s} s (a lost gateway),
# {bounds.move_s} s in a planned move; everything below waits for twice the former.
{login}
{update} -n node.startup -v automatic
# With multipath beneath, a session gives its commands back soon, for another path; multipath itself does the waiting.
{update} -n node.session.timeo.replacement_timeout -v {5 if len(disk.paths) > 1 else bounds.wait_s}
{update} -n node.conn[0].timeo.noop_out_interval -v 2
{update} -n node.conn[0].timeo.noop_out_timeout -v 2
{update} -n node.session.initial_login_retry_max -v {bounds.wait_s}{chap}
iscsiadm -m node -T {disk.iqn} --login

cat >/etc/multipath/conf.d/sanderling.conf <<'END'
devices {{
    device {{
        vendor "{VENDOR}"
        product "{PRODUCT}"
        # {why}
        path_grouping_policy {grouping}
        path_checker tur
        polling_interval {_CHECKER_S}
        # {retries} checks of {_CHECKER_S} s without any path: {bounds.wait_s} s in which operations wait and do not fail.
        no_path_retry {retries}
        fast_io_fail_tmo 5
        dev_loss_tmo infinity
        failback immediate
    }}
}}
END
multipathd reconfigure
"""


def _typed(disk: Disk, what: str, name: str) -> str:
    """Ask for a secret and write it where open-iscsi keeps it: only the one that writes has it in its environment."""
    setting = f"node.session.auth.{name}"
    return (
        f"read -rsp '{what}: ' SECRET; SECRET=\"$SECRET\" perl -pi -e 's/^{setting} =.*\\n//; "
        f'$_ .= "{setting} = $ENV{{SECRET}}\\n" if /^node.session.auth.authmethod/\' /etc/iscsi/nodes/{disk.iqn}/*/default; '
        "unset SECRET"
    )


def _esxi(disk: Disk, bounds: Bounds) -> str:
    adapter = "vmhba64"
    add = "\n".join(
        f"esxcli iscsi adapter discovery sendtarget add -A $HBA -a {_bracketed(address)}:{PORTAL_PORT}"
        for address in _portals(disk)
    )
    chap = ""
    if disk.chap:
        chap = f"""
# CHAP: esxcli takes a secret as an argument only, which this host's list of processes shows while it runs. The vSphere Client
# asks for it instead: the adapter's properties, Authentication.
{_chap_on_esxi("CHAP secret", "uni", disk.chap.user)}"""
    if disk.chap and disk.chap.mutual_user:
        chap += f"\n{_chap_on_esxi('mutual CHAP secret', 'mutual', disk.chap.mutual_user)}"
    policy = "VMW_PSP_RR" if disk.access is Access.EXCLUSIVE else "VMW_PSP_FIXED"
    return f"""
# ESXi, for disk {disk.name}. The cluster's longest gap is {bounds.failover_s} s; ESXi holds operations of a device that has lost
# all paths for 140 s (Misc.APDTimeout), which is enough as long as that is more.
HBA={adapter}   # esxcli iscsi adapter list
{add}{chap}
esxcli iscsi adapter param set -A $HBA -k RecoveryTimeout -v {min(120, max(10, bounds.failover_s))}
esxcli iscsi adapter param set -A $HBA -k NoopOutInterval -v 5
esxcli iscsi adapter param set -A $HBA -k NoopOutTimeout -v 10
# {_grouping(disk)[1]}
esxcli storage nmp satp rule add -s VMW_SATP_DEFAULT_AA -P {policy} -V {VENDOR} -M {PRODUCT} -e Sanderling
# The target offers no COMPARE AND WRITE, so VMFS locks by reservations; those last as long as the export's process does.
esxcli system settings advanced set -o /Misc/APDTimeout -i {max(140, bounds.wait_s)}
esxcli storage core adapter rescan -A $HBA
"""


def _chap_on_esxi(what: str, direction: str, user: str) -> str:
    return (
        f"read -rsp '{what}: ' SECRET; esxcli iscsi adapter auth chap set -A $HBA --direction {direction} --level required "
        f'--authname {_quoted(user)} --secret "$SECRET"; unset SECRET'
    )


def _windows(disk: Disk, bounds: Bounds) -> str:
    add = "\n".join(f"New-IscsiTargetPortal -TargetPortalAddress {address}" for address in _portals(disk))
    several = len(disk.paths) > 1
    chap = ""
    if disk.chap:
        kind = "MUTUALCHAP" if disk.chap.mutual_user else "ONEWAYCHAP"
        chap = f" -AuthenticationType {kind} -ChapUsername {_verbatim(disk.chap.user)} -ChapSecret (Read-Host 'CHAP secret')"
    connect = "\n".join(
        f"Connect-IscsiTarget -NodeAddress {disk.iqn} -TargetPortalAddress {address} -IsPersistent $true"
        f"{' -IsMultipathEnabled $true' if several else ''}{chap}"
        for address in _portals(disk)
    )
    policy = "RR" if disk.access is Access.EXCLUSIVE else "FOO"
    mutual = (
        "\n# Mutual CHAP: the secret that the target proves is set once for all targets.\n"
        "Set-IscsiChapSecret -ChapSecret (Read-Host 'mutual CHAP secret')"
        if disk.chap and disk.chap.mutual_user
        else ""
    )
    return f"""
# Windows, in PowerShell as administrator, for disk {disk.name}. The cluster's longest gap is {bounds.failover_s} s;
# what follows waits for twice that. Restart after the first part.
Install-WindowsFeature Multipath-IO
New-MSDSMSupportedHW -VendorId {VENDOR} -ProductId {PRODUCT}
# {_grouping(disk)[1]}
Set-MSDSMGlobalDefaultLoadBalancePolicy -Policy {policy}
Set-MPIOSetting -CustomPathRecovery Enabled -NewPathRecoveryInterval 20
Set-MPIOSetting -NewPDORemovePeriod {bounds.wait_s} -NewDiskTimeout {bounds.wait_s}
Get-ChildItem '{_REGISTRY}' -ErrorAction SilentlyContinue |
    ForEach-Object {{ Join-Path $_.PSPath Parameters }} | Where-Object {{ Test-Path $_ }} | ForEach-Object {{
        Set-ItemProperty $_ -Name MaxRequestHoldTime -Value {bounds.wait_s}; Set-ItemProperty $_ -Name LinkDownTime -Value 15 }}
Restart-Computer

Set-Service MSiSCSI -StartupType Automatic; Start-Service MSiSCSI{mutual}
{add}
{connect}
"""


def _grouping(disk: Disk) -> tuple[str, str]:
    """The policy by which paths are used, and why."""
    if disk.access is Access.EXCLUSIVE:
        return "multibus", "One process answers on all paths, so they may be used at once in any order."
    return (
        "failover",
        "Several gateways answer at once: one path at a time, unless what runs above was written for shared disks "
        "(docs: access shared).",
    )


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _quoted(text: str) -> str:
    """As a POSIX shell takes a text literally."""
    return "'" + text.replace("'", "'\\''") + "'"


def _verbatim(text: str) -> str:
    """As PowerShell takes a text literally."""
    return "'" + text.replace("'", "''") + "'"
