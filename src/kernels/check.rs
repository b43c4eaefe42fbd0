//! Each kernel against its twin on a GPU, and how fast it moves memory: `roundhouse gpu-check kernels`.

use std::path::PathBuf;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError, sys};
use half::f16;

use super::cache::Compiler;
use super::gather::{GatherPart, gather};
use super::image::{Form, Pixels, preprocess};
use super::source::Architecture;
use super::{DevicePart, DevicePicture, DeviceTarget, Kernels, cast, open_gpu, softmax, top_k};
use crate::error::{Error, ErrorKind, Result};

/// Runs that are timed together.
const RUNS: u32 = 20;

/// Bytes that the plain copy moves, which others are compared with.
const COPY_BYTES: usize = 256 << 20;

/// What one kernel did.
#[derive(Debug)]
pub struct Checked {
    /// The kernel's function, or `copy` for the driver's own.
    pub kernel: &'static str,
    /// On what.
    pub work: String,
    /// Whether it gave what its contract says.
    pub agrees: bool,
    /// Microseconds a run, the launch's preparation included.
    pub microseconds: f64,
    /// Bytes read and written a second, in 10^9.
    pub gigabytes_per_second: f64,
    /// Of what the driver's copy in device memory moves.
    pub share_of_copy: f64,
}

/// The GPU and what it did.
#[derive(Debug)]
pub struct Report {
    /// Its name.
    pub gpu: String,
    /// Its compute capability.
    pub architecture: Architecture,
    /// A row a kernel, the copy first.
    pub checked: Vec<Checked>,
}

/// Runs all kernels on a GPU, compiled with the NVRTC at `library` where the build has not done that.
///
/// # Errors
/// Where there is no GPU, no NVRTC, or the driver fails; a kernel that gives a wrong answer is no error but a row.
pub fn check(ordinal: usize, library: Option<PathBuf>, cache: Option<PathBuf>) -> Result<Report> {
    let context = open_gpu(ordinal)?;
    let (major, minor) = context.compute_capability().map_err(driver)?;
    let architecture = Architecture { major: major.unsigned_abs(), minor: minor.unsigned_abs() };
    let mut compiler = Compiler::new(library, cache);
    let kernels = Kernels::load(&context, |kernel| compiler.image(kernel, architecture))?;
    let stream = context.new_stream().map_err(driver)?;
    let mut bench = Bench { context: Arc::clone(&context), stream, kernels, copy: 0.0, checked: Vec::new() };
    bench.copy()?;
    bench.gather_and_scatter()?;
    bench.cast()?;
    bench.image()?;
    bench.softmax()?;
    bench.top_k()?;
    Ok(Report { gpu: context.name().map_err(driver)?, architecture, checked: bench.checked })
}

fn driver(error: DriverError) -> Error {
    Error::new(ErrorKind::BackendFailed, "the CUDA driver failed").with_source(error)
}

/// Numbers that look random and are the same each time.
fn numbers(count: usize) -> impl Iterator<Item = u32> {
    let mut state = 0x9e37_79b9_u32;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}

fn same_bits(one: &[f32], other: &[f32]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.to_bits() == other.to_bits())
}

struct Bench {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: Kernels,
    /// What the driver's copy moves, in 10^9 bytes a second.
    copy: f64,
    checked: Vec<Checked>,
}

impl Bench {
    /// Times a run that moves so many bytes, and writes down the row.
    fn record(
        &mut self,
        kernel: &'static str,
        work: String,
        (agrees, bytes): (bool, usize),
        mut run: impl FnMut(&Self) -> Result<()>,
    ) -> Result<()> {
        run(self)?;
        let event = || self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(driver);
        let begin = event()?;
        for _ in 0..RUNS {
            run(self)?;
        }
        let milliseconds = begin.elapsed_ms(&event()?).map_err(driver)?;
        self.context.synchronize().map_err(driver)?;
        let microseconds = f64::from(milliseconds) * 1e3 / f64::from(RUNS);
        let gigabytes_per_second = bytes as f64 / microseconds / 1e3;
        let share_of_copy = if self.copy > 0.0 { gigabytes_per_second / self.copy } else { 1.0 };
        self.checked.push(Checked { kernel, work, agrees, microseconds, gigabytes_per_second, share_of_copy });
        Ok(())
    }

