"""An experiment's tables and sentences as plain text: the terminal, Markdown and the page show the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgetl.core.artifacts.experiment import (
    DeployedModel,
    Experiment,
    ScreenedNetwork,
    StrategyComparison,
)
from edgetl.core.artifacts.experiment_runs import StrategyResult
from edgetl.core.config.compare import EQUAL_TIME
from edgetl.core.formatting import MISSING_VALUE, format_duration, format_percent, pluralize
from edgetl.core.untrusted_text import escape_control_characters


@dataclass(frozen=True)
class TextTable:
    """A table of ready cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    text_columns: tuple[str, ...] = ()
    """Columns of words beside the first; the others are figures."""

    def is_text_column(self, column: str) -> bool:
        """Whether a column is read from the left."""
        return column == self.columns[0] or column in self.text_columns


def all_tables(found: Experiment) -> list[TextTable]:
    """Every table there is to show, in order."""
    of_networks = [
        table
        for network in found.networks
        for table in (strategies_table(found, network), equal_time_table(found, network))
    ]
    return [
        table
        for table in (
            latency_budget_table(found),
            *of_networks,
            trade_off_table(found),
            differences_table(found),
        )
        if table is not None
    ]


def latency_budget_table(found: Experiment) -> TextTable | None:
    """Which networks were within the latency budget before any was trained; None without a budget."""
    return (
        candidates_table(found.screened_networks, found.config["compare"].get("latency_budget_ms"))
        if found.screened_networks
        else None
    )


def candidates_table(candidates: Sequence[ScreenedNetwork], budget_ms: float | None) -> TextTable:
    """Networks with their latencies, and whether they were kept."""
    told = {True: "kept", False: "dropped", None: "kept, not decided"}
    cells = tuple(
        (
            one.network,
            _format_latency(one.p50_ms, one.ci95_ms),
            f"dropped: {one.failed}" if one.failed else told[one.fits],
        )
        for one in candidates
    )
    note = f"ONNX Runtime on this device with a new head, before anything was trained; the budget is {budget_ms:g} ms."
    return TextTable(
        "Within the latency budget",
        ("network", "p50 ms [95%]", "outcome"),
        cells,
        note,
        ("outcome",),
    )


def strategies_table(found: Experiment, network: str) -> TextTable:
    """One network's strategies: accuracy, overfitting, time, size of what was trained."""
    rows = found.select_rows(network)
    several = max((len(row.runs) for row in rows), default=1) > 1
    target = f"{found.target_accuracy:.0%}"
    columns = (
        "strategy", "training", "validation [95%]", *(["seeds"] if several else []), "gap", "time", f"to {target}", "epochs",
        "trained / all parameters", "images/s", "peak memory",
    )  # fmt: skip
    recommended = found.recommend_strategy(network)
    cells = []
    for row in rows:
        name = row.first_run.strategy + (" *" if row is recommended else "")
        spread = (
            [f"{format_percent(row.val_range[0])} to {format_percent(row.val_range[1])}"]
            if several
            else []
        )
        epochs = {len(run.epochs) for run in row.runs}
        cells.append(
            (
                name,
                format_percent(row.train_accuracy),
                f"{format_percent(row.val_accuracy)} [{format_percent(row.ci95[0])}, {format_percent(row.ci95[1])}]",
                *spread,
                f"{100 * row.gap:+.1f}",
                format_duration(row.seconds),
                _format_time_to_target(row, found.target_accuracy),
                str(epochs.pop()) if len(epochs) == 1 else f"{min(epochs)} to {max(epochs)}",
                f"{format_parameter_count(row.first_run.trainable)} / {format_parameter_count(row.first_run.parameters)}",
                f"{sum(run.images_per_second for run in row.runs) / len(row.runs):.0f}",
                format_peak_memory(row),
            )
        )
    images = len(rows[0].first_run.correct_mask) if rows else 0
    devices = sorted({f"{run.device} ({run.precision})" for row in rows for run in row.runs})
    seeds = f"means over {max(len(row.runs) for row in rows)} seeds" if several else "one seed"
    note = (
        f"{images} validation images, {seeds}; training accuracy without augmentation; gap: training minus validation, in points; "
        "time: the whole run, from reading the images on; images/s: training images of all epochs over that time. "
        "* recommended: the quickest that is not shown to be less accurate than the most accurate. The epoch that is kept was chosen "
        f"on these images, so all accuracies are a little too high. Trained on {', '.join(devices)}."
    )
    length = "each within its budget" if found.config["compare"]["budget_s"] else "equal epochs"
    return TextTable(f"{network}, {length}", columns, tuple(cells), note)


