"""Clips of a run: the same for the same step, seen from their first frame, true to the scene."""

from dataclasses import fields, replace

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from streamvggt.data import Augmentation, ClipBatch, ClipStream, Stage, SyntheticSource, clip_order
from streamvggt.geometry import compose, invert_pose, project
from streamvggt.synthetic import SyntheticConfig

HW = (56, 56)
SOURCE = SyntheticSource(6, SyntheticConfig(shadows=False, moving_probability=0.0))
STAGES = (Stage(0.5, (2,), (2, 4), (HW,), 12 * 16), Stage(1.0, (2, 3), (1, 2), (HW, (42, 56)), 12 * 16))
STREAM = ClipStream((SOURCE,), (1.0,), STAGES, num_steps=8, seed=5)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(a, b):
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(ClipBatch))


def fingerprint(clips):
    return [getattr(clips, f.name).double().sum().item().hex() for f in fields(ClipBatch)]


@pytest.fixture(scope="module")
def scenes():
    """Four clips of three frames, in metres."""
    return SOURCE.clips([11, 12], 3, (1, 2), HW)


def test_a_step_is_bitwise_the_same_in_any_order_and_in_another_process():
    first, second = STREAM[1], STREAM[6]
    again = ClipStream((SOURCE,), (1.0,), STAGES, num_steps=8, seed=5)
    assert same(again[6], second) and same(again[1], first)
    assert first.images.shape[1:] != second.images.shape[1:] or not torch.equal(first.images, second.images)
    loader = DataLoader(Subset(STREAM, [6]), batch_size=None, num_workers=1)
    [there] = list(loader)
    assert same(there, second)


def test_another_seed_and_another_step_are_other_clips():
    clips = [STREAM[0], STREAM[1], replace(STREAM, seed=6)[0]]
    assert len({tuple(fingerprint(c)) for c in clips}) == 3


def test_shares_of_two_processes_are_together_what_one_would_get():
    step = 0
    whole = STREAM[step]
    shares = [replace(STREAM, rank=rank, world=2)[step] for rank in (0, 1)]
    assert len(shares[0].images) == len(shares[1].images) > 0
    together = ClipBatch(*(torch.cat([getattr(s, f.name) for s in shares]) for f in fields(ClipBatch)))
    assert same(together, whole)


class Asked:
    """A source that only remembers what it was asked for."""

    def __init__(self):
        self.calls = []

    def clips_per_seed(self, num_frames):
        return 2

    def clips(self, seeds, num_frames, stride, image_hw):
        self.calls.append((len(seeds), num_frames, stride, image_hw))
        b = 2 * len(seeds)
        pose = torch.eye(3, 4).expand(b, num_frames, 3, 4)
        maps = torch.ones(b, num_frames, *image_hw)
        images = maps[:, :, None].expand(-1, -1, 3, -1, -1) * 0.5
        return ClipBatch(images, maps, maps > 0, pose, torch.eye(3).expand(b, num_frames, 3, 3))


def test_stages_sources_and_sizes_are_chosen_as_they_are_told():
    often, seldom = Asked(), Asked()
    stream = ClipStream((often, seldom), (3, 1), STAGES, num_steps=200, augment=None)
    for step in range(200):
        stream[step]
    assert len(often.calls) + len(seldom.calls) == 200 and 30 <= len(seldom.calls) <= 70
    early = {call for call in often.calls if call[2] == (2, 4)}
    late = {call for call in often.calls if call[2] == (1, 2)}
    # 192 patches a step: 16 a frame of 56 x 56 and 12 a frame of 42 x 56, two clips a seed
    assert early == {(3, 2, (2, 4), HW)}
    assert late == {(3, 2, (1, 2), HW), (2, 3, (1, 2), HW), (4, 2, (1, 2), (42, 56)), (3, 3, (1, 2), (42, 56))}
    ends = Asked()
    stream = ClipStream((ends,), (1.0,), STAGES, num_steps=10, augment=None)
    for step in (4, 5):
        stream[step]
    assert [call[2] for call in ends.calls] == [(2, 4), (1, 2)]


def test_a_run_ends():
    assert len(STREAM) == 8
    for step in (-1, 8):
        with pytest.raises(IndexError, match=r"0\.\.7"):
            STREAM[step]


def test_clips_are_seen_from_their_first_frame(scenes):
    assert scenes.images.shape == (4, 3, 3, *HW)  # six frames are enough for two clips of three
    expected = torch.eye(3, 4).expand(4, 3, 4)
    torch.testing.assert_close(scenes.extrinsics[:, 0], expected, atol=1e-6, rtol=0)
    assert (scenes.extrinsics[:, 1:, :, 3].norm(dim=-1) > 0).all()
    assert scenes.pose_enc.shape == (4, 3, 9)
    torch.testing.assert_close(scenes.pose_enc[:, 0, :7], torch.tensor([0.0, 0, 0, 0, 0, 0, 1]).expand(4, 7))


