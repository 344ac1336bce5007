"""Tables and sentences of an experiment as plain text, shared by terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence

from edgetl.core.artifacts.experiment import (
    DeployedModel,
    Experiment,
    ScreenedNetwork,
    StrategyComparison,
)
from edgetl.core.artifacts.experiment_runs import StrategyResult
from edgetl.core.config.compare import EQUAL_TIME
from edgetl.core.formatting import MISSING_VALUE, format_duration, format_percent, pluralize
from edgetl.report.text_table import TextTable, render_markdown_table


def all_tables(experiment: Experiment) -> list[TextTable]:
    """Return the non-empty tables of the experiment, in display order."""
    tables = [latency_budget_table(experiment)]
    for network in experiment.networks:
        tables.append(strategies_table(experiment, network))
        tables.append(equal_time_table(experiment, network))
    tables += [trade_off_table(experiment), differences_table(experiment)]
    return [table for table in tables if table is not None]


def latency_budget_table(experiment: Experiment) -> TextTable | None:
    """Return the result of screening networks before training, or None without a budget."""
    if not experiment.screened_networks:
        return None
    budget_ms = experiment.config.compare.latency_budget_ms
    return candidates_table(experiment.screened_networks, budget_ms)


def candidates_table(candidates: Sequence[ScreenedNetwork], budget_ms: float | None) -> TextTable:
    """Return the networks with their latencies and whether each was kept."""
    outcomes = {True: "kept", False: "dropped", None: "kept, undecided"}
    rows = []
    for candidate in candidates:
        outcome = outcomes[candidate.fits]
        if candidate.failed:
            outcome = f"dropped: {candidate.failed}"
        latency = _format_latency(candidate.p50_ms, candidate.ci95_ms)
        rows.append((candidate.network, latency, outcome))
    return TextTable(
        "Within the latency budget",
        ("network", "p50 ms [95%]", "outcome"),
        tuple(rows),
        f"ONNX Runtime on this device, new head, before training; the budget is {budget_ms:g} ms.",
        ("outcome",),
    )


def strategies_table(experiment: Experiment, network: str) -> TextTable:
    """Return one network's strategies with accuracy, gap, training time, size and memory."""
    rows = experiment.select_rows(network)
    seeds = max((len(row.runs) for row in rows), default=1)
    has_test = any(row.test_accuracy is not None for row in rows)
    columns = (
        "strategy", "training", "validation [95%]", *(["seeds"] if seeds > 1 else []),
        *(["test [95%]"] if has_test else []), "gap", "time",
        f"to {experiment.target_accuracy:.0%}", "epochs", "trained / all parameters", "images/s", "peak memory",
    )  # fmt: skip
    recommended = experiment.recommend_strategy(network)
    cells = tuple(
        _strategy_cells(row, row is recommended, seeds > 1, has_test, experiment.target_accuracy)
        for row in rows
    )
    images = len(rows[0].first_run.correct_mask) if rows else 0
    devices = sorted({f"{run.device} ({run.precision})" for row in rows for run in row.runs})
    seeds_phrase = f"means over {seeds} seeds" if seeds > 1 else "one seed"
    test_phrase = ""
    if has_test:
        test_images = len(rows[0].first_run.test_correct)
        test_phrase = f"The {test_images} test images were used for nothing else. "
    note = (
        f"{images} validation images, {seeds_phrase}. Training accuracy is without augmentation; "
        "gap: training minus validation, in points; time: the whole run, including reading the images; "
        "images/s: training images of all epochs over that time. "
        "* recommended: the fastest strategy not significantly less accurate than the most accurate. "
        "The best epoch was selected on the validation images, so accuracies on them are slightly "
        f"optimistic. {test_phrase}"
        f"Trained on {', '.join(devices)}."
    )
    has_budget = experiment.config.compare.budget_s is not None
    length = "equal time budget" if has_budget else "equal epochs"
    return TextTable(f"{network}, {length}", columns, cells, note)


