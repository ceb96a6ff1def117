"""The figures as data: every run is one that its script takes, has its own name, and is compared fairly."""

import importlib
import json
from dataclasses import asdict, replace

import tyro

import envs
from benchmark.figures import DPO, FIGURES, SEEDS, make_run, manifest, panel_runs
from benchmark.lib.groups import EMBEDDED


def test_every_run_of_every_figure_is_accepted_by_its_script():
    """A script's flag that is renamed must not break a figure that nobody happens to rerun."""
    assert list(FIGURES) == [f"fig{i}" for i in range(1, 13)]
    seen, known = set(), envs.env_ids()
    for scale in SEEDS:
        for entry in manifest(list(FIGURES), scale, [1]):
            flags = [flag for flag in entry.flags if flag.startswith("--")]
            kind = scale, entry.script, entry.task, *flags
            if kind in seen:
                continue
            seen.add(kind)
            script = importlib.import_module(entry.script.removesuffix(".py"))
            argv = [*entry.arguments[1:], "--runs-dir", "x", "--device", "cpu", "--torch-threads", "1"]
            args = tyro.cli(script.Args, args=argv)
            assert args.seed == 1 and entry.steps in (0, args.total_timesteps)
            assert any(entry.task.startswith(env_id.replace("/", "-")) for env_id in known), entry.task
            assert args.env_id in known
            if hasattr(args, "env_options"):
                options = dict(option.split("=") for option in args.env_options)
                asked = options.pop("backend", None) or getattr(args, "backend", None)
                assert asked == ("embedded" if entry.task.startswith("smac") else None)
                assert set(options) <= {"num_states", "num_agents", "num_actions"}
    assert len(seen) > 50


def test_a_method_names_only_what_departs_from_the_defaults():
    """Else figures would not share runs, and the same settings would be run under two names."""
    for figure in FIGURES.values():
        for panel, task, method, _ in panel_runs(figure, "paper", [1]):
            plain = make_run(task, replace(method, settings={}), 1, "paper", figure.exact)
            defaults = json.loads(plain.settings)
            for name, value in method.settings.items():
                assert defaults[name] != value, (panel.title, task.name, method.name)


def test_keys_name_runs_and_tell_them_apart():
    """A key is a folder: two runs under one would be one, and a changed command must not find old results."""
    runs = [entry for scale in SEEDS for entry in manifest(list(FIGURES), scale, [1, 2])]
    for entry in runs:
        assert set(entry.key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    commands = {(entry.task, *entry.arguments) for entry in runs}
    assert len({entry.key for entry in runs}) == len(commands)
    for names, tasks, methods in (
        (("fig2", "fig5"), 3, ("DPO", "IPPO", "best")),
        (("fig3", "fig6"), 5, ("DPO", "IPPO", "best")),
        (("fig4", "fig7"), 5, ("DPO", "IPPO", "best")),
        (("fig1", "fig8"), 1, ("DPO", "IPPO", "IQL", "best")),
        (("fig1", "fig8", "fig9"), 1, ("DPO", "best")),
        (("fig4", "fig10"), 2, ("DPO", "IPPO")),
        (("fig4", "fig10", "fig12"), 2, ("DPO",)),
    ):
        shared = [{entry.key for entry in manifest([name], "paper", [1])} for name in names]
        assert len(set.intersection(*shared)) == tasks * len(methods), names


def test_what_is_compared_differs_in_the_algorithm_alone():
    """DPO against IPPO means nothing if one has the larger batch, or another critic."""
    compared = set()
    for name, figure in FIGURES.items():
        for _, task, method, entry in panel_runs(figure, "paper", [1]):
            if method.name not in ("IPPO", "IQL", "IDDPG"):
                continue
            dpo = make_run(task, DPO, 1, "paper")
            args, like = (
                importlib.import_module(entry.script.removesuffix(".py")).parse_args(entry.arguments[1:])[0]
                for entry in (entry, dpo)
            )
            shared = {"total_timesteps", "eval_every", "gamma", "learning_rate", "max_grad_norm"}
            if method.name == "IPPO":
                shared = asdict(args).keys() & asdict(like).keys() - {"delta", "omega", "checkpoint_every"}
            differ = {key: (getattr(args, key), getattr(like, key)) for key in shared - {"env_options"}}
            assert not {*getattr(args, "env_options", ())} - {EMBEDDED}
            assert not {key: pair for key, pair in differ.items() if len(set(pair)) > 1}, (name, task.name)
            compared.add((method.name, task.family))
    families = ("matrix", "mpe", "mamujoco", "smac")
    assert compared == {("IPPO", x) for x in families} | {
        ("IQL", "matrix"),
        ("IQL", "mpe"),
        ("IQL", "smac"),
        ("IDDPG", "mamujoco"),
    }
