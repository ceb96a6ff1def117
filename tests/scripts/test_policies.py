"""The trained policies of benchmark/policies play as their page says."""

import json
import re
from pathlib import Path

import pytest

from tests.scripts.running import finished

ROOT = Path(__file__).resolve().parents[2]
POLICIES = ROOT / "benchmark" / "policies"
ROWS = re.findall(
    r"^\| (\w+) \| (\w+\.py) \| \d \| (-?[\d.]+) \| (?:(\d+) %)? ?\|",
    (POLICIES / "README.md").read_text(),
    re.MULTILINE,
)


def test_the_page_has_every_policy():
    """One that is not told of would not be played by this test either."""
    folders = {path.name for path in POLICIES.iterdir() if path.is_dir()}
    assert folders == {name for name, *_ in ROWS} and len(ROWS) == len(folders)


@pytest.mark.parametrize(("name", "script", "score", "won"), ROWS)
def test_a_policy_earns_what_its_page_says(name, script, score, won, tmp_path):
    """On another processor sums may be rounded otherwise, and an episode go another way."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "policy.pt").write_bytes((POLICIES / name / "policy.pt").read_bytes())
    backend = ["--backend", "embedded"] if won else []
    # A robot's episodes are long. They deviate by 718: four standard errors are 3 % with 320, 6 % with 80.
    episodes, rel, fewer = (80, 0.06, {"EVAL_EPISODES": 8}) if name == "HalfCheetah" else (320, 0.03, {})
    argv = ["--resume", tmp_path / name, "--eval-only", *backend]
    output = finished(script.removesuffix(".py"), *argv, **fewer).out
    assert f", {episodes} greedy episodes: " in output
    result = json.loads(output[output.rindex("{") :])
    assert result["eval/episodic_return"] == pytest.approx(float(score), rel=rel, abs=0.1)
    if won:
        assert 100 * result["eval/win_rate"] == pytest.approx(float(won), abs=8)
