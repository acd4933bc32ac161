"""Random programs of calls, and what they make of the running averages."""

import contextlib
import copy
import functools
import pickle

import bnlasagne
from bnlasagne import BatchNormLayer, CumulativeAverage

import numpy as np
import pytest
import theano
import theano.tensor as T
from helpers.fuzzing import is_quick, many
from helpers.model import LayerModel, number
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

CHANNELS = 3
# Functions that move no averages.
QUIET = ["test", "not updating", "no defaults", "no averages", "frozen",
         "shape"]
DTYPE = "float64"
MODES = {"few": theano.Mode("py", "fast_compile"),
         "all": theano.Mode("py", "fast_run"), "none": theano.Mode("py", None)}


class Network:
    """Two layers, of which the second is applied twice, to unequal batches.

    Parameters
    ----------
    alpha : {'number', 'shared', 'cumulative'}
    is_shared : bool
        Whether the layers share their averages.
    """

    def __init__(self, alpha, is_shared, virtual_size, plain, mode):
        self.schedule = CumulativeAverage() if alpha == "cumulative" else None
        self.alpha = theano.shared(0.5) if alpha == "shared" else None
        options = {"virtual_batch_size": virtual_size, "alpha": {
            "number": 0.3, "shared": self.alpha,
            "cumulative": self.schedule}[alpha]}
        self.a = BatchNormLayer((None, CHANNELS), gamma=[1, 2, -1], **options)
        if is_shared:
            options.update(mean=self.a.mean, std=self.a.std)
        elif alpha == "shared":
            options["alpha"] = 0.25
        self.b = BatchNormLayer((None, CHANNELS), beta=[0, 1, 2], **options)
        self.layers = self.a, self.b
        self.averages = list(dict.fromkeys(
            param for layer in self.layers
            for param in (layer.mean, layer.std)))
        self.is_shared, self.mode, self.plain = is_shared, mode, plain
        self.functions = {}

    def outputs(self, x, **flags):
        hidden = self.a.get_output_for(x, **flags)
        return [self.b.get_output_for(hidden, **flags),
                self.b.get_output_for(x[1:] * 2, **flags)]

    def function(self, kind):
        """A function of a kind, made when it is first asked for."""
        if kind not in self.functions:
            self.functions[kind] = self._made(kind)
        return self.functions[kind]

    def _made(self, kind):
        if kind == "loop":
            return self._loop()
        x = T.matrix()
        flags = {"test": {"deterministic": True},
                 "by averages": {"batch_norm_use_averages": True},
                 "not updating": {"batch_norm_update_averages": False},
                 "chain": {"batch_norm_update_averages": "explicit"}}
        frozen = {"frozen": list(self.layers), "b frozen": [self.b]}
        with bnlasagne.freeze_batch_norm(frozen[kind]) if kind in frozen \
                else contextlib.nullcontext():
            outputs = self.outputs(x, **flags.get(kind, {}))
        if kind == "gradient":
            outputs = theano.grad(sum(T.sqr(each).sum()
                                      for each in outputs), x)
        elif kind == "shape":
            outputs = outputs[0].shape
        elif kind == "first":
            outputs = outputs[:1]
        function = theano.function([x], outputs, mode=self.mode,
                                   **self._options(kind, outputs))
        return function.copy() if kind == "copy" else function

    def _loop(self):
        x = T.tensor3()
        outputs, updates = theano.scan(self.outputs, sequences=[x])
        return theano.function([x], outputs, updates=updates, mode=self.mode)

    def _options(self, kind, outputs):
        """What theano.function is told about updates."""
        collect = bnlasagne.get_batch_norm_updates
        if kind in ("chain", "pool"):
            return {"updates": collect(outputs, combine=kind)}
        if kind == "only a":
            return {"updates": collect(outputs, self.a),
                    "no_default_updates": True}
        if kind == "replaced":
            return {"updates": [(param, param * 0 + 7)
                                for param in self.averages]}
        left = {"no defaults": True, "no averages": list(self.averages),
                "not the mean of a": [self.a.mean]}
        return {"no_default_updates": left[kind]} if kind in left else {}


class Life:
    """The averages of a network, as they have to be after each call."""

    def __init__(self, network):
        self.network = network
        for param, value in zip(network.averages, (0.5, 2., -1., 3.)):
            param.set_value(np.full((1, CHANNELS), value))
        if network.alpha:
            network.alpha.set_value(0.5)
        if network.schedule:
            network.schedule.reset()
        self.count = 0
        self.models = [LayerModel(layer) for layer in network.layers]

    def alphas(self):
        if self.network.schedule:
            return [1 / (1 + self.count)] * 2
        return [number(layer.alpha) for layer in self.network.layers]

    def move(self, which, statistics, alpha=None):
        """Have a layer follow statistics, and those that share them."""
        model = self.models[which]
        model.move(statistics, self.alphas()[which] if alpha is None
                   else alpha)
        if self.network.is_shared:
            other = self.models[1 - which]
            other.mean, other.std = model.mean, model.std

    def applied(self, x, by_averages=()):
        """The three applications, the layer of each first."""
        first = self.models[0].apply(x, use="a" in by_averages)
        use = "b" in by_averages
        return [(0, first), (1, self.models[1].apply(first.y, use=use)),
                (1, self.models[1].apply(x[1:] * 2, use=use))]

    def follow(self, kind, x):
        """What a call of a function of this kind does to the averages."""
        if kind in QUIET:
            return
        if kind == "replaced":
            for model in self.models:
                model.mean = model.std = np.full(CHANNELS, 7.)
            return
        if kind == "loop":
            for each in x:
                self.follow("train", each)
            return
        applied = self.applied(x, {"by averages": "ab",
                                   "b frozen": "b"}.get(kind, ""))
        keep = {"first": [0, 1], "b frozen": [0], "only a": (
            [0, 1, 2] if self.network.is_shared else [0])}.get(
                kind, [0, 1, 2])
        before = self.models[0].mean
        if kind == "pool":
            self.pool(applied)
        else:
            for i in keep:
                self.move(applied[i][0], applied[i][1].statistics)
        if kind == "not the mean of a":
            for model in self.models[:1 + self.network.is_shared]:
                model.mean = before
        self.count += 1

    def pool(self, applied):
        """One move of each average, by all that the layer was applied to."""
        for which in (0, 1):
            own = [application.statistics for i, application in applied
                   if i == which or self.network.is_shared]
            if len(own) == 1:
                # Virtual batches of one application are no several ones.
                self.move(which, own[0])
                continue
            found = sum(own, [])
            counts, means, stds = (np.array(each) for each in zip(*found))
            share = (counts / counts.sum())[:, None]
            mean = (share * means).sum(0)
            std = np.sqrt((share * (stds ** 2 + (means - mean) ** 2)).sum(0))
            self.move(which, [(counts.sum(), mean, std)])
            if self.network.is_shared:
                return

    def check(self):
        for layer, model in zip(self.network.layers, self.models):
            for name in ("mean", "std"):
                assert_allclose(getattr(layer, name).get_value()[0],
                                getattr(model, name), 1e-9, 1e-9, name)
        if self.network.schedule:
            assert self.network.schedule.count == self.count
            assert self.network.schedule.alpha.get_value() == (
                1 / (1 + self.count))


