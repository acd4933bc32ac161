"""Random batches in the kernels, in C++ and in NumPy, against long double."""

import contextlib
import ctypes
import dataclasses

from bnlasagne.kernels import expressions, ops
from bnlasagne.kernels.blocks import Layout
from bnlasagne.kernels.moments import Moments
from bnlasagne.parallel.synchronized import FindGradientSums, GradientBySums

import numpy as np
import pytest
from helpers import batches, rounding
from helpers.cases import Case, cases
from helpers.common import needs_compiler
from helpers.fuzzing import is_quick, many
from helpers.thunks import LAYOUTS, LEFTOVERS, call, laid_out
from hypothesis import assume, event, example, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

IMPLEMENTATIONS = ["py", pytest.param("c", marks=needs_compiler)]
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
# Each Op takes seconds to compile.
more_implementations = pytest.mark.parametrize(
    "implementation", IMPLEMENTATIONS[:1] if is_quick() else IMPLEMENTATIONS)


@dataclasses.dataclass(frozen=True)
class Glue:
    """How arrays lie in memory, and what is left where outputs go."""

    layouts: dict
    leftover: str
    inplace: bool


GLUE = st.builds(
    Glue, st.fixed_dictionaries({name: st.sampled_from(list(LAYOUTS)) for name
                                 in ("x", "dy", "gamma", "beta", "mask")}),
    st.sampled_from([None, *LEFTOVERS]), st.booleans())
PLAIN = Glue({}, None, False)


class Runner:
    """Call the Ops for a random batch."""

    def __init__(self, case, implementation, glue=PLAIN):
        if is_quick() and implementation == "c":
            # The Ops for other types are others, that take seconds to compile.
            case = dataclasses.replace(
                case, dtype="float32", rectify=True,
                mask_kind=case.mask_kind.replace("none", "all"))
        self.case, self.implementation, self.glue = case, implementation, glue
        mask = case.mask
        self.values = {
            "x": case.x, "dy": case.dy, "gamma": case.gamma,
            "beta": case.beta, "epsilon": np.asarray(case.epsilon),
            # Whatever is not zero counts.
            "mask": None if mask is None else np.where(
                mask, 3, 0).astype("int8")}
        self.layout = Layout(case.first, case.end, mask is not None,
                             case.virtual_size)

    def __call__(self, op, **values):
        """Call a kind of Op; return its outputs by their names."""
        options = {} if op is ops.BatchStatistics else {
            "rectify": self.case.rectify}
        inplace = self.glue.inplace and op.overwrites is not None
        op = op(self.layout, inplace=inplace, **options)
        values = {**self.values, **values}
        inputs = [laid_out(values[name], self.glue.layouts.get(
            name, "in order")) for name in op.inputs]
        before = [value.copy() for value in inputs]
        leftover = None if inplace else self.glue.leftover
        outputs = call(op, inputs, self.implementation,
                       LEFTOVERS.get(leftover))
        for i, (one, other) in enumerate(zip(inputs, before)):
            if not (inplace and i == op.overwrites and one.flags.writeable):
                assert_array_equal(one, other)
        assert [output.dtype for output in outputs] == [
            {"counts": np.int64}.get(
                name, np.float64 if name in ("statistics", "moments", "sums")
                else self.case.dtype) for name in op.outputs]
        return dict(zip(op.outputs, outputs))


def compare(case, actual, names="y mean std dx dgamma dbeta"):
    """Compare outputs with the oracle; what is not finite apart."""
    active = actual["y"] > 0 if case.rectify and "y" in actual else None
    with np.errstate(all="ignore"):
        expected, counts = case.expected(active)
        spoilt = _spoilt(case)
    if "counts" in actual:
        assert actual["counts"].tolist() == counts
    for name in names.split():
        value, bound = expected[name]
        if name == "y" and case.rectify:
            value = np.maximum(value, 0)
        found = actual[name]
        if name in ("y", "dx"):
            assert found.shape == case.shape
            found = case.flat(found)
        else:
            assert found.shape == case.short or found.shape[1:] == (
                case.short[1:])
            found = found.reshape(value.shape)
        close(name, found, value, bound, spoilt)


