"""`edgetl.bench`: from a path to a result, by the protocol."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import edgetl
from edgetl.core.config import BenchConfig
from edgetl.core.errors import BenchError
from edgetl.core.results import BenchResult, Noise, write_result
from edgetl.core.rows import Row
from edgetl.device.bench.earlier import match_rows, read_baseline
from edgetl.device.bench.inputs import prepare_pictures
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.proving import prove
from edgetl.device.bench.rounds import Progress, Rounds
from edgetl.device.bench.target import Target, find_target
from edgetl.device.cores import available_cores
from edgetl.device.facts import device_facts, device_state
from edgetl.device.noise import judge

MIN_ROUNDS = 2
"""Fewer rounds have no interval."""


def bench(config: BenchConfig, progress: Progress | None = None, protocol: BenchProtocol | None = None) -> BenchResult:
    """Measure what lies at `config.target` and keep the result, which is also returned with its path.

    Rows whose golden gate failed are in the result (`failed`) but were not timed.

    Args:
        config: what to measure.
        progress: called before each block.
        protocol: how long; None takes the protocol's own figures.

    Raises:
        BundleError, ProviderError, BenchError: nothing was measured; the message says why.
        KeyboardInterrupt: interrupted; two or more whole rounds are kept, and the message says where.
    """
    protocol, report = protocol or BenchProtocol(), progress or (lambda done, total, text: None)
    cores = available_cores()
    threads = min(cores, config.threads or cores)
    target = find_target(config, threads)
    _check_output(config.output, target.results)
    scopes = tuple(scope for scope in dict.fromkeys(config.scopes) if target.bundle is not None or scope == "model")
    earlier = None if config.baseline is None else read_baseline(config.baseline, scopes)
    notes = [*target.notes]
    if config.threads is not None and config.threads > cores:
        notes.append(f"--threads {config.threads}: this process may use {cores}; measured with {threads}.")
    facts = device_facts()
    created = datetime.now(UTC)

    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as name:
        folder = Path(name)
        pictures = None
        if target.bundle is not None:
            pictures = prepare_pictures(target.bundle, {candidate.source.input for candidate in target.candidates}, folder)
        contenders = prove(target.candidates, scopes, pictures, protocol, folder, lambda text: report(0, 0, text))
        rows = [row for contender in contenders for row in contender.rows]
        matched = [] if earlier is None else match_rows(earlier, rows, target.model, facts)
        # A baseline alone answers no question: where every ONNX variant failed nothing is timed.
        able = [contender for contender in contenders if contender.passed]
        able = able if any(contender.candidate.runtime != "pytorch" for contender in able) else []

        rounds, interrupted = Rounds(), False
        died: BenchError | None = None
        before, cpu_before = device_state(), _own_cpu_s()
        try:
            rounds.measure(able, config.rounds if able else 0, config.seed, folder, report)
        except KeyboardInterrupt:
            interrupted = True
        except BenchError as error:
            # Whole rounds before a worker's death are as good as ever.
            if len(rounds.order) < MIN_ROUNDS:
                raise
            interrupted, died = True, error
        after, own_cpu_s = device_state(), _own_cpu_s() - cpu_before

    if interrupted and len(rounds.order) < MIN_ROUNDS:
        raise KeyboardInterrupt("Interrupted before two rounds were whole: nothing was kept.")
    rows = [replace(row, rounds=tuple(rounds.blocks.get(row.id, ()))) for row in rows]
    clocks = [block.frequency_khz for row in rows for block in row.rounds if block.frequency_khz is not None]
    spreads = {row.id: row.spread for row in rows if row.rounds}
    result = BenchResult(
        created=created.isoformat(timespec="seconds"),
        edgetl=edgetl.__version__,
        target=str(config.target),
        model=target.model,
        device={**facts, "before": before, "after": after},
        noise=judge(before, after, own_cpu_s, spreads, clocks) if able else Noise(()),
        protocol={**asdict(protocol), "rounds": config.rounds, "seed": config.seed},
        order=tuple(rounds.order),
        rows=tuple(rows),
        pairs=tuple(_pairs(rows)),
        earlier=tuple(matched),
        notes=tuple(notes),
        interrupted=interrupted,
    )
    result = _keep(result, config, target, created)
    if died is not None:
        raise BenchError(f"{died} {len(rounds.order)} whole rounds are kept in {result.path}.") from died
    if interrupted:
        raise KeyboardInterrupt(f"Interrupted: {len(rounds.order)} whole rounds are kept in {result.path}.")
    return result


def _own_cpu_s() -> float:
    used = [getrusage(whose) for whose in (RUSAGE_SELF, RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The first row of each scope and input against all others of it: PyTorch where it was measured, else the first variant."""
    pairs = []
    for index, row in enumerate(rows):
        first = next(other for other in rows if (other.scope, other.input, other.batch) == (row.scope, row.input, row.batch))
        if rows.index(first) < index:
            pairs.append((first.id, row.id))
    return pairs


def _check_output(output: Path | None, results: Path) -> None:
    """Minutes of measuring must not end at a folder that cannot be written."""
    if output is not None and output.exists():
        raise BenchError(f"{output} exists already and results are never overwritten. Choose another --output.")
    folder = results if output is None else output.parent
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise BenchError(f"Results cannot be written to {folder}: no right to write in {nearest}. Choose another place with --output.")


def _keep(result: BenchResult, config: BenchConfig, target: Target, created: datetime) -> BenchResult:
    """Write under the name asked for, or under the first free one; mode x, so that two benches at once cannot collide."""
    if config.output is not None:
        write_result(result, config.output)
        return replace(result, path=config.output)
    host = re.sub(r"[^\w.-]+", "-", platform.node()).strip("-.") or "device"
    stem, number = f"{created:%Y%m%dT%H%M%SZ}-{host}", 1
    while True:
        path = target.results / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        if not path.exists():
            write_result(result, path)
            return replace(result, path=path)
        number += 1
