"""Sizes that do not fit each other are refused when the configuration is made."""

from dataclasses import replace

import pytest

from streamvggt import StreamVGGTConfig, TrackConfig


@pytest.mark.parametrize(
    "sizes",
    [
        {"encoder": "resnet"},
        {"attention": "both"},
        {"image_size": 0},
        {"image_size": 100},
        {"num_heads": 5},
        {"encoder_num_heads": 5},
        {"camera_num_heads": 5},
        {"camera_iterations": 0},
        {"dense_features": 20},
        {"dense_channels": (8, 16, 24, 22)},
        {"dense_layers": (0, 1, 2, 4)},
        {"dense_layers": (0, 1, 2)},
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_by_name(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        replace(StreamVGGTConfig.tiny(), **sizes)


@pytest.mark.parametrize("sizes", [{"features": 18}, {"hidden_size": 36}], ids=str)
def test_tracker_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="features must be a multiple of 4 and its hidden_size of 8"):
        TrackConfig(**sizes)


@pytest.mark.parametrize("preset", [StreamVGGTConfig.vggt_1b, StreamVGGTConfig.small, StreamVGGTConfig.tiny])
def test_json_carries_a_configuration_there_and_back(preset):
    config = preset()
    assert StreamVGGTConfig.from_json(config.to_json()) == config


def test_unknown_sizes_in_json_name_themselves():
    with pytest.raises(ValueError, match="wings"):
        StreamVGGTConfig.from_json('{"wings": 2}')
