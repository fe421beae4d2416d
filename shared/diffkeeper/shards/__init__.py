"""Where shards stand: the port to one storage node, and its adapters."""
