"""Files below /proc and /sys that edgetl reads, for typical machines."""

from __future__ import annotations

from pathlib import Path

STAT = "cpu  {user} 0 {system} {idle} 100 0 50 {steal} 0 0\ncpu0 1 0 1 1 0 0 0 0 0 0\nintr 5\n"

VM = {
    "proc/stat": STAT.format(user=10_000, system=1_000, idle=100_000, steal=200),
    "proc/loadavg": "0.50 0.40 0.30 1/90 1234\n",
    "proc/meminfo": "MemTotal:       8000000 kB\nMemFree: 1 kB\n",
    "proc/cpuinfo": (
        "processor\t: 0\nmodel name\t: Imaginary EPYC 9000\n\n"
        "processor\t: 1\nmodel name\t: Imaginary EPYC 9000\n"
    ),
    "proc/self/cgroup": "0::/\n",
    "proc/pressure/cpu": (
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    ),
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "proc/pressure/io": "some avg10=0.00 avg60=0.00 avg300=0.00 total=500\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 5\n",
    "sys/class/dmi/id/product_name": "Virtual Machine\n",
}
"""A cloud machine: steal time is visible, clocks are not."""

CONTAINER = {
    **VM,
    "proc/self/cgroup": "0::/work/pod7\n",
    "proc/1/cgroup": "0::/\n",
    ".dockerenv": "",
    "sys/fs/cgroup/work/cpu.max": "max 100000\n",
    "sys/fs/cgroup/work/pod7/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/work/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 1\nthrottled_usec 1000\n",
    "sys/fs/cgroup/work/pod7/cpu.stat": "usage_usec 5\nnr_periods 90\nnr_throttled 10\nthrottled_usec 2500000\n",
}
"""A cgroup v2 container with a quota of 1.5 cores."""

OLD_CONTAINER = {
    **{name: text for name, text in VM.items() if not name.startswith("proc/pressure")},
    "proc/self/cgroup": "12:memory:/docker/77\n4:cpu,cpuacct:/docker/77\n0::/\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 7\nnr_throttled 3\nthrottled_time 1500000000\n",
}
"""A cgroup v1 container without PSI. Its group is mounted as root; /proc has the host's path."""

PI = {
    "proc/stat": STAT.format(user=500, system=100, idle=9_000, steal=0),
    "proc/loadavg": "0.10 0.10 0.10 1/90 1234\n",
    "proc/meminfo": "MemTotal:        948000 kB\nSwapTotal:        102396 kB\nSwapFree:          92396 kB\n",
    "proc/cpuinfo": (
        "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\n"
        "Hardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"
    ),
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "600000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_min_freq": "600000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1800000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "600000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1500000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "61835\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",
}
"""A small board: no PSI or cgroups, but clocks, temperature and the firmware's throttling flags."""

JETSON = {
    "proc/stat": STAT.format(user=900, system=100, idle=9_000, steal=0),
    "proc/loadavg": "1.00 0.60 0.20 1/400 999\n",
    "proc/meminfo": "MemTotal:        7802000 kB\nSwapTotal:       3901000 kB\nSwapFree:        3901000 kB\n",
    "proc/cpuinfo": (
        "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp asimddp uscat\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n"
        "processor\t: 1\nFeatures\t: fp asimd fphp asimdhp asimddp uscat\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n"
    ),
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/device-tree/bus@0/gpu@17000000/compatible": "nvidia,ga10b\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n",
    "etc/nvpmodel.conf": (
        "# modes\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    ),
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    **{
        f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq": "1728000\n"
        for core in range(2)
    },
    **{
        f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor": "schedutil\n"
        for core in range(2)
    },
    **{f"sys/class/hwmon/hwmon3/oc{number}_event_cnt": f"{number - 1}\n" for number in (1, 2, 3)},
    "sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr1_input": "1600\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr2_input": "600\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48500\n",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "-256000\n",
}
"""An Orin Nano: power modes, over-current counters, a power meter, and a sensor that is off."""

LAPTOP = {
    "proc/stat": STAT.format(user=5_000, system=500, idle=50_000, steal=0),
    "proc/loadavg": "0.20 0.20 0.20 1/900 4321\n",
    "proc/meminfo": "MemTotal:       16000000 kB\nSwapTotal:       8000000 kB\nSwapFree:        7000000 kB\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Imaginary Core i7\nflags\t\t: fpu sse2 avx avx2 fma avx_vnni\n",
    "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000\n",
    "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
    **{
        f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor": "powersave\n"
        for core in range(4)
    },
    **{
        f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq": f"{3_000_000 + core}\n"
        for core in range(4)
    },
    **{
        f"sys/devices/system/cpu/cpu{core}/topology/physical_package_id": "0\n" for core in range(4)
    },
    **{f"sys/devices/system/cpu/cpu{core}/topology/core_id": f"{core // 2}\n" for core in range(4)},
    **{
        f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count": f"{core // 2 + 1}\n"
        for core in range(4)
    },
    **{
        f"sys/devices/system/cpu/cpu{core}/thermal_throttle/package_throttle_count": "7\n"
        for core in range(4)
    },
    "sys/class/thermal/thermal_zone0/type": "acpitz\n",
    "sys/class/thermal/thermal_zone0/temp": "40000\n",
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone1/temp": "71000\n",
    "sys/class/hwmon/hwmon5/name": "coretemp\n",
    "sys/class/hwmon/hwmon5/temp1_input": "72000\n",
    "sys/class/hwmon/hwmon5/temp2_input": "69000\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "0\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/BAT0/capacity": "63\n",
    "sys/class/power_supply/mouse/type": "Battery\n",
    "sys/class/power_supply/mouse/scope": "Device\n",
    "sys/class/power_supply/mouse/status": "Discharging\n",
    "sys/class/power_supply/mouse/capacity": "5\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "262143000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "1\n",
    "sys/class/powercap/intel-rapl:1/name": "psys\n",
    "sys/class/powercap/intel-rapl:1/energy_uj": "1\n",
}
"""Two cores with two threads each, on battery, with readable RAPL counters."""

MACHINES = {
    "vm": VM,
    "container": CONTAINER,
    "old container": OLD_CONTAINER,
    "pi": PI,
    "jetson": JETSON,
    "laptop": LAPTOP,
}


def build(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Write the files below `root` and return its proc and sys folders."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "sys").mkdir(parents=True, exist_ok=True)
    return root / "proc", root / "sys"