    fn copy(&mut self) -> Result<()> {
        let from = self.stream.alloc_zeros::<u8>(COPY_BYTES).map_err(driver)?;
        let mut to = self.stream.alloc_zeros::<u8>(COPY_BYTES).map_err(driver)?;
        let work = format!("{COPY_BYTES} bytes in device memory");
        self.record("copy", work, (true, 2 * COPY_BYTES), |bench| {
            bench.stream.memcpy_dtod(&from, &mut to).map_err(driver)
        })?;
        self.copy = self.checked.last().map_or(0.0, |row| row.gigabytes_per_second);
        Ok(())
    }

    /// Parts of all alignments, one of them large, with padding behind each.
    fn gather_and_scatter(&mut self) -> Result<()> {
        for sizes in [vec![32 << 20; 8], vec![1, 15, 16, 17, 0, 1000, 4097, 8_000_001], vec![600; 4096]] {
            let bytes: Vec<u8> = numbers(sizes.iter().sum()).map(|number| number as u8).collect();
            let padding = [1, 2, 3, 4, 5, 6, 7, 8];
            let (mut parts, mut places, mut at, mut offset) = (Vec::new(), Vec::new(), 0, 0);
            for size in &sizes {
                let room = size + size % 7;
                parts.push(GatherPart { source: &bytes[at..at + size], offset, room });
                places.push((at, *size, offset, room));
                (at, offset) = (at + size, offset + room);
            }
            let mut expected = vec![0; offset];
            gather(&mut expected, &parts, padding)?;
            let memory = self.stream.clone_htod(&bytes).map_err(driver)?;
            let mut batch = self.stream.alloc_zeros::<u8>(offset).map_err(driver)?;
            let part = |&(at, size, offset, room): &_| DevicePart { memory: memory.slice(at..at + size), offset, room };
            let on_device: Vec<_> = places.iter().map(part).collect();
            self.kernels.gather(&self.stream, &mut batch.as_view_mut(), &on_device, padding)?;
            let agrees = self.stream.clone_dtoh(&batch).map_err(driver)? == expected;
            let work = format!("{} parts of {} bytes in all", sizes.len(), bytes.len());
            self.record("gather", work.clone(), (agrees, bytes.len() + offset), |bench| {
                bench.kernels.gather(&bench.stream, &mut batch.as_view_mut(), &on_device, padding)
            })?;
            // The driver gives no memory of no bytes.
            let allocate = |&(_, size, ..): &(usize, usize, usize, usize)| self.stream.alloc_zeros::<u8>(size.max(1));
            let mut back = places.iter().map(allocate).collect::<Result<Vec<_>, _>>().map_err(driver)?;
            let scatter = |bench: &Self, back: &mut [CudaSlice<u8>]| {
                let target = |(memory, place): (_, &(usize, usize, usize, usize))| {
                    let memory: &mut CudaSlice<u8> = memory;
                    DeviceTarget { memory: memory.slice_mut(..place.1), offset: place.2 }
                };
                let mut targets: Vec<_> = back.iter_mut().zip(&places).map(target).collect();
                bench.kernels.scatter(&bench.stream, &batch.as_view(), &mut targets)
            };
            scatter(self, &mut back)?;
            let mut agrees = true;
            for (memory, &(at, size, ..)) in back.iter().zip(&places) {
                agrees &= self.stream.clone_dtoh(&memory.slice(..size)).map_err(driver)? == bytes[at..at + size];
            }
            self.record("scatter", work, (agrees, 2 * bytes.len()), |bench| scatter(bench, &mut back))?;
        }
        Ok(())
    }

