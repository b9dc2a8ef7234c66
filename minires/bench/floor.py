"""The floor: the matrix products of a convolution or a network alone, with their operands ready.

A convolution is a matrix product, whatever comes before and after it. This is the time of that product in NumPy as the
textbook writes it, W (O, C*KH*KW) @ columns (C*KH*KW, N*OH*OW), and for the backward pass of the two products of the
same size. It tells how much of a row is BLAS and how much is MiniRes. It is no strict bound: products of other shapes
with as many multiply-adds can be faster.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minires.bench.timing import Work
from minires.models.summary import summarize
from minires.nn import Conv2d, Linear, Module


class Product(NamedTuple):
    """A matrix product (rows, inner) @ (inner, columns)."""

    rows: int
    inner: int
    columns: int
    transposed: bool = False  # the second matrix is the transpose of one that lies in memory

    @property
    def multiply_adds(self) -> int:
        """The multiplications, each with its addition."""
        return self.rows * self.inner * self.columns


def forward_product(outputs: int, inputs: int, places: int) -> Product:
    """y = W @ columns, with O outputs, C*KH*KW inputs and N*OH*OW places."""
    return Product(outputs, inputs, places)


def backward_products(outputs: int, inputs: int, places: int, needs_dx: bool = True) -> list[Product]:
    """dw, with the taller matrix first, and dx where it is wanted: dcolumns = W.T @ dy."""
    dw = Product(max(inputs, outputs), places, min(inputs, outputs), transposed=True)
    dx = Product(inputs, outputs, places)
    return [dw, dx] if needs_dx else [dw]


def network_products(model: Module, image: tuple[int, int, int], batch: int, training: bool) -> list[Product]:
    """The products of a network's convolutions and linear layers, found by running one image through it.

    Nobody asks for the gradient of the images, so the first layer has no dx.
    """
    modules = dict(model.named_modules())
    products = []
    first = True
    for row in summarize(model, image).rows:
        layer = modules[row.name]
        if isinstance(layer, (Conv2d, Linear)):
            outputs = layer.weight.shape[0]
            inputs = layer.weight.numel() // outputs
            places = batch * int(np.prod(row.output_shape[2:]))
            products.append(forward_product(outputs, inputs, places))
            if training:
                products.extend(backward_products(outputs, inputs, places, needs_dx=not first))
            first = False
    return products


def floor_work(products: list[Product]) -> Work:
    """A function that runs these products, each as often as it occurs, on operands that are made here and now."""
    rng = np.random.default_rng(0)
    operands = {}
    for product in set(products):
        a = rng.random((product.rows, product.inner), np.float32)
        if product.transposed:
            b = rng.random((product.columns, product.inner), np.float32).T
        else:
            b = rng.random((product.inner, product.columns), np.float32)
        operands[product] = a, b, np.zeros((product.rows, product.columns), np.float32)

    def run() -> None:
        for product in products:
            a, b, out = operands[product]
            np.matmul(a, b, out=out)

    return run
