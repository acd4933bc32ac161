"""Random batches for the kernels, and what the oracle makes of them."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from helpers import rounding

__all__ = ["Case", "cases"]

# Vectors of 4 to 16 numbers, four of which go together; groups of rows; rows
# that are long; blocks, tiles, and strips.
SIZES = [2, 3, 1, 4, 5, 0, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127,
         128, 129, 255, 256, 257, 511, 513, 1025, 2047, 2048, 2049, 4095, 4096,
         4097, 8193, 70000]
VIRTUAL_SIZES = [0, 0, 0, 2, 3, 1, 4, 8, 16, 1 << 62]
SCALES = [1, 1e-30, 1e30, 1e-10, 1e10]
# In standard deviations.
OFFSETS = [0, 1, -10, 1e4, -1e4]
MASKS = {
    "none": None,
    "some": lambda rng, shape: rng.uniform(size=shape) < 0.6,
    "all": lambda rng, shape: np.ones(shape, bool),
    "nothing": lambda rng, shape: np.zeros(shape, bool),
    "few": lambda rng, shape: rng.uniform(size=shape) < 0.03,
    "lengths": lambda rng, shape: np.arange(shape[-1]) < rng.randint(
        shape[-1] + 1, size=(*shape[:-1], 1)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A random batch, of numbers that a seed makes."""

    seed: int
    dtype: str
    before: tuple
    channels: tuple
    behind: tuple
    mask_kind: str
    varying: tuple  # for each axis
    virtual_size: int
    epsilon: float
    features: frozenset
    rectify: bool

    def __post_init__(self):
        self.__dict__.update(self._arrays(np.random.RandomState(self.seed)))

    @property
    def shape(self):
        return self.before + self.channels + self.behind

    @property
    def first(self):
        return len(self.before)

    @property
    def end(self):
        return self.first + len(self.channels)

    @property
    def short(self):
        """The shape of parameters."""
        return tuple(size if self.first <= axis < self.end else 1
                     for axis, size in enumerate(self.shape))

    @property
    def axes(self):
        return tuple(axis for axis in range(len(self.shape))
                     if not self.first <= axis < self.end)

    def _arrays(self, rng):
        shape, short = self.shape, self.short
        scale, dy_scale = (
            rng.choice(SCALES, short) if feature in self.features
            else np.ones(short) for feature in ("scaled", "scaled gradient"))
        offset = rng.choice(OFFSETS, short) * ("shifted" in self.features)
        x = rng.normal(size=shape)
        if "drift" in self.features:
            x = x + np.linspace(0, 100, shape[0]).reshape(
                [-1] + [1] * (x.ndim - 1))
        if "constant" in self.features:
            x = np.where(rng.uniform(size=short) < 0.3, 0.1, x)
        x = ((x + offset) * scale).astype(self.dtype)
        dy = (rng.normal(size=shape) * dy_scale).astype(self.dtype)
        gamma, beta = (rng.normal(size=short).astype(self.dtype)
                       for _ in range(2))
        if "no scale" in self.features:
            gamma[rng.uniform(size=short) < 0.3] = 0
        mask = self._mask(rng)
        if mask is not None:
            nothing = ~np.broadcast_to(mask, shape)
            x[nothing] = np.resize([np.nan, np.inf, -np.inf], nothing.sum())
            dy[nothing] = np.resize([np.inf, np.nan], nothing.sum())
        if "spoilt" in self.features and x.size:
            x[tuple(rng.randint(shape))] = rng.choice([np.nan, np.inf])
        return {"x": x, "dy": dy, "gamma": gamma, "beta": beta, "mask": mask}

    def _mask(self, rng):
        if self.mask_kind == "none":
            return None
        shape = tuple(
            1 if self.first <= axis < self.end or not varies else size
            for axis, (size, varies) in enumerate(
                zip(self.shape, self.varying)))
        return np.ascontiguousarray(np.broadcast_to(
            MASKS[self.mask_kind](rng, shape), shape))

    # What the oracle sees

    def flat(self, array):
        """An array as (channels, values)."""
        M, C, S = (int(np.prod(block)) for block in (
            self.before, self.channels, self.behind))
        return np.reshape(array, (M, C, S)).transpose(1, 0, 2).reshape(
            C, M * S)

    def parts(self):
        """For each virtual batch, the numbers of its values that count."""
        full = [1 if self.first <= axis < self.end else size
                for axis, size in enumerate(self.shape)]
        counts = np.broadcast_to(
            True if self.mask is None else self.mask, full).ravel()
        examples, size = self.shape[0], self.virtual_size
        each = counts.size // max(examples, 1)
        starts = list(range(0, examples, size or max(examples, 1))) or [0]
        if len(starts) > 1 and (examples - starts[-1]) * max(each, 1) < 2:
            starts.pop()
        ends = [start * each for start in starts[1:]] + [counts.size]
        return [start * each + np.flatnonzero(counts[start * each:end])
                for start, end in zip(starts, ends)]

    def expected(self, active=None):
        """Map names to exact results and bounds, those of all parts joined.

        `active` tells where the rectifier lets the gradient pass. Also return
        the numbers of values of the parts.
        """
        x, dy = self.flat(self.x), self.flat(self.dy)
        gamma, beta = (np.reshape(param, (len(x), 1))
                       for param in (self.gamma, self.beta))
        if active is not None:
            dy = np.where(self.flat(active), dy, 0)
        params = gamma, beta, self.epsilon
        found = {name: [np.zeros(x.shape, rounding.EXACT) for _ in range(2)]
                 for name in ("y", "dx")}
        own = []
        parts = self.parts()
        for part in parts:
            values = x[:, part]
            if not part.size:
                own.append(self._of_nothing())
                continue
            made = rounding.statistics(values, self.dtype)
            by_values = rounding.normalized(values, made, params, self.dtype)
            made.update(rounding.gradient(values, dy[:, part], made, params,
                                          self.dtype))
            by_values["dx"] = made.pop("dx")
            own.append(made)
            for name, pair in by_values.items():
                for to, each in zip(found[name], pair):
                    to[:, part] = each
        for name in ("mean", "std"):
            found[name] = [np.stack(each) for each in zip(
                *(made[name] for made in own))]
        for name in ("dgamma", "dbeta"):
            value, bound = rounding.total([made[name] for made in own])
            found[name] = value, bound + np.finfo(self.dtype).eps * abs(value)
        return found, [part.size for part in parts]

    def _of_nothing(self):
        """Without a mask, the statistics of no values are not numbers."""
        zero = np.zeros((int(np.prod(self.channels)), 1))
        none = zero if self.mask is not None else zero * np.nan
        return {"mean": (none, zero), "std": (none, zero),
                "dgamma": (zero, zero), "dbeta": (zero, zero)}


