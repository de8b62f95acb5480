"""`vfm bench gpu`, its floors: what this card is, its peak in bf16 products, its memory, and the way from the host to it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from jobs.bench.gpu_measure import BANDWIDTH, PEAK, Row, Session, Task
from vfm_ops.models.device import cpu_count

UNIT = 1 << 20


def tasks(session: Session) -> Iterator[Task]:
    """A row a floor."""
    yield {"what": "card"}, lambda: {"note": describe(session.device)}
    yield {"what": PEAK}, partial(peak, session)
    yield {"what": BANDWIDTH}, partial(bandwidth, session)
    if session.is_card:
        for what, to_card, pinned in (
            ("host to card, pinned, GB/s", True, True),
            ("host to card, pageable, GB/s", True, False),
            ("card to host, pinned, GB/s", False, True),
        ):
            yield {"what": what}, partial(transfer, session, to_card, pinned)


def describe(device: torch.device) -> str:
    """The device and what drives it, in words; and whether its utilisation can be read."""
    made_by = f"torch {torch.__version__}"
    if device.type != "cuda":
        return f"none: {cpu_count()} processors, {torch.get_num_threads()} threads, {made_by}"
    card = torch.cuda.get_device_properties(device)
    known = (
        f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {card.multi_processor_count} SMs, CUDA {torch.version.cuda}"
    )
    try:
        torch.cuda.utilization(device)
    except Exception as error:  # NVML's own errors are many, and none of them matters but to this column
        return f"{known}, {made_by}; utilisation can't be read: {str(error).splitlines()[0]} (pip install nvidia-ml-py)"
    return f"{known}, {made_by}"


def peak(session: Session) -> Row:
    """TFLOP/s of the best of a few sizes: no datasheet's, but what a large product reaches here."""
    best, at = 0.0, 0
    for n in (256,) if session.quick else (4096, 8192, 16384) if session.is_card else (2048,):
        a, b = (torch.randn(n, n, device=session.device, dtype=torch.bfloat16) for _ in "ab")
        out = torch.empty_like(a)
        flops = 2 * n**3 / session.time(partial(torch.mm, a, b, out=out)).seconds
        best, at = max((best, at), (flops, n))
    return {"ours": best / 1e12, "note": f"{at} x {at}"}


def bandwidth(session: Session) -> Row:
    """GB/s of a copy within the device's memory, what is read and what is written together."""
    size = (16 if session.quick else 1024) * UNIT
    source = torch.zeros(size, dtype=torch.uint8, device=session.device)
    target = torch.empty_like(source)
    return {"ours": 2 * size / session.time(lambda: target.copy_(source)).seconds / 1e9, "note": f"{size // UNIT} MiB"}


def transfer(session: Session, to_card: bool, pinned: bool) -> Row:
    """GB/s of a copy between host and card."""
    size = (16 if session.quick else 256) * UNIT
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
    card = torch.empty(size, dtype=torch.uint8, device=session.device)
    source, target = (host, card) if to_card else (card, host)
    timed = session.time(lambda: target.copy_(source, non_blocking=True))
    return {"ours": size / timed.seconds / 1e9, "note": f"{size // UNIT} MiB"}
