"""An op that takes a while, and writes down what it was given: how often work was done again."""

from __future__ import annotations

import os
import time
import zlib

import pyarrow as pa

from vfm_ops import op


class Log(op.Settings):
    """log: a file that gets a line a picture."""

    log: str


class Slow(op.Op):
    """The mean of a picture, after a while."""

    name, adds, needs, main, Settings = "slow", {"shade": pa.float32()}, op.View(16), "log", Log

    def run(self, images):
        with open(self.settings.log, "a") as log:
            for image in images:
                time.sleep(float(os.environ.get("SLOW_S", "0")))
                log.write(f"{zlib.crc32(image.tobytes())} {os.getpid()}\n")
        return [float(image.mean()) for image in images]
