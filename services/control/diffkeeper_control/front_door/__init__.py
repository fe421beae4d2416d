"""The front door: one entry for a volume's clients that follows its leader. DESIGN.md beside this file."""
