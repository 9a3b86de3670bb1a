"""What of the real parts only tests need: `make real`, and the benches that single tests stand on."""
