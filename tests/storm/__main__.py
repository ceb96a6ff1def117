"""A storm of kills, bad command lines, damaged checkpoints and odd environments, over all scripts.

    python -m tests.storm                          # the whole of it: half an hour on an idle core
    python -m tests.storm --kills 0 --lines 200 --checkpoints 0 --no-environments --seed 2
    python -m tests.storm --json benchmark/results/studies/storm/storm.json    # what docs/faults.md shows

Whatever is tried must end in one sentence on stderr and a non-zero exit with nothing lost, or in the right
value: a run that was killed and resumed as one that was not, bit for bit. Prints a table; exit status 1 if
anything did not hold.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from tests.storm import checkpoints, environments, kills, lines
from tests.storm.outcome import Outcome, table


@dataclass
class Args:
    kills: int = 100
    """SIGKILLs, several a run"""
    lines: int = 60
    """bad command lines"""
    checkpoints: int = 40
    """damaged checkpoints"""
    environments: bool = True
    """odd environments, each in every script that can play it"""
    seed: int = 1
    """of all that is drawn; when a process is killed depends on the machine as well"""
    json: str = ""
    """file for what came of each; kinds that were not tried stay in it as they are"""


def main() -> int:
    args = tyro.cli(Args, description=__doc__)
    for name in ("kills", "lines", "checkpoints", "seed"):
        if not 0 <= getattr(args, name) <= 10**6:
            sys.exit(f"storm: --{name} must be between 0 and 1e+06, got {getattr(args, name)}.")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        sys.exit(f"storm: --json {args.json} is in a folder that does not exist.")
    start = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {what}", flush=True)

    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found += kills.storm(args.kills, args.seed, folder, say)
        found += lines.storm(args.lines, args.seed, folder, say)
        found += checkpoints.storm(args.checkpoints, args.seed, folder, say)
        found += environments.storm(folder, say) if args.environments else []
    print(f"\n{table(found)}")
    if args.json:
        add(Path(args.json), found)
    return int(any(one.wrong for one in found))


def add(path: Path, found: list[Outcome]) -> None:
    """Writes what came of each, in the place of outcomes of the same kinds that the file holds."""
    tried = {one.kind for one in found}
    before = [Outcome(**one) for one in json.loads(path.read_text())] if path.exists() else []
    all_of_them = [one for one in before if one.kind not in tried] + found
    path.write_text(json.dumps([asdict(one) for one in all_of_them], indent=1) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"storm: {error}.")
    except KeyboardInterrupt:
        sys.exit("storm: stopped.")
