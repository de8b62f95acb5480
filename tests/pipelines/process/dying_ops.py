"""An op that ends its process."""

from __future__ import annotations

import os
import signal

import pyarrow as pa

from vfm_ops.media.view import View
from vfm_ops.op import op


@op(adds={"level": pa.float32()}, needs=View(8))
def level(images):
    """The mean of a picture; of a white one, the end."""
    found = [float(image.mean()) for image in images]
    if max(found) > 250:
        os.kill(os.getpid(), signal.SIGKILL)
    print("no result of ours")
    return found
