"""The real parts: RabbitMQ, Consul and Ceph as processes of their own, for tests and for `make real`."""
