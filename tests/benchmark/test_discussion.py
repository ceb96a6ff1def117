"""What is measured of the paper's discussion, on games small enough to check by another way."""

import json
import re
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import dpo_matrix
import ippo
from benchmark import discussion
from envs.matrix.exact import evaluate_exactly


@pytest.fixture(scope="module")
def played():
    """A tiny game, agents that have learned a little, their arguments, and episodes of theirs."""
    envs = discussion.make_game("4x2x3")
    own = dpo_matrix.Args(num_envs=32)
    torch.manual_seed(0)
    agents = dpo_matrix.Agents(2, 4, 3)
    agents.beta1 += 0.01
    agents.beta2 += 0.02
    adam = discussion.make_adam(agents, own)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        episodes = discussion.play(envs, agents, own, generator)
        batch = discussion.dpo_batch(episodes, dpo_matrix.standardize(episodes.advantages))
        dpo_matrix.update(agents, adam, batch, replace(own, d_target=0.02))
    return SimpleNamespace(envs=envs, own=own, agents=agents, adam=adam, episodes=episodes, batch=batch)


def test_the_joint_ratio_is_the_product_of_the_agents():
    """Else the share that clipping an agent's own ratio misses would be of something else."""
    old = torch.tensor([[0.4, 0.6], [0.4, 0.6]])[:, None]
    new = torch.tensor([[0.46, 0.54], [0.46, 0.54]])[:, None]  # ratios 1.15 and 0.9 of both agents
    actions = torch.tensor([[[0, 0, 1, 1]], [[0, 1, 0, 1]]])
    states = torch.zeros(1, 4, dtype=torch.int64)
    nothing = torch.zeros(2, 1, 4)
    episodes = discussion.Episodes(states, actions, old.log(), nothing, nothing)
    found = discussion.ratios(episodes, new.log())
    # products: 1.3225, 1.035, 1.035 and 0.81; the first alone is outside of 0.8 to 1.2
    assert found["own"] == found["some own"] == 0
    assert found["joint"] == found["joint, no own"] == 25
    found = discussion.ratios(episodes, new.log(), clip=0.14)  # 1.15 is outside, and so is 0.81
    assert (found["own"], found["some own"], found["joint"], found["joint, no own"]) == (50, 75, 50, 25)
    joint_old, joint_new = (torch.einsum("a,b->ab", *x[:, 0]).flatten() for x in (old, new))
    kl = (joint_old * (joint_old / joint_new).log()).sum().item()
    assert found["KL of the joint policy"] == pytest.approx(kl, rel=1e-4)
    assert found["KL of an agent"] == pytest.approx(kl / 2, rel=1e-4)


def test_exact_advantages_have_exact_signs_and_their_opposites_none(played):
    """Else a share of wrong signs would be put down to noise that is not there."""
    episodes = played.episodes
    policies = episodes.old_logp.double().softmax(-1).numpy()
    tables = (played.envs.rewards, played.envs.transitions, policies, 0.99)
    exact = torch.from_numpy(evaluate_exactly(*tables)[2]).float()
    assert set(discussion.wrong_signs(episodes, episodes.at(exact), exact).values()) == {0.0}
    opposite = discussion.wrong_signs(episodes, -episodes.at(exact), exact)
    assert min(opposite.values()) == pytest.approx(100)
    args = discussion.Args(updates=2)
    settings = {"d_target": 0.1}
    for sigma, low, high in ((0.0, 0, 5), (1e6, 25, 75)):
        options = {"noise": ("samples", sigma)}
        for found in discussion.train(played.envs, dpo_matrix, settings, args, 1, **options):
            assert low <= found["sum of samples of wrong sign"] <= high


def test_advantages_are_those_of_ippo_too(played):
    """Else the two scripts' agents would not learn from the same thing."""
    envs, own, generator = played.envs, played.own, torch.Generator().manual_seed(3)
    envs.reset(seed=3)
    episodes = discussion.play(envs, played.agents, own, generator)
    value = played.agents.value(torch.eye(4).expand(2, -1, -1)).detach()
    values = value[:, episodes.states]
    assert torch.equal(episodes.returns, episodes.advantages + values)
    T, E = episodes.states.shape
    # The game again, with the same actions: its rewards, and V of the state that an episode is cut off at.
    rewards, final = torch.zeros(T, E), torch.zeros(2, T, E)
    envs.reset(seed=3)
    envs.reset()
    for step in range(T):
        _, rewards[step], _, cut, infos = envs.step(episodes.actions[:, step])
    final[:, -1] = (infos["final_obs"] @ value.unsqueeze(-1)).squeeze(-1)
    assert cut.all()
    ends = torch.zeros(T, E, dtype=torch.bool)
    truncations = ends.clone()
    truncations[-1] = True
    alive = torch.ones(2, T + 1, E, dtype=torch.bool)
    values = torch.cat([values, torch.zeros(2, 1, E)], dim=1)
    theirs, _, valid = ippo.gae(rewards, values, final, ends, truncations, alive, own.gamma, own.gae_lambda)
    assert valid.all() and torch.allclose(theirs, episodes.advantages, atol=1e-4)


