"""This machine: its processors and what they are limited to, memory, disks, shared memory."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from pipelines.lake.health import Finding
from vfm_ops.models.device import cpu_count

CGROUP, PROC, SHM = Path("/sys/fs/cgroup"), Path("/proc"), Path("/dev/shm")
LEAST_MEMORY, LEAST_SHM = 2.0, 0.3  # GiB
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Of a disk that a lake is written to: a run appends some MB/s, and syncs a file for each commit and fragment.
PROBE_BYTES, SYNCS = 16 << 20, 5
SLOW_MB_S, SLOW_SYNC_MS = 50.0, 50.0


def examine_machine(folder: Path | None = None) -> list[Finding]:
    """What is wrong or slow about this machine. folder: one that a lake on this machine lies in; else the working directory.
    A few megabytes are written there, and removed."""
    return [
        device(),
        *processors(cpu_count(), cpu_quota(), os.environ),
        *instructions((PROC / "cpuinfo").read_text() if (PROC / "cpuinfo").exists() else ""),
        memory(psutil.virtual_memory().available, memory_left()),
        *shared_memory(),
        disk(folder or Path.cwd()),
    ]


def device() -> Finding:
    """The cards, or the processor."""
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding("device", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
    if Path("/dev/nvidiactl").exists() and torch.version.cuda is None:
        advice = "install torch as its website says for CUDA"
        return Finding("device", "a card is here, and torch is a build without CUDA", False, advice)
    return Finding("device", f"CPU, {os.cpu_count()} cores")


# -- processors --------------------------------------------------------------------------------------------------------


def cpu_quota() -> float | None:
    """Processors' worth of time that this container may use, of either version of control groups; None without a limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (CGROUP / "cpu/cpu.cfs_quota_us").read_text()
            period = (CGROUP / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    return int(quota) / int(period) if quota.strip().isdigit() else None


def processors(cores: int, quota: float | None, environment: Mapping[str, str]) -> list[Finding]:
    """Whether as many threads are started as may run. cores: that this process may use; a thread is started for each."""
    found = f"{cores} usable" + (f", limited to {quota:g} of them at a time" if quota else "")
    advice = ""
    if quota and quota < cores:
        whole = max(1, round(quota))
        advice = (
            f"threads are started for all {cores}, and wait for each other: start it with taskset -c 0-{whole - 1}, "
        )
        advice += "or give the container whole processors (docker run --cpuset-cpus)"
    findings = [Finding("processors", found, advice=advice, slow=bool(advice))]
    for name in THREADS:
        value = environment.get(name, "")
        if value.isdigit() and int(value) > cores:
            advice = (
                f"unset it, or set it to {cores} at the most: threads that outnumber the processors wait for each other"
            )
            findings.append(Finding(name, f"{value} threads on {cores} processors", advice=advice, slow=True))
    return findings


def instructions(cpuinfo: str) -> list[Finding]:
    """What the processor computes with, of /proc/cpuinfo; nothing where that does not say (it is not Linux)."""
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.M)).split())
    if not flags:
        return []
    if "asimd" in flags:  # of ARM
        has = {"NEON": "asimd", "SVE": "sve", "bfloat16": "bf16"}
        fast = "bf16" in flags
    else:
        has = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 bfloat16": "avx512_bf16", "AMX": "amx_tile"}
        fast = "avx2" in flags
    found = ", ".join(name for name, flag in has.items() if flag in flags) or "no vector instructions"
    advice = "" if fast else "models are several times slower than on a processor that has AVX2 (or bfloat16, of ARM)"
    return [Finding("instructions", found, advice=advice, slow=not fast)]


# -- memory and disks --------------------------------------------------------------------------------------------------


def memory_left() -> int | None:
    """Bytes that this container may still take, of either version of control groups; None without a limit.

    Cached files count as used there, and give way as soon as memory is wanted.
    """
    for names in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            limit, used = (int((CGROUP / name).read_text()) for name in names)
            stat = (CGROUP / names[0]).with_name("memory.stat").read_text()
        except (OSError, ValueError):  # another version, or "max"
            continue
        cached = sum(map(int, re.findall(r"^(?:in)?active_file (\d+)$", stat, re.M)))
        return max(0, limit - used + min(cached, used))
    return None


def memory(available: int, left: int | None) -> Finding:
    """Whether a run has the memory that it needs. available: bytes of the machine; left: of the container's limit."""
    free = min(available, left if left is not None else available) / 2**30
    limited = " (the container's limit)" if left is not None and left < available else ""
    fine = free > LEAST_MEMORY
    return Finding("memory", f"{free:.1f} GiB free{limited}", fine, "" if fine else "a run needs about 2 GiB")


def shared_memory() -> list[Finding]:
    """Whether Ray's object store and decoded pictures find room; nothing where the system has none to look at."""
    if not SHM.exists():
        return []
    usage = shutil.disk_usage(SHM)
    free = usage.free / 2**30
    advice = "Ray's object store needs about 0.3 GiB, and is on disk else: "
    advice += "docker run --shm-size=2g, or end what fills it" if usage.total / 2**30 < 1 else "end what fills it"
    fine = free > LEAST_SHM
    return [Finding("shared memory", f"{free:.1f} GiB free", fine, "" if fine else advice)]


def disk(folder: Path) -> Finding:
    """Room on a folder's disk, and how fast it takes a lake's files."""
    what, free = f"disk of {folder}", shutil.disk_usage(folder).free / 2**30
    if free <= LEAST_SHM:
        return Finding(what, f"{free:.1f} GiB free", False, "free some space")
    try:
        rate, sync_ms = write_rate(folder)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Finding(what, f"{free:.1f} GiB free, can't be written ({reason})", advice="work where you may write")
    slow = rate < SLOW_MB_S or sync_ms > SLOW_SYNC_MS
    advice = "a lake commits slowly here: put it on a local SSD, or into an object store" if slow else ""
    found = f"{free:.1f} GiB free, written at {rate:.0f} MB/s, {sync_ms:.1f} ms to sync a small file"
    return Finding(what, found, advice=advice, slow=slow)


def write_rate(folder: Path) -> tuple[float, float]:
    """MB/s of a file that is written and synced, and the median ms of a small one. OSError where none may be written."""
    block = os.urandom(PROBE_BYTES)
    with tempfile.TemporaryDirectory(prefix=".vfm-doctor-", dir=folder) as probe:
        seconds = _write(Path(probe) / "large", block)
        small = [_write(Path(probe) / str(i), b"probe") for i in range(SYNCS)]
    return PROBE_BYTES / 1e6 / seconds, 1000 * statistics.median(small)


def _write(path: Path, data: bytes) -> float:
    started = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started
