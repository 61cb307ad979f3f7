"""Losses against numbers worked out by hand, loops, and the exact truth of made-up scenes."""

import math
from dataclasses import fields, replace

import pytest
import torch

from streamvggt import losses
from streamvggt.losses import LossConfig, Matches, camera_loss, depth_loss, gradient_loss, masked_mean, point_loss
from streamvggt.synthetic import SyntheticConfig, render_clips

PLAIN = LossConfig()
PUBLISHED = LossConfig.published()
BAD = [math.nan, math.inf, -math.inf, 1e30, -3.0]


def maps(batch=2, seed=0, channels=()):
    """Prediction, confidence, target and mask of maps [B, 2, 8, 10]."""
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, 2, 8, 10)
    said = torch.rand(*shape, *channels, generator=rng) + 0.5
    conf = torch.rand(shape, generator=rng) + 1
    truth = torch.rand(*shape, *channels, generator=rng) + 0.5
    return said, conf, truth, torch.rand(shape, generator=rng) < 0.7


def random_matches(b=2, s=3, n=6, seed=1):
    rng = torch.Generator().manual_seed(seed)
    visible = (torch.rand(b, s, s, n, generator=rng) < 0.6) & ~torch.eye(s, dtype=torch.bool)[None, :, :, None]
    return Matches(
        patch=torch.randint(n, (b, s, s, n), generator=rng),
        xy=torch.rand(b, s, s, n, 2, generator=rng) * 56,
        visible=visible,
        depth=torch.rand(b, s, n, generator=rng) + 0.5,
        valid=torch.rand(b, s, n, generator=rng) < 0.7,
        centres=torch.rand(n, 2, generator=rng) * 56,
    )


def half(matches, clips):
    parts = {f.name: getattr(matches, f.name)[clips] for f in fields(matches) if f.name != "centres"}
    return replace(matches, **parts)


def test_the_published_preset_has_the_numbers_of_the_paper():
    assert (PUBLISHED.camera, PUBLISHED.depth, PUBLISHED.points) == (20, 20, 10)
    assert PUBLISHED.camera_huber == 0.1 and PUBLISHED.camera_weights == (1, 1, 0.5)
    assert PUBLISHED.camera_units == (1, 1, 1) and PUBLISHED.confidence == 0.1
    assert PUBLISHED.align and PUBLISHED.depth_space == "linear" and PUBLISHED.depth_gradient == 1
    additions = ("feature", "descriptor", "guide", "displacement", "patch_depth")
    assert all(getattr(PUBLISHED, name) == 0 for name in additions)


def test_the_camera_loss_is_huber_on_all_nine_numbers():
    target = torch.zeros(1, 1, 9)
    for place, error, expected in (
        (0, 0.05, 0.5 * 0.05**2 / 3),  # below the threshold: square
        (2, 0.30, 0.1 * (0.30 - 0.05) / 3),  # above it: straight
        (6, -0.5, 0.1 * (0.50 - 0.05) / 4),
        (7, 0.20, 0.5 * 0.1 * (0.20 - 0.05) / 2),  # the field of view counts half
        (8, 0.20, 0.5 * 0.1 * (0.20 - 0.05) / 2),
    ):
        rounds = torch.zeros(1, 1, 1, 9)
        rounds[..., place] = error
        assert camera_loss(rounds, target, PUBLISHED).item() == pytest.approx(expected, rel=1e-5)


def test_the_camera_loss_counts_errors_in_units_and_later_rounds_more():
    rounds = torch.zeros(2, 1, 2, 9)
    rounds[0, :, :, 0] = 0.3  # two units of 0.15, so 2 - 0.5, over three numbers
    rounds[1, :, 1, 3] = 0.03  # half a unit in one of two frames, over four numbers
    first, second = 1.5 / 3, 0.125 / 4 / 2
    expected = (0.6 * first + second) / 1.6
    assert camera_loss(rounds, torch.zeros(1, 2, 9), PLAIN).item() == pytest.approx(expected, rel=1e-5)


