"""The Kubernetes operator: it makes of a ``kind: SAC`` the objects that run it, and tells in its status what control knows.

Pure: ``specs``, ``views``, ``observations``, ``desired`` (with ``pods`` and ``network``), ``conditions``, ``refusals``,
``one_shots``, ``leadership``. Adapters: ``kube`` (the API server), ``control`` (the admin API). ``reconciler``, ``actions``
and ``deletion`` put them together; ``handlers`` hangs them into kopf.
"""