def _strategy_cells(
    row: StrategyResult, recommended: bool, several_seeds: bool, has_test: bool, target: float
) -> tuple[str, ...]:
    first = row.first_run
    seed_range = []
    if several_seeds:
        lowest, highest = row.val_range
        seed_range = [f"{format_percent(lowest)} to {format_percent(highest)}"]
    epochs = sorted({len(run.epochs) for run in row.runs})
    trainable = format_parameter_count(first.trainable)
    images_per_second = sum(run.images_per_second for run in row.runs) / len(row.runs)
    return (
        first.strategy + (" *" if recommended else ""),
        format_percent(row.train_accuracy),
        _format_interval(row.val_accuracy, row.ci95),
        *seed_range,
        *([_format_interval(row.test_accuracy, row.test_interval)] if has_test else []),
        f"{100 * row.gap:+.1f}",
        format_duration(row.seconds),
        _format_time_to_target(row, target),
        str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}",
        f"{trainable} / {format_parameter_count(first.parameters)}",
        f"{images_per_second:.0f}",
        format_peak_memory(row),
    )


def _format_interval(accuracy: float | None, interval: tuple[float, float] | None) -> str:
    if accuracy is None or interval is None:
        return MISSING_VALUE
    low, high = interval
    return f"{format_percent(accuracy)} [{format_percent(low)}, {format_percent(high)}]"


def equal_time_table(experiment: Experiment, network: str) -> TextTable | None:
    """Return each strategy's best accuracy at the times when the strategies finished.

    None if there is only one strategy.
    """
    rows = experiment.select_rows(network)
    if len(rows) < 2:
        return None
    strategy_by_time = {row.seconds: row.first_run.strategy for row in reversed(rows)}
    times = sorted(strategy_by_time)
    cells = []
    for row in rows:
        accuracies = [row.mean_accuracy_within(time) for time in times]
        cells.append((row.first_run.strategy, *map(_format_accuracy, accuracies)))
    columns = [f"after {format_duration(time)} ({strategy_by_time[time]})" for time in times]
    note = (
        "Best validation accuracy of the epochs completed when each strategy finished; "
        f"{MISSING_VALUE}: no epoch was complete. A schedule that is cut off scores lower than one "
        f"planned for that time: {EQUAL_TIME} is planned for the time of the pretrained run."
    )
    return TextTable(f"{network}, equal time", ("strategy", *columns), tuple(cells), note)


def differences_table(experiment: Experiment) -> TextTable | None:
    """Return the pairwise comparisons of strategies, or None if there are none."""
    if not experiment.comparisons:
        return None
    rows = []
    for pair in experiment.comparisons:
        first, second = _pair_names(experiment, pair)
        rows.append((first, second, format_difference(pair), format_p_value(pair.p), pair.verdict))
    method = "exact McNemar test; variation between seeds is not included"
    if any(len(row.runs) > 1 for row in experiment.rows):
        method = "images and seeds both treated as random"
    comparisons = pluralize(len(rows), "comparison")
    return TextTable(
        "Differences",
        ("first", "second", "points [95%]", "p", "the first is"),
        tuple(rows),
        f"On the same validation images, {method}. "
        f"Intervals are for each comparison alone; p is corrected for {comparisons} (Holm).",
        ("second", "the first is"),
    )


def trade_off_table(experiment: Experiment) -> TextTable | None:
    """Return accuracy, latency and size of each exported run, or None if nothing was exported."""
    rows = []
    for network in experiment.networks:
        row = experiment.recommend_strategy(network)
        deployed = experiment.find_deployed_model(network)
        if row is None or deployed is None:
            continue
        status = "noisy" if deployed.noisy else "quiet"
        if deployed.failed:
            status = f"failed: {deployed.failed}"
        rows.append(
            (
                network,
                row.first_run.strategy,
                format_percent(row.val_accuracy),
                _format_latency(deployed.p50_ms, deployed.ci95_ms),
                f"{deployed.file_bytes / 1e6:.1f}" if deployed.file_bytes else MISSING_VALUE,
                status,
            )
        )
    if not rows:
        return None
    threads = {model.threads for model in experiment.deployed_models if not model.failed}
    thread_count = f", {threads.pop()} threads" if len(threads) == 1 else ""
    return TextTable(
        "Accuracy against latency",
        ("network", "strategy", "validation", "p50 ms [95%]", "file, MB", "measurement"),
        tuple(rows),
        f"ONNX Runtime on the CPU, one image, network with preprocessing{thread_count}. "
        "This is a short measurement; run `edgetl bench` for a full one.",
        ("strategy", "measurement"),
    )