def test_depth_by_hand():
    depth = torch.full((1, 1, 5, 5), 2.0)
    depth[..., 0, 0] = 4.0
    conf, target, valid = torch.full_like(depth, 2.0), torch.ones_like(depth), torch.ones_like(depth, dtype=torch.bool)
    without_corner = valid.clone()
    without_corner[..., 0, 0] = False
    worth = 0.1 * math.log(2)
    expected = 2 * math.log(2) - worth
    assert depth_loss(depth, conf, target, without_corner, PLAIN).item() == pytest.approx(expected, rel=1e-5)
    # One of 20, 15 and 5 differences over 1, 2 and 4 pixels, across and down.
    gradient = math.log(2) * (1 / 20 + 1 / 15 + 1 / 5) / 3
    expected = 2 * (26 / 25) * math.log(2) - worth + gradient
    assert depth_loss(depth, conf, target, valid, PLAIN).item() == pytest.approx(expected, rel=1e-5)
    linear = replace(PLAIN, depth_space="linear", depth_gradient=0.0)
    expected = 2 * (24 * 1 + 3) / 25 - worth
    assert depth_loss(depth, conf, target, valid, linear).item() == pytest.approx(expected, rel=1e-5)


def test_gradients_equal_a_loop():
    said, _, truth, valid = maps()
    total = 0.0
    for step in (1, 2, 4):
        for dy, dx in ((0, step), (step, 0)):
            per_clip = []
            for b in range(2):
                found = []
                for s in range(2):
                    for y in range(8 - dy):
                        for x in range(10 - dx):
                            a, c = (b, s, y, x), (b, s, y + dy, x + dx)
                            if valid[a] and valid[c]:
                                found.append(abs((said[c] - said[a]) - (truth[c] - truth[a])).item())
                per_clip.append(sum(found) / len(found))
            total += sum(per_clip) / 2 / 6
    assert gradient_loss(said, truth, valid).item() == pytest.approx(total, rel=1e-5)


def test_points_equal_a_loop():
    said, conf, truth, valid = maps(channels=(3,))
    per_clip = []
    for b in range(2):
        found = []
        for place in valid[b].nonzero().tolist():
            p, t, c = said[(b, *place)], truth[(b, *place)], conf[(b, *place)].item()
            error = math.dist(p.tolist(), t.tolist()) / (0.2 + math.hypot(*t.tolist()))
            found.append(error * c - 0.1 * math.log(c))
        per_clip.append(sum(found) / len(found))
    assert point_loss(said, conf, truth, valid, PLAIN).item() == pytest.approx(sum(per_clip) / 2, rel=1e-5)


def plane(normal, hw=(12, 12)):
    """Points of a plane through (0, 0, 1), seen by a camera of one radian or so."""
    y, x = torch.meshgrid(*(torch.linspace(-0.5, 0.5, n) for n in hw), indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1)
    normal = torch.tensor(normal)
    return (rays * (normal[2] / (rays @ normal))[..., None])[None, None]


def test_published_points_compare_surface_normals():
    flat, tilted = plane([0.0, 0.0, 1.0]), plane([0.0, 0.5, 1.0])
    conf, valid = torch.ones(flat.shape[:-1]), torch.ones(flat.shape[:-1], dtype=torch.bool)
    with_normals = point_loss(tilted, conf, flat, valid, PUBLISHED)
    scale = (tilted * flat).sum() / (tilted * tilted).sum()
    error = (scale * tilted - flat).norm(dim=-1) / (0.2 + flat.norm(dim=-1))
    between = 1 - 1 / math.hypot(1, 0.5)  # one minus the cosine, the same in all places and at strides 1, 2, 4
    assert with_normals.item() == pytest.approx(error.mean().item() + between, rel=1e-4)


def test_alignment_makes_scale_and_shift_of_depth_and_scale_of_points_free():
    said, conf, truth, valid = maps()
    loss = depth_loss(said, conf, truth, valid, PUBLISHED).item()
    assert depth_loss(7 * said + 3, conf, truth, valid, PUBLISHED).item() == pytest.approx(loss, rel=1e-4)
    fitted = depth_loss(0.3 * truth - 2, torch.ones_like(conf), truth, valid, PUBLISHED).item()
    assert fitted == pytest.approx(0, abs=1e-5)
    assert depth_loss(7 * said + 3, conf, truth, valid, PLAIN).item() > 2 * loss
    said, conf, truth, valid = maps(channels=(3,))
    loss = point_loss(said, conf, truth, valid, PUBLISHED).item()
    assert point_loss(7 * said, conf, truth, valid, PUBLISHED).item() == pytest.approx(loss, rel=1e-4)


