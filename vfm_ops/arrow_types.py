"""Arrow types that ops give and lakes hold."""

from __future__ import annotations

import pyarrow as pa

BOX = pa.list_(pa.float32(), 4)  # xyxy, pixels of the stored frame
MASK = pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())])  # COCO RLE, size is (height, width)
