"""The parts of /proc and /sys that edgetl reads, as three kinds of machine have them."""

from __future__ import annotations

from pathlib import Path

STAT = "cpu  {user} 0 {system} {idle} 100 0 50 {steal} 0 0\ncpu0 1 0 1 1 0 0 0 0 0 0\nintr 5\n"

VM = {
    "proc/stat": STAT.format(user=10_000, system=1_000, idle=100_000, steal=200),
    "proc/loadavg": "0.50 0.40 0.30 1/90 1234\n",
    "proc/meminfo": "MemTotal:       8000000 kB\nMemFree: 1 kB\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Imaginary EPYC 9000\n\nprocessor\t: 1\nmodel name\t: Imaginary EPYC 9000\n",
    "proc/self/cgroup": "0::/\n",
    "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "proc/pressure/io": "some avg10=0.00 avg60=0.00 avg300=0.00 total=500\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 5\n",
    "sys/class/dmi/id/product_name": "Virtual Machine\n",
}
"""A cloud machine: the hypervisor's steal is seen, clocks are not."""

CONTAINER = {
    **VM,
    "proc/self/cgroup": "0::/work/pod7\n",
    "sys/fs/cgroup/work/cpu.max": "max 100000\n",
    "sys/fs/cgroup/work/pod7/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/work/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 1\nthrottled_usec 1000\n",
    "sys/fs/cgroup/work/pod7/cpu.stat": "usage_usec 5\nnr_periods 90\nnr_throttled 10\nthrottled_usec 2500000\n",
}
"""A container of cgroup v2 with a quota of one and a half cores."""

OLD_CONTAINER = {
    **{name: text for name, text in VM.items() if not name.startswith("proc/pressure")},
    "proc/self/cgroup": "12:memory:/docker/77\n4:cpu,cpuacct:/docker/77\n0::/\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 7\nnr_throttled 3\nthrottled_time 1500000000\n",
}
"""A container of cgroup v1, which sees its own group as the root although /proc names the host's path; no PSI."""

PI = {
    "proc/stat": STAT.format(user=500, system=100, idle=9_000, steal=0),
    "proc/loadavg": "0.10 0.10 0.10 1/90 1234\n",
    "proc/meminfo": "MemTotal:        948000 kB\n",
    "proc/cpuinfo": "processor\t: 0\nCPU part\t: 0xd08\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "600000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "ondemand\n",
    "sys/class/thermal/thermal_zone0/temp": "61835\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",
}
"""A small board: no PSI, no cgroups, no steal worth the name; but clocks, heat and the firmware's word."""


def build(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Write the tree; returns its proc and sys."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "sys").mkdir(parents=True, exist_ok=True)
    return root / "proc", root / "sys"