def test_a_point_of_the_scene_is_the_same_forwards_and_backwards(scenes):
    order = torch.arange(3).expand(4, 3)
    backwards = scenes.frames(order.flip(1))
    assert torch.equal(backwards.depth, scenes.depth.flip(1))
    assert torch.equal(backwards.images, scenes.images.flip(1))
    # From the last camera's frame back to the first one's.
    to_first = invert_pose(scenes.extrinsics[:, 2])[:, None, None, None]
    seen = backwards.world_points.flip(1)
    seen = (to_first[..., :3] * seen[..., None, :]).sum(-1) + to_first[..., 3]
    torch.testing.assert_close(seen, scenes.world_points, atol=2e-4, rtol=1e-5)
    xy, depth = project(scenes.world_points, scenes.extrinsics[:, :, None, None], scenes.intrinsics[:, :, None, None])
    y, x = torch.meshgrid(torch.arange(56.0), torch.arange(56.0), indexing="ij")
    known = scenes.valid
    torch.testing.assert_close(xy[known], torch.stack([x, y], -1).expand_as(xy)[known], atol=2e-2, rtol=0)
    torch.testing.assert_close(depth[known], scenes.depth[known], atol=1e-3, rtol=1e-4)


def test_frames_may_be_repeated_and_differ_between_clips(scenes):
    order = torch.tensor([[2, 2], [0, 1], [1, 0], [2, 0]])
    chosen = scenes.frames(order)
    for clip, (a, b) in enumerate(order.tolist()):
        assert torch.equal(chosen.images[clip], scenes.images[clip, [a, b]])
        relative = compose(scenes.extrinsics[clip, b], invert_pose(scenes.extrinsics[clip, a]))
        torch.testing.assert_close(chosen.extrinsics[clip, 1], relative, atol=1e-6, rtol=0)


def test_normalised_clips_have_mean_distance_one_in_frame_0(scenes):
    shrunk = scenes.normalized()
    for clip in range(4):
        distance = shrunk.world_points[clip, 0][shrunk.valid[clip, 0]].norm(dim=-1)
        assert distance.mean().item() == pytest.approx(1, abs=1e-5)
    ratio = shrunk.depth[scenes.valid] / scenes.depth[scenes.valid]
    moved = shrunk.extrinsics[:, 1:, :, 3] / scenes.extrinsics[:, 1:, :, 3]
    assert ratio.min() > 0
    for clip in range(4):
        expected = (shrunk.depth[clip].sum() / scenes.depth[clip].sum()).item()
        assert moved[clip].median().item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(shrunk.extrinsics[..., :3], scenes.extrinsics[..., :3])


@pytest.mark.parametrize("filling", [0.0, float("nan"), float("inf")])
def test_a_clip_of_which_nothing_is_known_keeps_its_scale(scenes, filling):
    unknown = replace(scenes, valid=scenes.valid.clone(), depth=scenes.depth.clone())
    unknown.valid[1] = False
    unknown.depth[1] = filling
    unknown.valid[2, 0, :20] = False
    unknown.depth[2, 0, :20] = filling
    shrunk = unknown.normalized()
    assert torch.equal(shrunk.extrinsics[1], scenes.extrinsics[1])
    assert shrunk.extrinsics.isfinite().all() and shrunk.depth[shrunk.valid].isfinite().all()
    distance = shrunk.world_points[2, 0, 20:][shrunk.valid[2, 0, 20:]].norm(dim=-1)
    assert distance.mean().item() == pytest.approx(1, abs=1e-5)


def test_orders_use_every_stride_and_direction_and_stay_inside():
    rng = torch.Generator().manual_seed(0)
    orders = [clip_order(20, 4, (2, 9), rng) for _ in range(600)]
    steps = [order.diff() for order in orders]
    assert all((step == step[0]).all() for step in steps)
    counts = {stride: sum(int(step[0]) == stride for step in steps) for stride in range(-20, 21)}
    # Seven times three is twenty-one, one too many: strides from 2 to 6.
    assert {stride for stride, count in counts.items() if count} == {*range(2, 7), *range(-6, -1)}
    assert all(30 < counts[stride] < 90 for stride in (*range(2, 7), *range(-6, -1)))
    seen = torch.stack(orders)
    assert seen.min() == 0 and seen.max() == 19


def test_a_clip_that_just_fits_fits_and_a_longer_one_does_not():
    rng = torch.Generator().manual_seed(0)
    assert clip_order(7, 4, (2, 5), rng).sort().values.tolist() == [0, 2, 4, 6]
    assert clip_order(1, 1, (3, 5), rng).tolist() == [0]
    with pytest.raises(ValueError, match=r"4 frames with stride 2 needs 7, got 6"):
        clip_order(6, 4, (2, 5), rng)


def test_a_seed_means_the_same_clips_in_any_company():
    alone, together = SOURCE.clips([12], 3, (1, 2), HW), SOURCE.clips([11, 12], 3, (1, 2), HW)
    assert same(alone, together.part(slice(2, 4)))