    fn cast(&mut self) -> Result<()> {
        // Not a multiple of four, and every kind of number.
        let wide: Vec<f32> = numbers((64 << 20) + 3).map(f32::from_bits).collect();
        let work = format!("{} elements", wide.len());
        let from = self.stream.clone_htod(&wide).map_err(driver)?;
        macro_rules! both {
            ($narrow:ty, $zero:expr, $down:ident, $up:ident, $down_name:literal, $up_name:literal) => {{
                let mut expected: Vec<$narrow> = vec![$zero; wide.len()];
                cast::$down(&mut expected, &wide);
                let mut narrow = self.stream.alloc_zeros::<$narrow>(wide.len()).map_err(driver)?;
                self.kernels.cast(&self.stream, &mut narrow.as_view_mut(), &from.as_view())?;
                let found = self.stream.clone_dtoh(&narrow).map_err(driver)?;
                let agrees = bytemuck::cast_slice::<_, u8>(&found) == bytemuck::cast_slice::<_, u8>(&expected);
                let bytes = wide.len() * (4 + size_of::<$narrow>());
                self.record($down_name, work.clone(), (agrees, bytes), |bench| {
                    bench.kernels.cast(&bench.stream, &mut narrow.as_view_mut(), &from.as_view())
                })?;
                let mut expected_wide = vec![0.0; wide.len()];
                cast::$up(&mut expected_wide, &expected);
                let mut back = self.stream.alloc_zeros::<f32>(wide.len()).map_err(driver)?;
                self.kernels.cast(&self.stream, &mut back.as_view_mut(), &narrow.as_view())?;
                let agrees = same_bits(&self.stream.clone_dtoh(&back).map_err(driver)?, &expected_wide);
                self.record($up_name, work.clone(), (agrees, bytes), |bench| {
                    bench.kernels.cast(&bench.stream, &mut back.as_view_mut(), &narrow.as_view())
                })?;
            }};
        }
        both!(f16, f16::ZERO, f32_to_f16, f16_to_f32, "cast_f32_f16", "cast_f16_f32");
        both!(half::bf16, half::bf16::ZERO, f32_to_bf16, bf16_to_f32, "cast_f32_bf16", "cast_bf16_f32");
        both!(i8, 0, f32_to_i8, i8_to_f32, "cast_f32_i8", "cast_i8_f32");
        Ok(())
    }

    fn image(&mut self) -> Result<()> {
        let mean = [123.675, 116.28, 103.53, 0.0];
        let scale = [1.0 / 58.395, 1.0 / 57.12, 1.0 / 57.375, 1.0];
        let form = Form { channels: 3, height: 224, width: 224, mean, scale };
        for (count, height, width) in [(64, 224, 224), (64, 480, 640), (3, 1080, 1921)] {
            let picture = height as usize * width as usize * form.channels;
            let bytes: Vec<u8> = numbers(count * picture).map(|number| number as u8).collect();
            let mut expected = vec![0.0_f32; count * form.elements()];
            preprocess(&mut expected, &Pixels { bytes: &bytes, height, width }, &form)?;
            let mut expected_half = vec![f16::ZERO; expected.len()];
            cast::f32_to_f16(&mut expected_half, &expected);
            let memory = self.stream.clone_htod(&bytes).map_err(driver)?;
            let pixels = |at: usize| memory.slice(at * picture..(at + 1) * picture);
            let pictures: Vec<_> = (0..count).map(|at| DevicePicture { pixels: pixels(at), height, width }).collect();
            let work = format!("{count} pictures of {height}x{width} to 224x224");
            // A small picture is read whole, of a large one four pixels for each of the answer.
            let read = bytes.len().min(4 * expected.len());
            let mut to = self.stream.alloc_zeros::<f32>(expected.len()).map_err(driver)?;
            self.kernels.image(&self.stream, &mut to.as_view_mut(), &pictures, &form)?;
            let agrees = same_bits(&self.stream.clone_dtoh(&to).map_err(driver)?, &expected);
            self.record("image_f32", work.clone(), (agrees, read + 4 * expected.len()), |bench| {
                bench.kernels.image(&bench.stream, &mut to.as_view_mut(), &pictures, &form)
            })?;
            let mut to = self.stream.alloc_zeros::<f16>(expected.len()).map_err(driver)?;
            self.kernels.image(&self.stream, &mut to.as_view_mut(), &pictures, &form)?;
            let agrees = self.stream.clone_dtoh(&to).map_err(driver)? == expected_half;
            self.record("image_f16", work, (agrees, read + 2 * expected.len()), |bench| {
                bench.kernels.image(&bench.stream, &mut to.as_view_mut(), &pictures, &form)
            })?;
        }
        Ok(())
    }

