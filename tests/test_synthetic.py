"""Made-up scenes: the truth that comes with them must be true."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from streamvggt.synthetic import SyntheticClip, SyntheticConfig, TextureBank, raycast, render_clips
from streamvggt.synthetic.raycast import Solids, blocked, nearest
from streamvggt.synthetic.sampling import sample_world
from streamvggt.synthetic.shading import render
from streamvggt.synthetic.textures import SIDE, procedural_bank

SMALL = SyntheticConfig(num_frames=4, image_hw=(84, 112))
STILL = replace(SMALL, moving_probability=0.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Frames are small: where the cores are busy, threads that wait for each other are several times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def still():
    return render_clips(range(6), STILL, "cpu")


@pytest.fixture(scope="module")
def moving():
    return render_clips(range(6), replace(SMALL, moving_probability=1.0, shadows=False), "cpu")


def random_solids(count, seed):
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))[:, None, None]
    center = rng.uniform([-2, -2, 1], [2, 2, 6], size=(count, 3))
    half = rng.uniform(0.05, 0.8, size=(count, 3))
    roundness = np.array([(0, 0), (1, 1), (1, 0)])[rng.integers(3, size=count)]
    poses = np.concatenate([rotation, center[:, :, None]], 2)
    return poses, half, roundness, rng.random(count) < 0.8


def contains(poses, half, roundness, points):
    """Whether each solid contains each point: [points, solids]."""
    local = np.einsum("nji,pnj->pni", poses[:, :, :3], points[:, None] - poses[:, :, 3]) / half
    quadric = roundness[:, 0] * (local[..., 0] ** 2 + local[..., 2] ** 2) + roundness[:, 1] * local[..., 1] ** 2
    return (np.abs(local) <= 1).all(-1) & (quadric <= 1)


def test_a_ray_stops_where_it_first_enters_a_solid():
    poses, half, roundness, active = random_solids(40, seed=0)
    solids = Solids(
        *(torch.tensor(value)[None].float() for value in (poses, half, roundness)), torch.tensor(active)[None]
    )
    y, x = torch.meshgrid(torch.linspace(-0.7, 0.7, 70), torch.linspace(-0.7, 0.7, 70), indexing="ij")
    directions = torch.stack([x, y, torch.ones_like(x)]).unflatten(2, (10, 7)).unflatten(1, (10, 7))
    directions = directions.transpose(2, 3).reshape(3, 1, 100, 49)
    far = torch.full((1, 100, 49), 20.0)
    parameter, hit = nearest(solids, torch.zeros(1, 3), directions, far)

    poses, half, roundness = poses[active], half[active], roundness[active]
    number = np.flatnonzero(active)
    rays = directions.reshape(3, -1).double().numpy().T
    steps = np.arange(0.0, 8.0, 0.01)
    for ray, t, solid in list(zip(rays, parameter.flatten().numpy(), hit.flatten().numpy(), strict=True))[::37]:
        inside = contains(poses, half, roundness, steps[:, None] * ray)
        assert not inside[steps < t - 1e-5].any()
        if solid < 0:
            assert t == 20
        else:
            before, after = contains(poses, half, roundness, np.array([[t - 1e-4], [t + 1e-4]]) * ray)
            corner = after.sum() == 0  # cut off so little that it is left again at once
            assert corner or (not before.any() and number[after.argmax()] == solid)
    assert 0.3 < (hit >= 0).float().mean() < 0.95
    assert len(hit.unique()) > 20


def test_trying_only_likely_pairs_of_tile_and_solid_changes_nothing(still, monkeypatch):
    def every_pair(solids, origins, directions, limit):
        tile = torch.arange(directions.shape[2])
        return tuple(pairs.flatten() for pairs in torch.meshgrid(tile, solids.active[0].nonzero()[:, 0], indexing="ij"))

    monkeypatch.setattr(raycast, "_candidates", every_pair)
    slow = render_clips(range(6), STILL, "cpu")
    for name in ("images", "depth", "surface"):
        assert torch.equal(getattr(slow, name), getattr(still, name))


def test_solids_behind_and_around_the_start_are_not_hit():
    poses = torch.eye(3, 4).repeat(1, 3, 1, 1)
    poses[0, :, 2, 3] = torch.tensor([-3.0, 0.1, 5.0])  # behind, around the start, in front
    solids = Solids(poses, torch.ones(1, 3, 3), torch.ones(1, 3, 2), torch.ones(1, 3, dtype=torch.bool))
    ahead = torch.tensor([0.0, 0, 1]).view(3, 1, 1, 1)
    parameter, hit = nearest(solids, torch.zeros(1, 3), ahead, torch.full((1, 1, 1), 20.0))
    assert parameter.item() == pytest.approx(4) and hit.item() == 2


def test_a_shadow_falls_where_a_solid_stands_in_the_light():
    sphere = Solids(
        torch.eye(3, 4)[None, None] + torch.tensor([0.0, 0, 5])[:, None] * torch.tensor([0.0, 0, 0, 1]),
        torch.full((1, 1, 3), 1.0), torch.ones(1, 1, 2), torch.ones(1, 1, dtype=torch.bool),
    )  # fmt: skip
    # From the light to the ground 10 away; the sphere's silhouette has a half angle with tangent 1 / sqrt(24).
    x = torch.linspace(-4, 4, 49)
    to_ground = torch.stack([x, torch.zeros(49), torch.full((49,), 10.0)])[:, None, None]
    dark = blocked(sphere, torch.zeros(1, 3), to_ground, torch.ones(1, 1, 49))[0, 0]
    assert dark.tolist() == (x.abs() < 10 / 24**0.5).tolist()
    lit = blocked(sphere, torch.zeros(1, 3), to_ground * 0.3, torch.ones(1, 1, 49))  # the ground before the sphere
    assert not lit.any()


def test_a_sphere_over_a_plane_has_the_depth_computed_by_hand():
    world = sample_world([0], replace(STILL, num_frames=1)).to(torch.device("cpu")).frames(0, 1)
    active = torch.zeros_like(world.active)
    active[:, [0, -1]] = True
    poses = torch.eye(3, 4).expand_as(world.poses).clone()
    poses[:, 0, :, 3] = torch.tensor([0.2, -0.1, 3.0])
    half_sizes = world.half_sizes.clone()
    half_sizes[:, 0], half_sizes[:, -1] = 0.5, torch.tensor([200.0, 1.0, 200.0])
    roundness = torch.ones_like(world.roundness)
    roundness[:, -1] = 0
    no = torch.zeros(1, dtype=torch.bool)
    intrinsics = torch.tensor([[[100.0, 0, 56], [0, 100, 42], [0, 0, 1]]])
    world = replace(
        world, active=active, poses=poses, half_sizes=half_sizes, roundness=roundness, walls=no, ceiling=no,
        intrinsics=intrinsics,
    )  # fmt: skip
    out = render(world, procedural_bank(torch.device("cpu")), (84, 112), shadows=True)

    expected, surface = np.zeros((84, 112)), np.full((84, 112), world.active.shape[1] - 1)
    for v in range(84):
        for u in range(112):
            ray, center = np.array([(u - 56) / 100, (v - 42) / 100, 1]), np.array([0.2, -0.1, 3.0])
            a, b, c = ray @ ray, ray @ center, center @ center - 0.25
            if b * b - a * c > 0:
                expected[v, u], surface[v, u] = (b - np.sqrt(b * b - a * c)) / a, 0
            elif 200 * ray[1] > 1:
                expected[v, u] = 1 / ray[1]  # the ground is the plane y = 1
    np.testing.assert_allclose(out.depth[0].numpy(), expected, rtol=1e-4)
    np.testing.assert_array_equal(out.surface[0].numpy(), surface)
    assert (out.radiance >= 0).all()


def test_depth_warped_to_another_frame_lands_on_the_same_surface(still):
    points, checked, wrong = still.world_points.double().numpy(), 0, 0
    for b in range(6):
        for s in range(1, 4):
            pose, intrinsics = still.extrinsics[b, s].double().numpy(), still.intrinsics[b, s].double().numpy()
            in_camera = points[b, 0].reshape(-1, 3) @ pose[:, :3].T + pose[:, 3]
            depth = in_camera[:, 2]
            xy = (in_camera @ intrinsics.T)[:, :2] / np.where(depth, depth, 1)[:, None]
            x0, y0 = np.floor(xy).astype(int).T
            ok = still.valid[b, 0].flatten().numpy() & (depth > 0.05) & (x0 >= 1) & (x0 < 110) & (y0 >= 1) & (y0 < 82)
            x0, y0, depth, (x, y) = x0[ok], y0[ok], depth[ok], (xy[ok] - np.stack([x0, y0], 1)[ok]).T
            inverse = 1 / still.depth[b, s].double().numpy().clip(1e-3)
            surface = still.surface[b, s].numpy()
            window = [(i, j) for i in range(-1, 3) for j in range(-1, 3)]
            # Inverse depth is linear in the pixel on a plane, so interpolating it there is exact.
            around = np.stack([inverse[y0 + i, x0 + j] for i, j in window]).reshape(4, 4, -1)
            bend = np.abs(np.diff(around, 2, axis=0)).max((0, 1)) + np.abs(np.diff(around, 2, axis=1)).max((0, 1))
            same = np.stack([surface[y0 + i, x0 + j] for i, j in window]) == still.surface[b, 0].flatten().numpy()[ok]
            flat = same.all(0) & (bend < 1e-5 * around.mean((0, 1)))
            top = around[1, 1] * (1 - x) + around[1, 2] * x
            interpolated = top * (1 - y) + (around[2, 1] * (1 - x) + around[2, 2] * x) * y
            error = np.abs(depth * interpolated - 1)[flat]
            # The far side of a solid is the same solid and does not show.
            front = error < 0.02
            checked, wrong = checked + front.sum(), wrong + (error[front] > 1e-4).sum()
            assert front.mean() > 0.95
    assert checked > 50_000
    assert wrong == 0


def test_tracks_of_still_things_are_reprojections(still):
    tracks = still.tracks(query_frame=1, num_points=200, seed=0)
    assert tracks.xy.shape == (6, 4, 200, 2) and tracks.visible.shape == (6, 4, 200)
    query = tracks.xy[:, 1].round()
    assert (tracks.xy[:, 1] - query).abs().max() < 1e-3
    assert tracks.visible[:, 1].all()
    for b in range(6):
        x, y = query[b].long().T
        point = still.world_points[b, 1, y, x].double().numpy()
        for s in range(4):
            pose, intrinsics = still.extrinsics[b, s].double().numpy(), still.intrinsics[b, s].double().numpy()
            in_camera = point @ pose[:, :3].T + pose[:, 3]
            in_front = in_camera[:, 2] > 0.05
            xy = (in_camera @ intrinsics.T)[:, :2] / in_camera[:, 2:]
            np.testing.assert_allclose(tracks.xy[b, s].numpy()[in_front], xy[in_front], rtol=1e-3, atol=1e-2)
            assert not tracks.visible[b, s].numpy()[~in_front].any()
            outside = ((xy < -0.5) | (xy > [111.5, 83.5])).any(1)
            assert not tracks.visible[b, s].numpy()[outside].any()


def at(image, xy):
    """Look up [C, H, W] at [N, 2], bilinear."""
    size = torch.tensor([image.shape[2] - 1, image.shape[1] - 1])
    grid = (2 * xy / size - 1)[None, None]
    return torch.nn.functional.grid_sample(image[None], grid, padding_mode="border", align_corners=True)[0, :, 0].T


def test_visible_tracks_see_the_thing_they_lie_on_and_hidden_ones_another(still, moving):
    for clip in (still, moving):
        tracks = clip.tracks(query_frame=0, num_points=500, seed=1)
        same, hidden = [], []
        for b in range(6):
            x, y = tracks.xy[b, 0].round().long().T
            own = clip.surface[b, 0, y, x]
            for s in range(1, 4):
                x, y = tracks.xy[b, s].round().long().T
                inside = (x >= 0) & (x < 112) & (y >= 0) & (y < 84)
                seen = clip.surface[b, s, y.clamp(0, 83), x.clamp(0, 111)]
                same.append((seen == own)[tracks.visible[b, s]])
                hidden.append((seen == own)[inside & ~tracks.visible[b, s]])
        assert torch.cat(same).float().mean() > 0.97  # the rest is at the edge of a thing
        assert torch.cat(hidden).float().mean() < 0.5  # the rest is the far side of the same thing


def test_tracks_on_moving_things_keep_their_colour(moving):
    tracks = moving.tracks(query_frame=0, num_points=8000, seed=2)
    change, change_if_still, count = 0.0, 0.0, 0
    for b in range(6):
        travels = (tracks.world_points[b, 3] - tracks.world_points[b, 0]).norm(dim=-1) > 0.02
        kept = travels & tracks.visible[b, 3]
        if not kept.any():
            continue
        before = at(moving.images[b, 0], tracks.xy[b, 0, kept])
        pose, intrinsics = moving.extrinsics[b, 3], moving.intrinsics[b, 3]
        in_camera = tracks.world_points[b, 0, kept] @ pose[:, :3].T + pose[:, 3]
        left_behind = (in_camera @ intrinsics.T)[:, :2] / in_camera[:, 2:]
        change += (at(moving.images[b, 3], tracks.xy[b, 3, kept]) - before).abs().mean(1).sum().item()
        change_if_still += (at(moving.images[b, 3], left_behind) - before).abs().mean(1).sum().item()
        count += int(kept.sum())
    assert count > 300
    rotation = moving.surface_poses[..., :3]
    assert (rotation[:, 3] - rotation[:, 0]).abs().amax() > 0.05  # they turn, too
    assert change / count < 0.06
    assert change < 0.5 * change_if_still


def test_only_the_sky_is_invalid():
    rooms = render_clips([0, 1], replace(STILL, open_probability=0.0, num_frames=2), "cpu")
    assert rooms.valid.all() and (rooms.depth > 0).all()
    yards = render_clips(range(8), replace(STILL, open_probability=1.0, num_frames=1, closeup_probability=0.0), "cpu")
    assert 0.2 < yards.valid.float().mean() < 0.99
    assert ((yards.depth > 0) == yards.valid).all() and (yards.depth[~yards.valid] == 0).all()
    assert (yards.surface[~yards.valid] == yards.surface.max()).all()  # never in front of a thing


def test_a_seed_means_the_same_clip_in_any_company():
    together, alone = render_clips([7, 3, 5], SMALL, "cpu"), render_clips([3], SMALL, "cpu")
    for field in fields(SyntheticClip):
        if field.name != "seeds":
            assert torch.equal(getattr(together, field.name)[1], getattr(alone, field.name)[0]), field.name
    assert (together.images[0] - together.images[1]).abs().mean() > 0.02
    a, b = together.tracks(0, 50, seed=4), alone.tracks(0, 50, seed=4)
    assert torch.equal(a.xy[1], b.xy[0]) and torch.equal(a.visible[1], b.visible[0])
    assert not torch.equal(a.xy, together.tracks(0, 50, seed=5).xy)


def test_the_first_camera_is_the_world(still):
    assert torch.equal(still.extrinsics[:, 0], torch.eye(3, 4).expand(6, 3, 4))
    rotation = still.extrinsics[..., :3].double()
    assert (rotation @ rotation.mT - torch.eye(3)).abs().max() < 1e-6
    assert (torch.linalg.det(rotation) - 1).abs().max() < 1e-6
    assert (still.intrinsics[..., 0, 2] == 56).all() and (still.intrinsics[..., 1, 2] == 42).all()
    fov_deg = torch.rad2deg(2 * torch.atan(56 / still.intrinsics[..., 0, 0]))
    assert fov_deg.min() >= 35 and fov_deg.max() <= 100


def test_normalising_divides_by_the_mean_distance():
    # Focal length 1, centre (1, 1): pixel (u, v) at depth d is the point ((u - 1) d, (v - 1) d, d).
    intrinsics = torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 1]]).expand(1, 2, 3, 3)
    extrinsics = torch.eye(3, 4).repeat(1, 2, 1, 1)
    extrinsics[0, 1, 2, 3] = 4.0  # frame 1 is 4 behind the first camera: its points lie at z = depth - 4
    depth = torch.tensor([[[[2.0, 2], [0, 2]], [[0, 0], [0, 5]]]])
    clip = SyntheticClip(
        images=torch.zeros(1, 2, 3, 2, 2), depth=depth, valid=depth > 0, extrinsics=extrinsics, intrinsics=intrinsics,
        surface=torch.zeros(1, 2, 2, 2, dtype=torch.uint8), surface_poses=torch.eye(3, 4).repeat(1, 2, 1, 1, 1),
        seeds=(0,),
    )  # fmt: skip
    first = (12**0.5 + 8**0.5 + 2) / 3
    assert torch.allclose(clip.normalized().depth, depth / first)
    assert clip.normalized().extrinsics[0, 1, 2, 3].item() == pytest.approx(4 / first)
    every = (12**0.5 + 8**0.5 + 2 + 1) / 4
    assert torch.allclose(clip.normalized(over="all").depth, depth / every)
    blind = replace(clip, valid=torch.zeros_like(clip.valid))
    with pytest.raises(ValueError, match="without a valid pixel"):
        blind.normalized()
    with pytest.raises(ValueError, match="nothing but sky"):
        blind.tracks(0, 3, seed=0)
    with pytest.raises(ValueError, match=r'"first" or "all", got "last"|got \'last\''):
        clip.normalized(over="last")
    with pytest.raises(ValueError, match=r"in 0\.\.1, got 2"):
        clip.tracks(2, 3, seed=0)


def test_normalised_clips_stay_consistent(moving):
    unit = moving.normalized()
    distance = unit.world_points[:, 0].norm(dim=-1)
    mean = torch.stack([distance[b][unit.valid[b, 0]].mean() for b in range(6)])
    assert torch.allclose(mean, torch.ones(6), atol=1e-5)
    before, after = moving.tracks(0, 100, seed=0), unit.tracks(0, 100, seed=0)
    assert (before.xy - after.xy)[before.visible].abs().max() < 1e-2
    assert (before.visible == after.visible).float().mean() > 0.999


def test_pictures_show_something():
    clips = render_clips(range(100, 112), replace(SMALL, num_frames=2), "cpu")
    assert clips.images.min() >= 0 and clips.images.max() <= 1
    brightness = clips.images.mean((2, 3, 4))
    assert brightness.min() > 0.1 and brightness.max() < 0.75
    assert clips.images.std((3, 4)).mean(2).median() > 0.1
    assert clips.depth[clips.valid].min() > 0.05  # no camera inside a thing
    assert np.mean([len(surface.unique()) for surface in clips.surface[:, 0]]) > 8


def test_photographs_become_textures():
    photo = np.zeros((60, 90, 3), np.uint8)
    photo[:, 45:] = 200
    bank = TextureBank([photo])
    index = torch.full((5,), bank.num_textures - 1)
    u, v = torch.tensor([0.25, 0.75, 1.25, 1.75, -0.25]), torch.full((5,), 0.3)
    sharp = bank.sample(index, u, v, torch.full((5,), 1 / SIDE))
    # The texture repeats mirrored: u = 0 is its right edge, u = 1 its left, u = 2 its right again.
    expected = torch.tensor([200, 0, 0, 200, 200]) / 255
    assert torch.allclose(sharp, expected.expand(3, 5), atol=1e-5)
    rng = np.random.default_rng(0)
    photo = rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
    bank = TextureBank([photo])
    v, u = torch.meshgrid(*[(torch.arange(SIDE) + 0.5) / SIDE + 1] * 2, indexing="ij")  # the second, mirrored repeat
    texels = bank.sample(torch.full_like(u, bank.num_textures - 1).long(), u, v, torch.full_like(u, 1 / SIDE))
    np.testing.assert_allclose(255 * texels.permute(1, 2, 0).numpy(), photo, atol=0.5)


def test_photographs_blur_with_distance():
    photo = np.zeros((60, 90, 3), np.uint8)
    photo[:, 45:] = 200
    bank = TextureBank([photo])
    index, u, v = torch.full((5,), bank.num_textures - 1), torch.linspace(-3, 3, 5), torch.full((5,), 0.3)
    blurred = bank.sample(index, u, v, torch.full((5,), 2.0))
    assert torch.allclose(blurred, torch.full((3, 5), 100 / 255), atol=2e-3)
    with pytest.raises(ValueError, match=r"RGB uint8 \[h, w, 3\], got float64 \[4, 4, 3\]"):
        TextureBank([np.zeros((4, 4, 3))])


def test_a_far_texture_does_not_leak_its_neighbours():
    black, white = np.zeros((SIDE, SIDE, 3), np.uint8), np.full((SIDE, SIDE, 3), 255, np.uint8)
    bank = TextureBank([black, white, black])
    uv, footprint = torch.rand(2, 5000, generator=torch.Generator().manual_seed(0)) * 6 - 3, torch.logspace(-3, 1, 5000)
    color = bank.sample(torch.full((5000,), bank.num_textures - 2), uv[0], uv[1], footprint)
    assert color.min() > 0.999


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_hw": (100, 112)}, "multiples of 7"),
        ({"num_frames": 0}, "at least 1"),
        ({"fov_deg": (90.0, 40.0)}, "low end first"),
        ({"roll_probability": 1.5}, r"roll_probability must be in \[0, 1\]"),
    ],
)
def test_impossible_configurations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**wrong)


@pytest.mark.parametrize("seeds", [[], [3, -1]])
def test_seeds_must_be_numbers_from_zero(seeds):
    with pytest.raises(ValueError, match="seeds must be"):
        render_clips(seeds, SMALL, "cpu")


@pytest.mark.gpu
def test_a_gpu_renders_what_the_cpu_renders():
    here, there = render_clips([0, 1, 2], SMALL, "cpu"), render_clips([0, 1, 2], SMALL, "cuda")
    assert torch.equal(here.extrinsics, there.extrinsics.cpu())
    same = here.surface == there.surface.cpu()
    assert same.float().mean() > 0.999
    assert (here.depth / there.depth.cpu() - 1)[same & here.valid].abs().max() < 1e-3
    assert (here.images - there.images.cpu()).abs().mean() < 2e-3