def _spoilt(case):
    """Tell the channels with numbers that count and are not finite."""
    flat = case.flat(case.x)
    return np.concatenate([
        ~np.isfinite(flat[:, part]) for part in case.parts()], 1).any(1)


def close(name, found, value, bound, spoilt):
    """Compare an output, in all channels but the spoilt ones."""
    channels = found.shape[-2] if found.ndim > 1 else found.size
    keep = np.broadcast_to(~spoilt[:channels, None], found.shape[-2:])
    keep = np.broadcast_to(keep, found.shape)
    with np.errstate(all="ignore"):
        right = (abs(found - value) <= bound) | (
            np.isnan(found) & np.isnan(value)) | ~keep
    if not right.all():
        where = tuple(np.argwhere(~right)[0])
        raise AssertionError(
            f"{name} is off in {(~right).sum()} places of {right.size}, "
            f"first at {where}: {found[where]!r}, expected {value[where]!r} "
            f"within {bound[where]!r}")


def check_bits(one, other, names=None):
    for name in names or one.keys() & other.keys():
        assert one[name].tobytes() == other[name].tobytes(), name


@implementations
@many(times=20, quick=40)
@given(cases(), GLUE)
def test_training(implementation, case, glue):
    run = Runner(case, implementation, glue)
    case = run.case
    event("along rows" if np.prod(case.behind) > 64 else "across columns")
    forward = run(ops.BatchNormalize)
    backward = run(ops.BatchNormalizeGrad, statistics=forward["statistics"])
    compare(case, {**forward, **backward})
    check_spoilt(case, forward)
    check_vector(case, forward)


def check_vector(case, found):
    """The vector holds the statistics, before these are rounded."""
    shape = len(case.parts()), 2, case.gamma.size
    vectors = found["statistics"].reshape(shape)
    for i, name in enumerate(("mean", "std")):
        assert_array_equal(vectors[:, i].astype(case.dtype).ravel(),
                           found[name].ravel())
    return vectors


def check_spoilt(case, forward):
    """What is not finite stays in its channel and virtual batch."""
    x, y = case.flat(case.x), case.flat(forward["y"])
    parts = case.parts()
    for part, std in zip(parts, forward["std"].reshape(len(parts), len(x))):
        spoilt = ~np.isfinite(x[:, part]).all(1)
        assert np.isnan(y[spoilt][:, part]).all()
        assert not np.isfinite(std[spoilt]).any()
        if part.size:
            assert np.isfinite(std[~spoilt]).all()
            assert np.isfinite(y[~spoilt][:, part]).all()


@needs_compiler
@many(times=10, quick=40)
@given(cases(), GLUE)
def test_memory_makes_no_difference(case, glue):
    """Whatever lies there before, and in whatever order."""
    plain = Runner(case, "c")
    other, found = Runner(plain.case, "c", glue), []
    for run in plain, other:
        found.append(run(ops.BatchNormalize))
        found[-1].update(run(ops.BatchNormalizeGrad,
                             statistics=found[0]["statistics"]))
    check_bits(*found)


@more_implementations
@many(times=10, quick=20)
@given(cases(), GLUE)
def test_statistics_alone(implementation, case, glue):
    run = Runner(case, implementation, glue)
    found, case = run(ops.BatchStatistics), run.case
    compare(case, found, "mean std")
    vectors, parts = check_vector(case, found), case.parts()
    moments = found["moments"].reshape(len(parts), 1 + 2 * case.gamma.size)
    for own, (mean, std), part in zip(moments, vectors, parts):
        assert own[0] == part.size or not case.gamma.size
        if part.size:
            assert_allclose(
                own[1:], [*mean, *part.size * np.square(std)], 1e-14)


