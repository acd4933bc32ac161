"""Theano Ops in which ranks meet, and the order in which they do.

Theano computes a graph's nodes in any order that their inputs allow. For nodes
that communicate, all ranks must keep to one order. So when a function is made,
:class:`OrderCollectives` leads a token through them: each takes the one that
the node before gave. The order is that in which they were created, as far as
the graph allows it, which is the same wherever the same program runs.

The first token comes from a :class:`Schedule`, which knows all that is to
follow. Each time the function is called, it first compares that with the other
ranks' (:meth:`Channel.agree`).

Equal messages do not make equal functions. So a schedule also names the shared
variables that the function updates, and the outputs that it computes from
messages. See :func:`_updates` and :func:`_outputs`.
"""

import collections
import itertools

import numpy as np
import theano
import theano.tensor as T
from theano.compile.builders import OpFromGraph
from theano.compile.function_module import std_fgraph
from theano.gof import toolbox
from theano.gof.graph import ancestors, io_toposort
from theano.ifelse import IfElse
from theano.scan_module.scan_op import Scan

__all__ = [
    "AllReduce",
    "Average",
    "Collective",
    "MergeMoments",
    "is_synchronized",
]

_numbers = itertools.count(1)


class Collective(theano.Op):
    """An Op in which all ranks take part.

    Parameters
    ----------
    channel : Channel
    what : str
        What is communicated, for messages.
    ordered : bool
        Whether the last input and the last output are tokens.
    """

    __props__ = ("channel", "what", "ordered")

    def __init__(self, channel, what, ordered=False):
        self.channel = channel
        self.what = what
        self.ordered = ordered
        # Not among the props, so that Theano merges nodes that do the same.
        self.number = next(_numbers)

    def __str__(self):
        return "%s{%s}" % (type(self).__name__, self.what)

    def in_order(self):
        """The same Op, with tokens."""
        props = dict(zip(self.__props__, self._props()), ordered=True)
        op = type(self)(**props)
        op.number = self.number
        return op

    def make_node(self, *inputs):
        payload = inputs[:-1] if self.ordered else inputs
        payload = [T.as_tensor_variable(variable) for variable in payload]
        outputs = self._outputs(payload)
        if self.ordered:
            payload.append(inputs[-1])
            outputs.append(theano.gof.generic())
        return theano.Apply(self, payload, outputs)

    def perform(self, node, inputs, output_storage):
        if not self.ordered:
            raise RuntimeError(
                "The ranks cannot exchange %s for Theano's test values, nor "
                "in a function that was compiled without optimizations, which "
                "give this its place in one order. Compile it with "
                "mode='FAST_RUN' or 'FAST_COMPILE', and leave "
                "compute_test_value='off'." % self.what)
        self.channel.pending -= 1
        values = self._communicate(*inputs[:-1])
        for storage, value, variable in zip(output_storage, values,
                                            node.outputs):
            storage[0] = np.asarray(value, variable.dtype)
        output_storage[-1][0] = True

    def describe(self, node):
        """What a node communicates, in a line; a node without tokens."""
        return self.what

    def do_constant_folding(self, node):
        # Folding is done while compiling, when nobody else is there.
        return False

    def infer_shape(self, node, shapes):
        if not self.ordered:
            return self._output_shapes(shapes)
        return self._output_shapes(shapes[:-1]) + [None]  # a token has none

    # What an Op does

    def _outputs(self, inputs):
        """New variables for the outputs."""
        raise NotImplementedError

    def _output_shapes(self, shapes):
        raise NotImplementedError

    def _communicate(self, *inputs):
        """The values of the outputs."""
        raise NotImplementedError


class AllReduce(Collective):
    """The sum of the ranks' arrays."""

    def _outputs(self, inputs):
        return [inputs[0].type()]

    def _output_shapes(self, shapes):
        return shapes[:1]

    def _communicate(self, array):
        return [self.channel.sum(np.ascontiguousarray(array))]

    def grad(self, inputs, output_gradients):
        # What a rank has in the sum counts in the losses of all ranks.
        return [AllReduce(self.channel, "the gradient of " + self.what)(
            output_gradients[0])]


