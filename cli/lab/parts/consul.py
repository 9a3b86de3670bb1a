"""A real Consul agent, never `-dev`: a server or a client, on loopback or in a namespace, with the gossip a site should use."""

import json
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.lab.parts.daemons import Daemon, run, spawn, waited

START_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class ConsulPorts:
    """Where an agent listens; agents in namespaces of their own can all use the usual ones."""

    http: int = 8500
    rpc: int = 8300
    serf_lan: int = 8301
    https: int = 8501

    @classmethod
    def free(cls, address: str) -> "ConsulPorts":
        return cls(*_free_ports(address, 4))


class ConsulAgent:
    """One agent. `join` holds the `lan` of others; a cluster of three servers is three of these with `bootstrap_expect=3`."""

    def __init__(
        self,
        folder: Path,
        *,
        address: str = "127.0.0.1",
        netns: str | None = None,
        node_name: str = "consul-a",
        server: bool = True,
        join: Sequence[str] = (),
        ports: ConsulPorts | None = None,
        bootstrap_expect: int = 1,
        tls: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.address, self.netns, self.node_name = folder, address, netns, node_name
        self.ports = ports or (ConsulPorts() if netns else ConsulPorts.free(address))
        self._config = self._configuration(server, tuple(join), bootstrap_expect, tls)
        self._daemon: Daemon | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.ports.http}"

    @property
    def https_url(self) -> str:
        """Only with `tls`, which are the agent's own options for it."""
        return f"https://{self.address}:{self.ports.https}"

    @property
    def lan(self) -> str:
        """What others put into their `join`."""
        return f"{self.address}:{self.ports.serf_lan}"

    @property
    def version(self) -> str:
        return run(["consul", "version"]).splitlines()[0].removeprefix("Consul v")

    @property
    def alive(self) -> bool:
        return self._daemon is not None and self._daemon.alive

    def start(self, *, wait: bool = True) -> None:
        """Run, on the data of the last run. With `wait` it returns once there is a leader and the agent's own health passes;
        the first of several servers has to be started without.
        """
        assert not self.alive, f"{self.node_name} runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "agent.json"
        file.write_text(json.dumps(self._config, indent=1))
        argv = ["consul", "agent", f"-config-file={file}"]
        self._daemon = spawn(f"consul {self.node_name}", argv, log=self._log, netns=self.netns)
        if wait:
            self.wait_until_usable()

    def wait_until_usable(self, *, within_s: float = START_WITHIN_S) -> None:
        """An AssertionError with the log's tail when it is not within the bound."""
        try:
            waited(self._is_usable, within_s=within_s, what=f"consul {self.node_name} is usable")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._log.read_text(errors='replace')[-4000:]}") from error

    def leave(self) -> None:
        """Leave the cluster in good order and end."""
        assert self._daemon is not None, "it was never started"
        run(["consul", "leave", f"-http-addr={self.url}"], netns=self.netns)
        self._daemon.wait(within_s=30.0)

    def kill(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()

    def pause(self) -> None:
        assert self._daemon is not None, "it was never started"
        self._daemon.signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._daemon is not None, "it was never started"
        self._daemon.signal(signal.SIGCONT)

    def stop(self) -> None:
        """End without leaving: to the others it looks like a machine that was switched off."""
        if self._daemon is not None:
            self._daemon.signal(signal.SIGCONT)
            self._daemon.terminate()

    def forget(self) -> None:
        """Lose all data, as a disk that broke; only while it does not run."""
        assert not self.alive, f"{self.node_name} still runs"
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self.folder / "consul.log"

    def _is_usable(self) -> bool:
        assert self.alive, "it ended"
        try:
            said = run(["consul", "watch", f"-http-addr={self.url}", "-type=checks", "-state=passing"], netns=self.netns)
        except AssertionError:
            return False
        return any(check["CheckID"] == "serfHealth" and check["Node"] == self.node_name for check in json.loads(said))

    def _configuration(
        self, server: bool, join: tuple[str, ...], bootstrap_expect: int, tls: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        return {
            "node_name": self.node_name,
            "data_dir": str(self.folder / "data"),
            "bind_addr": self.address,
            "client_addr": self.address,
            "ports": {
                "http": self.ports.http,
                "https": self.ports.https if tls else -1,
                "server": self.ports.rpc,
                "serf_lan": self.ports.serf_lan,
                "serf_wan": -1,
                "dns": -1,
                "grpc": -1,
            },
            **(tls or {}),
            "server": server,
            **({"bootstrap_expect": bootstrap_expect} if server else {}),
            "retry_join": list(join),
            "retry_interval": "200ms",
            "gossip_lan": {"probe_interval": "500ms", "probe_timeout": "200ms", "suspicion_mult": 3},
            "performance": {"raft_multiplier": 1, "leave_drain_time": "100ms"},
            "limits": {"http_max_conns_per_client": 2000},
            "leave_on_terminate": False,
            "disable_update_check": True,
            "disable_remote_exec": True,
        }


def _free_ports(address: str, count: int) -> list[int]:
    """Ports free for TCP and UDP at this moment, all different."""
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
            held += [tcp, udp]
            tcp.bind((address, 0))
            port = tcp.getsockname()[1]
            try:
                udp.bind((address, port))
            except OSError:
                continue
            ports.append(port)
    finally:
        for one in held:
            one.close()
    return ports
