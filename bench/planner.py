"""P7: planning an even spread, beside a planner that looks through lists as the reference's does.

Both only compute, on one processor, so the goals are about processor time: what else runs on the machine does not count.
"""

import argparse
import json
import math
import random
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from statistics import median

from rich.console import Console

from bench.report import Goal, Report, Samples
from sanderling.garbage import collect_rarely
from sanderling.model.balance import Layout, PlannedMove, after, average, distribution
from sanderling.model.exports import ExportId

SEED, REPEATS, PATHS_PER_GATEWAY, SIBLINGS = 7, 5, 100, 4


def skewed(exports: int) -> Layout:
    """Half the gateways empty; four of five exports are paths of shared disks, apart already, the others exclusive disks."""
    dice = random.Random(SEED)
    names = [f"gateway-{number:04}" for number in range(exports // PATHS_PER_GATEWAY)]
    full = names[: len(names) // 2]
    shared = exports // 5
    owners: dict[ExportId, str | None] = {}
    for disk in range(shared):
        owners |= {ExportId(f"shared-{disk}", path): name for path, name in enumerate(dice.sample(full, SIBLINGS), 1)}
    for disk in range(exports - shared * SIBLINGS):
        owners[ExportId(f"exclusive-{disk}", 0)] = dice.choice(full)
    return Layout(owners, frozenset(names))


@dataclass(slots=True)
class _Path:
    export: ExportId
    disk: str
    node: str


def reference(layout: Layout) -> list[PlannedMove]:
    """The reference's averaging as it is described, written anew: what it wants to know it finds by going through the paths.

    Of a node over the average it takes from the disk with most paths there, and gives to the node with fewest paths of that disk,
    then fewest in all. Each look is a single pass, which is the kindest reading.
    """
    paths = [_Path(export, export.disk_id, owner) for export, owner in layout.owners.items() if owner]
    nodes = sorted(layout.gateways)
    low, high = len(paths) // len(nodes), -(-len(paths) // len(nodes))
    moves: list[PlannedMove] = []
    while True:
        counts = dict.fromkeys(nodes, 0)
        for path in paths:
            counts[path.node] += 1
        over = [node for node in nodes if counts[node] > high]
        under = [node for node in nodes if counts[node] < low]
        if not over and not under:
            return moves
        source = max(over or nodes, key=counts.__getitem__)
        there: dict[str, int] = {}
        for path in paths:
            if path.node == source:
                there[path.disk] = there.get(path.disk, 0) + 1
        disk = max(there, key=there.__getitem__)
        beside = dict.fromkeys(nodes, 0)
        chosen = None
        for path in paths:
            if path.disk == disk:
                beside[path.node] += 1
                chosen = path if chosen is None and path.node == source else chosen
        assert chosen is not None
        destination = min(under or [node for node in nodes if counts[node] < high], key=lambda node: (beside[node], counts[node]))
        moves.append(PlannedMove(chosen.export, source, destination))
        chosen.node = destination


def fewest(layout: Layout) -> int:
    """The lower bound: what fuller gateways have over their share, the larger shares going to the fullest."""
    counts = sorted((Counter(layout.owners.values())[name] for name in layout.gateways), reverse=True)
    level, more = divmod(len(layout.owners), len(counts))
    return sum(max(0, count - level - (place < more)) for place, count in enumerate(counts))


def run(*, quick: bool) -> Report:
    """Both planners in turn on the same layouts, and ours alone on the largest; the plans are checked, then the times shown."""
    collect_rarely()  # as the processes that plan do
    compared, alone = ((1_000, 5_000), (20_000, 100_000)) if quick else ((5_000, 20_000), (1_000, 100_000))
    layouts = {size: skewed(size) for size in sorted({*compared, *alone})}
    ours = {size: Samples("ours", size) for size in layouts}
    theirs = {size: Samples("reference", size) for size in compared}
    excess = 0
    for _ in range(REPEATS):
        for size, layout in layouts.items():
            if size in theirs:
                theirs[size].measure(lambda layout=layout: reference(layout))  # type: ignore[misc]
            moves = ours[size].measure(lambda layout=layout: average(layout))  # type: ignore[misc]
            excess = max(excess, len(moves) - fewest(layout))
            shown = distribution(after(layout, moves))
            assert shown.spread <= 1, f"{size}: a spread of {shown.spread}"
            assert shown.together == 0, f"{size}: {shown.together} pairs of siblings together"
    small, large = compared
    report = Report(
        "P7: a plan for n paths, a hundred per gateway, half the gateways empty",
        {"seed": SEED, "siblings": SIBLINGS, "baseline grows as n to the": round(_power(theirs[small], theirs[large]), 2)},
        [*theirs.values(), *ours.values()],
    )
    growth = median(ours[100_000].cpu_s) / median(ours[1_000].cpu_s)
    ratio = median(theirs[large].cpu_s) / median(ours[large].cpu_s)
    report.goals = [
        Goal("processor seconds for 100,000 paths on 1,000 gateways", median(ours[100_000].cpu_s), at_most=0.5),
        Goal("megabytes beside the layout, at the peak", _megabytes(layouts[100_000]), at_most=150),
        Goal("growth from 1,000 to 100,000 paths over that of n log n", growth / _n_log_n(1_000, 100_000), at_most=1),
        Goal("moves more than the lower bound", excess, at_most=0),
        Goal(f"times faster than the reference at {large:,}", ratio, at_least=50),
    ]
    return report


def _power(small: Samples, large: Samples) -> float:
    return math.log(median(large.cpu_s) / median(small.cpu_s)) / math.log(large.size / small.size)


def _n_log_n(small: int, large: int) -> float:
    return large * math.log(large) / (small * math.log(small))


def _megabytes(layout: Layout) -> float:
    tracemalloc.start()
    average(layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller baseline")
    parser.add_argument("--json", action="store_true", help="every sample, for a program")
    asked = parser.parse_args()
    made = run(quick=asked.quick)
    if asked.json:
        print(json.dumps(made.as_json(), indent=2))
    else:
        made.show(Console())
