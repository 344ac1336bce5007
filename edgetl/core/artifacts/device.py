"""Device facts and states that results record; None for values that a device does not report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgetl.core.typed_json import in_json


@dataclass(frozen=True)
class CpuTime:
    """Time of all cores since boot, seconds."""

    busy: float
    total: float
    steal: float
    """Time that the hypervisor gave to other guests."""


@dataclass(frozen=True)
class PressureStalls:
    """Time since boot in which some task was stalled, microseconds."""

    cpu: int | None = None
    memory: int | None = None
    io: int | None = None


@dataclass(frozen=True)
class QuotaThrottling:
    """Throttling of this process's cgroups by a CPU quota since they were created."""

    periods: int
    seconds: float


@dataclass(frozen=True)
class GpuState:
    """Clocks, throttling, temperature, power, memory, load and processes of one GPU."""

    graphics_clock_mhz: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    max_graphics_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    max_memory_clock_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_percent: int | None = None
    performance_state: str | None = None
    persistence_mode: bool | None = None
    mig_mode: bool | None = None
    compute_processes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DeviceState:
    """Changing state of a device. Counters start at boot."""

    monotonic_s: float
    load: tuple[float, float, float] | None = None
    """Load averages over 1, 5 and 15 minutes."""
    cpu_seconds: CpuTime | None = None
    pressure_us: PressureStalls = PressureStalls()
    swap_used_bytes: int | None = None
    throttling: QuotaThrottling | None = None
    thermal_throttles: Mapping[str, int] | None = None
    """Throttle events of Intel's CPUs for heat: {"core", "package"}."""
    firmware_throttled: str | None = None
    """Raspberry Pi's get_throttled, hexadecimal digits."""
    over_current_events: Mapping[str, int] | None = None
    """Events by counter of a Jetson."""
    temperatures_c: Mapping[str, float] | None = None
    """Temperature of the hottest sensor by kind."""
    temperature_c: float | None = None
    """Largest of `temperatures_c`."""
    frequency_khz: int | None = None
    """Clock of the fastest core."""
    frequencies_khz: Mapping[str, int] | None = None
    """Clock by core."""
    frequency_limits_khz: tuple[int, int] | None = None
    """Lowest and highest clock that the present policy allows."""
    governors: tuple[str, ...] | None = None
    turbo: bool | None = None
    """Whether clocks above the nominal one are allowed."""
    power_mode: str | None = None
    power_source: str | None = None
    battery_percent: int | None = None
    gpus: Mapping[str, GpuState] | None = None
    """States by NVML's index."""


@dataclass(frozen=True)
class EnergyCounters:
    """Energy counters of a device, by name."""

    sources: tuple[str, ...]
    denied: tuple[str, ...]
    """Counters that this user may not read."""


@dataclass(frozen=True)
class DeviceInfo:
    """Facts about a device, and in the result of a measurement its state before and after it."""

    host: str | None = None
    board: str | None = None
    machine: str | None = None
    """Architecture of the processor, as reported by `uname`."""
    emulated: bool = False
    """Whether the processor is emulated, so that latencies are not those of a real device."""
    system: str | None = None
    container: str | None = None
    cpu: str | None = None
    cpu_flags: tuple[str, ...] | None = None
    """Instruction sets that affect the speed of inference."""
    cores: int | None = None
    cores_available: int | None = None
    affinity: tuple[int, ...] | None = None
    cpu_quota: float | None = None
    """CPU quota of the cgroups, in cores."""
    frequency_limits_khz: tuple[int, int] | None = None
    """Lowest and highest clock of the hardware."""
    memory_bytes: int | None = None
    swap_total_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    """Names of NVIDIA's GPUs."""
    gpu_driver: str | None = None
    gpu_memory_bytes: tuple[int | None, ...] | None = None
    gpu_compute_capability: tuple[str | None, ...] | None = None
    cuda_driver: str | None = None
    """Highest version of CUDA that the driver supports."""
    power_mode: str | None = None
    python: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of installed packages that affect the speed of inference."""
    energy: EnergyCounters | None = field(default=None, metadata=in_json(omit_default=True))
    before: DeviceState | None = field(default=None, metadata=in_json(omit_default=True))
    after: DeviceState | None = field(default=None, metadata=in_json(omit_default=True))

    @property
    def description(self) -> str:
        """Common name of the device: its board, or else its CPU, machine or host."""
        if self.emulated:
            # The board, and possibly the CPU's name, are those of the emulator's host.
            return f"emulated {self.machine} ({self.cpu})"
        names = (self.board, self.cpu, self.machine, self.host)
        return next(filter(None, names), "unknown device")

    def is_same_device(self, other: DeviceInfo) -> bool:
        """Return whether both describe the same device, as far as these facts tell."""
        return self._identity == other._identity

    @property
    def _identity(self) -> tuple[str | int | None, ...]:
        return self.host, self.board, self.cpu, self.machine, self.cores, self.memory_bytes
