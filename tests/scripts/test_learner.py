"""dpo_smac.py: masked actions, surrogate, betas, and the update of agents that share nothing."""

from __future__ import annotations

import copy
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import dpo_smac
from dpo_smac import Agents, Args, adapt_beta, categorical_kl, dpo_loss, masked_log_softmax, update
from tests.scripts.learning import (
    OBS,
    A,
    N,
    adam,
    copied,
    everything,
    learn,
    make_agents,
    make_batch,
    stacked,
)

# Masked actions.


def test_unavailable_actions_have_no_probability_no_gradient_and_no_share_in_kl_or_entropy():
    """Otherwise an agent would spend its policy, or its trust region, on actions that it cannot take."""
    agents = make_agents()
    batch = make_batch(agents, drift=0.3)
    mask = batch["action_mask"]
    logits = agents.actor(batch["obs"]).detach().requires_grad_()
    logp = masked_log_softmax(logits, mask)
    assert (F.softmax(logits.masked_fill(~mask, -torch.inf), -1)[~mask] == 0).all()
    assert torch.allclose((logp.exp() * mask).sum(-1), torch.ones(()), atol=1e-6)

    agents.actor.forward = lambda obs: logits  # the loss as a function of the logits
    loss, parts = dpo_loss(agents, **batch, ent_coef=0.01)
    (grad,) = torch.autograd.grad(loss, logits)
    alive = batch["weight"] > 0
    assert (grad[~mask] == 0).all() and (grad[~alive] == 0).all()
    assert (grad[mask & alive[..., None] & (mask.sum(-1, keepdim=True) > 1)] != 0).any()

    kl = categorical_kl(batch["old_logp"], logp)
    for agent, row in np.ndindex(*mask.shape[:2]):  # the same over the available actions as if no others were
        available = mask[agent, row]
        q = logits[agent, row][available].double().log_softmax(-1)
        p = batch["old_logp"][agent, row][available].double()
        assert torch.isclose(kl[agent, row].double(), (p.exp() * (p - q)).sum(), atol=1e-6)
    entropy = -torch.where(mask, logp.exp() * logp, 0.0).sum(-1)
    assert torch.allclose(parts["losses/entropy"], (batch["weight"] * entropy).sum(1), atol=1e-6)


# The surrogate, eq. (20), and the betas, eq. (21).


@pytest.mark.parametrize("betas", [(0.02, 0.03), (0.0, 0.03), (0.02, 0.0)])
def test_loss_is_equation_20_and_an_entropy_bonus(betas):
    """The number that agents descend is not one that looks like the paper's: here a loop in float64."""
    agents = make_agents().double()
    agents.beta1.copy_(betas[0] * torch.tensor([1.0, 2.0, 3.0]))
    agents.beta2.copy_(betas[1] * torch.tensor([1.0, 2.0, 3.0]))
    batch = make_batch(agents, drift=0.5)
    loss, parts = dpo_loss(agents, **batch, ent_coef=0.07)
    logits, values = agents.actor(batch["obs"]).detach(), agents.value(batch["obs"]).detach()
    total, policy_losses, value_losses, entropies = 0.0, [], [], []
    for i in range(N):
        surrogate, entropy, kl, root, v_loss = [], [], [], [], []
        for row in range(batch["obs"].shape[1]):
            if batch["weight"][i, row] == 0:
                continue
            available = batch["action_mask"][i, row].nonzero().flatten().tolist()
            unnormalised = {a: np.exp(logits[i, row, a].item()) for a in available}
            pi = {a: p / sum(unnormalised.values()) for a, p in unnormalised.items()}
            pi_old = {a: np.exp(batch["old_logp"][i, row, a].item()) for a in available}
            action = batch["actions"][i, row].item()
            surrogate.append(pi[action] / pi_old[action] * batch["advantages"][i, row].item())
            entropy.append(-sum(p * np.log(p) for p in pi.values()))
            kl.append(sum(pi_old[a] * np.log(pi_old[a] / pi[a]) for a in available))
            root.append(np.sqrt(max(kl[-1], 0.0)))
            v_loss.append((values[i, row] - batch["returns"][i, row]).item() ** 2)
        mean, beta1, beta2 = lambda x: sum(x) / len(x), agents.beta1[i].item(), agents.beta2[i].item()
        objective = (mean(surrogate) + 0.07 * mean(entropy)) / N - beta1 * mean(root) - beta2 * mean(kl)
        total += mean(v_loss) - N * objective
        policy_losses.append(-mean(surrogate))
        value_losses.append(mean(v_loss))
        entropies.append(mean(entropy))
    assert loss.item() == pytest.approx(total, abs=1e-6)  # the 1e-12 under the root: 1e-6 where KL is 0
    expected = {"policy_loss": policy_losses, "value_loss": value_losses, "entropy": entropies}
    assert parts.keys() == {f"losses/{name}" for name in expected}
    assert all(np.allclose(parts[f"losses/{name}"], x, rtol=1e-9) for name, x in expected.items())