def test_rows_of_ippo_have_the_gradients_of_its_samples(played):
    """Else what is called IPPO here would be another algorithm."""
    episodes = played.episodes
    advantages = dpo_matrix.standardize(episodes.advantages)
    args = ippo.Args(env_id="matrix/stochastic", layer_norm=False)
    torch.manual_seed(1)
    agents = ippo.Agents(2, 4, 3, layer_norm=False)  # others than played: some ratios are clipped
    N, T, E = episodes.actions.shape
    samples = dict(
        obs=torch.eye(4)[episodes.states].flatten(0, 1).expand(N, -1, -1),
        action_mask=torch.ones(N, T * E, 3, dtype=torch.bool),
        actions=episodes.actions.flatten(1),
        logprobs=episodes.at(episodes.old_logp).flatten(1),
        advantages=advantages.flatten(1),
        returns=episodes.returns.flatten(1),
        weight=torch.full((N, T * E), 1 / (T * E)),
    )
    rows = discussion.ippo_batch(episodes, advantages)
    assert torch.equal(F.log_softmax(rows.pop("outputs"), -1).exp().sum(-1).round(), torch.ones(2, 24))
    gradients = []
    for batch in (samples, rows):
        agents.zero_grad()
        ippo.ippo_loss(agents, **batch, args=args)[0].backward()
        gradients.append([p.grad.clone() for p in agents.parameters()])
    ratio = (
        F.log_softmax(agents.actor(samples["obs"]), -1) - episodes.old_logp[:, episodes.states.flatten()]
    ).exp()
    assert ((ratio - 1).abs() > args.clip_coef).any()
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_what_ippo_clips_is_continuous_in_the_advantage():
    """Else the page's reading of the hinge form would be wrong: it is A + eps |A| - max(0, eps |A| - A x)."""
    x, advantage = torch.meshgrid(torch.linspace(-0.9, 3, 40), torch.linspace(-2, 2, 41), indexing="ij")
    clipped = torch.minimum((1 + x) * advantage, (1 + x).clamp(0.8, 1.2) * advantage)
    hinge = (0.2 * advantage.abs() - advantage * x).clamp(min=0)
    assert torch.allclose(clipped, advantage + 0.2 * advantage.abs() - hinge, atol=1e-6)


def test_nothing_beats_the_maximiser(played):
    """Else an attained share would not be one of the attainable."""
    agents, batch = played.agents, played.batch
    best = discussion.maximiser(batch, agents)
    top = discussion.surrogate(batch, best, agents)
    assert discussion.surrogate(batch, batch["old_logp"], agents) == 0 < top
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        for start in (best, batch["old_logp"].double()):
            noise = scale * torch.randn(start.shape, generator=generator)
            assert discussion.surrogate(batch, F.log_softmax(start + noise, -1), agents) <= top + 1e-9
    args = replace(played.own, update_epochs=15)
    before = [p.clone() for p in agents.parameters()]
    found = discussion.attained(batch, agents, played.adam, args)
    assert found["attained in 15 steps"] < found["attained in 100 steps"] <= 100
    assert all(torch.equal(p, q) for p, q in zip(before, agents.parameters(), strict=True))


def test_the_maximiser_for_means_prefers_the_better_action(played):
    """Else the tabular agents would not solve eq. (17) of the advantages they have."""
    advantages = (played.episodes.actions == 2).float()
    batch = discussion.dpo_batch(played.episodes, advantages)
    counts = discussion.dpo_batch(played.episodes, torch.ones_like(advantages))["advantages"]
    assert counts.sum((1, 2)).tolist() == pytest.approx([1, 1])
    logp = discussion.maximiser(batch, played.agents, counts)
    visited = batch["weight"] > 0
    risen = logp[..., 2] > batch["old_logp"][..., 2]
    assert risen[visited].all()


def test_shares_of_the_penalty_at_known_kl():
    """sqrt(KL) and KL are equal at 1, and equally steep at 1/4."""
    beta = torch.ones(1)
    for kl, share, slope in ((1.0, 50, 100 / 3), (0.25, 200 / 3, 50), (0.0625, 80, 200 / 3)):
        found = discussion.penalty_shares(torch.full((1, 2), kl), torch.full((1, 2), 0.5), beta, beta)
        assert found["root's share of the penalty"] == pytest.approx(share, rel=1e-5)
        assert found["root's share of the slope"] == pytest.approx(slope, rel=1e-5)
    assert discussion.penalty_shares(torch.ones(1, 2), torch.ones(1, 2) / 2, 3 * beta, beta)[
        "root's share of the penalty"
    ] == pytest.approx(75)