def _sizes(budget):
    return st.sampled_from([size for size in SIZES if size <= budget])


@st.composite
def blocks_of_axes(draw, budget, least=(0, 0, 0)):
    """Sizes of the axes before, of, and behind the channels."""
    blocks = []
    for minimum in least:
        block = []
        for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2]))):
            block.append(draw(_sizes(budget)))
            budget //= max(block[-1], 1)
        blocks.append(tuple(block) if len(block) >= minimum else (1,))
    return blocks if any(blocks) else [(3,), (2,), ()]


FEATURES = ["shifted", "scaled", "scaled gradient", "constant", "drift",
            "no scale", "spoilt"]


@st.composite
def cases(draw, budget=20000):
    """Draw a batch of up to `budget` values."""
    virtual_size = draw(st.sampled_from(VIRTUAL_SIZES))
    budget = draw(st.sampled_from([60, 60, 600, 600, 5000, budget]))
    before, channels, behind = draw(blocks_of_axes(
        budget, (virtual_size > 0, 0, 0)))
    ndim = len(before + channels + behind)
    return Case(
        draw(st.integers(0, 999)),
        draw(st.sampled_from(["float32", "float64"])),
        before, channels, behind, draw(st.sampled_from(list(MASKS))),
        draw(st.tuples(*[st.booleans()] * ndim)), virtual_size,
        draw(st.sampled_from([0.01, 1e-5, 1.])),
        draw(st.frozensets(st.sampled_from(FEATURES), max_size=3)),
        draw(st.booleans()))
