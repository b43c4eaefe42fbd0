//! Writes small ONNX models, so that tests make the ones they need.

/// The fields of a protobuf message, in the order they were added.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// A whole number.
    #[must_use]
    pub fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    /// Bytes, text, or a message.
    #[must_use]
    pub fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Self {
        self.varint((field << 3) | 2);
        self.varint(value.as_ref().len() as u64);
        self.0.extend_from_slice(value.as_ref());
        self
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A dimension that is any number: -1 in a shape.
const ANY: i64 = -1;

const FP32: u64 = 1;

/// A tensor of FP32 as an initializer; its values are given little-endian.
#[must_use]
pub fn tensor(name: &str, dims: &[u64], values: &[u8]) -> Message {
    let dims = dims.iter().fold(Message::default(), |message, dim| message.number(1, *dim));
    dims.number(2, FP32).bytes(8, name).bytes(9, values)
}

/// A tensor of FP32 whose values are the beginning of another file.
#[must_use]
pub fn external_tensor(name: &str, dims: &[u64], location: &str) -> Message {
    let dims = dims.iter().fold(Message::default(), |message, dim| message.number(1, *dim));
    let entry = Message::default().bytes(1, "location").bytes(2, location);
    dims.number(2, FP32).bytes(8, name).bytes(13, entry).number(14, 1)
}

/// A graph as it grows.
#[derive(Clone, Debug, Default)]
pub struct Graph(Message);

impl Graph {
    fn value(name: &str, dims: &[i64]) -> Message {
        let dims = dims.iter().fold(Message::default(), |shape, &dim| {
            let dim = match dim {
                ANY => Message::default().bytes(2, "N"),
                dim => Message::default().number(1, dim.unsigned_abs()),
            };
            shape.bytes(1, dim)
        });
        let tensor = Message::default().number(1, FP32).bytes(2, dims);
        Message::default().bytes(1, name).bytes(2, Message::default().bytes(1, tensor))
    }

    /// An input of FP32; -1 is a dimension of any size.
    #[must_use]
    pub fn input(self, name: &str, dims: &[i64]) -> Self {
        Self(self.0.bytes(11, Self::value(name, dims)))
    }

    /// An output of FP32; -1 is a dimension of any size.
    #[must_use]
    pub fn output(self, name: &str, dims: &[i64]) -> Self {
        Self(self.0.bytes(12, Self::value(name, dims)))
    }

    /// A weight.
    #[must_use]
    pub fn weight(self, tensor: &Message) -> Self {
        Self(self.0.bytes(5, tensor))
    }

    /// An operator without attributes.
    #[must_use]
    pub fn node(self, operator: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        let node = inputs.iter().fold(Message::default(), |node, name| node.bytes(1, name));
        let node = outputs.iter().fold(node, |node, name| node.bytes(2, name));
        Self(self.0.bytes(1, node.bytes(4, operator)))
    }

    /// The model's file.
    #[must_use]
    pub fn model(self) -> Vec<u8> {
        let operators = Message::default().bytes(1, "").number(2, 17);
        Message::default().number(1, 8).bytes(8, operators).bytes(7, self.0.bytes(2, "graph")).0
    }
}

/// One product after another of x, FP32 [-1, side], with squares of weights: `layers` x `side` x `side` x 4 bytes. Each
/// moves the elements round by another number of places (ONNX Runtime keeps equal weights once): y is x where all elements
/// of x are equal.
#[must_use]
pub fn products(side: u32, layers: u32) -> Vec<u8> {
    let (wide, count) = (u64::from(side), side as usize);
    let dims = [ANY, i64::from(side)];
    let mut graph = Graph::default().input("x", &dims).output("y", &dims);
    let mut last = "x".to_owned();
    for layer in 0..layers {
        let mut weights = vec![0_f32; count * count];
        for row in 0..count {
            weights[row * count + (row + layer as usize) % count] = 1.0;
        }
        let (weight, next) = (format!("w{layer}"), format!("x{layer}"));
        graph = graph.weight(&tensor(&weight, &[wide, wide], bytemuck::cast_slice(&weights)));
        graph = graph.node("MatMul", &[&last, &weight], &[&next]);
        last = next;
    }
    graph.node("Identity", &[&last], &["y"]).model()
}

/// Small weights and many operators that a runtime folds, fuses and drops: eight for each of `blocks`. x and y are
/// FP32 [-1, 16].
#[must_use]
pub fn many_operators(blocks: u32) -> Vec<u8> {
    const SIDE: u64 = 16;
    let mut state = 1_u32;
    let mut values = |count: u64| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as f32 / 65_536.0 - 0.5
        };
        (0..count).map(|_| next()).collect()
    };
    let mut graph = Graph::default().input("x", &[ANY, SIDE as i64]).output("y", &[ANY, SIDE as i64]);
    let mut last = "x".to_owned();
    for block in 0..blocks {
        let name = |what: &str| format!("{what}{block}");
        let [product, bias, a, b] = ["product", "bias", "a", "b"].map(name);
        for (weight, dims) in [(&product, &[SIDE, SIDE][..]), (&bias, &[SIDE]), (&a, &[SIDE]), (&b, &[SIDE])] {
            let values = values(dims.iter().product());
            graph = graph.weight(&tensor(weight, dims, bytemuck::cast_slice(&values)));
        }
        let [folded, root, same, t, u, v, w, out] = ["f", "r", "s", "t", "u", "v", "w", "o"].map(name);
        graph = graph
            .node("Add", &[&a, &b], &[&folded])
            .node("Sin", &[&folded], &[&root])
            .node("Identity", &[&last], &[&same])
            .node("MatMul", &[&same, &product], &[&t])
            .node("Add", &[&t, &bias], &[&u])
            .node("Mul", &[&u, &root], &[&v])
            .node("Identity", &[&v], &[&w])
            .node("Tanh", &[&w], &[&out]);
        last = out;
    }
    graph.node("Identity", &[&last], &["y"]).model()
}
