"""Save networks in processes that are killed, or cannot write.

The functions fork, and so run in a process of their own, without threads.
"""

import os
import random
import resource
import signal
import tempfile
import time
from pathlib import Path

from bnlasagne import BatchNormLayer, load_network, save_network

import numpy as np
from lasagne.layers import get_all_params

NOBODY = 65534


def network(value):
    """A network full of a value, with a file that takes many writes."""
    layer = None, 1000
    for number in range(3):
        layer = BatchNormLayer(layer, name=f"bn{number}")
    for param in get_all_params(layer):
        param.set_value(np.full_like(param.get_value(), value))
    return layer


def value_in(path):
    """The value that a file is full of."""
    layer = network(0)
    load_network(layer, path)
    values = {float(value) for param in get_all_params(layer)
              for value in (param.get_value().min(), param.get_value().max())}
    assert len(values) == 1, values
    return values.pop()


def forked(function):
    """Call a function in a child; return its process number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        function()
        status = 0
    finally:
        os._exit(status)


def finished(child):
    return os.waitpid(child, 0)[1]


def save(path, *layers, times=1):
    for _ in range(times):
        for layer in layers:
            save_network(layer, path)


def is_left_over(name):
    return name.startswith("save_network-")


def kill(path, times, seed):
    """Kill a process that saves, at random moments."""
    rng, both = random.Random(seed), [network(1), network(2)]
    start = time.monotonic()
    save(path, *both, times=5)
    duration = (time.monotonic() - start) / 10
    found = []
    for _ in range(times):
        read, write = os.pipe()

        def save_on(write=write):
            save(path, *both)
            os.write(write, b"!")
            save(path, *both, times=10 ** 9)
        child = forked(save_on)
        os.close(write)
        assert os.read(read, 1)
        time.sleep(rng.uniform(0, 4 * duration))
        os.kill(child, signal.SIGKILL)
        assert finished(child) == signal.SIGKILL
        os.close(read)
        found.append(value_in(path))
    assert set(found) == {1, 2}, found
    names = os.listdir(Path(path).parent)
    # Some moments were within a save; none of them is in the way.
    assert any(map(is_left_over, names)), names
    assert {name for name in names if not is_left_over(name)} == {"it.npz"}
    save(path, network(3))
    assert value_in(path) == 3


def race(path, times):
    """Two processes save, and this one loads."""
    both = [network(1), network(2)]
    save(path, *both)
    children = [forked(lambda layer=layer: save(path, layer, times=times))
                for layer in both]
    found = []
    while children:
        found.append(value_in(path))
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            assert status == 0
            children.remove(done)
    assert set(found) <= {1, 2}, found
    assert os.listdir(Path(path).parent) == ["it.npz"]


def refused(function, path):
    """A process that cannot save says why, and leaves all as it was."""
    before = Path(path).read_bytes()
    names = os.listdir(Path(path).parent)

    def fail():
        try:
            function()
        except OSError as error:
            assert error.filename == str(path), error
        else:
            raise AssertionError("saved")
    assert finished(forked(fail)) == 0
    assert Path(path).read_bytes() == before
    assert os.listdir(Path(path).parent) == names


def fill(path, step):
    """Files may have no more than some size, as if the disk were full."""
    save(path, network(1))
    layer = network(2)
    for size in range(0, os.stat(path).st_size, step):
        def save_in(size=size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))
            save_network(layer, path)
        refused(save_in, path)


def write_protected():
    """A folder that others than its owner cannot write to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(os.path.realpath(folder), "it.npz")
        save(path, network(1))
        os.chmod(folder, 0o555)
        layer = network(2)

        def save_as_another():
            if os.getuid() == 0:
                os.setuid(NOBODY)
            save_network(layer, path)
        refused(save_as_another, path)
        os.chmod(folder, 0o755)
