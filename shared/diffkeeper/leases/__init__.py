"""Leases: a port (``lease_store``), its NATS adapter and its memory adapter, held to one contract suite."""