class MergeMoments(Collective):
    """Moments of all ranks' batches together.

    They are a vector of double precision: the number of values per channel,
    the channels' means, and their sums of squared deviations.

    Notes
    -----
    What is summed up over the ranks are counts, sums, and sums of squares, the
    latter from the moments that are known at double precision. If a mean is so
    large against the standard deviation that these lose digits, the sums are
    taken again, about the mean that was found. All ranks decide by the same
    numbers.
    """

    def _outputs(self, inputs):
        return [T.dvector()]

    def _output_shapes(self, shapes):
        return shapes[:1]

    def _communicate(self, moments):
        with np.errstate(all="ignore"):
            count, mean, m2 = _parts(moments)
            if not count:
                # Of no values, these are no numbers.
                mean, m2 = np.zeros_like(mean), np.zeros_like(m2)
            merged, lost = self._merge(count, mean, m2, 0)
            if lost.any():
                around = np.where(lost, merged[1:1 + mean.size], 0)
                merged, _ = self._merge(count, mean, m2, around)
        return [merged]

    def _merge(self, count, mean, m2, around):
        deviation = mean - around
        n, sums, squares = _parts(self.channel.sum(np.concatenate([
            [count], count * deviation,
            m2 + count * np.square(deviation)])))
        divisor = max(n, 1)
        offset = sums / divisor
        between = n * np.square(offset)
        merged = np.maximum(squares - between, 0)
        merged[np.isnan(squares)] = np.nan
        mean = around + offset
        lost = np.isfinite(mean) & ~(between <= _CANCELS * merged)
        return np.concatenate([[n], mean, merged]), lost

    def L_op(self, inputs, outputs, output_gradients):
        gradient, = output_gradients
        what = "the gradient of " + self.what
        _, by_mean, by_m2 = _parts(AllReduce(self.channel, what)(gradient))
        count, mean, _ = _parts(inputs[0])
        total, total_mean, _ = _parts(outputs[0])
        deviation = T.switch(T.gt(count, 0), mean - total_mean, 0)
        return [T.concatenate([
            T.zeros((1,)),
            count / T.maximum(total, 1) * by_mean
            + 2 * count * deviation * by_m2, by_m2])]


# Squares of means up to so many times the variance cost three digits of it.
_CANCELS = 1024


def _parts(moments):
    """Count, means, and sums of squared deviations."""
    channels = (moments.shape[0] - 1) // 2
    return moments[0], moments[1:1 + channels], moments[1 + channels:]


class Average(Collective):
    """Averages over the ranks, weighted, all in one message.

    Inputs: this rank's weight, and arrays. A rank of weight 0 counts for
    nothing, whatever its arrays are.

    Parameters
    ----------
    n_weighted : int
        So many arrays are multiplied by the weight already.
    only_even : bool
        Whether weights that differ are an error.
    """

    __props__ = Collective.__props__ + ("n_weighted", "only_even")

    def __init__(self, channel, what, n_weighted, only_even, ordered=False):
        super(Average, self).__init__(channel, what, ordered)
        self.n_weighted = n_weighted
        self.only_even = only_even

    def _outputs(self, inputs):
        return [variable.type() for variable in inputs[1:]]

    def _output_shapes(self, shapes):
        return shapes[1:]

    def _communicate(self, weight, *arrays):
        size = self.channel.size
        total = self.channel.sum(self._packed(float(weight), arrays))
        weights = total[:size].astype(np.float64)
        if not weights.sum() > 0:
            raise ValueError(
                "The ranks cannot average %s: their batches have no examples, "
                "the sizes add up to %s." % (self.what, weights.sum()))
        if self.only_even and (weights != weights[0]).any():
            raise ValueError(_NOT_EVEN % ", ".join(
                "%g" % weight for weight in weights))
        total[size:] /= weights.sum()
        return _unpacked(total[size:], arrays)

    def _packed(self, weight, arrays):
        """A place for each rank's weight, so that all know all; arrays."""
        size = self.channel.size
        message = np.zeros(
            size + sum(array.size for array in arrays),
            # By the types alone: by values, they would depend on the rank.
            np.result_type(np.float32, *[array.dtype for array in arrays]))
        message[self.channel.rank] = weight
        if weight:
            places = _unpacked(message[size:], arrays)
            for number, (place, array) in enumerate(zip(places, arrays)):
                factor = 1 if number < self.n_weighted else weight
                np.multiply(array, factor, out=place, casting="same_kind")
        return message

    def describe(self, node):
        kinds = ["%s of %d dimensions" % (variable.dtype, variable.ndim)
                 for variable in node.outputs]
        return "%s (%s): %s" % (self.what, "even batches" if self.only_even
                                else "weighted", ", ".join(kinds))

    def grad(self, inputs, output_gradients):
        return [theano.gradient.grad_not_implemented(self, i, variable)
                for i, variable in enumerate(inputs)]


