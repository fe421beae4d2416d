"""What breaks a site. It knows nothing of orders, of what is checked, nor of how the site is replaced."""

from __future__ import annotations

from examples.demo import product


def kill_site(dkctl: product.Dkctl, site: str) -> None:
    """SIGKILL to every process of a site and every program it runs, at once."""
    dkctl.ask("down", "--site", site, "--kill")
