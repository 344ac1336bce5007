"""An industrial camera above the belt: lamp, pose, lens, motion, sensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edgetl.demo.images.shapes import Points
from edgetl.demo.images.surface import Surface
from edgetl.demo.images.textures import (
    FRAME_SIZE,
    FRAME_X,
    FRAME_Y,
    UNIT_PIXELS,
    Plane,
    as_plane,
    blur,
    fine_noise,
    pixel_grid,
    sample_profile,
    smooth_noise,
    smoothstep,
)

BELT_COLORS = ((0.07, 0.07, 0.08), (0.14, 0.15, 0.16), (0.06, 0.17, 0.12), (0.09, 0.15, 0.25))
"""Black, anthracite, green and blue: reflectance."""


def render_belt(generator: np.random.Generator, size: int, direction: float) -> Plane:
    """Reflectance [size, size, 3] of a belt that runs along `direction` (radians)."""
    rows, columns = pixel_grid(size)
    along = columns * np.float32(math.cos(direction)) + rows * np.float32(math.sin(direction))
    across = rows * np.float32(math.cos(direction)) - columns * np.float32(math.sin(direction))
    pitch = 2 * math.pi / generator.uniform(0.02, 0.1) / size
    first, second = (
        np.sin(along * np.float32(pitch)),
        np.sin(across * np.float32(pitch * generator.uniform(0.7, 1.4))),
    )
    pattern = (
        first,
        second,
        first * second,
        smoothstep(first * second, 0.3, 0.8),
        np.zeros_like(first),
    )[generator.integers(5)]
    strips = generator.standard_normal(size).astype(np.float32)
    streaks = sample_profile(strips, (across + np.float32(1.5 * size)) * np.float32(0.3))
    spots = smoothstep(smooth_noise(generator, size, int(generator.integers(6, 20))), 1.4, 2.2)
    shade = (
        1
        + generator.uniform(0, 0.12) * pattern
        + generator.uniform(0.02, 0.07) * smooth_noise(generator, size, 4)
        + generator.uniform(0, 0.06) * streaks
        + generator.uniform(0.02, 0.07) * fine_noise(generator, size, generator.uniform(0.3, 1))
        + generator.uniform(-0.15, 0.15) * spots
    )
    colour = np.array(BELT_COLORS[generator.integers(len(BELT_COLORS))]) * generator.uniform(
        0.75, 1.25
    ) + generator.uniform(-0.01, 0.02, 3)
    return np.clip(as_plane(shade)[..., None] * colour.astype(np.float32), 0.005, 1)


@dataclass(frozen=True)
class Scene:
    """Everything about a picture but the part that is in it."""

    size: int
    belt_reflectance: Plane
    """The belt's reflectance [size, size, 3]."""
    pose: NDArray[np.float64]
    """Homography from the part's frame to the picture."""
    angle: float
    """The part's rotation in radians."""
    lamp_direction: tuple[float, float, float]
    """Unit vector to the lamp: right, down, towards the camera."""
    lamp_proximity: float
    """How much the lamp's direction changes over the part: 0 is the sun."""
    light_shares: tuple[float, float, float]
    """Of ambient light, of the lamp and of its highlight."""
    illumination: Plane
    """Colour, slope and vignette of the light [size, size, 3]."""
    motion_kernel: Plane
    """Kernel of the belt's motion while the shutter is open."""
    defocus_sigma: float
    """In pixels."""
    sensor: tuple[float, float, int]
    """Shot noise at white and read noise, in grey levels; JPEG quality."""

    @classmethod
    def sample(
        cls, generator: np.random.Generator, size: int, outline: Points, tone: float
    ) -> Scene:
        """Any scene that shows the whole of a part with this outline, exposed for a part of reflectance `tone`."""
        direction, azimuth = generator.uniform(0, math.pi), generator.uniform(0, 2 * math.pi)
        tilt = generator.choice(
            [generator.uniform(0.05, 0.3), generator.uniform(0.4, 0.95)], p=[0.45, 0.55]
        )
        angle, pose = _sample_pose(generator, size, outline)
        return cls(
            size,
            render_belt(generator, size, direction),
            pose,
            angle,
            (
                math.sin(tilt) * math.cos(azimuth),
                math.sin(tilt) * math.sin(azimuth),
                math.cos(tilt),
            ),
            float(generator.uniform(0.1, 0.5)),
            (
                float(generator.uniform(0.15, 0.4)),
                float(generator.uniform(0.35, 0.75)),
                float(generator.uniform(0.3, 1.3)),
            ),
            _sample_illumination(generator, size, azimuth) * np.float32((0.55 / tone) ** 0.6),
            _sample_motion_kernel(generator, direction),
            float(generator.uniform(0.3, 0.8)),
            (
                float(generator.uniform(1.5, 5)),
                float(generator.uniform(0.5, 2)),
                int(generator.integers(72, 96)),
            ),
        )

    def expose(self, surface: Surface, light: Plane) -> Plane:
        """The picture in grey levels [size, size, 3] before noise, `light` being what `shade` gives for `surface`."""
        part = cv2.merge([surface.reflectance * light[..., None], surface.metal_mask])
        seen = as_plane(
            cv2.warpPerspective(part, self.pose, (self.size, self.size), flags=cv2.INTER_LINEAR)
        )
        cover = seen[..., 3:]
        reach = 0.028 * self.size
        shift = np.array(
            [[1, 0, -self.lamp_direction[0] * reach], [0, 1, -self.lamp_direction[1] * reach]]
        )
        cast = as_plane(cv2.warpAffine(cover, shift, (self.size, self.size)))
        shadow = 1 - np.float32(0.62 * self.light_shares[1]) * np.maximum(
            blur(cast, 0.011 * self.size), np.float32(0.6) * blur(as_plane(cover[..., 0]), 3.0)
        )
        ambient, direct, _ = self.light_shares
        ground = (
            self.belt_reflectance
            * (np.float32(ambient + direct * self.lamp_direction[2]) * shadow)[..., None]
        )
        radiance = blur(
            (ground * (1 - cover) + seen[..., :3]) * self.illumination, self.defocus_sigma
        )
        return _to_gray_levels(
            as_plane(cv2.filter2D(radiance, -1, self.motion_kernel))
            if len(self.motion_kernel) > 1
            else radiance
        )

    def compute_level_difference(
        self, surface: Surface, light: Plane, other: Surface, other_light: Plane
    ) -> Plane:
        """Grey levels between two surfaces of a part in its frame [FRAME, FRAME], about as the lens shows them."""
        gain = np.float32(self.illumination[self.size // 2, self.size // 2, 1])
        first, second = (
            _to_gray_levels(blur(seen.reflectance[..., 1] * lit * gain, 1.5))
            for seen, lit in ((surface, light), (other, other_light))
        )
        return as_plane(cv2.absdiff(first, second))

    def add_sensor_noise(self, exposed: Plane, generator: np.random.Generator) -> NDArray[np.uint8]:
        """`exposed` with the sensor's noise, as 8 bit [size, size, 3]."""
        shot, read, _ = self.sensor
        spread = np.sqrt(exposed * np.float32(shot**2 / 255) + np.float32(read**2))
        noisy = exposed + spread * generator.standard_normal(exposed.shape, np.float32)
        pixels: NDArray[np.uint8] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        return pixels

    def shade(self, surface: Surface) -> Plane:
        """How much light each point of the part [FRAME, FRAME] sends to the camera, times its cover."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        right, down, up = self.lamp_direction
        lamp_x = (
            np.float32(right * cosine + down * sine) - np.float32(self.lamp_proximity) * FRAME_X
        )
        lamp_y = (
            np.float32(down * cosine - right * sine) - np.float32(self.lamp_proximity) * FRAME_Y
        )
        slope_x = -as_plane(cv2.Sobel(surface.height, cv2.CV_32F, 1, 0, scale=0.125))
        slope_y = -as_plane(cv2.Sobel(surface.height, cv2.CV_32F, 0, 1, scale=0.125))
        facing = np.maximum(slope_x * lamp_x + slope_y * lamp_y + np.float32(up), 0) / np.sqrt(
            1 + slope_x**2 + slope_y**2
        )
        half = np.float32(1 + up)
        off_x, off_y = slope_x - lamp_x / half, slope_y - lamp_y / half
        across = (off_x * surface.trace_direction[0] + off_y * surface.trace_direction[1]) ** 2
        along, narrow, wide = (
            off_x**2 + off_y**2 - across,
            *(np.float32(-0.5 / spread**2) for spread in surface.roughness),
        )
        highlight = np.exp(along * narrow + across * wide) * surface.gloss
        # A hall is brighter on one side: what leans towards it is seen lighter, even far from the lamp's highlight.
        hall = (
            1
            + np.float32(0.8)
            * np.tanh(np.float32(1.5) * (slope_x + np.float32(0.5) * slope_y))
            * surface.gloss
        )
        ambient, direct, shine = self.light_shares
        light = (
            np.float32(ambient) * hall + np.float32(direct) * facing + np.float32(shine) * highlight
        )
        return as_plane(light * surface.metal_mask)


def _to_gray_levels(radiance: Plane) -> Plane:
    """Grey levels by a film-like curve: highlights come to their end gently."""
    taken = 1 - np.exp(radiance * np.float32(-1.35))
    levels: Plane = taken * (np.float32(1.5 * 255) - np.float32(0.5 * 255) * taken)
    return levels


def _sample_pose(
    generator: np.random.Generator, size: int, outline: Points
) -> tuple[float, NDArray[np.float64]]:
    """Rotation in radians, and the homography: the part as a whole is in the picture, seen a little from the side."""
    angle = float(generator.uniform(0, 2 * math.pi))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = np.array(outline) @ turn.T * UNIT_PIXELS
    low, high = turned.min(axis=0), turned.max(axis=0)
    scale = min(
        generator.uniform(0.86, 0.96) * size / float((high - low).max()), 1.25 * size / FRAME_SIZE
    )
    room = (0.97 * size - scale * (high - low)) / 2
    shift = generator.uniform(-1, 1, 2) * room + size / 2 - scale * (low + high) / 2
    turn = scale * turn
    corners = (np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) - 0.5) * FRAME_SIZE
    seen = corners @ turn.T + shift + generator.uniform(-0.022, 0.022, (4, 2)) * size
    return angle, np.asarray(
        cv2.getPerspectiveTransform(
            (corners + FRAME_SIZE / 2 - 0.5).astype(np.float32), seen.astype(np.float32)
        ),
        np.float64,
    )


def _sample_illumination(generator: np.random.Generator, size: int, azimuth: float) -> Plane:
    """Brighter towards the lamp, darker in the corners, warm or cold, sometimes with another machine's shadow across."""
    rows, columns = (along / np.float32(size) - np.float32(0.5) for along in pixel_grid(size))
    slope = 1 + np.float32(generator.uniform(0, 0.5)) * (
        columns * np.float32(math.cos(azimuth)) + rows * np.float32(math.sin(azimuth))
    )
    vignette = 1 - np.float32(generator.uniform(0, 0.6)) * (rows**2 + columns**2)
    patches = 1 + np.float32(generator.uniform(0, 0.07)) * smooth_noise(generator, size, 3)
    warm = generator.uniform(-0.09, 0.09)
    colour = np.array([1 + warm, 1 + generator.uniform(-0.02, 0.02), 1 - warm]) * generator.uniform(
        0.85, 1.3
    )
    return (slope * vignette * patches)[..., None] * colour.astype(np.float32)


def _sample_motion_kernel(generator: np.random.Generator, direction: float) -> Plane:
    """A short line along the belt's direction; for half of the pictures a point."""
    kernel = np.zeros((5, 5), np.float32)
    travel = generator.uniform(0.5, 2.4)
    if generator.random() < 0.5:
        return np.ones((1, 1), np.float32)
    for offset in np.linspace(-travel / 2, travel / 2, 9):
        x, y = 2 + offset * math.cos(direction), 2 + offset * math.sin(direction)
        left, top = int(x), int(y)
        for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
            for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
                kernel[row, column] += share_x * share_y
    return as_plane(kernel / kernel.sum())