_NOT_EVEN = (
    "average_gradients(): the ranks' parts of the batch differ in size (%s), "
    "and the network's batch normalization is synchronized. "
    "Then the gradients of one rank depend on the others' losses, which must "
    "be weighted beforehand: pass the loss in the place of gradients.")


def _unpacked(flat, arrays):
    """Views on parts of an array, in the shapes of others."""
    views, start = [], 0
    for array in arrays:
        views.append(flat[start:start + array.size].reshape(array.shape))
        start += array.size
    return views


def is_synchronized(variables):
    """Whether anything is exchanged between ranks to compute variables."""
    return any(isinstance(variable.owner.op, Collective)
               for variable in ancestors(variables)
               if variable.owner is not None)


# Order

class Schedule(theano.Op):
    """Gives the first token, after comparing schedules.

    Parameters
    ----------
    channels : tuple of Channel
        All that the function uses.
    lines : tuple of tuple of str
        For each channel, what is communicated there, in order; then what the
        function updates and returns.
    n_messages : tuple of int
        For each channel, the number of lines that stand for a message.
    """

    __props__ = ("channels", "lines", "n_messages")

    def __init__(self, channels, lines, n_messages):
        self.channels = channels
        self.lines = lines
        self.n_messages = n_messages

    def __str__(self):
        return "Schedule{%d messages}" % sum(self.n_messages)

    def make_node(self):
        return theano.Apply(self, [], [theano.gof.generic()])

    def perform(self, node, inputs, output_storage):
        for channel, lines in zip(self.channels, self.lines):
            channel.agree(lines)
        for channel, n_messages in zip(self.channels, self.n_messages):
            channel.pending = n_messages
        output_storage[0][0] = True

    def do_constant_folding(self, node):
        return False


class OrderCollectives(theano.gof.Optimizer):
    """Leads a token through all nodes of a graph that communicate."""

    def add_requirements(self, fgraph):
        fgraph.attach_feature(toolbox.ReplaceValidate())

    def apply(self, fgraph):
        nodes = [node for node in _in_order(fgraph) if not node.op.ordered]
        if not nodes:
            return
        token = _schedule(fgraph, nodes)()
        for node in nodes:
            outputs = node.op.in_order()(*node.inputs + [token],
                                         return_list=True)
            token = outputs.pop()
            fgraph.replace_all_validate(
                list(zip(node.outputs, outputs)), reason="order of ranks")


# Just before Theano begins to guard what is overwritten.
theano.compile.optdb.register(
    "bnlasagne_collectives", OrderCollectives(), 49.2, "fast_run",
    "fast_compile")


def _schedule(fgraph, nodes):
    lines = collections.OrderedDict()
    for node in nodes:
        mine = lines.setdefault(node.op.channel, [])
        line = node.op.describe(node)
        mine.append(line if mine else
                    "a function that exchanges, first, " + line)
    n_messages = tuple(map(len, lines.values()))
    sources = _sources(fgraph, nodes)
    for channel, mine in lines.items():
        mine.append("nothing more to exchange")
        mine.extend(_updates(fgraph, sources, channel))
        mine.extend(_outputs(fgraph, sources, channel))
    return Schedule(tuple(lines), tuple(map(tuple, lines.values())),
                    n_messages)


def _in_order(fgraph):
    """The nodes that communicate, by age as far as the graph allows it."""
    nodes = [node for node in fgraph.toposort()
             if isinstance(node.op, Collective)]
    if len(nodes) < 2:
        return nodes
    below = _below(fgraph, nodes)
    done, order = 0, []
    waiting = sorted(range(len(nodes)), key=lambda i: nodes[i].op.number)
    while waiting:
        index = next(i for i in waiting if not below[i] & ~done)
        waiting.remove(index)
        done |= 1 << index
        order.append(nodes[index])
    return order


