"""The event log: a port (``event_log``), its NATS adapter and its memory adapter, held to one
contract suite.
"""
