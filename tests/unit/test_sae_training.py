"""Training: exact restart, independence of the company kept, resampling, and clear errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from sae_world import SETTINGS, World, changed, site

from crate_model.config import SAEConfig
from crate_model.sae import SparseAutoencoder
from pipeline.artifacts.activation_stream import ActivationStream
from pipeline.artifacts.saes import Site
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import SAEConfigSection
from pipeline.errors import ConfigError, StageError
from pipeline.sae import training
from pipeline.sae.loop import TrainedGroup, train_group
from pipeline.sae.planned import planned_sites
from pipeline.sae.resampling import badly_reconstructed, counting_starts, dead_features, resample, restart_features
from pipeline.sae.training import SAETrainer, learning_rate
from pipeline.sae.watcher import Watcher

CPU = torch.device("cpu")
VARIANTS = ("relu", "topk", "batchtopk", "jumprelu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("training"))


def sites_of(variant: str, layers: Sequence[int] = (0, 1)) -> list[Site]:
    sparsity = {"relu": 1e-3, "jumprelu": 1e-3}.get(variant, 4.0)
    return [site(f"code-l{layer}-2x", layer, variant, sparsity) for layer in layers]


def train(world: World, sites: list[Site], watcher: Watcher, settings: SAEConfigSection = SETTINGS) -> TrainedGroup:
    return train_group(world.model, TokenSplit(world.tokens, "train"), sites, settings, 0, CPU, watcher)


def weights(group: TrainedGroup) -> dict[str, torch.Tensor]:
    return {f"{t.site.name}.{name}": value for t in group.trainers for name, value in t.sae.state_dict().items()}


def assert_equal(a: TrainedGroup, b: TrainedGroup) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert a.curves == b.curves


class StopAt:
    """Asks to stop at the given step, as a person might."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_restart_ends_at_the_same_bits(world: World, tmp_path: Path, variant: str) -> None:
    """Stopped once between and once right after a resampling, in the middle of a buffer."""
    settings = changed(variant=variant, dead_after_tokens=200, k=4)
    sites = sites_of(variant)
    straight = train(world, sites, Watcher(tmp_path / "straight", 1000), settings)
    for stop in (7, 8):  # steps 7 and 15
        with pytest.raises(StageError, match="asked to stop"):
            train(world, sites, Watcher(tmp_path / "broken", 1000, stop_requested=StopAt(stop)), settings)
    assert_equal(straight, train(world, sites, Watcher(tmp_path / "broken", 1000), settings))
    assert straight.trainers[0].step_number == 40


