"""Real RabbitMQ, Consul and Ceph, started in a folder of their own and never left behind."""