    fn softmax(&mut self) -> Result<()> {
        for (rows, columns) in [(65_536, 10), (16_384, 1000), (4096, 8192), (256, 151_936)] {
            let from: Vec<f32> = numbers(rows * columns).map(|number| (number >> 8) as f32 / 1e6 - 8.0).collect();
            let mut expected = vec![0.0; from.len()];
            softmax::softmax_f32(&mut expected, &from, columns);
            let device = self.stream.clone_htod(&from).map_err(driver)?;
            let mut to = self.stream.alloc_zeros::<f32>(from.len()).map_err(driver)?;
            let columns = columns as u32;
            self.kernels.softmax(&self.stream, &mut to.as_view_mut(), &device.as_view(), columns)?;
            let found = self.stream.clone_dtoh(&to).map_err(driver)?;
            // Both keep to the contract's bound, 2.5e-6 here at most, on either side of the exact number.
            let close = |(one, other): (&f32, &f32)| (one - other).abs() <= 5e-6 * other.abs() + 1.2e-38;
            let agrees = found.iter().zip(&expected).all(close);
            self.record("softmax_f32", format!("{rows} rows of {columns}"), (agrees, 8 * from.len()), |bench| {
                bench.kernels.softmax(&bench.stream, &mut to.as_view_mut(), &device.as_view(), columns)
            })?;
        }
        Ok(())
    }

    fn top_k(&mut self) -> Result<()> {
        for (rows, columns, k) in [(65_536, 10, 3), (16_384, 1000, 5), (64, 151_936, 50), (8, 151_936, 1024)] {
            // Few different values, so that columns decide.
            let from: Vec<f32> = numbers(rows * columns).map(|number| (number % 4093) as f32 - 2000.0).collect();
            let (mut values, mut indices) = (vec![0.0; rows * k], vec![0; rows * k]);
            top_k::top_k_f32(&mut values, &mut indices, &from, columns, k);
            let device = self.stream.clone_htod(&from).map_err(driver)?;
            let mut found_values = self.stream.alloc_zeros::<f32>(rows * k).map_err(driver)?;
            let mut found_indices = self.stream.alloc_zeros::<u32>(rows * k).map_err(driver)?;
            let (columns, most) = (columns as u32, k as u32);
            let mut run = |bench: &Self| {
                let places = (&mut found_values.as_view_mut(), &mut found_indices.as_view_mut());
                bench.kernels.top_k(&bench.stream, places, &device.as_view(), columns, most)
            };
            run(self)?;
            let work = format!("{k} largest of {columns}, {rows} rows");
            self.record("top_k_f32", work, (false, 4 * from.len()), &mut run)?;
            let agrees = same_bits(&self.stream.clone_dtoh(&found_values).map_err(driver)?, &values)
                && self.stream.clone_dtoh(&found_indices).map_err(driver)? == indices;
            if let Some(row) = self.checked.last_mut() {
                row.agrees = agrees;
            }
        }
        Ok(())
    }
}
