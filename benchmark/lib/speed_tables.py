"""The tables of docs/performance.md, from what `speed.py all --json` measured in one run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.lib.store import PUBLISHED
from benchmark.lib.tables import markdown

MEASURED = PUBLISHED / "studies" / "speed" / "speed.json"
SMAX, SYNC = "SMAX (JaxMARL)", "gymnasium SyncVectorEnv"

Speeds = Mapping[str, Any]  # name -> label -> best, median and ratios of repeats, or a script's medians


def short(speed: float) -> str:
    """Steps per second in three digits: 345, 2,880, 34.5k, 5.47M."""
    if speed >= 999_500:
        return f"{speed / 1e6:.3g}M"
    if speed >= 10_000:
        return f"{speed / 1e3:.3g}k"
    return f"{speed:,.0f}"


def median(speed: Mapping[str, float] | None) -> str:
    """The median of repeats, or – where there are none."""
    return short(speed["median"]) if speed else "–"


def battles(measured: Speeds) -> str:
    """Environment steps/s of battles by how many environments are stepped together, beside SMAX."""
    sizes = list(dict.fromkeys(label for found in measured.values() for label in found if "ours" in label))
    rows = []
    for name, found in measured.items():
        best = max(found[label]["best"] for label in sizes)
        ratio = f"{best / found[SMAX]['best']:.1f}" if SMAX in found else "–"
        rows.append([name, *(median(found.get(label)) for label in sizes), median(found.get(SMAX)), ratio])
    counts = [label.removeprefix("ours, ").removesuffix(" envs") for label in sizes]
    return markdown(["battles stepped together", *counts, "SMAX, 64", "best of ours to best of SMAX"], rows)


def particles(measured: Speeds) -> str:
    """The same of particle worlds, beside VMAS, JaxMARL and mpe2."""
    rows = []
    for task, found in measured.items():
        counts = [label.removeprefix("ours, ") for label in found if label.startswith("ours")]
        for side in ("ours", "JaxMARL", "VMAS"):
            if any(label.startswith(side) for label in found):
                rows.append([task, side, *(median(found.get(f"{side}, {count}")) for count in counts)])
        rows.append([task, "mpe2", median(found["mpe2"]), *("–" for _ in counts[1:])])
    return markdown(["worlds stepped together", "", *(count.removesuffix(" envs") for count in counts)], rows)


def robots(measured: Speeds) -> str:
    """Ratios to gymnasium's SyncVectorEnv within a turn, medians."""
    labels = list(dict.fromkeys(label for found in measured.values() for label in found if label != SYNC))
    rows = []
    for label in labels:
        rows.append([label, *(f"{found[label][f'to {SYNC}']:.2f}" for found in measured.values())])
    return markdown(["robots", *(name.split()[0] for name in measured)], rows)


def learners(measured: Mapping[str, Speeds]) -> str:
    """The learner's GFLOP/s as shares of one thread's sgemm: best, and median within a turn."""
    cases = {name: found for part in measured.values() for name, found in part.items()}
    labels = list(dict.fromkeys(label for found in cases.values() for label in found if label != "sgemm"))
    rows = []
    for name, found in cases.items():
        cells = []
        for label in labels:
            if label not in found:  # iddpg.py has nothing to compile
                cells.append("–")
                continue
            best = found[label]["best"] / found["sgemm"]["best"]
            cells.append(f"{best:.0%} ({found[label]['to sgemm']:.0%})")
        rows.append([*name.rsplit(" ", 1), *cells, f"{found['sgemm']['best']:.0f}"])
    return markdown(["learner", "rows per agent", *labels, "sgemm, GFLOP/s"], rows)


def scripts(measured: Mapping[str, Speeds]) -> str:
    """Environment steps/s of the scripts, without and with --compile, and where the time goes without."""
    rows = []
    for what, found in measured.items():
        for name, rates in found.items():
            if name == "beside BenchMARL" or name.endswith(", compiled"):
                continue
            compiled = found.get(f"{name}, compiled")
            case = name.removesuffix(" threads").removesuffix(", 1 thread, batches of one episode")
            task, _, threads = (
                case.rpartition(", ") if case == name.removesuffix(" threads") else (case, "", "")
            )
            label = threads or "1, batches of one episode"
            shares = (f"{100 * rates[f'time/{part}']:.0f} %" for part in ("env", "act", "update"))
            speeds = [short(rates["charts/SPS"]), short(compiled["charts/SPS"]) if compiled else "–"]
            script = "" if what == "e2e baselines" else f"dpo_{what.split()[1]}.py "
            rows.append([f"{script}{task}", label, *speeds, *shares])
    return markdown(["script", "threads", "steps/s", "--compile", "env", "act", "update"], rows)


def beside_benchmarl(measured: Mapping[str, list[Mapping[str, float]]]) -> str:
    """IPPO at equal settings on simple_spread, medians, and the median ratio within a turn."""
    speeds = {side: np.array([one["charts/SPS"] for one in runs]) for side, runs in measured.items()}
    base = speeds["BenchMARL on VMAS"]
    rows = [[side, short(float(np.median(x))), f"{np.median(x / base):.2f}"] for side, x in speeds.items()]
    return markdown(["IPPO, simple_spread, 1 thread", "steps/s", "ratio"], rows)


def speed_text(path: Path = MEASURED) -> str:
    """All tables, those left out of which nothing was measured."""
    found = json.loads(path.read_text())
    told = found.get("machine", {})
    learner = {name: part for name, part in found.items() if name.startswith("learner")}
    e2e = {name: part for name, part in found.items() if name.startswith("e2e")}
    tables = [markdown(["machine", ""], told.items())]
    makers = {"env smac": battles, "env mpe": particles, "env mamujoco": robots}
    tables += [table(found[name]) for name, table in makers.items() if found.get(name)]
    if any(learner.values()):
        tables.append(learners(learner))
    if any(e2e.values()):
        tables.append(scripts(e2e))
    if beside := found.get("e2e mpe", {}).get("beside BenchMARL"):
        tables.append(beside_benchmarl(beside))
    return "\n".join(tables)
