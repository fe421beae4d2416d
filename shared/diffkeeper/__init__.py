"""The vocabulary of DiffKeeper, and what two or more services need.

``domain`` is pure: no I/O, no clock, no asyncio. ``log`` is the port to the event log with its adapters.
Services import from here; nothing here imports a service.
"""

__version__ = "0.1.0"
