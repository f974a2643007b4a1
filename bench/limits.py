"""What this process may use of the machine: its own, or what its control group leaves of it."""

import os
from pathlib import Path

UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number of this size


def available_cores() -> float:
    """Cores this process may run on, by affinity and by the quota of its control group."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    for folder in cgroup_folders():
        quota, _, period = read(folder / "cpu.max").strip().partition(" ")
        if quota.isdecimal() and period.isdecimal():
            cores = min(cores, int(quota) / int(period))
    return cores


def available_memory() -> int:
    """Bytes of memory, of the whole machine or as a control group limits it, free or not."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in cgroup_folders():
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = read(folder / name).strip()
            if text.isdecimal() and int(text) < UNLIMITED:
                sizes.append(int(text))
    return min(sizes)


def cgroup_folders() -> list[Path]:
    """The control groups of this process up to the root, of version 2 and of version 1's memory controller."""
    mount = Path("/sys/fs/cgroup")
    folders = {mount, mount / "memory"}
    for line in read("/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" or controllers == "memory":
            base = mount / controllers
            inner = base / group.lstrip("/")
            folders |= {folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount)}
    return sorted(folders)


def read(path: str | Path) -> str:
    """The text of a file of the kernel's, empty where this system has none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
