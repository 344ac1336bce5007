"""Precision of a phase's training steps: the fastest one that is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgetl.train.common.autotune import cached_measurement
from edgetl.train.common.precision import ComputeConfig, PrecisionName, measure_step_ms
from edgetl.train.common.run_choices import choice_unavailable_error
from edgetl.train.engine.phases import TrainablePhase
from edgetl.train.features.cache import RunContext
from edgetl.train.model.freezing import set_trainable


@dataclass(frozen=True)
class MeasuredPrecision:
    """Fastest precision of a training step."""

    precision: PrecisionName
    milliseconds: Mapping[PrecisionName, float]
    """Time of a step in each precision."""


def choose_step_precision(
    context: RunContext, trainable: TrainablePhase, measurement_key: Mapping[str, object]
) -> ComputeConfig:
    """Return the device and precision of a phase's steps; the choice is recorded.

    Args:
        context: the run.
        trainable: the phase.
        measurement_key: everything that the fastest precision depends on, except the phase.

    Raises:
        ConfigError: the recorded precision is not available on this device.
    """
    number = str(trainable.phase.number)
    compute_config, choices = context.compute_config, context.choices
    precision = choices.recorded.precision.get(number)
    if precision is not None:
        is_bf16_available = precision == "bf16" and compute_config.may_use_bf16
        if precision != compute_config.precision and not is_bf16_available:
            raise choice_unavailable_error(
                f"{precision} in phase {number}",
                f"this {compute_config.device.type} trains in {compute_config.precision}",
            )
    elif (
        compute_config.device.type != "cpu"
        or compute_config.precision == "bf16"
        or not compute_config.may_use_bf16
        or choices.uses_fixed_rules
    ):
        precision = compute_config.precision
    else:
        precision = _measure_fastest_precision(context, trainable, measurement_key)
    choices.record_entry("precision", number, precision)
    return replace(compute_config, precision=precision)


def _measure_fastest_precision(
    context: RunContext, trainable: TrainablePhase, measurement_key: Mapping[str, object]
) -> PrecisionName:
    phase = trainable.phase
    key = {
        **measurement_key,
        "training": str(phase.unfreeze),
        "batch_size": context.batch_size,
    }

    def measure() -> MeasuredPrecision:
        values, labels = next(iter(trainable.batch_source.iter_train_batches(1)))
        adapted = context.adapted_model
        set_trainable(adapted, phase.unfreeze, phase.freeze_statistics).train_mode()
        step_ms = measure_step_ms(
            adapted.model, trainable.forward, values, labels, context.compute_config
        )
        return MeasuredPrecision(min(step_ms, key=lambda name: step_ms[name]), step_ms)

    measurement = cached_measurement(MeasuredPrecision, key, measure)
    return context.processes.broadcast(measurement.precision)
