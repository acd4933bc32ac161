"""Build the networks of :mod:`benchmarks.networks` in PyTorch."""


def step(network, normalize, batch, rate, momentum):
    """Return a function that makes a training step and returns the loss.

    `network` is a name. `batch` are arrays of NumPy: inputs, and labels of
    ten classes.
    """
    import torch  # An extra, and slow to import.

    x, y = map(torch.from_numpy, batch)
    network = build(network, normalize)
    optimizer = torch.optim.SGD(
        network.parameters(), rate, momentum=momentum)

    def call():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), y.long())
        loss.backward()
        optimizer.step()
        return loss.item()
    return call


def build(name, normalize):
    """Return a network, a module in training mode."""
    from torch import nn

    return _BUILDERS[name](nn, normalize)


def _wrapped(nn, layer, normalize, *after):
    """Put batch normalization after a layer, which then has no bias."""
    if not normalize:
        return [layer, *after]
    layer.register_parameter("bias", None)
    if isinstance(layer, nn.Linear):
        return [layer, nn.BatchNorm1d(layer.out_features), *after]
    return [layer, nn.BatchNorm2d(layer.out_channels), *after]


def _cnn(nn, normalize):
    return nn.Sequential(
        *_wrapped(nn, nn.Conv2d(1, 8, 5), normalize, nn.ReLU()),
        nn.MaxPool2d(2),
        *_wrapped(nn, nn.Conv2d(8, 16, 5), normalize, nn.ReLU()),
        nn.MaxPool2d(2), nn.Flatten(),
        *_wrapped(nn, nn.Linear(256, 128), normalize, nn.ReLU()),
        nn.Linear(128, 10))


def _resnet(nn, normalize):
    def conv(before, width, size, stride, *after):
        return _wrapped(nn, nn.Conv2d(before, width, size, stride, size // 2),
                        normalize, *after)

    class Block(nn.Module):
        def __init__(self, before, width):
            super().__init__()
            stride = 1 if before == width else 2
            self.through = nn.Sequential(
                *conv(before, width, 3, stride, nn.ReLU()),
                *conv(width, width, 3, 1))
            self.past = nn.Identity() if before == width else nn.Sequential(
                *conv(before, width, 1, stride))

        def forward(self, x):
            return nn.functional.relu(self.past(x) + self.through(x))

    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    return nn.Sequential(
        *conv(3, 16, 3, 1, nn.ReLU()), *map(Block, widths, widths[1:]),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _lstm(nn, normalize):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(64) if normalize else nn.Identity()
            self.lstm = nn.LSTM(64, 128, batch_first=True)
            self.last = nn.Linear(128, 10)

        def forward(self, x):
            x = self.norm(x.flatten(0, 1)).view_as(x)
            return self.last(self.lstm(x)[0][:, -1])
    return Network()


_BUILDERS = {"cnn": _cnn, "resnet": _resnet, "lstm": _lstm}