# What may happen. Each function takes a `Life`, and the rest of its tuple.

def call(life, kind, examples, seed):
    """Call a function; `seed` may make a batch that is not finite."""
    rng = np.random.RandomState(seed)
    shape = (2,) * (kind == "loop") + (examples, CHANNELS)
    x = rng.normal(rng.randint(5), 2, shape)
    if seed % 7 == 6:
        x[..., 0, 1] = [np.nan, np.inf][seed % 2]
    before = [param.get_value() for param in life.network.averages]
    with np.errstate(all="ignore"):
        life.network.function(kind)(x)
        life.follow(kind, x)
    if kind in QUIET:
        for param, value in zip(life.network.averages, before):
            assert_array_equal(param.get_value(), value)


def fail(life, kind, examples, seed):
    """Call a function with a batch of other channels."""
    shape = (2,) * (kind == "loop") + (examples, CHANNELS + 1)
    with pytest.raises(ValueError):
        life.network.function(kind)(np.ones(shape))


def put(life, which, seed):
    """Set the averages of a layer."""
    layer = life.network.layers[which]
    mean, std = np.random.RandomState(seed).uniform(size=(2, CHANNELS))
    layer.set_statistics(mean, std=std)
    for each in life.models:
        each.read()


def weigh(life, value):
    """Change the weight, of whatever kind it is."""
    if life.network.alpha:
        life.network.alpha.set_value(value)
    if life.network.schedule:
        life.count = life.network.schedule.count = int(value * 10)


def check_copies(life, way):
    """A copy has the same averages, and others afterwards."""
    layers = (copy.deepcopy if way else lambda each: pickle.loads(
        pickle.dumps(each, -1)))(life.network.layers)
    for layer, other in zip(life.network.layers, layers):
        for name in ("mean", "std"):
            param = getattr(other, name)
            assert_array_equal(param.get_value(),
                               getattr(layer, name).get_value())
    for other in layers:
        other.mean.set_value(other.mean.get_value() * np.nan)
    if life.network.schedule:
        schedules = [CumulativeAverage.of(layer) for layer in layers]
        schedules[0].count = 77
        assert schedules[1].count == 77
    assert (layers[0].mean is layers[1].mean) == life.network.is_shared


KINDS = ["train", "chain", "pool", "loop", "gradient", "first", "replaced",
         "by averages", "only a", "b frozen", "not the mean of a", "copy",
         *QUIET]
CALLS = st.tuples(st.sampled_from(KINDS), st.sampled_from([4, 2, 1, 5, 3]),
                  st.integers(0, 30))
STEPS = st.one_of(
    CALLS.map(lambda call_: (call, *call_)),
    CALLS.map(lambda call_: (call, *call_)),
    st.tuples(st.just(fail), st.sampled_from(["train", "loop", "test"]),
              st.sampled_from([4, 1]), st.just(0)),
    st.tuples(st.just(put), st.sampled_from([0, 1]), st.integers(0, 9)),
    st.tuples(st.just(weigh), st.sampled_from([0.1, 1., 0., 0.7])),
    st.tuples(st.just(check_copies), st.booleans()))

SETTINGS = st.tuples(
    st.sampled_from(["cumulative", "shared", "number"]), st.booleans(),
    st.sampled_from([None, None, 2]), st.booleans(),
    st.sampled_from(list(MODES)))
if is_quick():
    # Few, as each compiles functions of its own.
    SETTINGS = st.sampled_from([("cumulative", False, None, False, "few"),
                                ("cumulative", True, 2, False, "few")])

network = functools.lru_cache(maxsize=None)(Network)


def make_network(*settings):
    """A network of its settings; its functions are compiled once."""
    *others, plain, mode = settings
    with theano.configparser.change_flags(floatX=DTYPE):
        return network(*others, plain, MODES[mode])


@many(times=20, quick=100)
@example(("number", False, 2, False, "few"), [(call, "pool", 4, 0)])
@given(SETTINGS, st.lists(STEPS, min_size=1, max_size=8))
def test_programs(settings, steps):
    with theano.configparser.change_flags(floatX=DTYPE):
        life = Life(make_network(*settings))
        for step, *rest in steps:
            step(life, *rest)
            life.check()
