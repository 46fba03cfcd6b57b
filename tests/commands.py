"""The environment in which tests start commands of ours."""

import os
import re


def environment() -> dict[str, str]:
    """That of one device, where every compilation is kept.

    Without the caches of XLA itself, whose folder would be a part of each compilation's key.
    """
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    return {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
    }