def conclusion_sentences(experiment: Experiment) -> list[str]:
    """Return the conclusions: one entry per network, then the comparison of networks.

    Unfinished and failed runs are listed last.
    """
    sentences = [
        " ".join(_network_sentences(experiment, network)) for network in experiment.networks
    ]
    comparison = _networks_sentence(experiment)
    if comparison is not None:
        sentences.append(comparison)
    if experiment.unfinished_run_names:
        names = ", ".join(experiment.unfinished_run_names)
        sentences.append(f"Not finished: {names}. Run the same command again to continue.")
    sentences += [f"Failed: {run.name}: {run.failed}" for run in experiment.failed_runs]
    return sentences


def _network_sentences(experiment: Experiment, network: str) -> list[str]:
    rows, row = experiment.select_rows(network), experiment.recommend_strategy(network)
    if row is None:
        return [f"{network}: no strategy can be recommended yet."]
    target = experiment.target_accuracy
    images = len(row.first_run.correct_mask)
    sentences = [
        f"{network}: Take `{row.first_run.strategy}`: {format_percent(row.val_accuracy)} "
        f"of {images} validation images in {format_duration(row.seconds)}."
    ]
    best = max(rows, key=lambda row: row.val_accuracy)
    pair = experiment.find_comparison(best.name, row.name)
    if pair is not None and best is not row:
        sentences.append(
            f"`{best.first_run.strategy}` is {100 * pair.difference.value:.1f} points more accurate, "
            f"not significantly (p {format_p_value(pair.p)}), "
            f"and takes {best.seconds / row.seconds:.1f} times as long."
        )
    by_strategy = {row.first_run.strategy: row for row in reversed(rows)}
    scratch = by_strategy.get("scratch")
    if scratch is not None and scratch is not row:
        pair = experiment.find_comparison(row.name, scratch.name)
        if pair is not None:
            sentences.append(
                f"Against scratch: {format_difference(pair)} points, {pair.verdict}; "
                f"{_time_to_target_phrase(row, scratch, target)}."
            )
    equal_time = by_strategy.get(EQUAL_TIME)
    if equal_time is not None:
        sentences.append(
            "Scratch planned for the time of the pretrained run reaches "
            f"{format_percent(equal_time.val_accuracy)} in {format_duration(equal_time.seconds)}."
        )
    if row.val_accuracy < target:
        sentences.append(f"The target of {target:.0%} was not reached.")
    return sentences


def _time_to_target_phrase(row: StrategyResult, scratch: StrategyResult, target: float) -> str:
    row_s, scratch_s = row.seconds_to_accuracy(target), scratch.seconds_to_accuracy(target)
    if row_s is None:
        if scratch_s is None:
            return f"neither reached {target:.0%}"
        return f"only scratch reached {target:.0%}, after {format_duration(scratch_s)}"
    if scratch_s is None:
        phrase = (
            f"{target:.0%} after {format_duration(row_s)}, "
            f"not reached by scratch in {format_duration(scratch.seconds)}"
        )
        matched_s = row.seconds_to_accuracy(scratch.val_accuracy)
        if matched_s is None:
            return phrase
        return f"{phrase}, whose accuracy was matched after {format_duration(matched_s)}"
    return (
        f"{target:.0%} after {format_duration(row_s)}, scratch after {format_duration(scratch_s)} "
        f"({scratch_s / row_s:.1f} times as long)"
    )