def test_costs_are_of_the_same_seed():
    """Else luck of a seed would count as an effect of noise."""
    rows = []
    for method, lost in (("DPO", (1.0, 2.0, 3.0)), ("IPPO, clip 0.2", (11.0, 12.0, 13.0))):
        for seed, cost in enumerate(lost):
            for sigma, value in (("0", 100.0 * seed), ("3", 100.0 * seed - cost)):
                setting = f"values, sigma {sigma}"
                rows.append(discussion.Row("noise", "4x2x3", method, setting, seed, "final return", value))
    text = discussion.table(
        [*rows, *discussion.costs(rows)], "noise", "final return lost", "p of final return lost"
    )
    assert "| 4x2x3 | DPO | values, sigma 0 | 0.0 ± 0.0 | – |" in text
    assert "| 4x2x3 | DPO | values, sigma 3 | 2.0 ± 2.5 | 0.000 |" in text
    assert "| 4x2x3 | IPPO, clip 0.2 | values, sigma 3 | 12.0 ± 2.5 | – |" in text


def test_the_script_writes_its_tables_and_keeps_the_text(tmp_path, monkeypatch):
    """Else a second measurement would cost the page its words, or leave old tables."""
    page = tmp_path / "README.md"
    page.write_text(f"# Title\n\nWords.\n\n{discussion.BEGIN}\nold\n{discussion.END}\n\nAfter.\n")
    argv = "discussion.py --sizes 3x2x2 3x3x2 --updates 3 --probe-every 1 --seeds 1 2 --other-seeds 1"
    argv += f" --sigmas 3 --out {tmp_path}"
    monkeypatch.setattr(sys, "argv", argv.split())
    discussion.main()
    first = page.read_text()
    assert first.startswith("# Title\n\nWords.\n") and first.endswith("\nAfter.\n") and "old" not in first
    for title in discussion.TABLES:
        assert f"**{title}**" in first
    assert first.count("3x3x2 | IPPO") >= 3 and "nan" not in first
    monkeypatch.setattr(sys, "argv", [*argv.split(), "--no-measure"])
    discussion.main()
    assert page.read_text() == first


def test_a_stopped_measurement_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    """It takes hours, and all of them were lost. In the end it must be as if nothing had been."""
    real, calls = discussion.train, []

    def measure(folder, *flags, last=1000):
        """Measures, but for a Ctrl-C within the last run; how many runs were made."""

        def train(*given, **options):
            calls.append(options)
            for k, found in enumerate(real(*given, **options)):
                if len(calls) == last and k == 1:
                    raise KeyboardInterrupt
                yield found

        calls.clear()
        argv = "discussion.py --sizes 3x2x2 3x3x2 --updates 2 --seeds 1 --other-seeds 1 --sigmas 3"
        monkeypatch.setattr(discussion, "train", train)
        monkeypatch.setattr(sys, "argv", [*argv.split(), *flags, "--out", str(folder)])
        if last < 1000:
            with pytest.raises(SystemExit, match="discussion: stopped; the same command goes on"):
                discussion.main()
        else:
            discussion.main()
        return len(calls)

    whole, part = tmp_path / "whole" / "measured.csv", tmp_path / "stopped" / "measured.part.csv"
    assert measure(whole.parent) == 3 + 3 * 3 + 2 * 4 + 3
    assert measure(part.parent, last=7) == 7 and not (part.parent / "measured.csv").exists()
    first, rows = part.read_text().split("\n", 1)
    assert json.loads(first)["sigmas"] == [3.0] and rows and whole.read_text().startswith(rows)
    other = shutil.copytree(part.parent, tmp_path / "other")
    assert measure(part.parent, last=5) == 5
    assert measure(part.parent) == 23 - 6 - 4
    for name in ("measured.csv", "README.md"):
        assert (part.parent / name).read_bytes() == (whole.parent / name).read_bytes()
    assert not part.exists()
    assert measure(other, "--updates", "1") == 23  # of other arguments nothing is kept


def test_numbers_in_the_published_text_are_the_tables():
    """A number that no measurement stands for would be a claim without evidence."""
    text = (discussion.Args().out / "README.md").read_text()
    before, _, rest = text.partition(discussion.BEGIN)
    tables, _, after = rest.partition(discussion.END)
    cited = re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", before + after)
    settings = {"0.1", "0.01", "0.2", "0.8", "1.2"}
    assert cited and {number for number in cited if number not in tables} <= settings