@more_implementations
@many(times=10, quick=20)
@given(cases(), st.integers(0, 99), GLUE)
def test_parts_of_a_batch(implementation, case, cut, glue):
    """Of which each rank has one."""
    assume(case.axes)
    case = dataclasses.replace(case, virtual_size=0,
                               features=case.features - {"spoilt"})
    run = Runner(case, implementation, glue)
    case, axis = run.case, case.axes[0]
    parts = cut_apart(run, axis, cut % (case.shape[axis] + 1))
    moments = Moments.empty(case.gamma.size)
    for part in parts:
        vector = run(ops.BatchStatistics, **part)["moments"]
        if vector[0]:
            moments = moments.merge(Moments.from_vector(vector))
    count = max(moments.count, 1)
    statistics = np.concatenate([moments.mean,
                                 np.sqrt(moments.m2 / count)])
    ys = [run(ops.NormalizeBy, statistics=statistics, **part)["y"]
          for part in parts]
    found = [run(FindGradientSums, statistics=statistics, **part)
             for part in parts]
    sums = sum(each["sums"] for each in found)
    dxs = [run(GradientBySums, statistics=statistics, sums=sums, **part)["dx"]
           for part in parts]
    if moments.count:
        compare(case, {"y": np.concatenate(ys, axis),
                       "dx": np.concatenate(dxs, axis),
                       **{name: sum(each[name].astype("float64")
                                    for each in found)
                          for name in ("dgamma", "dbeta")}},
                "y dx dgamma dbeta")


def cut_apart(run, axis, place):
    """Cut the arrays of a batch in two along an axis."""
    parts = {}, {}
    for name in ("x", "dy", "mask"):
        array = run.values[name]
        if array is not None:
            both = np.split(array, [place], axis)
            if name == "mask" and array.shape[axis] == 1:
                both = [array] * 2
            for part, each in zip(parts, both):
                part[name] = each
    return parts


@more_implementations
@many(times=10, quick=20)
@given(cases(), GLUE, st.sampled_from([1, 1e-30, 1e30]))
def test_inference(implementation, case, glue, scale):
    case = dataclasses.replace(case, virtual_size=0)
    run = Runner(case, implementation, glue)
    case, rng = run.case, np.random.RandomState(case.seed)
    mean = (scale * rng.normal(size=case.short)).astype(case.dtype)
    std = abs(mean) + mean.dtype.type(scale)
    y = run(ops.Normalize, mean=mean, std=std)["y"]
    x, part = case.flat(case.x), case.parts()[0]
    params = [np.reshape(each, (len(x), 1)) for each in (
        mean, std, case.gamma, case.beta)]
    with np.errstate(all="ignore"):
        value, bound = rounding.normalized(
            x[:, part], {name: (each.astype(rounding.EXACT), 0)
                         for name, each in zip(("centre", "std"), params)},
            (*params[2:], case.epsilon), case.dtype)["y"]
        value = np.maximum(value, 0) if case.rectify else value
    y, others = case.flat(y), np.delete(np.arange(x.shape[1]), part)
    assert not y[:, others].any()
    close("y", y[:, part], value, bound, _spoilt(case))


@many(times=4, quick=6)
@example(Case(0, "float32", (31,), (0,), (5,), "some", (True,) * 3, 2, 0.01,
              frozenset(), False))
@given(cases(5000))
def test_expressions(case):
    """Plain expressions, in NumPy; their gradients may overflow in between."""
    # One function for each kind of batch, so few kinds.
    case = dataclasses.replace(case, rectify=False, **{
        name: getattr(case, name)[:1] or (3,)
        for name in ("before", "channels", "behind")},
        varying=case.varying[:1] * 3, virtual_size=min(case.virtual_size, 3),
        features=case.features - {"scaled gradient"})
    if is_quick():
        case = dataclasses.replace(case, dtype="float32", mask_kind="some",
                                   virtual_size=2, varying=(True,) * 3)
    mask = case.mask
    with np.errstate(all="ignore"):
        *outputs, count = batches.train_parts(
            expressions.normalize_batch, case.x, case.gamma, case.beta,
            case.axes, case.dy, batches.MODES["py"],
            mask if mask is None else mask.astype("int8"), case.virtual_size,
            epsilon=case.epsilon)
    names = "y mean std dx dgamma dbeta"
    found = dict(zip(names.split(), outputs))
    if mask is None and not all(part.size for part in case.parts()):
        # Statistics of nothing are not numbers: they reach this gradient.
        names = names.replace("dgamma ", "")
    compare(case, {**found, "counts": np.ravel(count)}, names)


# Shapes that do not fit

@implementations
@many(times=10)
@given(cases(2000), st.integers(0, 9), st.integers(0, 9),
       st.sampled_from([1, -1]))