def test_betas_follow_equation_21():
    """Betas that move the wrong way, or at the wrong KL, lose the trust region."""
    args = Args(beta_min=1e-9, beta_max=1e9)
    low, high = args.d_target / args.delta, args.d_target * args.delta
    kl = torch.tensor([0.0, low * 0.999, low, args.d_target, high, high * 1.001, 5.0])
    factor = torch.tensor([0.5, 0.5, 1.0, 1.0, 1.0, 2.0, 2.0])
    for beta in (torch.full((len(kl),), 0.01), torch.full((len(kl),), 0.3)):
        assert torch.equal(adapt_beta(beta, kl, args, 7), beta * factor)
        assert torch.equal(adapt_beta(beta, kl, Args(omega=4.0, beta_min=1e-9), 7), beta * factor**2)


def test_a_beta_without_a_floor_ends_at_zero_for_ever():
    """The reason why there is a floor where the paper has none: eq. (21) only multiplies."""
    agents, args, below, above = make_agents(), Args(beta_min=0.0), torch.zeros(1), torch.ones(1)
    beta = torch.full((1,), args.beta_init)
    halvings = 0
    while beta > 0:
        beta = adapt_beta(beta, below, args, agents.team_size)
        halvings += 1
    assert halvings == 143
    assert adapt_beta(beta, above, args, agents.team_size) == 0
    beta = torch.full((1,), args.beta_init)
    for kl in (*[below] * 200, above):
        beta = adapt_beta(beta, kl, Args(), agents.team_size)
    assert beta * agents.team_size == pytest.approx(2 * Args().beta_min)


def test_betas_stay_within_their_bounds():
    """Without the floor the betas vanish late in training; the bounds are on N * beta."""
    args = Args(beta_min=0.05, beta_max=10.0)
    for num_agents in (1, 4):
        for kl, bound in ((0.0, 0.05), (9.0, 10.0)):
            beta = torch.full((3,), 0.1)
            for _ in range(20):
                beta = adapt_beta(beta, torch.full((3,), kl), args, num_agents)
            assert torch.allclose(beta, torch.tensor(bound / num_agents))


@pytest.mark.parametrize("term", ["beta1", "beta2"])
def test_an_ablated_term_stays_off(term):
    """Otherwise the floor would switch the term on again, and the ablation would compare DPO with DPO."""
    other = "beta2" if term == "beta1" else "beta1"
    agents = make_agents()
    getattr(agents, term).zero_()
    wanted = dict(sqrt_kl_term="off" if term == "beta1" else "state", kl_term=term != "beta2")
    for d_target in (1e9, 1e-3, 1e-9):  # KL below, about and above the band
        trained, _, stats = learn(agents, *[make_batch(agents)] * 2, d_target=d_target, **wanted)
        assert (getattr(trained, term) == 0).all() and (getattr(trained, other) > 0).all()
        assert (stats[f"dpo/{term}"] == 0).all() and (stats[f"dpo/{other}"] > 0).all()


# The update.


