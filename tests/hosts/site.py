"""What the guide presumes to be there (a Ceph, a place to clone from, a webhook), and the operator who does what it says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from cli.lab.parts.ceph import CephCluster
from cli.lab.parts.daemons import Daemon, run, spawn, waited
from tests.hosts.guide import Step
from tests.hosts.machines import TREE, Hosts

INITIATOR: Final = "iqn.1993-08.org.debian:01:abcdef"  # the one whom section 10 lets in
_PASSWORD: Final = "correct-horse"  # RabbitMQ's, in hosts that are thrown away


class Site:
    """Three hosts, a Ceph on their back network, and an initiator on their front networks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts = Hosts(folder)
        self.ceph = CephCluster(folder / "ceph", address="10.0.0.1", netns=self.hosts.network.parts, cephx=True)
        self._source = folder / "source"
        self._writer: Daemon | None = None
        self._hook: Daemon | None = None

    def start(self) -> None:
        self._offer("as it is")
        self.hosts.start()
        argv = [sys.executable, "-m", "tests.hosts.hook"]
        self._hook = spawn("hook", argv, log=self.folder / "hook.log", netns=self.hosts.network.parts, cwd=TREE)
        self.ceph.start()
        self.ceph.ceph("auth", "del", "client.sanderling")  # the guide makes it
        conf = Path(self.ceph.conf).read_text()
        known = [line for line in conf.splitlines() if line.startswith(("fsid", "mon host"))]
        etc = self.hosts.by_name["san1"].root / "etc/ceph"
        (etc / "ceph.conf").write_text("[global]\n" + "\n".join(known) + "\n")
        shutil.copy(Path(self.ceph.conf).parent / "keyring", etc / "ceph.client.admin.keyring")
        for name in self.hosts.by_name:
            self._mirror(name)

    def stop(self) -> None:
        for process in filter(None, (self._writer, self._hook)):
            process.kill()
        self.ceph.stop()
        self.hosts.close()

    def do(self, step: Step, *, only: str = "") -> str:
        """What was printed; on one host alone if it is named, which may leave nothing to do."""
        printed = []
        for name in step.hosts:
            if only in ("", name):
                host = self.hosts.by_name[name]
                if step.kind == "type":
                    env = {"SANDERLING": "file:///srv/sanderling.git"}
                    if "$OPERATION" in step.text:
                        env["OPERATION"] = self.ask("operation list --limit 1")[0]["id"]
                    printed.append(host.type(step.text, env=env, password=_PASSWORD))
                elif step.kind == "file":
                    self._put(name, step.path, step.text.encode())
                elif step.kind == "copy" and (name != step.source or step.path != step.text):
                    there = step.text.replace("HOST", name).replace("~", "root").lstrip("/")
                    source = self.hosts.by_name[step.source].root / there
                    self._put(name, step.path, source.read_bytes())
                elif step.kind == "reboot":
                    host.kill()
                    host.boot()
        return "".join(printed)

    def ask(self, command: str) -> Any:
        """What `sanderling` answers on the host of the records."""
        return json.loads(self.do(Step("type", "", ("san1",), f"sanderling {command} --json\n")))

    def notified(self) -> None:
        """Returns once the webhook has been told of an event."""
        log = self.folder / "hook.log"
        waited(lambda: '"kind": "notification.test"' in log.read_text(), within_s=60, what=f"the webhook is told: {log}")

    def lose(self, name: str) -> None:
        """The host is gone for good."""
        self.hosts.by_name[name].scrap()

    def renew(self, name: str) -> None:
        """Another machine with this name and address, and nothing on it but Debian."""
        self.hosts.by_name[name].boot()
        self._mirror(name)

    def release(self) -> str:
        """Offer another version to `git pull`, and return it."""
        project = self._source / "pyproject.toml"
        text, changed = re.subn(r'^version = "(.*)"$', r'version = "\1.post1"', project.read_text(), flags=re.MULTILINE)
        assert changed == 1, "pyproject.toml has no version"
        project.write_text(text)
        self._commit("another release")
        for name in self.hosts.by_name:
            self._mirror(name)
        found = re.search(r'^version = "(.*)"$', text, flags=re.MULTILINE)
        assert found
        return found[1]

    def write(self) -> None:
        """Log in to the first disk and write until `written`."""
        disk = self.ask("disk show first")
        portals = [word for path in disk["paths"] for word in ("--portal", f"{path['address']}:3260")]
        argv = [sys.executable, "-m", "cli.lab.initiator", "--target", disk["iqn"], *portals, "--initiator", INITIATOR]
        argv += ["--history", str(self.folder / "history.json"), "--timeout", "90"]
        self._log = self.folder / "writer.log"
        self._writer = spawn("writer", argv, log=self._log, netns=self.hosts.network.parts, cwd=TREE)

    def writing(self) -> None:
        assert self._writer is not None, "nobody writes"
        assert self._writer.alive, f"the writer ended: {self._log.read_text()}"

    def written(self) -> dict[str, Any]:
        """Stop writing; how many writes there were and the longest waits. Fails when one was lost or refused."""
        assert self._writer is not None, "nobody writes"
        self._writer.terminate(within_s=100)
        told: dict[str, Any] = json.loads(self._log.read_text().splitlines()[-1])
        assert not told["failure"], told
        return told

    def _put(self, name: str, path: str, content: bytes) -> None:
        at = self.hosts.by_name[name].root / path.lstrip("/")
        at.unlink(missing_ok=True)
        at.touch(mode=0o600)
        at.write_bytes(content)
        if not path.startswith("/etc/ceph/ceph.client") and not path.endswith((".key", ".cookie", "pgpass")):
            at.chmod(0o644)

    def _offer(self, message: str) -> None:
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=TREE, capture_output=True, text=True, check=True).stdout
        for name in filter(None, tracked.split("\0")):
            if (TREE / name).is_file():
                (self._source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(TREE / name, self._source / name)
        run(["git", "init", "--quiet", "--initial-branch=main", str(self._source)])
        self._commit(message)

    def _commit(self, message: str) -> None:
        git = ["git", "-C", str(self._source), "-c", "user.name=test", "-c", "user.email=test@localhost"]
        run([*git, "add", "--all"])
        run([*git, "commit", "--quiet", "--message", message])

    def _mirror(self, name: str) -> None:
        at = self.hosts.by_name[name].root / "srv/sanderling.git"
        if at.exists():
            shutil.rmtree(at)
        run(["git", "clone", "--quiet", "--bare", "--no-hardlinks", str(self._source), str(at)])