def test_each_clip_is_aligned_by_itself_in_the_sense_of_least_squares():
    said, conf, truth, valid = maps()
    errors = []
    for b in range(2):
        v, t = said[b][valid[b]].double(), truth[b][valid[b]].double()
        solution = torch.linalg.lstsq(torch.stack([v, torch.ones_like(v)], 1), t[:, None]).solution
        fitted = v * solution[0] + solution[1]
        errors.append((fitted - t).abs().mean().item())
    config = replace(PUBLISHED, depth_gradient=0.0)
    loss = depth_loss(said, torch.ones_like(conf), truth, valid, config).item()
    assert loss == pytest.approx(sum(errors) / 2, rel=1e-4)


def named_losses():
    """Each loss as a function of a slice of clips."""
    said, conf, truth, valid = maps(batch=4)
    points, points_conf, points_truth, _ = maps(batch=4, channels=(3,), seed=3)
    rng = torch.Generator().manual_seed(5)
    rounds, poses = torch.randn(3, 4, 2, 9, generator=rng), torch.randn(4, 2, 9, generator=rng)
    matches = random_matches(b=4)
    queries, keys = torch.randn(2, 4, 2, 3, 8, 5, generator=rng).unbind(0)
    descriptors, moved = torch.randn(4, 3, 6, 5, generator=rng), torch.randn(4, 3, 6, 2, generator=rng)
    temperature = torch.tensor(3.0)
    tokens = {i: torch.randn(2, 4, 3, 8, 6, generator=rng) for i in (0, 2)}
    return {
        "camera": lambda i: camera_loss(rounds[:, i], poses[i], PUBLISHED),
        "depth": lambda i: depth_loss(said[i], conf[i], truth[i], valid[i], PLAIN),
        "depth published": lambda i: depth_loss(said[i], conf[i], truth[i], valid[i], PUBLISHED),
        "gradient": lambda i: gradient_loss(said[i], truth[i], valid[i]),
        "points": lambda i: point_loss(points[i], points_conf[i], points_truth[i], valid[i], PLAIN),
        "points published": lambda i: point_loss(points[i], points_conf[i], points_truth[i], valid[i], PUBLISHED),
        "feature": lambda i: losses.feature_loss(*({n: x[k, i] for n, x in tokens.items()} for k in (0, 1))),
        "descriptor": lambda i: losses.descriptor_loss(descriptors[i], temperature, half(matches, i)),
        "guide": lambda i: losses.guide_loss(queries[i], keys[i], 2, half(matches, i)),
        "displacement": lambda i: losses.displacement_loss(moved[i], half(matches, i), 56),
        "patch depth": lambda i: losses.patch_depth_loss(moved[i, ..., 0], half(matches, i)),
    }