def _below(fgraph, nodes):
    """For each node, those that it depends on; the bits of an integer."""
    index = {node: i for i, node in enumerate(nodes)}
    bits, below = {}, [0] * len(nodes)
    for node in fgraph.toposort():
        mine = 0
        for variable in node.inputs:
            mine |= bits.get(variable, 0)
        if node in index:
            below[index[node]] = mine
            mine |= 1 << index[node]
        if mine:
            bits.update(dict.fromkeys(node.outputs, mine))
    return below


# What a function updates and returns

def _sources(fgraph, nodes):
    """For each output of a graph, the messages that its value comes from.

    Returns
    -------
    list of dict
        Channel → numbers of its messages, from 1, without those that only
        other messages depend on.
    """
    counts = collections.Counter()
    found = {}
    for node in nodes:
        counts[node.op.channel] += 1
        source = (node.op.channel, counts[node.op.channel])
        found.update(dict.fromkeys(node.outputs, frozenset([source])))
    for node in fgraph.toposort():
        if not isinstance(node.op, (Collective,) + _SHAPES):
            mine = frozenset().union(*(found.get(variable, ())
                                       for variable in node.inputs))
            if mine:
                found.update(dict.fromkeys(node.outputs, mine))
    by_output = []
    for output in fgraph.outputs:
        numbers = collections.defaultdict(list)
        for channel, number in sorted(
                found.get(output, ()), key=lambda source: source[1]):
            numbers[channel].append(number)
        by_output.append(numbers)
    return by_output


# What they compute depends on no value.
_SHAPES = (theano.compile.Shape, theano.compile.Shape_i)


def _updated(fgraph):
    """For each output that is an update, what it updates.

    Of the aliases of a running average, which share one update, only one.
    """
    found = collections.OrderedDict()
    for index, position in sorted((fgraph.update_mapping or {}).items()):
        variable = fgraph.inputs[position]
        if fgraph.outputs[index] is not variable:
            found.setdefault(id(getattr(variable, "container", variable)),
                             (index, variable))
    return dict(found.values())


def _updates(fgraph, sources, channel):
    """Lines on the shared variables that a function updates.

    They do not depend on the order in which the user gave the updates. An
    update by messages of other channels only is not for this channel's ranks.
    Nor is a running average that moves by a rank's own batches: it differs
    from rank to rank in any case, and a group of one rank has no messages.
    """
    expressions = next(
        (feature.found for feature in fgraph._features
         if isinstance(feature, _Expressions)), {})
    named, unnamed = [], []
    for index, variable in _updated(fgraph).items():
        numbers = sources[index][channel]
        expression = expressions.get(index)
        is_local_average = expression is not None and expression.n_moves
        if numbers or not (is_local_average or any(sources[index].values())):
            line = "an update of %s (%s)" % (
                variable.name or "a variable without a name",
                _type_and_shape(variable) if numbers and expression
                and expression.is_common else _type(variable))
            if numbers:
                line += _from(numbers)
            (named if variable.name else unnamed).append(
                line + str(expression or ""))
    return sorted(named) + sorted(unnamed)


def _outputs(fgraph, sources, channel):
    """Lines on the outputs that a function computes from messages.

    An output that comes from no message takes no other rank, so each rank may
    have its own.
    """
    return ["an output (%s)%s" % (_type(variable),
                                  _from(sources[index][channel]))
            for index, variable in enumerate(fgraph.outputs)
            if index not in (fgraph.update_mapping or {})
            and sources[index][channel]]


def _type(variable):
    # Without the broadcast pattern, which a part of one example may change.
    if isinstance(variable.type, T.TensorType):
        return "%s, %s" % (variable.dtype, "scalar" if variable.ndim == 0
                           else _counted(variable.ndim, "dimension"))
    return str(variable.type)


def _type_and_shape(variable):
    shape = getattr(variable.get_value(borrow=True), "shape", None)
    return "%s, shape %s" % (getattr(variable, "dtype", variable.type), shape)