def test_scenes_that_show_little_are_replaced_by_the_next(monkeypatch):
    render, asked = SyntheticSource._render, []

    def choosy(self, seeds, config):
        asked.append(list(seeds))
        scenes, _ = render(self, seeds, config)
        return scenes, torch.tensor([seed not in (30, 31, 32) for seed in seeds])

    monkeypatch.setattr(SyntheticSource, "_render", choosy)
    source = replace(SOURCE, scene_frames=2)
    clips = source.clips([40, 30], 2, (1, 1), HW)
    assert asked == [[40, 30], [31], [32], [33]]
    monkeypatch.undo()
    good = source.clips([33], 2, (1, 1), HW)
    assert {tuple(c.flatten().tolist()) for c in clips.depth[1]} == {tuple(c.flatten().tolist()) for c in good.depth[0]}

    nothing = lambda self, seeds, config: (scenes, torch.zeros(len(seeds), dtype=torch.bool))  # noqa: E731
    scenes = clips
    monkeypatch.setattr(SyntheticSource, "_render", nothing)
    with pytest.raises(ValueError, match="100 scenes from seed 30"):
        source.clips([30], 2, (1, 1), HW)


def test_a_wall_from_too_near_and_a_sky_are_no_scenes(monkeypatch, scenes):
    depth = torch.ones(4, 2, 56, 56)
    depth[1, 1, :40] = 0  # 29 % of one frame are left
    depth[2, 1, 3, 3] = 0.04
    depth[3, 0, :38] = 0  # 32 %
    made = ClipBatch(scenes.images, depth, depth > 0, scenes.extrinsics, scenes.intrinsics)
    monkeypatch.setattr("streamvggt.data.render_clips", lambda *_, **__: made)
    assert SOURCE._render([0, 1, 2, 3], SOURCE.config)[1].tolist() == [True, False, False, True]


NONE = Augmentation(contrast=0, tint=0, exposure=0, noise=0, blur=0, gray=0)


def test_no_augmentation_changes_nothing():
    images = torch.rand(3, 3, 20, 20)
    images[0, 0, 0] = torch.linspace(0, 1, 20)
    for seed in range(20):
        assert (NONE(images, seed) - images).abs().max() <= 1 / 255


@pytest.mark.parametrize("name", [f.name for f in fields(Augmentation)])
def test_each_strength_does_something_and_none_is_needed(name):
    images = torch.rand(3, 3, 20, 20)
    only = replace(NONE, **{name: 1.0 if name in ("blur", "gray") else 0.3})
    assert (only(images, 1) - images).abs().max() > 0.02
    without = replace(Augmentation(blur=1, gray=0), **{name: 0})
    assert without(images, 1).isfinite().all()


def test_colours_stay_in_range_are_decided_by_the_seed_and_leave_the_input_alone():
    images = torch.rand(3, 3, 20, 20)
    before, results = images.clone(), set()
    for seed in range(40):
        changed = Augmentation()(images, seed)
        assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
        assert torch.equal(changed, Augmentation()(images, seed))
        results.add(changed.sum().item())
    assert len(results) == 40 and torch.equal(images, before)


def test_gray_clips_have_no_colour_whatever_else_is_done():
    images = torch.rand(3, 3, 20, 20)
    for seed in range(10):
        changed = Augmentation(gray=1.0)(images, seed)
        assert torch.equal(changed[:, 0], changed[:, 1]) and torch.equal(changed[:, 0], changed[:, 2])
    gray = sum(torch.equal(c[:, 0], c[:, 1]) for c in (Augmentation(gray=0.25)(images, seed) for seed in range(200)))
    assert 30 <= gray <= 70


def test_blur_is_the_binomial_kernel_and_exposure_drifts_evenly():
    dot = torch.full((1, 3, 9, 9), 0.001)
    dot[:, :, 4, 4] = 0.801
    blurred = replace(NONE, blur=1.0)(dot, 0)
    assert blurred[0, 0, 4, 4].item() == pytest.approx(0.201, abs=1e-5)
    assert blurred[0, 1, 4, 5].item() == pytest.approx(0.101, abs=1e-5)
    assert blurred[0, 2, 3, 5].item() == pytest.approx(0.051, abs=1e-5)
    flat = torch.full((3, 3, 4, 4), 0.3)
    logs = (replace(NONE, exposure=0.4)(flat, 0)[:, 0, 0, 0] / 0.3).log()
    assert logs.diff()[0].item() == pytest.approx(logs.diff()[1].item(), abs=1e-6)
    assert 0 < abs(logs.diff()[0].item()) <= 0.4 / 4
    assert abs(logs[1].item()) <= 0.4


def test_colours_change_what_is_seen_and_not_what_is_true():
    plain = replace(STREAM, augment=None)
    coloured = STREAM[0]
    for f in fields(ClipBatch):
        a, b = getattr(plain[0], f.name), getattr(coloured, f.name)
        assert torch.equal(a, b) == (f.name != "images")
    assert all((a - b).abs().max() > 0.02 for a, b in zip(plain[0].images, coloured.images, strict=True))


def test_clips_move_to_a_device_and_come_in_parts(scenes):
    assert scenes.to("meta").depth.device.type == "meta"
    part = scenes.part(torch.tensor([3, 1]))
    assert torch.equal(part.depth[0], scenes.depth[3]) and torch.equal(part.images[1], scenes.images[1])