def test_gradients_are_clipped_per_agent_and_per_network():
    """A clip over all agents would let one agent's large gradient shorten the others' steps."""
    agents = make_agents()
    scales = torch.tensor([0.01, 3.0, 100.0])
    for network in (agents.actor, agents.critic):
        for p in network.parameters():
            p.grad = torch.randn_like(p) * scales.view(N, 1, 1)
    before = [p.grad.clone() for p in agents.actor.parameters()]
    untouched = [p.grad.clone() for p in agents.critic.parameters()]
    norms = dpo_smac.clip_grad_norm_per_agent(agents.actor, 10.0)
    assert all(torch.equal(p.grad, g) for p, g in zip(agents.critic.parameters(), untouched, strict=True))
    for i in range(N):
        whole = torch.cat([g[i].flatten() for g in before])
        clipped = torch.cat([p.grad[i].flatten() for p in agents.actor.parameters()])
        assert norms[i].item() == pytest.approx(whole.norm().item(), rel=1e-5)
        assert clipped.norm().item() == pytest.approx(min(whole.norm().item(), 10.0), rel=1e-5)
        assert torch.allclose(F.cosine_similarity(clipped, whole, dim=0), torch.ones(()))
    assert norms[0] < 10 < norms[1]


def test_update_reports_the_last_epoch_and_the_divergence_of_the_updated_policy(monkeypatch):
    """The betas and every figure of the trust region are made of these numbers."""
    monkeypatch.setattr(dpo_smac, "CHUNK", 16)
    agents = make_agents()
    batch = make_batch(agents, drift=0.2)
    before, _, _ = learn(agents, batch)  # 3 epochs; the fourth below begins there
    after, _, stats = learn(agents, batch, update_epochs=4)
    _, parts = dpo_loss(before, **batch, ent_coef=0.01)
    for name, part in parts.items():
        assert torch.allclose(stats[name][:, 0], part, rtol=1e-4, atol=1e-6), name
    with torch.no_grad():
        logp = masked_log_softmax(after.actor(batch["obs"]), batch["action_mask"])
    kl = categorical_kl(batch["old_logp"], logp)
    mean_kl = (batch["weight"] * kl).sum(1)
    assert torch.allclose(stats["dpo/kl"][:, 0], mean_kl, rtol=1e-4)
    assert torch.allclose(stats["dpo/sqrt_kl"][:, 0], (batch["weight"] * kl.sqrt()).sum(1), rtol=1e-4)
    assert torch.equal(stats["dpo/beta1"][:, 0], after.beta1)
    assert torch.equal(stats["dpo/beta2"][:, 0], after.beta2)
    low, high = Args.d_target / Args.delta, Args.d_target * Args.delta
    assert torch.equal(stats["dpo/below_band"][:, 0], (mean_kl < low).float())
    assert torch.equal(stats["dpo/above_band"][:, 0], (mean_kl > high).float())


def test_chunks_are_the_whole_batch(monkeypatch):
    """The chunk's size is for speed alone. Gradients add up in another order: 1e-5 after 6 Adam steps."""
    agents = make_agents()
    batches = [make_batch(agents, rows=150, seed=s, drift=0.1) for s in (1, 2)]
    results = []
    for size in (10**9, 64, 7):
        monkeypatch.setattr(dpo_smac, "CHUNK", size)
        results.append(everything(*learn(agents, *batches)))
    for other in results[1:]:
        for name, whole in results[0].items():
            assert torch.allclose(other[name], whole, rtol=1e-3, atol=1e-5), name


def test_values_of_a_rollout_are_those_of_its_steps_on_any_number_of_threads(monkeypatch):
    """They are computed in chunks of rows, of which each has samples of several steps."""
    monkeypatch.setattr(dpo_smac, "CHUNK", 16)
    agents, obs = make_agents(), torch.randn(N, 9, 5, OBS)
    found = []
    for workers in (1, 3):
        with ThreadPoolExecutor(workers) as pool:
            found.append(dpo_smac.values_of(agents, obs, pool))
    assert torch.equal(*found) and not found[0].requires_grad
    by_step = torch.stack([agents.value(obs[:, step]) for step in range(9)], dim=1)
    torch.testing.assert_close(found[0], by_step.detach())


