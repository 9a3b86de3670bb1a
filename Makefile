# Everything a developer or CI runs. `make up` and `make test` do all of their own set-up on a fresh Debian 12 machine.

PYTHON := .venv/bin/python
.PHONY: up test check real real-down guard python python-dev rows sample
.DEFAULT_GOAL := help

help:
	@echo "make up      everything in one process on loopback portals: the first five minutes"
	@echo "make test    every test, on real RabbitMQ, Consul, Ceph and tgt, which it starts and stops itself"
	@echo "make check   style, types, import rules, generated files"
	@echo "make real    start the real parts and leave them running, so that one test runs in seconds (make real-down ends them)"
	@echo "make rows    which test proves which behaviour row (docs/behaviours.md)"

guard: iscsi_worker/targets/tgt_guard.so

iscsi_worker/targets/tgt_guard.so: iscsi_worker/targets/tgt_guard.c
	gcc -std=gnu11 -O2 -Wall -Wextra -Werror -fPIC -shared -o $@ $< -ldl -lpthread