def equal_time_table(found: Experiment, network: str) -> TextTable | None:
    """Best validation accuracy that each strategy had reached when others had finished; None where there is one strategy only."""
    rows = found.select_rows(network)
    if len(rows) < 2:
        return None
    times = sorted({row.seconds for row in rows})
    cells = tuple(
        (
            row.first_run.strategy,
            *(
                MISSING_VALUE
                if (reached := row.mean_accuracy_within(time)) is None
                else format_percent(reached)
                for time in times
            ),
        )
        for row in rows
    )
    ends = {
        time: next(row.first_run.strategy for row in rows if row.seconds == time) for time in times
    }
    columns = ("strategy", *(f"after {format_duration(time)} ({ends[time]})" for time in times))
    note = (
        f"Best validation accuracy of the epochs that had ended when each strategy had finished; {MISSING_VALUE}: not one had ended. "
        f"A schedule that is cut off shows less than one planned for that time: {EQUAL_TIME} is planned for the pretrained run's time."
    )
    return TextTable(f"{network}, equal time", columns, cells, note)


def differences_table(found: Experiment) -> TextTable | None:
    """Every two rows that were compared; None where there are no two."""
    if not found.comparisons:
        return None
    cells = tuple(
        (*_pair_names(found, pair), format_difference(pair), format_p_value(pair.p), pair.verdict)
        for pair in found.comparisons
    )
    several = any(len(row.runs) > 1 for row in found.rows)
    method = (
        "images and seeds both as chance"
        if several
        else "exact McNemar; the chance of another seed is not in it"
    )
    tested = pluralize(len(cells), "comparison")
    note = f"On the same validation images, {method}. Each interval is by itself; p is corrected for {tested} (Holm)."
    return TextTable(
        "Differences",
        ("first", "second", "points [95%]", "p", "the first is"),
        cells,
        note,
        ("second", "the first is"),
    )


def trade_off_table(found: Experiment) -> TextTable | None:
    """Each network's recommended run as exported, accuracy against latency and size; None where nothing was exported."""
    cells = []
    for network in found.networks:
        row, one = found.recommend_strategy(network), found.find_deployed_model(network)
        if row is None or one is None:
            continue
        latency = _format_latency(one.p50_ms, one.ci95_ms)
        told = f"failed: {one.failed}" if one.failed else "noisy" if one.noisy else "quiet"
        size = f"{one.file_bytes / 1e6:.1f}" if one.file_bytes else MISSING_VALUE
        cells.append(
            (network, row.first_run.strategy, format_percent(row.val_accuracy), latency, size, told)
        )
    if not cells:
        return None
    threads = {one.threads for one in found.deployed_models if not one.failed}
    count = f", {threads.pop()} threads" if len(threads) == 1 else ""
    note = f"ONNX Runtime on the CPU, one image, network with preprocessing{count}; a short measurement, `edgetl bench` makes a full one."
    columns = ("network", "strategy", "validation", "p50 ms [95%]", "file, MB", "measurement")
    return TextTable(
        "Accuracy against latency", columns, tuple(cells), note, ("strategy", "measurement")
    )


def conclusion_sentences(found: Experiment) -> list[str]:
    """What the figures say, a sentence or three for each network, and then between networks."""
    said = [" ".join(_network_sentences(found, network)) for network in found.networks]
    if (between := _networks_sentence(found)) is not None:
        said.append(between)
    if found.unfinished_run_names:
        said.append(
            f"Not finished: {', '.join(found.unfinished_run_names)}. The same command goes on with them."
        )
    said += [f"Failed: {run.name}: {run.failed}" for run in found.failed_runs]
    return said


def _network_sentences(found: Experiment, network: str) -> list[str]:
    rows, row = found.select_rows(network), found.recommend_strategy(network)
    if row is None:
        return [f"{network}: no strategy to recommend has ended yet."]
    target = found.target_accuracy
    images = len(row.first_run.correct_mask)
    said = [
        f"{network}: Take `{row.first_run.strategy}`: {format_percent(row.val_accuracy)} of {images} validation images in {format_duration(row.seconds)}."
    ]
    top = max(rows, key=lambda one: one.val_accuracy)
    pair = found.find_comparison(top.name, row.name)
    if pair is not None and top is not row:
        said.append(
            f"`{top.first_run.strategy}` has {100 * pair.difference.value:.1f} points more, which is not shown to be a difference "
            f"(p {format_p_value(pair.p)}), and takes {top.seconds / row.seconds:.1f} times as long."
        )
    scratch = next((one for one in rows if one.first_run.strategy == "scratch"), None)
    if (
        scratch is not None
        and scratch is not row
        and (against := found.find_comparison(row.name, scratch.name)) is not None
    ):
        said.append(
            f"Against scratch: {format_difference(against)} points, {against.verdict}; {_time_to_target_phrase(row, scratch, target)}."
        )
    equal = next((one for one in rows if one.first_run.strategy == EQUAL_TIME), None)
    if equal is not None:
        said.append(
            f"Scratch planned for the pretrained run's time reaches {format_percent(equal.val_accuracy)} in {format_duration(equal.seconds)}."
        )
    if row.val_accuracy < target:
        said.append(f"The target of {target:.0%} is not reached.")
    return said