@pytest.mark.parametrize("name", named_losses())
def test_the_loss_of_a_batch_is_the_mean_of_its_halves(name):
    loss = named_losses()[name]
    halves = (loss(slice(2)) + loss(slice(2, 4))) / 2
    assert abs(loss(slice(2)) - loss(slice(2, 4))) > 1e-4  # or this would show nothing
    torch.testing.assert_close(loss(slice(4)), halves, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("config", [PLAIN, PUBLISHED], ids=["plain", "published"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("what", ["depth", "points"])
def test_pixels_that_are_not_valid_change_neither_value_nor_gradient(what, bad, config):
    loss, channels = (depth_loss, ()) if what == "depth" else (point_loss, (3,))
    said, conf, truth, valid = maps(channels=channels)
    results = []
    for filling in (1.0, bad):
        parts = [x.clone() for x in (said, conf, truth)]
        for part in parts:
            part[~valid] = filling
        parts[0].requires_grad_(), parts[1].requires_grad_()
        value = loss(*parts, valid, config)
        value.backward()
        results.append((value.detach(), parts[0].grad, parts[1].grad))
        assert results[-1][1].isfinite().all() and results[-1][2].isfinite().all()
        assert (results[-1][1][~valid] == 0).all() and (results[-1][2][~valid] == 0).all()
        assert results[-1][1].abs().sum() > 0
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_what_no_patch_shows_changes_neither_value_nor_gradient():
    matches = random_matches()
    seen, known = matches.visible[:, :, 0], matches.valid
    results = []
    for filling in (0.0, *BAD):
        xy, depth = matches.xy.clone(), matches.depth.clone()
        xy[:, :, 0][~seen], depth[~known] = filling, filling
        garbled = replace(matches, xy=xy, depth=depth)
        moved = torch.ones(2, 3, 6, 2)
        moved[~seen] = filling
        logs = torch.ones(2, 3, 6)
        logs[~known] = filling
        for said in (moved, logs):
            said.requires_grad_()
        loss = losses.displacement_loss(moved, garbled, 56) + losses.patch_depth_loss(logs, garbled)
        loss.backward()
        results.append((loss.detach(), moved.grad, logs.grad))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("config", [PLAIN, PUBLISHED], ids=["plain", "published"])
def test_a_clip_without_any_valid_pixel_counts_zero(config):
    said, conf, truth, valid = maps()
    for loss, channels in ((depth_loss, ()), (point_loss, (3,))):
        said, conf, truth, valid = maps(channels=channels)
        valid[1] = False
        said.requires_grad_()
        value = loss(said, conf, truth, valid, config)
        assert value.item() == pytest.approx(loss(said[:1], conf[:1], truth[:1], valid[:1], config).item() / 2)
        nothing = loss(said, conf, truth, torch.zeros_like(valid), config)
        assert nothing.item() == 0
        (value + nothing).backward()
        assert said.grad.isfinite().all()


def test_the_mean_counts_every_clip_the_same():
    values = torch.tensor([[1.0, 3.0, 100.0], [10.0, 20.0, 30.0], [7.0, 8.0, 9.0]])
    mask = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    assert masked_mean(values, mask).item() == pytest.approx((2 + 30 + 0) / 3)


def test_equal_tokens_have_no_feature_loss_and_opposite_ones_two():
    tokens = {0: torch.randn(1, 2, 3, 4), 3: torch.randn(1, 2, 3, 4)}
    assert losses.feature_loss(tokens, tokens).item() == pytest.approx(0, abs=1e-6)
    assert losses.feature_loss(tokens, {i: 5 * x for i, x in tokens.items()}).item() == pytest.approx(0, abs=1e-6)
    assert losses.feature_loss(tokens, {i: -x for i, x in tokens.items()}).item() == pytest.approx(2, abs=1e-5)


def test_descriptors_equal_a_loop_over_pairs():
    matches, rng = random_matches(), torch.Generator().manual_seed(2)
    descriptors, total = torch.randn(2, 3, 6, 5, generator=rng), 0.0
    for b in range(2):
        found = []
        for i, j, n in matches.visible[b].nonzero().tolist():
            scores = [2.5 * float(descriptors[b, i, n] @ descriptors[b, j, m]) for m in range(6)]
            right = scores[int(matches.patch[b, i, j, n])]
            found.append(math.log(sum(math.exp(score) for score in scores)) - right)
        total += sum(found) / len(found) / 2
    loss = losses.descriptor_loss(descriptors, torch.tensor(2.5), matches)
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_the_guide_equals_a_loop_over_keys_and_never_sees_the_future():
    matches, rng = random_matches(), torch.Generator().manual_seed(2)
    queries, keys = torch.randn(2, 2, 3, 3, 8, 5, generator=rng).unbind(0)  # 2 special tokens and 6 patches
    total = 0.0
    for head, reference in ((0, lambda s: 0), (1, lambda s: s - 1)):
        for b in range(2):
            found = []
            for s in (1, 2):
                for n in range(6):
                    if not matches.visible[b, s, reference(s), n]:
                        continue
                    query = queries[b, head, s, 2 + n]
                    past = [keys[b, head, f, p] for f in range(s + 1) for p in range(8)]
                    scores = [float(query @ key) / math.sqrt(5) for key in past]
                    right = scores[8 * reference(s) + 2 + int(matches.patch[b, s, reference(s), n])]
                    found.append(math.log(sum(math.exp(score) for score in scores)) - right)
            total += sum(found) / len(found) / 4
    keys.requires_grad_()
    loss = losses.guide_loss(queries, keys, 2, matches)
    assert loss.item() == pytest.approx(total, rel=1e-5)

    only_frame_1 = matches.visible.clone()
    only_frame_1[:, 2] = False
    losses.guide_loss(queries, keys, 2, replace(matches, visible=only_frame_1)).backward()
    assert (keys.grad[:, :, 2] == 0).all() and (keys.grad[:, :2, :2] != 0).any()
    assert (keys.grad[:, 2:] == 0).all()  # two heads are guided, the third is free


def test_displacement_and_patch_depth_by_hand():
    matches = random_matches(b=1, s=2, n=2)
    visible = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    visible[0, 1, 0, 0] = True
    matches = replace(matches, visible=visible, valid=visible[:, :, 0], depth=torch.full((1, 2, 2), math.e))
    matches.xy[0, 1, 0, 0], matches.centres[0] = torch.tensor([31.0, 21.0]), torch.tensor([10.0, 35.0])
    # 21 right and 14 up, in half widths of 28 pixels
    said = torch.tensor([0.75 + 0.3, -0.5 - 0.4]).expand(1, 2, 2, 2)
    assert losses.displacement_loss(said, matches, 56).item() == pytest.approx(0.5, rel=1e-5)
    assert losses.patch_depth_loss(torch.full((1, 2, 2), 1.25), matches).item() == pytest.approx(0.25, rel=1e-5)


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    config = SyntheticConfig(num_frames=3, image_hw=(70, 84), moving_probability=0.0, shadows=False)
    return render_clips([3, 4, 8], config)


def matches_of(clip, **changes):
    given = {name: getattr(clip, name) for name in ("depth", "valid", "extrinsics", "intrinsics")}
    given["points"] = clip.world_points
    return losses.patch_matches(**(given | changes), patch=14)


def test_matches_agree_with_the_tracks_of_the_same_points(clip):
    matches = matches_of(clip)
    s, columns = 3, 6
    seen_both = differ = 0
    for query in range(s):
        # Patch centres among the points that the generator follows.
        tracks = clip.tracks(query, 4000, seed=0)
        for b in range(3):
            own = tracks.xy[b, query]
            pixel = own.round().long()
            centre = ((pixel % 14) == 7).all(-1) & (own - pixel).abs().amax(-1).lt(1e-2)
            for i in centre.nonzero().flatten().tolist():
                n = int(pixel[i, 1] // 14 * columns + pixel[i, 0] // 14)
                for other in range(s):
                    if other == query:
                        continue
                    theirs, ours = bool(tracks.visible[b, other, i]), bool(matches.visible[b, query, other, n])
                    differ += theirs != ours
                    if theirs and ours:
                        seen_both += 1
                        xy = tracks.xy[b, other, i]
                        assert (matches.xy[b, query, other, n] - xy).abs().max() < 0.02
                        x, y = (int(v) for v in xy.round().clamp_min(0))
                        assert matches.patch[b, query, other, n] == min(y // 14, 4) * columns + min(x // 14, 5)
    assert seen_both > 100
    assert differ < 0.1 * seen_both  # one takes the nearest pixel within 6 %, the other the farthest of four


def test_what_is_hidden_or_has_moved_does_not_match(clip):
    matches = matches_of(clip)
    assert matches.visible[:, 1, 0].float().mean() > 0.2
    # Something comes in front of everything in frame 0.
    hidden = clip.depth.clone()
    hidden[:, 0] *= 0.5
    assert not matches_of(clip, depth=hidden).visible[:, 1:, 0].any()
    # Everything in frame 0 is gone, and the patches of the others look into the open.
    assert (
        not matches_of(clip, depth=torch.where(torch.arange(3)[:, None, None] == 0, 9e9, clip.depth))
        .visible[:, 1:, 0]
        .any()
    )
    # A thing that moved by more than the tolerance along the line of sight of frame 0.
    moved = clip.world_points.clone()
    moved[:, 1] *= 1.1
    assert not matches_of(clip, points=moved).visible[:, 1, 0].any()
    # Unknown depth is no match, whatever stands there.
    unknown = clip.valid.clone()
    unknown[:, 0] = False
    assert not matches_of(clip, valid=unknown).visible[:, :, 0].any()
    assert not matches_of(clip, valid=unknown).visible[:, 0].any()


def test_identical_frames_match_themselves_and_a_frame_never_itself(clip):
    first = {name: getattr(clip, name)[:, :1].expand(-1, 3, *[-1] * (getattr(clip, name).ndim - 2))
             for name in ("depth", "valid", "extrinsics", "intrinsics")}  # fmt: skip
    matches = matches_of(clip, **first, points=clip.world_points[:, :1].expand(-1, 3, -1, -1, -1))
    own = torch.eye(3, dtype=torch.bool)[None, :, :, None]
    assert torch.equal(matches.visible, matches.valid[:, :, None] & ~own)
    assert (matches.patch[matches.visible] == torch.arange(30).expand_as(matches.patch)[matches.visible]).all()
    torch.testing.assert_close(
        matches.xy[matches.visible], matches.centres.expand_as(matches.xy)[matches.visible], rtol=0, atol=1e-3
    )