def test_groups_of_agents_are_the_whole_stack_and_write_into_it():
    """--torch-threads would change the result, or train copies that no checkpoint ever sees.

    Equal to float32 rounding, not bit for bit: a matrix product of one agent adds up in another order.
    """
    agents = make_agents()
    batches = [make_batch(agents, seed=s) for s in (1, 2)]
    whole = everything(*learn(agents, *batches))
    stack = copy.deepcopy(agents)
    parts = [slice(0, 1), slice(1, 3)]
    groups = [stack.group(part) for part in parts]
    optimizers = [adam(group) for group in groups]
    args, stats = Args(update_epochs=3, max_grad_norm=0.5), []
    for batch in batches:
        own = [{name: x[part] for name, x in batch.items()} for part in parts]
        each = zip(groups, optimizers, own, strict=True)
        learned = [copied(update(group, optimizer, x, args)) for group, optimizer, x in each]
        stats.append({name: torch.cat([one[name] for one in learned]) for name in learned[0]})
    trained = {name: p.detach() for name, p in stack.named_parameters()}
    trained |= {"beta1": stack.beta1, "beta2": stack.beta2} | stacked(stats)
    for name, x in trained.items():
        assert torch.allclose(x, whole[name], rtol=1e-4, atol=1e-6), name
    assert not torch.equal(stack.actor.weights[0], agents.actor.weights[0])
    assert not torch.equal(stack.beta1, agents.beta1) and not torch.equal(stack.beta2, agents.beta2)
    for group, optimizer, part in zip(groups, optimizers, parts, strict=True):
        for name, p in group.named_parameters():
            assert torch.equal(p, trained[name][part]), name
            for key in ("exp_avg", "exp_avg_sq"):
                moment = whole[f"{name} {key}"][part]
                assert torch.allclose(optimizer.state[p][key], moment, rtol=1e-3, atol=1e-7), name


def test_a_group_may_finish_while_another_is_between_forward_and_backward():
    """Threads end when they end: autograd must not take one group's new betas for a change of another's."""
    stack = make_agents()
    batch = make_batch(stack, drift=0.1)
    parts = [slice(0, 1), slice(1, 3)]
    (first, second), own = (
        [stack.group(part) for part in parts],
        [{name: x[part] for name, x in batch.items()} for part in parts],
    )
    loss, _ = dpo_loss(second, **own[1], ent_coef=0.01)
    update(first, adam(first), own[0], Args(update_epochs=1))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in second.parameters())


@pytest.mark.parametrize(
    "name", ["obs", "actions", "advantages", "returns", "weight", "old_logp", "everything"]
)
def test_agent_update_ignores_other_agents(name):
    """Strictly decentralized: whatever one agent saw, did or was paid, the others learn bit-identically."""
    agents = make_agents()
    batches = [make_batch(agents, seed=s, drift=0.1) for s in (1, 2)]
    before = everything(*learn(agents, *batches))
    for batch in batches:
        foreign = make_batch(agents, seed=99, drift=1.0)
        for key in batch if name == "everything" else [name]:
            batch[key] = batch[key].clone()
            batch[key][1] = foreign[key][1]
            if key == "actions":  # another available one
                batch[key][1] = batch["action_mask"][1].float().argmax(-1)
    after = everything(*learn(agents, *batches))
    for key, value in before.items():
        assert torch.equal(after[key][[0, 2]], value[[0, 2]]), key
    moved = [key for key, value in before.items() if not torch.equal(after[key][1], value[1])]
    network = "critic" if name == "returns" else "actor"
    loss = "losses/value_loss" if name == "returns" else "losses/policy_loss"
    assert any(key.startswith(network) for key in moved) and loss in moved


def test_dead_rows_influence_nothing():
    """A corpse's observations, advantages and returns are no experience; training on them would be noise."""
    agents = make_agents()
    batch = make_batch(agents, drift=0.1)
    dead = batch["weight"] == 0
    before = everything(*learn(agents, batch))
    generator = torch.Generator().manual_seed(5)
    other = dict(batch)
    for name in ("obs", "advantages", "returns"):
        other[name] = batch[name].clone()
        other[name][dead] = 100 * torch.randn(other[name][dead].shape, generator=generator)
    after = everything(*learn(agents, other))
    assert dead.any() and all(torch.equal(after[name], value) for name, value in before.items())


