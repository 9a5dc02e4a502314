"""Analytic ray casting of simple solids: one quadratic equation per pixel and solid.

A solid is a unit sphere, box or frustum with an affine transform, seen by an orthographic camera. With
orthographic rays the local coordinates are affine in the pixel, so a solid needs only a few array operations
on its screen rectangle; a z-buffer keeps the nearest hit.

Object space: x right, y up (ground at 0), z towards a viewer at yaw 0; one unit is about half of the object's
height.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Proportions = np.ndarray
"""Six numbers of about -1.3 to 1.3: part of an individual's identity, never described in a caption."""
FAR = np.float32(-1e9)  # depth of the background; the camera looks along -z, so larger z is nearer


@dataclass(frozen=True, kw_only=True)
class Solid:
    """One primitive.

    kind: "sphere", "box" or "frustum" (axis y, radius 1 at the bottom and `taper` at the top).
    centre, size: object-space position and half extents.
    rotation: Euler angles in degrees, applied x, then y, then z.
    material: name that the skin turns into a colour: "body" has the individual's pattern, "accent" its third
        colour; the others ("dark", "white", ...) have fixed colours.
    """

    kind: str
    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    material: str = "body"
    taper: float = 1.0


# Short constructors. Positions (x, y, z) and half sizes are in object units.


def sphere(x, y, z, rx, ry, rz, material="body", rotation=(0, 0, 0)) -> Solid:
    return Solid(kind="sphere", centre=(x, y, z), size=(rx, ry, rz), rotation=rotation, material=material)


def box(x, y, z, rx, ry, rz, material="body", rotation=(0, 0, 0)) -> Solid:
    return Solid(kind="box", centre=(x, y, z), size=(rx, ry, rz), rotation=rotation, material=material)


def tube(x, y, z, radius, half, material="body", rotation=(0, 0, 0), taper=1.0, depth=None) -> Solid:
    size = (radius, half, depth or radius)
    return Solid(
        kind="frustum", centre=(x, y, z), size=size, rotation=rotation, material=material, taper=taper
    )


def pair(make: Callable[[int], Solid]) -> list[Solid]:
    """Return a mirrored part twice: `make` is called with -1 for the left and 1 for the right side."""
    return [make(-1), make(1)]