def _networks_sentence(experiment: Experiment) -> str | None:
    timed: list[tuple[StrategyResult, DeployedModel]] = []
    for network in experiment.networks:
        row = experiment.recommend_strategy(network)
        deployed = experiment.find_deployed_model(network)
        if row is not None and deployed is not None and deployed.p50_ms is not None:
            timed.append((row, deployed))
    if len(timed) < 2:
        return None
    accurate, accurate_model = max(timed, key=lambda entry: entry[0].val_accuracy)
    fast, fast_model = min(timed, key=lambda entry: entry[1].p50_ms or 0.0)
    if accurate is fast:
        return f"{accurate.network} has the highest accuracy and the lowest p50 here."

    points = 100 * (accurate.val_accuracy - fast.val_accuracy)
    pair = experiment.find_comparison(accurate.name, fast.name)
    significance = ""
    if pair is not None:
        verdict = "significant" if pair.verdict == "more accurate" else pair.verdict
        significance = f" ({verdict}, p {format_p_value(pair.p)})"
    accuracy_phrase = (
        f"{accurate.network} is {points:.1f} points more accurate than {fast.network}{significance}"
    )
    ratio = (accurate_model.p50_ms or 0.0) / (fast_model.p50_ms or 1.0)
    if _is_slower(accurate_model, fast_model):
        return f"{accuracy_phrase} and takes {ratio:.1f} times as long for an image."
    return (
        f"{accuracy_phrase}; its p50 is {ratio:.1f} times as long, "
        "which this short measurement cannot confirm."
    )


def _is_slower(model: DeployedModel, other: DeployedModel) -> bool:
    """Return whether both measurements are quiet and their intervals do not overlap."""
    if model.noisy or other.noisy or model.ci95_ms is None or other.ci95_ms is None:
        return False
    return model.ci95_ms[0] > other.ci95_ms[1]


def _format_latency(p50_ms: float | None, interval: tuple[float, float] | None) -> str:
    latency = MISSING_VALUE if p50_ms is None else f"{p50_ms:.2f}"
    return latency if interval is None else f"{latency} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _format_accuracy(accuracy: float | None) -> str:
    return MISSING_VALUE if accuracy is None else format_percent(accuracy)


def _pair_names(experiment: Experiment, pair: StrategyComparison) -> tuple[str, str]:
    names = {}
    for row in experiment.rows:
        strategy = row.first_run.strategy
        names[row.name] = strategy if len(experiment.networks) == 1 else f"{row.network} {strategy}"
    return names[pair.first], names[pair.second]


def _format_time_to_target(row: StrategyResult, target: float) -> str:
    seconds = row.seconds_to_accuracy(target)
    reached = sum(run.seconds_to_accuracy(target) is not None for run in row.runs)
    text = "not reached" if seconds is None else format_duration(seconds)
    return text if reached in (0, len(row.runs)) else f"{text} ({reached} of {len(row.runs)})"


def format_difference(pair: StrategyComparison) -> str:
    """Format the accuracy difference in percentage points with its 95% interval."""
    difference = pair.difference
    interval = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return f"{100 * difference.value:+.1f} {interval}"


def format_p_value(value: float) -> str:
    """Format a p-value with three decimals, or as `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_parameter_count(count: int) -> str:
    """Format a number of parameters in thousands (k) or millions (M)."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def format_peak_memory(row: StrategyResult) -> str:
    """Format the peak memory over the row's runs, host memory first, then GPU memory."""
    host = [run.peak_memory_bytes for run in row.runs if run.peak_memory_bytes is not None]
    gpu = [run.peak_gpu_memory_bytes for run in row.runs if run.peak_gpu_memory_bytes is not None]
    peaks = [f"{max(values) / 1e9:.1f} GB" for values in (host, gpu) if values]
    return " + GPU ".join(peaks) or MISSING_VALUE


def render_compare_markdown(experiment: Experiment) -> str:
    """Render the contents of compare.md."""
    counts = experiment.data.counts
    images = ", ".join(
        f"{sum(classes.values())} {split} images" for split, classes in counts.items()
    )
    folder, device = experiment.data.folder, experiment.device.cpu
    lead = (
        f"{folder}: {len(experiment.classes)} classes, {images}. "
        f"{device or 'unknown CPU'}; {experiment.created}."
    )
    conclusions = "\n".join(f"- {sentence}" for sentence in conclusion_sentences(experiment))
    tables = [render_markdown_table(table) for table in all_tables(experiment)]
    return "\n\n".join(["# Transfer learning on your images", lead, conclusions, *tables]) + "\n"
