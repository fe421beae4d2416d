"""Pure values and decisions: positions, clocks, deltas, frames, trees, receipts. No I/O of any kind."""
