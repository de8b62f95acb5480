"""A job of somebody else's: tasks on every node that hold more than an object store, for a while."""

from __future__ import annotations

import time

import numpy as np
import ray


@ray.remote(num_cpus=0)
def fill(megabytes: int) -> int:
    """Puts objects, and keeps them."""
    held = [ray.put(np.zeros(1 << 20, np.uint8)) for _ in range(megabytes)]
    time.sleep(4)
    return len(held)


if __name__ == "__main__":
    ray.init(address="auto", log_to_driver=False)
    names = [name for name in ray.cluster_resources() if name.startswith("node") and ":" not in name]
    print(ray.get([fill.options(resources={name: 0.5}).remote(300) for name in names]))
