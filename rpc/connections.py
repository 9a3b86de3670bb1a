"""How the broker is reached, in the two forms its users take: oslo.messaging's URL with our options, and a plain AMQP connection.

TLS is on when `[bus] ca_file` is set, and then certificate and host name are verified; there is no third way.
"""

import ssl
from typing import Any
from urllib.parse import quote

import kombu.exceptions
import oslo_messaging
from kombu.connection import Connection
from oslo_config import cfg

from sanderling.errors import SettingsRefused
from sanderling.settings import Bus


def parsed(bus: Bus) -> Any:
    """The transport URL; `SettingsRefused` for a transport other than rabbit and fake, and for TLS that would verify nothing."""
    try:
        url = oslo_messaging.TransportURL.parse(cfg.CONF, bus.url)
    except (oslo_messaging.MessagingException, ValueError) as error:
        raise SettingsRefused("[bus] url: it cannot be read; write rabbit://user:password@host:5672/vhost") from error
    if url.transport not in {"rabbit", "fake"}:
        raise SettingsRefused(f"[bus] url: {url.transport}:// is not known; use rabbit://, or fake:// within one process")
    if any(name.startswith("ssl") for name in url.query):
        raise SettingsRefused("[bus] url: TLS by URL parameter verifies nothing; set [bus] ca_file instead")
    if bus.ca_file and len(url.hosts) != 1:
        raise SettingsRefused("[bus] url: with TLS name one host; with several, the host name would not be verified")
    return url


def transport_url(bus: Bus) -> Any:
    """The URL with every rabbit option we rely on.

    They go into the URL because options set on `cfg.CONF` exist only after a first transport and would be shared by all of them.
    """
    url = parsed(bus)
    if url.transport == "rabbit":
        url.query.update(
            rabbit_quorum_queue="true",
            # reply and fanout queues go with the broker and are declared again: RabbitMQ 3.10 never elects a leader for a quorum
            # queue that was declared just before a crash, and whoever publishes to such a queue waits without end
            rabbit_transient_quorum_queue="false",
            rabbit_qos_prefetch_count=str(bus.prefetch),
            heartbeat_timeout_threshold=str(bus.heartbeat_s),
            rabbit_retry_interval="1",  # with the next two: a broker that is back is found within about a second
            rabbit_retry_backoff="0",
            rabbit_interval_max="1",
            kombu_reconnect_delay="0.1",
            rabbit_transient_queues_ttl="300",  # reply and fanout queues of processes that are gone
            kombu_missing_consumer_retry_timeout=str(max(1, round(bus.send_timeout_s))),
        )
        if bus.ca_file:
            url.query.update(ssl="true", ssl_ca_file=bus.ca_file)
            if bus.cert_file:
                url.query.update(ssl_cert_file=bus.cert_file, ssl_key_file=bus.key_file)
    return url


def connection(bus: Bus, *, name: str) -> Connection:
    """A plain connection, not yet opened; within one process (fake://) kombu's memory transport stands in for the broker."""
    url = parsed(bus)
    if url.transport == "fake":
        return Connection("memory://", transport_options={"polling_interval": 0.05})
    tls: dict[str, Any] | bool = False
    if bus.ca_file:
        tls = {
            "ca_certs": bus.ca_file,
            "cert_reqs": ssl.CERT_REQUIRED,
            "server_hostname": url.hosts[0].hostname,
            "tls_minimum_version": ssl.TLSVersion.TLSv1_2,
            "certfile": bus.cert_file or None,
            "keyfile": bus.key_file or None,
        }
    return Connection(
        [_amqp(host, url.virtual_host) for host in url.hosts],
        ssl=tls,
        heartbeat=bus.heartbeat_s,
        connect_timeout=bus.send_timeout_s,
        transport_options={
            "confirm_publish": True,
            "read_timeout": bus.heartbeat_s,
            "write_timeout": bus.heartbeat_s,
            "client_properties": {"connection_name": name},
        },
    )


def failures(broker: Connection) -> tuple[type[Exception], ...]:
    """What using this connection may raise when the broker is away or refuses."""
    return (kombu.exceptions.KombuError, OSError, *broker.connection_errors, *broker.channel_errors)


def _amqp(host: Any, vhost: str | None) -> str:
    name = f"[{host.hostname}]" if ":" in host.hostname else host.hostname
    user, password = quote(host.username or "guest", safe=""), quote(host.password or "guest", safe="")
    return f"pyamqp://{user}:{password}@{name}:{host.port or 5672}/{quote(vhost or '/', safe='')}"