def test_a_restart_between_two_looks_at_the_dying_ends_at_the_same_bits(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which features take part in the auxiliary loss as zeros changes its rounding, so the state has them."""
    monkeypatch.setattr(training, "LOOKED_EVERY", 3)
    settings, sites = changed(variant="topk", dead_after_tokens=200, k=4), sites_of("topk")
    straight = train(world, sites, Watcher(tmp_path / "straight", 1000), settings)
    for stop in (8, 6):  # after steps 8 and 14
        with pytest.raises(StageError, match="asked to stop"):
            train(world, sites, Watcher(tmp_path / "broken", 1000, stop_requested=StopAt(stop)), settings)
    again = train(world, sites, Watcher(tmp_path / "broken", 1000), settings)
    assert_equal(straight, again)
    for trainer in again.trainers:
        assert 0 < len(trainer.dying) < trainer.sae.config.d_sae
    assert any(row["penalty"] > 0 for row in straight.curves)


def test_no_dead_feature_is_overlooked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those dead at a step are found among those that could die when it was last looked, also where most steps do not look."""
    monkeypatch.setattr(training, "LOOKED_EVERY", 5)
    settings = changed(variant="batchtopk", dead_after_tokens=500)
    trainer = SAETrainer(sites_of("batchtopk")[0], settings, 64, 0, CPU)
    stream = ActivationStream(world.model, TokenSplit(world.tokens, "train"), (site().point,), 1, 64, 320, 4, CPU)
    batches, seen = stream.batches(), set()
    for _ in range(40):
        found, dead = trainer._dead(), torch.nonzero(trainer.silent_for >= 500).flatten().tolist()
        assert (found.among[found.are_dead].tolist() if found else []) == dead
        seen.add((found is None, len(dead) > 0, found is not None and len(found.among) > len(dead)))
        trainer.step(next(batches)[site().point])
    assert {(True, False, False), (False, False, True), (False, True, True)} <= seen, "no, some and other candidates"


def test_firing_is_counted_exactly() -> None:
    f = torch.randn(1000, 30, generator=torch.Generator().manual_seed(0)).relu_()
    f[:, 3] = 0.0
    assert torch.equal(training.firing_counts(f), (f > 0).sum(dim=0))


def test_batchtopks_threshold_stays_where_nothing_fires() -> None:
    trainer = SAETrainer(sites_of("batchtopk")[0], changed(variant="batchtopk"), 64, 0, CPU)
    f = torch.zeros(64, 128)
    f[5, 7] = 0.25
    trainer._count(f)
    assert trainer.sae.threshold == 0.25  # the first batch's own
    trainer.step_number = 1
    trainer._count(torch.zeros(64, 128))
    assert trainer.sae.threshold == 0.25
    trainer._count(2 * f)
    assert trainer.sae.threshold.item() == pytest.approx(0.25 + 0.01 * 0.25)
    assert trainer.n_active == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_narrow_factors_train_as_well(world: World, tmp_path: Path, variant: str) -> None:
    site = sites_of(variant, layers=(0,))
    exact, narrow = (
        train(world, site, Watcher(tmp_path / precision, 1000), changed(k=4, matmul_precision=precision))
        for precision in ("highest", "medium")
    )
    assert narrow.curves[-1]["loss"] == pytest.approx(exact.curves[-1]["loss"], rel=0.02)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_kill_between_checkpoints_ends_at_the_same_bits(world: World, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, figures: object) -> None:
        if step == 18:
            raise Killed

    straight = train(world, sites_of("relu"), Watcher(tmp_path / "straight", 1000))
    with pytest.raises(Killed):
        train(world, sites_of("relu"), Watcher(tmp_path / "broken", 5, on_figures=kill))
    assert_equal(straight, train(world, sites_of("relu"), Watcher(tmp_path / "broken", 5)))


def test_company_changes_nothing(world: World, tmp_path: Path) -> None:
    """An autoencoder trained with three others, or alone, or restarted in other company, comes out the same to the bit."""
    sites = [*sites_of("relu"), site("code-l0-1x", 0, "relu", 1e-3, 1), site("code-l0-2x-k", 0, "topk", 4.0)]
    together = weights(train(world, sites, Watcher(tmp_path / "together", 1000)))
    for one in sites:
        alone = weights(train(world, [one], Watcher(tmp_path / one.name, 1000)))
        for name, value in alone.items():
            assert torch.equal(value, together[name]), name
    with pytest.raises(StageError):
        train(world, sites[:1], Watcher(tmp_path / "regrouped", 1000, stop_requested=StopAt(9)))
    regrouped = weights(train(world, sites, Watcher(tmp_path / "regrouped", 1000)))
    assert all(torch.equal(value, together[name]) for name, value in regrouped.items())


def test_training_explains_more_and_more(world: World, tmp_path: Path) -> None:
    curves = train(world, sites_of("topk", [0]), Watcher(tmp_path, 1000), changed(variant="topk", k=4)).curves
    assert curves[-1]["reconstruction"] < 0.75 * curves[0]["reconstruction"]
    assert curves[-1]["l0"] == 4.0
    assert [row["step"] for row in curves] == list(range(1, 41))


def test_finished_autoencoders_take_unscaled_inputs(world: World, tmp_path: Path) -> None:
    for variant in VARIANTS:
        trainer = train(world, sites_of(variant, [0]), Watcher(tmp_path / variant, 1000)).trainers[0]
        v = torch.rand(10, 64)
        trainer.sae.eval()
        inside = trainer.sae(v * trainer.scale) / trainer.scale
        torch.testing.assert_close(trainer.finished()(v), inside, atol=1e-4, rtol=1e-4)
        assert (trainer.scale == 1.0) == (variant == "relu")


def test_firing_is_counted_from_one_window_before_a_resampling() -> None:
    paper = SAEConfigSection()
    assert counting_starts(paper) == {2500, 12500, 42500, 67500, 92500}
    assert counting_starts(changed(resample_steps=(15, 30), resample_window_steps=100)) == {0, 15}


def test_dead_means_rarer_than_once_in_a_million_counted_tokens() -> None:
    """The released code divides by tokens that it did not count over, and so declares more features dead."""
    trainer = SAETrainer(site(), SETTINGS, 4, 0, CPU)
    trainer.n_counted = 30_720_000  # 7,500 steps of 4,096
    trainer.n_fired = torch.tensor([0, 30, 31, 40, 100, 0, 3, 4])
    trainer.step_number = 10_000
    assert dead_features(trainer).tolist() == [0, 1, 5, 6, 7]
    trainer.step_number = 50_000
    assert dead_features(trainer).tolist() == [0, 5, 6]


def test_a_restarted_feature_points_at_its_input() -> None:
    torch.manual_seed(0)
    sae = SparseAutoencoder(SAEConfig(6, 12))
    with torch.no_grad():
        sae.b_enc.fill_(0.5)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    inputs = torch.rand(2, 6)
    restart_features(sae, torch.tensor([3, 7]), inputs)
    alive = [i for i in range(12) if i not in (3, 7)]
    typical = before["W_enc"][:, alive].norm(dim=0).mean()
    for row, feature in enumerate((3, 7)):
        direction = inputs[row] / inputs[row].norm()
        torch.testing.assert_close(sae.W_dec[feature], direction)
        torch.testing.assert_close(sae.W_enc[:, feature], 0.2 * typical * direction)
        assert sae.b_enc[feature] == 0
    assert torch.equal(sae.W_dec[alive], before["W_dec"][alive])
    assert torch.equal(sae.W_enc[:, alive], before["W_enc"][:, alive])


def test_resampling_revives_dead_features_and_their_optimizer(world: World) -> None:
    """Features silenced by a large negative bias fire again after the resampling; the learning rate starts over."""
    trainer = SAETrainer(site(), SETTINGS, 64, 0, CPU)
    with torch.no_grad():
        trainer.sae.b_enc[:20] = -100.0
    split = TokenSplit(world.tokens, "train")
    stream = ActivationStream(world.model, split, (site().point,), 1, 64, 320, 4, CPU)
    batches = stream.batches()
    for _ in range(3):
        trainer.step(next(batches)[site().point])
    dead = dead_features(trainer)
    assert set(range(20)) <= set(dead.tolist())
    assert resample(trainer, stream, seed=0) == len(dead) == trainer.n_resampled
    assert trainer.clock == 0
    for moments in (trainer.optimizer.exp_avg, trainer.optimizer.exp_avg_sq):
        assert moments["W_enc"][:, dead].abs().max() == 0
        assert moments["W_dec"].abs().max() > 0
    trainer.count_anew()
    trainer.step(next(batches)[site().point])
    assert (trainer.n_fired[dead] > 0).double().mean() > 0.5


def test_resampled_features_start_from_tokens_that_the_autoencoder_hurts(world: World) -> None:
    """The inputs come from the tap, at most one a window, and none where splicing does no harm."""
    trainer = SAETrainer(site(), SETTINGS, 64, 0, CPU)
    split = TokenSplit(world.tokens, "train")
    stream = ActivationStream(world.model, split, (site().point,), 1, 64, 320, 4, CPU)
    inputs = badly_reconstructed(trainer, stream, 6, seed=5)
    assert inputs.shape == (6, 64)
    every = torch.cat([next(stream.batches(step))[site().point] for step in range(0, 61)])
    nearest = torch.cdist(inputs, every).min(dim=1).values
    assert nearest.max() < 1e-3
    with torch.no_grad():  # an autoencoder that gives back what it is given hurts nowhere
        trainer.sae.W_enc.copy_(torch.cat((torch.eye(64), torch.zeros(64, 64)), dim=1))
        trainer.sae.W_dec.copy_(trainer.sae.W_enc.T)
    assert len(badly_reconstructed(trainer, stream, 6, seed=5)) == 0


def test_learning_rate_is_flat_without_warmup() -> None:
    assert {learning_rate(step, 1e-3, 0) for step in range(5)} == {1e-3}


def test_a_loss_that_is_not_finite_stops_the_training(world: World, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"the loss of code-l0-2x is (nan|inf)"):
        train(world, sites_of("relu", [0]), Watcher(tmp_path, 1000), changed(learning_rate=1e30, resample_steps=()))


def test_planned_sites(world: World) -> None:
    config = world.model.config
    names = [s.name for s in planned_sites(changed(expansions=(1, 4), layers="all"), config)]
    assert names == ["code-l0-1x", "code-l0-4x", "code-l1-1x", "code-l1-4x"]
    several = planned_sites(changed(variant="topk", k=(4, 8), layers=(1,)), config)
    assert [(s.name, s.sparsity) for s in several] == [("code-l1-2x-k_4", 4.0), ("code-l1-2x-k_8", 8.0)]
    with pytest.raises(ConfigError, match="layer 2"):
        planned_sites(changed(layers=(2,)), config)
    with pytest.raises(ConfigError, match=r"sae\.k is 500"):
        planned_sites(changed(variant="topk", k=500), config)


@pytest.mark.parametrize("damage", [b"", b"torn", None])
def test_a_state_that_cannot_be_read_is_passed_over(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    """As a disk leaves it that lost its power: the training starts anew and ends at the same bits."""
    settings, sites = changed(total_tokens=10 * 64, resample_steps=()), sites_of("relu", (0,))
    straight = train(world, sites, Watcher(tmp_path / "straight", 1000), settings)
    with pytest.raises(StageError, match="asked to stop"):
        train(world, sites, Watcher(tmp_path / "broken", 1000, stop_requested=StopAt(4)), settings)
    (state,) = (tmp_path / "broken").rglob("*.safetensors")
    state.write_bytes(state.read_bytes()[:-200] if damage is None else damage)
    again = train(world, sites, Watcher(tmp_path / "broken", 1000), settings)
    assert_equal(straight, again)
    assert "cannot be read" in caplog.text