def test_shapes_that_do_not_fit(implementation, case, which, axis, more):
    run = Runner(case, implementation)
    op = [ops.BatchNormalize, ops.BatchNormalizeGrad, ops.Normalize][which % 3]
    statistics = run(ops.BatchNormalize)["statistics"]
    values = {"statistics": statistics, "mean": run.case.gamma,
              "std": run.case.gamma, **run.values}
    names = [name for name in op(run.layout).inputs
             if name not in ("x", "epsilon")]
    name = names[which // 3 % len(names)]
    array = values[name]
    axis %= array.ndim
    size = max(array.shape[axis] + more, 0)
    if size == array.shape[axis] or name == "mask" and (
            size in (1, run.case.x.shape[axis])):
        return
    shape = list(array.shape)
    shape[axis] = size
    values[name] = np.ones(shape, array.dtype)
    with pytest.raises(ValueError):
        run(op, **values)


# Running averages

@implementations
@many(times=20, quick=150)
@given(st.data())
def test_move_average(implementation, data):
    """One batch after the other; each alone if it can be used."""
    dtype = data.draw(st.sampled_from(
        ["float32"] if is_quick() else ["float32", "float64"]))
    rng = np.random.RandomState(data.draw(st.integers(0, 999)))
    shape = data.draw(st.sampled_from([(1, 3), (1, 17, 1), (1, 0), (1,)]))
    counts = np.array(data.draw(st.one_of(
        st.sampled_from([2, 0, 1, 7]),
        st.lists(st.sampled_from([2, 0, 1, 7]), max_size=5))), "int64")
    alpha = data.draw(st.sampled_from([0.5, 0., 1., 0.1, 1 / 3]))
    layouts = data.draw(st.tuples(*[st.sampled_from(list(LAYOUTS))] * 3))
    n = counts.size if counts.ndim else 1
    average, *statistics = (
        rng.normal(size=(each * shape[0], *shape[1:])).astype(dtype)
        for each in (1, n, n))
    for array in (average, *statistics):
        if array.size and data.draw(st.booleans()):
            array.ravel()[rng.randint(array.size)] = rng.choice(
                [np.nan, np.inf, -np.inf])
    moved, = call(
        ops.MoveAverage(2),
        [laid_out(average, layouts[0]), np.asarray(alpha), counts,
         *map(laid_out, statistics, layouts[1:])], implementation,
        LEFTOVERS.get(data.draw(st.sampled_from([None, *LEFTOVERS]))))
    expected = average
    for i, count in enumerate(counts.ravel()):
        if count > 1 and all(np.isfinite(each[i:i + 1]).all()
                             for each in statistics):
            batch = statistics[0][i:i + 1].astype("float64")
            expected = batch if alpha == 1 else (
                1 - alpha) * expected + alpha * batch
    assert moved.dtype == dtype
    precision = 0 if alpha == 1 or expected is average else (
        8 * np.finfo(dtype).eps)
    assert_allclose(moved, expected, precision, precision)


# Threads

@contextlib.contextmanager
def threads(number):
    """Have OpenMP use so many threads."""
    try:
        library = ctypes.CDLL("libgomp.so.1")
    except OSError:
        pytest.skip("needs GCC's OpenMP")
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(number)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)


@needs_compiler
@many(quick=1)
@given(cases(700000), st.sampled_from([2, 3, 5]))
@example(Case(0, "float32", (300,), (5,), (130,), "some", (True,) * 3, 0, 0.01,
              frozenset(), True), 2)
@example(Case(0, "float32", (64,), (50,), (70,), "some", (True,) * 3, 4, 0.01,
              frozenset(), True), 2)
@example(Case(0, "float32", (70000,), (3,), (), "some", (True,) * 2, 0, 0.01,
              frozenset({"drift"}), True), 3)
def test_bits_do_not_depend_on_threads(case, number):
    run, found = Runner(case, "c"), []
    for each in 1, number:
        with threads(each):
            found.append(run(ops.BatchNormalize))
            found[-1].update(run(ops.BatchNormalizeGrad,
                                 statistics=found[-1]["statistics"]))
    check_bits(*found)
    compare(run.case, found[0])
