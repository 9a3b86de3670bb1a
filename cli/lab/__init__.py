"""The fault lab: a whole installation in network namespaces on real parts, what breaks it, and what checks that it held."""
