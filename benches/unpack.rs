//! Archive to folder: 256 MiB of weights as fp16, which hardly compress, out of tar, tar.zst and tar.gz, fsync included.
//!
//! `cargo bench --bench unpack`

#![expect(clippy::expect_used, reason = "a benchmark whose work fails should stop")]

use std::fs::File;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use roundhouse::artifact::pack::pack;
use roundhouse::artifact::{Everything, Format, Limits, unpack};

const BYTES: usize = 256 << 20;

/// Values about normal around zero with a deviation of 0.02, as weights have.
fn weights() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Eight uniform bytes: their sum is normal enough.
        let sum: u32 = state.to_le_bytes().into_iter().map(u32::from).sum();
        let fine = (state >> 11) as f32 / (1_u64 << 53) as f32;
        f16::from_f32((sum as f32 + fine - 1020.0) * 0.0001)
    };
    (0..BYTES / 2).flat_map(|_| next().to_le_bytes()).collect()
}

fn archives(criterion: &mut Criterion) {
    let root = tempfile::tempdir().expect("a folder");
    let model = root.path().join("model");
    std::fs::create_dir_all(model.join("1")).expect("a folder");
    std::fs::write(model.join("1/model.bin"), weights()).expect("weights");
    let mut group = criterion.benchmark_group("unpack");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(10).measurement_time(Duration::from_secs(10));
    for (name, format) in [("tar", Format::Tar), ("tar.zst", Format::TarZst), ("tar.gz", Format::TarGz)] {
        let archive = root.path().join(name);
        pack(&model, File::create(&archive).expect("an archive"), format).expect("packed");
        let target = root.path().join("target");
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    let _ = std::fs::remove_dir_all(&target);
                    std::fs::create_dir(&target).expect("a target");
                    File::open(&archive).expect("an archive")
                },
                |file| {
                    let length = file.metadata().map_or(0, |metadata| metadata.len());
                    unpack(file, length, &target, &Limits::default(), &mut Everything, &mut Everything)
                },
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, archives);
criterion_main!(benches);
