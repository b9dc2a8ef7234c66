"""A residual network, whole, from nothing but NumPy: `python tutorials/microres.py` teaches it to read digits.

An operation returns its result y, and a function that turns dy, the gradient of the loss by y, into that by each input:
a closure, it sees all that led to y. These closures, and tensors that remember their parents, are the whole engine.
"""

from pathlib import Path

import numpy as np


class Tensor:
    """An array that remembers its parents, the tensors it was made from, and how its gradient becomes theirs."""

    def __init__(self, data, step_back=lambda dy: (), parents=()):
        self.data, self.grad, self.step_back, self.parents = data, 0.0, step_back, parents
        self.depth = 1 + max([parent.depth for parent in parents], default=0)

    def apply(self, operation, *others, **options):
        """An operation on this tensor and others. Its result remembers them: here, and only here, the graph grows."""
        y, step_back = operation(self.data, *[other.data for other in others], **options)
        return Tensor(y, step_back, (self, *others))

    def backward(self):
        """The chain rule, deepest tensor first: all that was made from it has added to its gradient by then."""
        self.grad, waiting = np.ones_like(self.data), [self]
        while waiting:
            tensor = waiting.pop()
            for parent, gradient in zip(tensor.parents, tensor.step_back(tensor.grad), strict=True):
                parent.grad = parent.grad + gradient
            waiting = sorted({*waiting, *tensor.parents}, key=lambda tensor: tensor.depth)


def conv2d(x, w, stride):
    """(N, C, H, W) to (N, O, OH, OW): a 3x3 window of all channels times the kernel w[o], summed. Zeros lie around."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]

    def conv2d_backward(dy):  # y sums products: each factor gets dy times the other one, summed where it was shared
        dpadded, dwindows = np.zeros_like(padded), np.einsum("nohw,ocij->nchwij", dy, w, optimize=True)
        for i, j in np.ndindex(3, 3):  # a pixel is in up to nine windows, at another place (i, j) of each: add them
            dpadded[:, :, i : i + x.shape[2] : stride, j : j + x.shape[3] : stride] += dwindows[..., i, j]
        return dpadded[:, :, 1:-1, 1:-1], np.einsum("nohw,nchwij->ocij", dy, windows, optimize=True)

    return np.einsum("nchwij,ocij->nohw", windows, w, optimize=True), conv2d_backward


def batch_norm(x, gamma, beta, running, training):
    """y = gamma x_hat + beta with x_hat = (x - mean) / std, the mean and deviation of a channel in this batch."""
    if not training:  # those of many batches, as they are remembered: each image then counts for itself
        return gamma * (x - running[0]) / np.sqrt(running[1] + 1e-5) + beta, None
    channel = {"axis": (0, 2, 3), "keepdims": True}  # to (1, C, 1, 1), the shape of gamma and beta
    mean, std = x.mean(**channel), np.sqrt(x.var(**channel) + 1e-5)
    running[:] = 0.9 * running[0] + 0.1 * mean, 0.9 * running[1] + 0.1 * x.var(ddof=1, **channel)
    x_hat = (x - mean) / std

    def batch_norm_backward(dy):  # x_hat has mean 0 and size 1 whatever x is: what would change them is taken out of dy
        dx = gamma / std * (dy - dy.mean(**channel) - x_hat * (dy * x_hat).mean(**channel))
        return dx, (dy * x_hat).sum(**channel), dy.sum(**channel)

    return gamma * x_hat + beta, batch_norm_backward


def relu(x):
    """y = max(x, 0). The slope is 1 where x is positive and 0 elsewhere."""
    return np.maximum(x, 0), lambda dy: (dy * (x > 0),)


def residual_add(f, x, stride):
    """y = F(x) + x. Where F changed the shape, option A: every other pixel of x, added to the middle channels."""
    middle = slice((f.shape[1] - x.shape[1]) // 2, (f.shape[1] + x.shape[1]) // 2)
    y = f.copy()
    y[:, middle] += x[:, :, ::stride, ::stride]

    def residual_add_backward(dy):  # a sum hands dy on whole: past F it reaches the layers before as it is
        dx = np.zeros_like(x)
        dx[:, :, ::stride, ::stride] = dy[:, middle]
        return dy, dx

    return y, residual_add_backward


def average(x):
    """y = the mean of each channel's image, (N, C). Every pixel has the same share of it."""
    return x.mean(axis=(2, 3)), lambda dy: (np.ones_like(x) * dy[:, :, None, None] / x[0, 0].size,)