def _time_to_target_phrase(row: StrategyResult, scratch: StrategyResult, target: float) -> str:
    own, other = row.seconds_to_accuracy(target), scratch.seconds_to_accuracy(target)
    if own is None:
        return (
            f"neither reached {target:.0%}"
            if other is None
            else f"only scratch reached {target:.0%}, after {format_duration(other)}"
        )
    if other is None:
        passed = row.seconds_to_accuracy(scratch.val_accuracy)
        best = (
            ""
            if passed is None
            else f", what scratch ended with after {format_duration(passed)} already"
        )
        return f"{target:.0%} after {format_duration(own)}, scratch not in its {format_duration(scratch.seconds)}{best}"
    return f"{target:.0%} after {format_duration(own)}, scratch after {format_duration(other)} ({other / own:.1f} times as long)"


def _networks_sentence(found: Experiment) -> str | None:
    able: list[tuple[StrategyResult, DeployedModel]] = []
    for network in found.networks:
        row, one = found.recommend_strategy(network), found.find_deployed_model(network)
        if row is not None and one is not None and one.p50_ms is not None:
            able.append((row, one))
    if len(able) < 2:
        return None
    accurate = max(able, key=lambda entry: entry[0].val_accuracy)
    fast = min(able, key=lambda entry: entry[1].p50_ms or 0.0)
    if accurate is fast:
        return f"{accurate[0].network} has the highest accuracy and the lowest p50 here."
    ratio = (accurate[1].p50_ms or 0.0) / (fast[1].p50_ms or 1.0)
    gained = 100 * (accurate[0].val_accuracy - fast[0].val_accuracy)
    pair = found.find_comparison(accurate[0].name, fast[0].name)
    shown = (
        ""
        if pair is None
        else f" ({pair.verdict if pair.verdict != 'more accurate' else 'shown'}, p {format_p_value(pair.p)})"
    )
    more = f"{accurate[0].network} has {gained:.1f} points more than {fast[0].network}{shown}"
    slower, faster = accurate[1].ci95_ms, fast[1].ci95_ms
    if (
        accurate[1].noisy
        or fast[1].noisy
        or slower is None
        or faster is None
        or slower[0] <= faster[1]
    ):
        return f"{more}; its p50 is {ratio:.1f} times as long, which this short measurement does not show to be a difference."
    return f"{more} and takes {ratio:.1f} times as long for an image."


def _format_latency(p50_ms: float | None, interval: tuple[float, float] | None) -> str:
    told = MISSING_VALUE if p50_ms is None else f"{p50_ms:.2f}"
    return told if interval is None else f"{told} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _pair_names(found: Experiment, pair: StrategyComparison) -> tuple[str, str]:
    rows = {row.name: row for row in found.rows}
    first, second = rows[pair.first], rows[pair.second]
    if len(found.networks) == 1:
        return first.first_run.strategy, second.first_run.strategy
    return (
        f"{first.network} {first.first_run.strategy}",
        f"{second.network} {second.first_run.strategy}",
    )


def _format_time_to_target(row: StrategyResult, target: float) -> str:
    seconds, reached = (
        row.seconds_to_accuracy(target),
        sum(run.seconds_to_accuracy(target) is not None for run in row.runs),
    )
    told = "not reached" if seconds is None else format_duration(seconds)
    return told if reached in (0, len(row.runs)) else f"{told} ({reached} of {len(row.runs)})"


def format_difference(pair: StrategyComparison) -> str:
    """The difference in points with its interval."""
    seen = pair.difference
    return f"{100 * seen.value:+.1f} [{100 * seen.low:+.1f}, {100 * seen.high:+.1f}]"


def format_p_value(value: float) -> str:
    """As it is usual to print one."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_parameter_count(count: int) -> str:
    """Parameters."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def format_peak_memory(row: StrategyResult) -> str:
    """The largest of the row's processes, GPU's beside it."""
    own = [run.peak_memory_bytes for run in row.runs if run.peak_memory_bytes is not None]
    gpu = [run.peak_gpu_memory_bytes for run in row.runs if run.peak_gpu_memory_bytes is not None]
    return (
        " + GPU ".join(f"{max(values) / 1e9:.1f} GB" for values in (own, gpu) if values)
        or MISSING_VALUE
    )


def render_compare_markdown(found: Experiment) -> str:
    """The whole of compare.md."""
    said = "\n".join(f"- {sentence}" for sentence in conclusion_sentences(found))
    counts = found.data.get("counts", {})
    shown = ", ".join(f"{sum(classes.values())} {part} images" for part, classes in counts.items())
    images = f"{found.data.get('folder', '')}: {len(found.classes)} classes, {shown}."
    lead = f"{images} {found.device.get('cpu') or 'unknown CPU'}; {found.created}."
    return (
        "\n\n".join(
            [
                "# Transfer learning on your images",
                lead,
                said,
                *map(_render_table, all_tables(found)),
            ]
        )
        + "\n"
    )


def _render_table(table: TextTable) -> str:
    lines = [
        f"## {table.title}",
        "",
        "| " + " | ".join(map(_escape_cell, table.columns)) + " |",
        "| "
        + " | ".join("---" if table.is_text_column(column) else "---:" for column in table.columns)
        + " |",
        *("| " + " | ".join(map(_escape_cell, row)) + " |" for row in table.rows),
    ]
    return "\n".join([*lines, "", table.note] if table.note else lines)


def _escape_cell(text: str) -> str:
    return escape_control_characters(text).replace("|", "\\|").replace("\n", " ")
