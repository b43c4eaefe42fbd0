//! What is computed around models: the kernels of `kernels/*.cu` for GPUs, each with a twin for the CPU that keeps the same
//! contract (the first comment of the kernel's file, repeated at the twin). This file has their launches through the driver.
//!
//! A build with `nvcc` embeds them compiled ([`source::prebuilt`]); any other embeds their text, which [`nvrtc`] compiles
//! where it is needed and [`cache`] keeps. No library of NVIDIA is needed to build, to start, or to run models on the CPU.
#![expect(unsafe_code, reason = "launches of kernels")]

pub mod cache;
pub mod cast;
pub mod check;
pub mod gather;
pub mod geometry;
pub mod image;
pub mod nvrtc;
pub mod softmax;
pub mod source;
pub mod top_k;

use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr,
    DriverError, LaunchArgs, LaunchConfig, PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;
use half::{bf16, f16};

use self::geometry::{Geometry, MAX_TOP_K};
use self::image::{Form, MAX_CHANNELS, MAX_OUT_SIDE, MAX_SIDE};
use self::source::Kernel;
use crate::error::{Error, ErrorKind, Result};

/// The driver's word for what went wrong.
fn failed(what: &'static str) -> impl FnOnce(DriverError) -> Error {
    move |error| {
        let kind = match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfDeviceMemory,
            _ => ErrorKind::BackendFailed,
        };
        Error::new(kind, what).with_source(error)
    }
}

/// The context of a GPU, for whoever has none yet.
///
/// # Errors
/// `Unsupported` where there is no driver or no such GPU, `BackendFailed` if the driver fails.
pub fn open_gpu(ordinal: usize) -> Result<Arc<CudaContext>> {
    // SAFETY: it only tries to load the driver's library, whose initialisers set up nothing but itself.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::unsupported("the CUDA driver's library cannot be loaded: is the NVIDIA driver installed?"));
    }
    let count = CudaContext::device_count().map_err(failed("the CUDA driver does not start"))?;
    if usize::try_from(count).is_ok_and(|count| ordinal >= count) {
        return Err(Error::unsupported(format!("there is no GPU {ordinal}: the driver has {count}")));
    }
    CudaContext::new(ordinal).map_err(failed("a GPU's context cannot be made"))
}

/// What kernels take as `Part`, laid out the same.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Part {
    address: u64,
    bytes: u64,
    offset: u64,
    room: u64,
}

// SAFETY: four integers of 64 bits without padding, as the kernels declare it.
unsafe impl DeviceRepr for Part {}

/// What kernels take as `Picture`, laid out the same.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Picture {
    pixels: u64,
    height: u32,
    width: u32,
}

// SAFETY: an integer of 64 bits and two of 32 without padding, as the kernels declare it.
unsafe impl DeviceRepr for Picture {}

/// What kernels take as `Normalisation`, laid out the same.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Normalisation {
    mean: [f32; MAX_CHANNELS],
    scale: [f32; MAX_CHANNELS],
}

// SAFETY: eight floats without padding, as the kernels declare it.
unsafe impl DeviceRepr for Normalisation {}

/// Memory of a request on the device, and its place in a batch, in bytes.
#[derive(Debug)]
pub struct DevicePart<'a> {
    /// The request's.
    pub memory: CudaView<'a, u8>,
    /// Where it stands in the batch.
    pub offset: usize,
    /// The bytes it has there; what it does not fill is padded.
    pub room: usize,
}

/// Memory of a request on the device that part of an output goes to.
#[derive(Debug)]
pub struct DeviceTarget<'a> {
    /// The request's; all of it is written.
    pub memory: CudaViewMut<'a, u8>,
    /// Where its part stands in the output, in bytes.
    pub offset: usize,
}

/// One picture on the device: [height, width, channels] UINT8, dense.
#[derive(Debug)]
pub struct DevicePicture<'a> {
    /// Its bytes.
    pub pixels: CudaView<'a, u8>,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

/// Pairs of element types, from and to, that there is a cast for.
pub trait Cast {
    /// Its function in `cast.cu`.
    const FUNCTION: &'static str;
}