def linear(x, w, b):
    """y = x w' + b. As in conv2d: dy times the other factor, summed over the images that shared it."""
    return x @ w.T + b, lambda dy: (dy @ w, dy.T @ x, dy.sum(axis=0))


def cross_entropy(z, labels):
    """y = mean of -log p[label] = log(sum(exp(z))) - z[label], p = exp(z) / sum(exp(z)); hence dz = p - 1[label]."""
    right = labels[:, None] == np.arange(z.shape[1])
    log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)  # log(sum(exp(z))) that cannot overflow
    return -log_p[right].mean(), lambda dy: (dy * (np.exp(log_p) - right) / len(labels),)


class ResNet8:
    """A convolution, three residual blocks of two, an average, a linear layer (He et al. 2015), by PyTorch's names."""

    def __init__(self, rng):
        self.layers, self.running = {}, {}
        names = ["conv1", *(f"layer{i}.0.conv{j}" for i in (1, 2, 3) for j in (1, 2))]
        for name, C, O in zip(names, (1, 16, 16, 16, 32, 32, 64), (16, 16, 16, 32, 32, 64, 64), strict=True):
            kernel = rng.normal(0, np.sqrt(2 / (9 * O)), (O, C, 3, 3))  # so wide that gradients keep their size
            self.layers[name] = Tensor(kernel), Tensor(np.ones((1, O, 1, 1))), Tensor(np.zeros((1, O, 1, 1)))
            self.running[name] = [0.0, 1.0]  # the mean and the variance that batch norm remembers
        self.layers["fc"] = Tensor(rng.uniform(-1 / 8, 1 / 8, (10, 64))), Tensor(np.zeros(10))  # 8 = root of 64

    def conv_norm(self, x, name, stride, training):
        w, *norm = self.layers[name]
        return x.apply(conv2d, w, stride=stride).apply(batch_norm, *norm, running=self.running[name], training=training)

    def __call__(self, images, training=True):
        x = self.conv_norm(Tensor(images), "conv1", 1, training).apply(relu)
        for block, stride in ("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2):
            f = self.conv_norm(x, block + ".conv1", stride, training).apply(relu)
            f = self.conv_norm(f, block + ".conv2", 1, training)
            x = f.apply(residual_add, x, stride=stride).apply(relu)  # relu(F(x) + x)
        return x.apply(average).apply(linear, *self.layers["fc"])


# The digits as minires.data.digits() has them, (1797, 1, 8, 8): 1,437 to learn from, and 360 for the test.
with np.load(Path(__file__).resolve().parents[1] / "minires/data/digits.npz") as file:
    images, labels = file["images"][file["order"], None], file["labels"][file["order"]]
images = (images - images[:1437].mean()) / images[:1437].std()


def train(seed=0, epochs=12):
    """SGD: each parameter p rolls downhill with a velocity v = 0.9 v + gradient + 5e-4 p, and p = p - rate v."""
    rng = np.random.default_rng(seed)
    network = ResNet8(rng)
    velocity = {p: 0.0 for layer in network.layers.values() for p in layer}
    for epoch in range(epochs):
        rate = 0.1 * min((epoch + 1) / 4, 1 - epoch / epochs)  # up for a while, then down
        for batch in np.array_split(rng.permutation(1437), 45):  # 32 images at a time
            loss = network(images[batch]).apply(cross_entropy, labels=labels[batch])
            loss.backward()
            for p in velocity:
                velocity[p] = 0.9 * velocity[p] + p.grad + 5e-4 * p.data
                p.data, p.grad = p.data - rate * velocity[p], 0.0
        right = network(images[1437:], training=False).data.argmax(axis=1) == labels[1437:]
        print(f"epoch {epoch + 1:2}  last loss {loss.data:.4f}  test accuracy {right.mean():.2%} ({right.sum()}/360)")


if __name__ == "__main__":
    train()
    print("Everything else in MiniRes is efficiency.")
