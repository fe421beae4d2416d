"""Directories that are there at once and filled while they are used: right-sized sparse files, whose bytes are
fetched when a program first touches them (fanotify pre-content events, Linux 6.14) and otherwise in the
background. ``DESIGN.md`` beside this has the fault model.
"""
