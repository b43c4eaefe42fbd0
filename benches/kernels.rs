//! The CPU's twins of the kernels: `cargo bench --bench kernels`. Bytes are those read and written.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use roundhouse::kernels::gather::{GatherPart, gather};
use roundhouse::kernels::image::{Form, Pixels, preprocess};
use roundhouse::kernels::{cast, softmax, top_k};

/// Elements that do not fit the caches of a core.
const ELEMENTS: usize = 4 << 20;

fn numbers() -> Vec<f32> {
    (0..ELEMENTS as u64).map(|at| ((at * 7919) % 100_003) as f32 / 1000.0 - 50.0).collect()
}

fn casts(c: &mut Criterion) {
    let wide = numbers();
    let mut group = c.benchmark_group("cast");
    let (mut halves, mut brains, mut bytes) =
        (vec![f16::ZERO; ELEMENTS], vec![bf16::ZERO; ELEMENTS], vec![0_i8; ELEMENTS]);
    let mut back = vec![0.0_f32; ELEMENTS];
    group.throughput(Throughput::Bytes(6 * ELEMENTS as u64));
    group.bench_function("f32_f16", |b| b.iter(|| cast::f32_to_f16(&mut halves, &wide)));
    group.bench_function("f16_f32", |b| b.iter(|| cast::f16_to_f32(&mut back, &halves)));
    group.bench_function("f32_bf16", |b| b.iter(|| cast::f32_to_bf16(&mut brains, &wide)));
    group.bench_function("bf16_f32", |b| b.iter(|| cast::bf16_to_f32(&mut back, &brains)));
    group.throughput(Throughput::Bytes(5 * ELEMENTS as u64));
    group.bench_function("f32_i8", |b| b.iter(|| cast::f32_to_i8(&mut bytes, &wide)));
    group.bench_function("i8_f32", |b| b.iter(|| cast::i8_to_f32(&mut back, &bytes)));
    group.finish();
}

fn copies(c: &mut Criterion) {
    let from = vec![1_u8; 4 * ELEMENTS];
    let mut to = vec![0_u8; 4 * ELEMENTS];
    let mut group = c.benchmark_group("gather");
    group.throughput(Throughput::Bytes(8 * ELEMENTS as u64));
    // The yardstick of all that is bound by memory.
    group.bench_function("copy", |b| b.iter(|| to.copy_from_slice(&from)));
    let part = 4 * ELEMENTS / 16;
    let parts: Vec<_> = (0..16)
        .map(|at| GatherPart { source: &from[at * part..(at + 1) * part - 4096], offset: at * part, room: part })
        .collect();
    group.bench_function("16_padded_parts", |b| b.iter(|| gather(&mut to, &parts, [0, 0, 128, 63, 0, 0, 128, 63])));
    group.finish();
}

fn images(c: &mut Criterion) {
    let form = Form { channels: 3, height: 224, width: 224, mean: [120.0; 4], scale: [0.017; 4] };
    let mut group = c.benchmark_group("image");
    for (height, width) in [(224, 224), (480, 640), (1080, 1920)] {
        let bytes: Vec<u8> = (0..height as usize * width as usize * 3).map(|at| (at * 31) as u8).collect();
        let mut to = vec![0.0_f32; form.elements()];
        group.throughput(Throughput::Elements(form.elements() as u64));
        group.bench_function(BenchmarkId::new("f32_224", format!("{height}x{width}")), |b| {
            b.iter(|| preprocess(&mut to, &Pixels { bytes: &bytes, height, width }, &form));
        });
    }
    group.finish();
}

fn rows(c: &mut Criterion) {
    let from = numbers();
    let mut to = vec![0.0_f32; ELEMENTS];
    let mut group = c.benchmark_group("rows_of_1024");
    group.throughput(Throughput::Bytes(8 * ELEMENTS as u64));
    group.bench_function("softmax", |b| b.iter(|| softmax::softmax_f32(&mut to, &from, 1024)));
    let (mut values, mut indices) = (vec![0.0_f32; ELEMENTS / 1024 * 5], vec![0; ELEMENTS / 1024 * 5]);
    group.throughput(Throughput::Bytes(4 * ELEMENTS as u64));
    group.bench_function("top_5", |b| b.iter(|| top_k::top_k_f32(&mut values, &mut indices, &from, 1024, 5)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = copies, casts, images, rows
}
criterion_main!(benches);
