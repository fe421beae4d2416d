"""Measurements of a deployment of their own, each beside its baseline of the same run."""
