"""What the two sides of a decoder process agree on. Imported by both, so it imports nothing heavy."""

from __future__ import annotations

import struct

REQUEST = struct.Struct("<QQQQQ")  # number, slab, slab size; offset and length of the JSON in the slab
REPLY = struct.Struct("<QQQ")  # number, slab size, length of the JSON that follows

# Words (uint64) of the control page: a counter that grows while there is progress, and what is being worked on.
PROGRESS, ITEM, REQUEST_ID = 0, 1, 2