def _from(numbers):
    return ", from step%s %s" % ("s"[:len(numbers) > 1],
                                 ", ".join(map(str, numbers)))


def _counted(number, noun):
    return "%d %s%s" % (number, noun, "s"[:number != 1])


class RecordUpdates(theano.gof.Optimizer):
    """Records how a function computes its updates, as the user wrote them.

    It comes before all other optimizations: these fold constants, and choose
    the Ops that are fastest on the machine of one rank.
    """

    def apply(self, fgraph):
        if any(isinstance(node.op, Collective) for node in fgraph.apply_nodes):
            fgraph.attach_feature(_Expressions(fgraph))


theano.compile.optdb.register(
    "bnlasagne_record_updates", RecordUpdates(), -1, "fast_run",
    "fast_compile")


class _Expressions(toolbox.Feature):
    """Keeps, for each update of a graph, its `_Expression`."""

    def __init__(self, fgraph):
        updated = _updated(fgraph)
        state = {fgraph.inputs[position] for position
                 in (fgraph.update_mapping or {}).values()}
        self.found = {index: _Expression(fgraph.outputs[index], state)
                      for index in updated}


class _Expression(object):
    """What distinguishes an update from another by the same messages.

    Parameters
    ----------
    update : Theano variable
    state : set of Theano shared variable
        All that the function updates.

    Attributes
    ----------
    n_moves : int
        How often a running average moves; 0 for all other variables.
    is_common : bool
        Whether the update is computed from messages, from shared variables
        that the function updates, from constants and from scalars. Then it has
        to be the same on all ranks; otherwise it depends on the rank's data.
    numbers : set of str
        The constants in it, such as alpha or a learning rate, if it is common,
        without 0 and 1.
    """

    def __init__(self, update, state):
        self.n_moves = 0
        self.is_common = True
        self.numbers = set()
        waiting, seen = [update], set()
        while waiting:
            variable = waiting.pop()
            if variable in seen:
                continue
            seen.add(variable)
            self.n_moves += hasattr(variable.tag, "moved")
            if variable.owner is None:
                self._take(variable, state)
            elif not isinstance(variable.owner.op, (Collective,) + _SHAPES):
                waiting.extend(variable.owner.inputs)
        if not self.is_common:
            self.numbers.clear()

    def _take(self, variable, state):
        if isinstance(variable, theano.Constant):
            value = np.asarray(variable.data)
            # Expressions are full of 0 and 1, which tell nothing.
            if value.size == 1 and value.dtype.kind == "f" and (
                    value.ravel()[0] not in (0, 1)):
                self.numbers.add("%.9g" % value.ravel()[0])
        elif variable not in state and getattr(variable, "ndim", None) != 0:
            self.is_common = False

    def __str__(self):
        text = ""
        if self.n_moves:
            text += ", in " + _counted(self.n_moves, "move")
        if self.numbers:
            text += ", with the constant%s %s" % (
                "s"[:len(self.numbers) > 1],
                ", ".join(sorted(self.numbers, key=float)))
        return text


# Where no order can be given

class RefuseHidden(toolbox.Feature):
    """Refuse graphs that communicate where no token can be led.

    Theano attaches it to the graph of every function before it optimizes.
    """

    def on_attach(self, fgraph):
        for node in fgraph.apply_nodes:
            hidden = _hidden(node)
            if hidden is not None:
                raise ValueError(_HIDDEN % (hidden.op.what, node.op))
        raise toolbox.AlreadyThere("nothing is hidden")


std_fgraph.features.append(RefuseHidden)

_HIDDEN = (
    "The ranks cannot exchange %s inside of %s: whether and how often that is "
    "computed may differ between them. Build the layers in there without "
    "comm.")


def _hidden(node):
    """A node that communicates in what only a part of another's calls need."""
    if isinstance(node.op, Scan):
        inner = node.op.outputs
    elif isinstance(node.op, OpFromGraph):
        inner = node.op.local_outputs
    elif isinstance(node.op, IfElse):
        inner = node.inputs[1:]
    else:
        return None
    for other in io_toposort([], inner):
        if isinstance(other.op, Collective):
            return other
        hidden = _hidden(other)
        if hidden is not None:
            return hidden
    return None