macro_rules! casts {
    ($($from:ty, $to:ty => $function:literal),* $(,)?) => {
        $(impl Cast for ($from, $to) { const FUNCTION: &'static str = $function; })*
    };
}

casts! {
    f32, f16 => "cast_f32_f16", f32, bf16 => "cast_f32_bf16", f32, i8 => "cast_f32_i8",
    f16, f32 => "cast_f16_f32", bf16, f32 => "cast_bf16_f32", i8, f32 => "cast_i8_f32",
}

/// What pictures may be made of.
pub trait DevicePixel {
    /// Its function in `image.cu`.
    const FUNCTION: &'static str;
}

impl DevicePixel for f32 {
    const FUNCTION: &'static str = "image_f32";
}

impl DevicePixel for f16 {
    const FUNCTION: &'static str = "image_f16";
}

/// The kernels on one device. Launches return once they are queued on the stream.
#[derive(Debug)]
pub struct Kernels {
    modules: Vec<(&'static Kernel, Arc<CudaModule>)>,
    multiprocessors: u32,
}

impl Kernels {
    /// Loads all kernels, each from what `image` has for it (a cubin or fatbin).
    ///
    /// # Errors
    /// The image's error, or `BackendFailed` if the driver takes it not.
    pub fn load(context: &Arc<CudaContext>, mut image: impl FnMut(&Kernel) -> Result<Vec<u8>>) -> Result<Self> {
        let count = context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        let count = count.map_err(failed("the GPU does not say how many multiprocessors it has"))?;
        let load = |kernel: &'static Kernel| {
            let module = context.load_module(Ptx::from_binary(image(kernel)?));
            Ok((kernel, module.map_err(failed("the driver does not take a compiled kernel"))?))
        };
        let modules = source::ALL.iter().map(load).collect::<Result<_>>()?;
        Ok(Self { modules, multiprocessors: u32::try_from(count).unwrap_or(1) })
    }

    fn function(&self, name: &str) -> Result<CudaFunction> {
        let found = self.modules.iter().find(|(kernel, _)| kernel.functions.contains(&name));
        let (_, module) = found.ok_or_else(|| Error::internal(format!("there is no kernel '{name}'")))?;
        module.load_function(name).map_err(failed("a kernel's function is missing in what was compiled"))
    }

    /// The parts into `destination`, as [`gather::gather`] does it.
    ///
    /// # Errors
    /// `Internal` for a part that does not fit, else the driver's.
    pub fn gather(
        &self,
        stream: &Arc<CudaStream>,
        destination: &mut CudaViewMut<'_, u8>,
        parts: &[DevicePart<'_>],
        padding: [u8; 8],
    ) -> Result<()> {
        // Held until the launch is queued: they put it behind what writes the parts, and what frees them behind it.
        let held: Vec<_> = parts.iter().map(|part| part.memory.device_ptr(stream)).collect();
        let addresses = held.iter().map(|(address, _)| *address);
        let table = parts.iter().zip(addresses).map(|(part, address)| Part {
            address,
            bytes: part.memory.len() as u64,
            offset: part.offset as u64,
            room: part.room as u64,
        });
        let table: Vec<_> = table.collect();
        let Some((count, geometry)) = self.copy(&table, destination.len())? else { return Ok(()) };
        let table = stream.clone_htod(&table).map_err(failed("the parts of a batch cannot be told to the GPU"))?;
        let (function, padding) = (self.function("gather")?, u64::from_le_bytes(padding));
        let mut launch = stream.launch_builder(&function);
        launch.arg(destination).arg(&table).arg(&count).arg(&padding);
        // SAFETY: these are gather.cu's parameters, and each part was found to lie in the destination.
        unsafe { start(launch, geometry) }
    }

    /// What stands at the parts' offsets of `source` to their memories, as [`gather::scatter`] does it.
    ///
    /// # Errors
    /// `Internal` for a part that ends behind the source, else the driver's.
    pub fn scatter(
        &self,
        stream: &Arc<CudaStream>,
        source: &CudaView<'_, u8>,
        parts: &mut [DeviceTarget<'_>],
    ) -> Result<()> {
        let mut held = Vec::with_capacity(parts.len());
        for part in parts {
            let (bytes, offset) = (part.memory.len() as u64, part.offset as u64);
            held.push((part.memory.device_ptr_mut(stream), bytes, offset));
        }
        let row = |((address, _), bytes, offset): &_| Part {
            address: *address,
            bytes: *bytes,
            offset: *offset,
            room: *bytes,
        };
        let table: Vec<_> = held.iter().map(row).collect();
        let Some((count, geometry)) = self.copy(&table, source.len())? else { return Ok(()) };
        let table = stream.clone_htod(&table).map_err(failed("the parts of a batch cannot be told to the GPU"))?;
        let function = self.function("scatter")?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(source).arg(&table).arg(&count);
        // SAFETY: these are scatter.cu's parameters, and each part was found to lie in the source.
        unsafe { start(launch, geometry) }
    }

    /// The count of parts that all lie in a batch of `length` bytes, and how they are launched; `None` for no part.
    fn copy(&self, parts: &[Part], length: usize) -> Result<Option<(u32, Geometry)>> {
        let fits = |part: &Part| {
            let end = part.offset.checked_add(part.room);
            part.bytes <= part.room && end.is_some_and(|end| end <= length as u64)
        };
        if !parts.iter().all(fits) {
            return Err(Error::internal(format!("a part does not lie in its batch of {length} bytes")));
        }
        let Some(largest) = parts.iter().map(|part| part.room).max() else { return Ok(None) };
        let count = u32::try_from(parts.len()).map_err(|_| Error::internal("more than 2^32 parts of a batch"))?;
        Ok(Some((count, geometry::copy(count, largest, self.multiprocessors))))
    }

    /// The elements of `from` as those of `to`, as the functions of [`cast`] do it.
    ///
    /// # Errors
    /// `Internal` where they are not as many, else the driver's.
    pub fn cast<From, To>(
        &self,
        stream: &Arc<CudaStream>,
        to: &mut CudaViewMut<'_, To>,
        from: &CudaView<'_, From>,
    ) -> Result<()>
    where
        (From, To): Cast,
    {
        if to.len() != from.len() {
            return Err(Error::internal(format!("{} elements are not cast to {}", from.len(), to.len())));
        }
        let (function, count) = (self.function(<(From, To)>::FUNCTION)?, from.len() as u64);
        let mut launch = stream.launch_builder(&function);
        launch.arg(to).arg(from).arg(&count);
        // SAFETY: these are cast.cu's parameters for this pair of types, and both sides have so many elements.
        unsafe { start(launch, geometry::cast(count, self.multiprocessors)) }
    }

    /// Pictures into `to`, as [`image::preprocess`] does it.
    ///
    /// # Errors
    /// `Internal` for sides or channels out of bounds, or sizes that do not belong together; else the driver's.
    pub fn image<T: DevicePixel>(
        &self,
        stream: &Arc<CudaStream>,
        to: &mut CudaViewMut<'_, T>,
        pictures: &[DevicePicture<'_>],
        form: &Form,
    ) -> Result<()> {
        let is_side = |side: u32, most: u32| (1..=most).contains(&side);
        let is_right = |picture: &DevicePicture<'_>| {
            let bytes = picture.height as usize * picture.width as usize * form.channels;
            is_side(picture.height, MAX_SIDE) && is_side(picture.width, MAX_SIDE) && picture.pixels.len() == bytes
        };
        if !is_side(form.height, MAX_OUT_SIDE)
            || !is_side(form.width, MAX_OUT_SIDE)
            || !(1..=MAX_CHANNELS).contains(&form.channels)
            || to.len() != pictures.len() * form.elements()
            || !pictures.iter().all(is_right)
        {
            return Err(Error::internal("sizes of pictures that do not belong together"));
        }
        let held: Vec<_> = pictures.iter().map(|picture| picture.pixels.device_ptr(stream)).collect();
        let row = |(picture, (pixels, _)): (&DevicePicture<'_>, &(u64, _))| Picture {
            pixels: *pixels,
            height: picture.height,
            width: picture.width,
        };
        let table: Vec<_> = pictures.iter().zip(&held).map(row).collect();
        let Some(count) = u32::try_from(table.len()).ok().filter(|count| *count > 0) else { return Ok(()) };
        let table = stream.clone_htod(&table).map_err(failed("pictures cannot be told to the GPU"))?;
        let function = self.function(T::FUNCTION)?;
        // At most four.
        let channels = form.channels as u32;
        let normal = Normalisation { mean: form.mean, scale: form.scale };
        let mut launch = stream.launch_builder(&function);
        launch.arg(to).arg(&table).arg(&count).arg(&channels).arg(&form.height).arg(&form.width).arg(&normal);
        // SAFETY: these are image.cu's parameters, within its bounds, and all sizes were checked against each other.
        unsafe { start(launch, geometry::image(count, form)) }
    }

    /// Softmax of rows of so many columns, as [`softmax::softmax_f32`] does it.
    ///
    /// # Errors
    /// `Internal` where rows are not whole or the sides not as long, else the driver's.
    pub fn softmax(
        &self,
        stream: &Arc<CudaStream>,
        to: &mut CudaViewMut<'_, f32>,
        from: &CudaView<'_, f32>,
        columns: u32,
    ) -> Result<()> {
        let rows = rows(from.len(), columns)?;
        if to.len() != from.len() {
            return Err(Error::internal("a softmax has as many elements as its rows"));
        }
        let function = self.function("softmax_f32")?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(to).arg(from).arg(&rows).arg(&columns);
        // SAFETY: these are softmax.cu's parameters, and both sides have so many whole rows.
        unsafe { start(launch, geometry::softmax(rows, columns, self.multiprocessors)) }
    }

    /// The `k` largest of rows of so many columns, as [`top_k::top_k_f32`] does it.
    ///
    /// # Errors
    /// `Internal` for a `k` out of bounds or sides that do not belong together, else the driver's.
    pub fn top_k(
        &self,
        stream: &Arc<CudaStream>,
        (values, indices): (&mut CudaViewMut<'_, f32>, &mut CudaViewMut<'_, u32>),
        from: &CudaView<'_, f32>,
        columns: u32,
        k: u32,
    ) -> Result<()> {
        let rows = rows(from.len(), columns)?;
        let answers = from.len() / columns as usize * k as usize;
        let is_most = (1..=columns.min(MAX_TOP_K)).contains(&k) && i32::try_from(columns).is_ok();
        if !is_most || values.len() != answers || indices.len() != answers {
            return Err(Error::internal(format!("the {k} largest of {columns} columns, for {} places", values.len())));
        }
        let function = self.function("top_k_f32")?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(values).arg(indices).arg(from).arg(&rows).arg(&columns).arg(&k);
        // SAFETY: these are top_k.cu's parameters, within its bounds, and all sizes were checked against each other.
        unsafe { start(launch, geometry::top_k(rows, self.multiprocessors)) }
    }
}

/// The whole rows of a tensor; at least one.
fn rows(elements: usize, columns: u32) -> Result<u64> {
    let columns = columns as usize;
    if columns == 0 || elements == 0 || !elements.is_multiple_of(columns) {
        return Err(Error::internal(format!("{elements} elements are no rows of {columns} columns")));
    }
    Ok((elements / columns) as u64)
}

/// Queues a launch on its stream.
///
/// # Safety
/// The arguments are the kernel's parameters in number, order and type, and what they point to is as large as its contract
/// says.
unsafe fn start(mut launch: LaunchArgs<'_>, Geometry { grid, block }: Geometry) -> Result<()> {
    let launch_config = LaunchConfig { grid_dim: grid.into(), block_dim: block.into(), shared_mem_bytes: 0 };
    // SAFETY: the caller's word, and a geometry within CUDA's limits.
    unsafe { launch.launch(launch_config) }.map_err(failed("a kernel cannot be launched")).map(drop)
}