def test_another_agent_s_death_changes_nothing_to_the_last_bit():
    """Rows are sorted and chunks left out by who is alive: other chunks would round sums otherwise."""
    agents, rows = make_agents(), 3000  # more than two chunks: in short ones rounding is always the same
    batch = make_batch(agents, rows, drift=0.1)
    rollout = {name: x.view(N, 100, 30, *x.shape[2:]) for name, x in batch.items()}
    results = []
    for samples in (rows, 1700, 1, 0):  # of agent 1; the others have 500
        count = torch.tensor([500, samples, 500]).view(N, 1, 1)
        valid = torch.rand(N, rows, generator=torch.Generator().manual_seed(7)).argsort(1).argsort(1)
        valid = valid.view(N, 100, 30) < count
        weight = valid / valid.sum((1, 2), keepdim=True).clamp(min=1)
        batch = dpo_smac.samples_first(rollout | {"weight": weight}, valid)
        results.append(everything(*learn(agents, batch)))
    for other in results[1:]:
        for name, x in results[0].items():
            assert torch.equal(other[name][[0, 2]], x[[0, 2]]), name
    assert not torch.equal(results[0]["actor.weights.0"][1], results[1]["actor.weights.0"][1])


@pytest.mark.parametrize("updates_before", [0, 2])
def test_an_agent_dead_all_through_the_batch_keeps_its_networks_and_betas(updates_before):
    """Nothing seen, nothing learnt: no division by its zero samples, and no momentum of earlier updates."""
    agents = make_agents()
    batches = [make_batch(agents, seed=seed) for seed in range(updates_before)]
    alive = learn(agents, *batches, make_batch(agents, seed=9))
    dead = make_batch(agents, seed=9)
    dead["weight"][1] = 0
    trained, optimizer, stats = learn(agents, *batches, dead)
    assert all(x.isfinite().all() for x in stats.values()) and stats["dpo/below_band"][1, -1] == 0
    before = everything(*learn(agents, *batches)) if batches else dict(agents.named_parameters())
    after, others = everything(trained, optimizer, stats), everything(*alive)
    for name, x in before.items():
        if x.dim() == 1 or name in stats:
            continue
        assert torch.equal(x[1], after[name][1]) and not torch.equal(x[0], after[name][0]), name
        assert torch.equal(after[name][[0, 2]], others[name][[0, 2]]), name
    for name in ("beta1", "beta2"):
        was = before[name] if batches else getattr(agents, name)
        assert torch.equal(was[1], after[name][1]) and torch.equal(after[name][[0, 2]], others[name][[0, 2]])


# Stacked networks are separate networks.


class Separate:
    """One agent written plainly: two nn.Sequential, each with its own Adam and its own gradient clip."""

    def __init__(self, agents: Agents, agent: int, layer_norm: bool):
        self.nets = []
        for network in (agents.actor, agents.critic):
            layers: list[nn.Module] = []
            for k, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
                # As in the script: LayerNorm after each hidden layer, before its ReLU.
                layers += (
                    [nn.LayerNorm(weight.shape[1], elementwise_affine=False)] if k and layer_norm else []
                )
                layers += [nn.ReLU()] if k else []
                linear = nn.Linear(weight.shape[1], weight.shape[2]).double()
                linear.weight.data, linear.bias.data = weight[agent].T.clone(), bias[agent, 0].clone()
                layers += [linear]
            self.nets.append(nn.Sequential(*layers))
        self.adams = [torch.optim.Adam(net.parameters(), lr=3e-3, eps=1e-5) for net in self.nets]
        self.beta1, self.beta2 = agents.beta1[agent].item(), agents.beta2[agent].item()

    def kl(self, batch):
        logits = self.nets[0](batch["obs"])
        logp = logits.masked_fill(~batch["action_mask"], -1e9).log_softmax(-1)
        x = torch.where(batch["action_mask"], logp - batch["old_logp"], 0.0)
        return logp, (batch["old_logp"].exp() * batch["action_mask"] * (x.expm1() - x)).sum(-1)

    def update(self, batch, args: Args):
        batch = {name: x[batch["weight"] > 0] for name, x in batch.items()}  # its own, living samples
        for _ in range(args.update_epochs):
            logp, kl = self.kl(batch)
            ratio = (logp - batch["old_logp"]).gather(-1, batch["actions"][:, None])[:, 0].exp()
            entropy = -(logp.exp() * logp).sum(-1)
            surrogate = (ratio * batch["advantages"] + args.ent_coef * entropy).mean()
            roots = {"state": (kl + 1e-12).sqrt().mean(), "average": (kl.mean() + 1e-12).sqrt()}
            penalty = self.beta1 * roots[args.sqrt_kl_term] + self.beta2 * kl.mean()
            losses = (
                N * penalty - surrogate,
                F.mse_loss(self.nets[1](batch["obs"])[:, 0], batch["returns"]),
            )
            for loss, net, optimizer in zip(losses, self.nets, self.adams, strict=True):
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), args.max_grad_norm)
                optimizer.step()
        kl = self.kl(batch)[1].mean().item()
        up, down = kl > args.d_target * args.delta, kl < args.d_target / args.delta
        change = args.omega if up else 1 / args.omega if down else 1.0
        bound = lambda b: min(max(b * change, args.beta_min / N), args.beta_max / N)  # noqa: E731
        self.beta1, self.beta2 = bound(self.beta1), bound(self.beta2)


