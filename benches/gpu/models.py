"""Small writers of ONNX models for benches/gpu/run.py, without any package: numbers of fields as in onnx.proto."""

import struct


def varint(number):
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    """A field of a protobuf message: an integer, or bytes under their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def weights(count, scale):
    """So many FP32 numbers, small and of both signs, the same each time."""
    pattern = struct.pack("<257f", *(scale * ((at * 7919) % 257 - 128) / 128 for at in range(257)))
    return (pattern * (count * 4 // len(pattern) + 1))[: count * 4]


def tensor(name, dims, data):
    return b"".join(field(1, dim) for dim in dims) + field(2, 1) + field(8, name) + field(9, data)


def value(name, dims):
    """An input or output of FP32; a text is a dimension of any size."""
    shape = b"".join(field(1, field(2, dim) if isinstance(dim, str) else field(1, dim)) for dim in dims)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))


def integers(name, numbers):
    return field(1, name) + b"".join(field(8, number) for number in numbers) + field(20, 7)


def number(name, integer):
    return field(1, name) + field(3, integer) + field(20, 2)


class Graph:
    def __init__(self):
        self.nodes, self.weights, self.count = [], [], 0

    def weight(self, dims, scale):
        self.count += 1
        name, size = f"w{self.count}", 1
        for dim in dims:
            size *= dim
        self.weights.append(field(5, tensor(name, dims, weights(size, scale))))
        return name

    def node(self, operator, inputs, *attributes, output=None):
        self.count += 1
        output = output or f"t{self.count}"
        node = b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, operator)
        self.nodes.append(field(1, node + b"".join(field(5, attribute) for attribute in attributes)))
        return output

    def model(self, inputs, outputs):
        graph = b"".join(self.nodes) + field(2, "graph") + b"".join(self.weights)
        graph += b"".join(field(11, one) for one in inputs) + b"".join(field(12, one) for one in outputs)
        return field(1, 9) + field(7, graph) + field(8, field(1, "") + field(2, 17))


def resnet50():
    """The convolutions of ResNet-50 with random weights, batch norms folded into them; x FP32 [N, 3, 224, 224], y [N, 1000]."""
    graph = Graph()

    def conv(source, channels, out, kernel, stride, relu=True):
        weight = graph.weight([out, channels, kernel, kernel], 1.5 / (channels * kernel * kernel) ** 0.5)
        pad = kernel // 2
        made = graph.node("Conv", [source, weight, graph.weight([out], 0.1)], integers("kernel_shape", [kernel] * 2),
                          integers("strides", [stride] * 2), integers("pads", [pad] * 4))
        return graph.node("Relu", [made]) if relu else made

    last = conv("x", 3, 64, 7, 2)
    last = graph.node("MaxPool", [last], integers("kernel_shape", [3, 3]), integers("strides", [2, 2]), integers("pads", [1] * 4))
    channels = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            inner = conv(conv(last, channels, width, 1, 1), width, width, 3, stride)
            inner = conv(inner, width, 4 * width, 1, 1, relu=False)
            beside = last if block else conv(last, channels, 4 * width, 1, stride, relu=False)
            last = graph.node("Relu", [graph.node("Add", [inner, beside])])
            channels = 4 * width
    last = graph.node("Flatten", [graph.node("GlobalAveragePool", [last])])
    graph.node("MatMul", [last, graph.weight([2048, 1000], 0.02)], output="y")
    return graph.model([value("x", ["N", 3, 224, 224])], [value("y", ["N", 1000])])


def dense(side, layers):
    """`layers` products with FP32 matrices of `side` squared; x and y are FP32 [N, side]."""
    graph, last = Graph(), "x"
    for layer in range(layers):
        last = graph.node("MatMul", [last, graph.weight([side, side], 1.0 / side)], output="y" if layer == layers - 1 else None)
    return graph.model([value("x", ["N", side])], [value("y", ["N", side])])