def eyes(x, y, z, r) -> list[Solid]:
    white = pair(lambda s: sphere(s * x, y, z, r, r * 1.1, r * 0.6, "white"))
    return white + pair(
        lambda s: sphere(s * x, y - r * 0.05, z + r * 0.45, r * 0.6, r * 0.7, r * 0.4, "dark")
    )


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The nearest surface per pixel of a picture of S x S.

    solid: (S, S), index of the solid; -1 for the background.
    normal: (S, S, 3), unit normal in view space.
    position: (S, S, 3), point of the surface in object space.
    """

    solid: np.ndarray
    normal: np.ndarray
    position: np.ndarray


def rotation_matrix(degrees: tuple[float, float, float]) -> np.ndarray:
    """Return the (3, 3) matrix of a rotation about x, then y, then z."""
    ax, ay, az = np.radians(degrees)
    cx, sx, cy, sy, cz, sz = np.cos(ax), np.sin(ax), np.cos(ay), np.sin(ay), np.cos(az), np.sin(az)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return rz @ ry @ rx


def view_matrix(yaw: float, pitch: float) -> np.ndarray:
    """Return the (3, 3) matrix from object to view space (z towards the camera); angles in degrees."""
    return rotation_matrix((pitch, 0, 0)) @ rotation_matrix((0, yaw, 0))


# Each of these intersects rays q + t d, in the coordinates of the unit primitive, and returns the largest t
# (FAR without a hit) and the normal. q is (h, w, 3), and d (3,) is the same for all pixels.


def _sphere(q, d):
    a, b, c = d @ d, q @ d, (q * q).sum(-1) - 1
    disc = b * b - a * c
    hit = disc > 0
    z = np.where(hit, (-b + np.sqrt(np.maximum(disc, 0))) / a, FAR)
    return z, q + z[..., None] * d


def _box(q, d):
    # A ray parallel to a face: avoids a division by zero.
    d = np.where(np.abs(d) < 1e-6, 1e-6, d)
    # Slab method: the ray is inside the box between the last entry and the first exit.
    t0, t1 = (-1 - q) / d, (1 - q) / d
    near, far = np.minimum(t0, t1).max(-1), np.maximum(t0, t1).min(-1)
    # The camera looks along -z, so the exit is the nearer side.
    z = np.where(far > near, far, FAR)
    p = q + z[..., None] * d
    # The face that was hit is that of the largest coordinate.
    largest = np.abs(p).argmax(-1)[..., None]
    return z, np.where(np.arange(3) == largest, np.sign(p), 0)


def _frustum(q, d, taper):
    m, k = np.float32((1 + taper) / 2), np.float32((taper - 1) / 2)  # radius at height y: m + k y
    x, y, z = q[..., 0], q[..., 1], q[..., 2]
    r = m + k * y
    a = d[0] * d[0] + d[2] * d[2] - k * k * d[1] * d[1]
    # A ray parallel to the wall of the frustum: the equation is linear, and any small number gives a far hit.
    a = a if abs(a) > 1e-7 else np.float32(1e-7)
    b = x * d[0] + z * d[2] - k * d[1] * r
    c = x * x + z * z - r * r
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0))
    best = np.full(disc.shape, FAR)
    cap = np.zeros(disc.shape, np.float32)
    for t in ((-b + root) / a, (-b - root) / a):
        yt = y + t * d[1]
        good = (disc > 0) & (np.abs(yt) <= 1) & (m + k * yt >= 0) & (t > best)
        best = np.where(good, t, best)
    for side, radius in ((np.float32(1), taper), (np.float32(-1), 1.0)):  # the lids at y = 1 and y = -1
        if abs(d[1]) < 1e-6:
            continue
        t = (side - y) / d[1]
        good = ((x + t * d[0]) ** 2 + (z + t * d[2]) ** 2 <= radius * radius) & (t > best)
        best, cap = np.where(good, t, best), np.where(good, side, cap)
    p = q + best[..., None] * d
    # The gradient of x^2 + z^2 - (m + k y)^2, halved.
    wall = np.stack([p[..., 0], -k * (m + k * p[..., 1]), p[..., 2]], -1)
    lid = np.stack([np.zeros_like(cap), cap, np.zeros_like(cap)], -1)
    return best, np.where((cap != 0)[..., None], lid, wall)


def screen_extent(solid: Solid, view: np.ndarray) -> np.ndarray:
    """Return half of a solid's bounding box (3,) in view space.

    It is exact for spheres and boxes, and too small for frustums that are wider at the top (`taper` above 1).
    """
    axes = view @ (rotation_matrix(solid.rotation) * np.asarray(solid.size)[None])
    # An ellipsoid extends by the norm of a row, a box by the sum of absolute values.
    return np.sqrt((axes**2).sum(1)) if solid.kind == "sphere" else np.abs(axes).sum(1)


def cast(
    solids: list[Solid], *, view: np.ndarray, scale: float, centre: tuple[float, float], size: int
) -> Hits:
    """Cast one orthographic ray per pixel of a size x size picture.

    Args:
        solids: what is rendered.
        view: (3, 3), from `view_matrix`.
        scale: pixels per object unit.
        centre: pixel (x, y) of the object's origin.
        size: side of the picture in pixels.
    """
    depth = np.full((size, size), FAR, np.float32)
    index = np.full((size, size), -1, np.int16)
    normal = np.zeros((size, size, 3), np.float32)
    us = ((np.arange(size) + 0.5 - centre[0]) / scale).astype(np.float32)
    vs = ((centre[1] - np.arange(size) - 0.5) / scale).astype(np.float32)
    for number, solid in enumerate(solids):
        axes = rotation_matrix(solid.rotation) * np.asarray(solid.size)[None]
        offset = view @ np.asarray(solid.centre)
        extent = screen_extent(solid, view)
        # Only the pixels of the solid's bounding box are tested.
        x0, x1 = np.searchsorted(us, [offset[0] - extent[0], offset[0] + extent[0]])
        y0, y1 = np.searchsorted(-vs, [-(offset[1] + extent[1]), -(offset[1] - extent[1])])
        if x0 >= x1 or y0 >= y1:
            continue
        local = np.linalg.inv(view @ axes).astype(np.float32)  # view space -> unit primitive
        origin = -(local @ offset.astype(np.float32))
        q = origin + us[x0:x1, None] * local[:, 0] + (vs[y0:y1, None, None] * local[:, 1])
        d = local[:, 2]
        if solid.kind == "sphere":
            z, gradient = _sphere(q, d)
        elif solid.kind == "box":
            z, gradient = _box(q, d)
        else:
            z, gradient = _frustum(q, d, np.float32(solid.taper))
        rectangle = (slice(y0, y1), slice(x0, x1))
        nearer = z > depth[rectangle]
        if not nearer.any():
            continue
        depth[rectangle][nearer] = z[nearer]
        index[rectangle][nearer] = number
        normal[rectangle][nearer] = gradient[nearer] @ local  # normals transform with the inverse transpose
    length = np.sqrt((normal**2).sum(-1, keepdims=True))
    normal /= np.maximum(length, 1e-6)
    seen = np.stack(
        [np.broadcast_to(us[None], depth.shape), np.broadcast_to(vs[:, None], depth.shape), depth], -1
    )
    position = np.where((index >= 0)[..., None], seen, 0) @ view.astype(np.float32)  # view.T @ p, row-wise
    return Hits(solid=index, normal=normal, position=position.astype(np.float32))