@pytest.mark.parametrize(("layer_norm", "root"), [(True, "state"), (False, "state"), (True, "average")])
def test_stacked_networks_train_as_separate_networks(layer_norm, root, monkeypatch):
    """One optimiser over stacked tensors must be N agents with N optimisers, or DPO is not decentralized.

    In float64, so that 1e-9 tells an error from rounding, over 4 updates of 3 epochs with the clip at work.
    """
    torch.manual_seed(0)
    agents = Agents(N, OBS, A, layer_norm).double()
    agents.beta1 += 0.02
    agents.beta2 += 0.05
    singles = [Separate(agents, i, layer_norm) for i in range(N)]
    monkeypatch.setattr(dpo_smac, "CHUNK", 8)
    optimizer, changed = adam(agents, lr=3e-3), set()
    args = Args(update_epochs=3, max_grad_norm=0.2, sqrt_kl_term=root, ent_coef=0.07)
    for seed in range(4):
        batch = make_batch(agents, seed=seed, drift=0.15 * (seed % 2))
        norms = update(agents, optimizer, batch, args)["losses/grad_norm"]
        assert (norms > args.max_grad_norm).any()
        for i, single in enumerate(singles):
            single.update({name: x[i] for name, x in batch.items()}, args)
        assert torch.allclose(agents.beta1, torch.tensor([s.beta1 for s in singles]).double(), rtol=1e-6)
        assert torch.allclose(agents.beta2, torch.tensor([s.beta2 for s in singles]).double(), rtol=1e-6)
        changed |= {single.beta1 for single in singles}
    obs = make_batch(agents, seed=9)["obs"]
    for i, single in enumerate(singles):
        assert torch.allclose(agents.actor(obs)[i], single.nets[0](obs[i]), atol=1e-9)
        assert torch.allclose(agents.value(obs)[i], single.nets[1](obs[i])[:, 0], atol=1e-9)
        linears = [m for net in single.nets for m in net if isinstance(m, nn.Linear)]
        networks = (agents.actor, agents.critic)
        stacked = [wb for net in networks for wb in zip(net.weights, net.biases, strict=True)]
        for linear, (weight, bias) in zip(linears, stacked, strict=True):
            assert torch.allclose(weight[i], linear.weight.T, atol=1e-9)
            assert torch.allclose(bias[i, 0], linear.bias, atol=1e-9)
    assert len(changed) > 1


def test_agents_begin_with_orthogonal_weights_of_their_own():
    """Equal agents would begin as copies, which is parameter sharing by the back door."""
    torch.manual_seed(0)
    agents = Agents(N, OBS, A)
    for network, head in ((agents.actor, 0.01), (agents.critic, 1.0)):
        for weight, gain in zip(network.weights, (2**0.5, 2**0.5, head), strict=True):
            singular = torch.linalg.svdvals(weight.detach())
            assert torch.allclose(singular, torch.tensor(gain), rtol=1e-4)
            assert not torch.equal(weight[0], weight[1])
        assert all((bias == 0).all() for bias in network.biases)


# Compiled.


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_loss_agrees_with_eager():
    """--compile is for speed: loss, statistics and gradients stay what they are, to float32 rounding."""
    agents = make_agents()
    batch = make_batch(agents, rows=64, drift=0.2)
    results = []
    for loss_fn in (dpo_loss, torch.compile(dpo_loss, options={"cpp_wrapper": True})):
        agents.zero_grad()
        loss, parts = loss_fn(agents, **batch, ent_coef=0.01)
        loss.backward()
        results.append([loss.detach(), *parts.values(), *(p.grad.clone() for p in agents.parameters())])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-4, atol=1e-5)
