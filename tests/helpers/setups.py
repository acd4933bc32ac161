"""Random batch normalization layers, and modes to compile them in."""

import contextlib
import dataclasses

from bnlasagne import BatchNormLayer, CumulativeAverage, plain_expressions

import lasagne
import numpy as np
import theano
from hypothesis import strategies as st
from lasagne import nonlinearities

from helpers.fuzzing import is_quick

__all__ = ["FLAGS", "Setup", "modes", "setups", "uses_and_updates"]

FLAGS = st.fixed_dictionaries({}, optional={
    "deterministic": st.booleans(),
    "batch_norm_use_averages": st.sampled_from([None, False, True]),
    "batch_norm_update_averages": st.sampled_from([None, True, False])})


def uses_and_updates(flags):
    """Whether an output uses the averages, and whether it moves them."""
    deterministic = flags.get("deterministic", False)
    use = flags.get("batch_norm_use_averages")
    update = flags.get("batch_norm_update_averages")
    return (deterministic if use is None else use,
            not deterministic if update is None else update)


def modes():
    """Modes to compile in; of those with C code, few, as they take long."""
    found = [theano.Mode("py", "fast_compile"), theano.Mode("py", "fast_run"),
             theano.Mode("py", None)]
    if theano.config.cxx and not is_quick():
        found = 4 * found + [theano.Mode(linker, optimizer) for linker in (
            "vm", "cvm", "c|py") for optimizer in (
            "fast_run", "fast_compile", None)]
    return st.sampled_from(found)


@dataclasses.dataclass(frozen=True)
class Setup:
    """The settings of a random layer."""

    shape: tuple
    axes: tuple
    floatX: str
    mask: tuple  # which of the axes; None without one
    virtual_size: int
    epsilon: float
    alpha: object  # a number, "shared" or "cumulative"
    limits: tuple  # of batch renormalization
    params: tuple  # which of beta and gamma
    nonlinearity: object
    plain: bool
    seed: int

    def layer(self):
        rng = np.random.RandomState(self.seed)
        short = [1 if axis in self.axes else size
                 for axis, size in enumerate(self.shape)]
        kinds = {"shared": theano.shared(lasagne.utils.floatX(0.3)),
                 "cumulative": CumulativeAverage(self.seed % 3)}
        beta, gamma, mean = rng.normal(size=(3, *short))
        options = {}
        if self.mask is not None:
            options["mask_input"] = lasagne.layers.InputLayer(self.mask_shape)
        return BatchNormLayer(
            lasagne.layers.InputLayer([
                None if axis in self.axes else size
                for axis, size in enumerate(self.shape)]),
            axes=self.axes, epsilon=self.epsilon,
            alpha=kinds.get(self.alpha, self.alpha),
            beta=beta if self.params[0] else None,
            gamma=gamma if self.params[1] else None, mean=mean,
            std=1 + abs(beta), nonlinearity=self.nonlinearity,
            r_max=self.limits[0], d_max=self.limits[1],
            virtual_batch_size=self.virtual_size, **options)

    @property
    def mask_shape(self):
        return tuple(None if axis in self.mask else 1
                     for axis in range(len(self.shape)))

    def batch(self, seed, examples=None):
        """A batch, its mask or None, and weights of the output."""
        rng = np.random.RandomState(seed)
        shape = list(self.shape)
        if examples is not None and 0 in self.axes:
            shape[0] = examples
        x, dy = rng.normal(1, 2, size=(2, *shape))
        mask = None
        if self.mask is not None:
            mask = rng.uniform(size=[
                size if axis in self.mask else 1
                for axis, size in enumerate(shape)]) < 0.6
            x[np.broadcast_to(~mask, shape)] = rng.choice([9, 1e4])
        return [each if each is None else each.astype(self.floatX)
                for each in (x, mask, dy)]

    @contextlib.contextmanager
    def context(self):
        plain = plain_expressions() if self.plain else contextlib.nullcontext()
        with theano.configparser.change_flags(floatX=self.floatX), plain:
            yield

    def close(self, found, expected, name=""):
        """Compare what was found in the layer's type with the model."""
        assert found.dtype == self.floatX
        tolerance = {"float32": 2e-3, "float64": 1e-8}[self.floatX]
        scale = 1 + np.max(np.abs(expected), initial=0)
        np.testing.assert_allclose(
            found.ravel(), np.ravel(expected), tolerance, tolerance * scale,
            err_msg=name)


@st.composite
def setups(draw, most_axes=5):
    ndim = draw(st.sampled_from(range(2, most_axes + 1)) | st.just(1))
    shape = draw(st.tuples(*[st.sampled_from([3, 2, 1, 4])] * ndim))
    axes = tuple(sorted(draw(st.sets(
        st.integers(0, ndim - 1), min_size=1)))) or (0,)
    mask = tuple(sorted(draw(st.sets(st.sampled_from(axes))))) if draw(
        st.booleans()) else None
    return Setup(
        shape, axes, draw(st.sampled_from(["float64", "float32"])), mask,
        draw(st.sampled_from([None, 2, 3])) if 0 in axes and (
            len(axes) > 1 or shape[0] > 1) else None,
        draw(st.sampled_from([0.01, 0.5, 1e-4])),
        draw(st.sampled_from([0.5, "shared", "cumulative", 1, 0, 0.1])),
        draw(st.sampled_from([(1, 0), (2, 0.5), (1, 3), (1.5, 0)])),
        draw(st.tuples(st.booleans(), st.booleans())),
        draw(st.sampled_from([nonlinearities.identity, nonlinearities.rectify,
                              nonlinearities.tanh])),
        draw(st.booleans()), draw(st.integers(0, 99)))
