//! The CPU's twin of `image.cu`: pictures of bytes into the tensor that a network of pictures takes, bit for bit what the
//! kernel gives.

use half::f16;

use super::cast::f32_to_f16;
use crate::error::{Error, Result};

/// The largest side of a picture that comes in.
pub const MAX_SIDE: u32 = 65_535;

/// The largest side of a picture as the network takes it.
pub const MAX_OUT_SIDE: u32 = 16_384;

/// The most channels of a picture.
pub const MAX_CHANNELS: usize = 4;

/// A picture, or several of one size behind each other: [count, height, width, channels] UINT8, dense.
#[derive(Clone, Copy, Debug)]
pub struct Pixels<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Rows, from 1 to [`MAX_SIDE`].
    pub height: u32,
    /// Columns, from 1 to [`MAX_SIDE`].
    pub width: u32,
}

/// What a network takes: [channels, height, width], each channel as (grey level - mean) * scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Form {
    /// From 1 to [`MAX_CHANNELS`].
    pub channels: usize,
    /// From 1 to [`MAX_OUT_SIDE`].
    pub height: u32,
    /// From 1 to [`MAX_OUT_SIDE`].
    pub width: u32,
    /// What is taken away of each channel, in grey levels 0 to 255.
    pub mean: [f32; MAX_CHANNELS],
    /// What the rest is multiplied with.
    pub scale: [f32; MAX_CHANNELS],
}

impl Form {
    /// The elements of one picture.
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.channels * self.height as usize * self.width as usize
    }
}

/// What the network's elements are.
pub trait PixelElement: Copy {
    /// Writes a row.
    fn store(to: &mut [Self], row: &[f32]);
}

impl PixelElement for f32 {
    fn store(to: &mut [Self], row: &[f32]) {
        to.copy_from_slice(row);
    }
}

impl PixelElement for f16 {
    fn store(to: &mut [Self], row: &[f32]) {
        f32_to_f16(to, row);
    }
}

/// Resizes and normalises each of the pictures into `to`, [count, channels, height, width].
///
/// The resize is bilinear with half-pixel centres and without antialiasing (ONNX Resize: mode linear, half_pixel; PyTorch:
/// interpolate(mode="bilinear", align_corners=False, antialias=False)): a large picture made small takes four pixels for
/// one and skips those between. The source of x is (x + 1/2) * width / out_width - 1/2, not below 0, its whole part and its
/// remainder in integers and the fraction rounded once; then in FP32, each operation rounded to nearest and none fused,
/// first between the rows, then between the columns: a + fraction * (b - a).
///
/// # Errors
/// `Internal` for sides or channels out of bounds, or sizes that do not belong together.
pub fn preprocess<T: PixelElement>(to: &mut [T], pixels: &Pixels<'_>, form: &Form) -> Result<()> {
    let is_side = |side: u32, most: u32| (1..=most).contains(&side);
    let picture = pixels.height as usize * pixels.width as usize * form.channels;
    if !is_side(pixels.height, MAX_SIDE)
        || !is_side(pixels.width, MAX_SIDE)
        || !is_side(form.height, MAX_OUT_SIDE)
        || !is_side(form.width, MAX_OUT_SIDE)
        || !(1..=MAX_CHANNELS).contains(&form.channels)
        || !pixels.bytes.len().is_multiple_of(picture)
        || !to.len().is_multiple_of(form.elements())
        || pixels.bytes.len() / picture != to.len() / form.elements()
    {
        return Err(Error::internal(format!(
            "{} bytes of {}x{} pixels do not become {} elements of {}x{}x{}",
            pixels.bytes.len(),
            pixels.height,
            pixels.width,
            to.len(),
            form.channels,
            form.height,
            form.width
        )));
    }
    let rows = taps(pixels.height, form.height, pixels.width as usize * form.channels);
    let columns = taps(pixels.width, form.width, form.channels);
    let mut lines = vec![0.0; form.width as usize * form.channels];
    for (picture, to) in pixels.bytes.chunks_exact(picture).zip(to.chunks_exact_mut(form.elements())) {
        match form.channels {
            1 => resize::<1, T>(to, picture, (&rows, &columns), form, &mut lines),
            2 => resize::<2, T>(to, picture, (&rows, &columns), form, &mut lines),
            3 => resize::<3, T>(to, picture, (&rows, &columns), form, &mut lines),
            _ => resize::<4, T>(to, picture, (&rows, &columns), form, &mut lines),
        }
    }
    Ok(())
}

/// The two places of a side that one of the output lies between, in bytes, and how far it is from the first to the second.
#[derive(Clone, Copy)]
struct Tap {
    first: usize,
    second: usize,
    fraction: f32,
}

/// The taps of a side of `size` places that lie `step` bytes apart. 2 * 16384 * 65535 fits 32 bits.
fn taps(size: u32, out: u32, step: usize) -> Vec<Tap> {
    let tap = |at: u32| {
        let place = ((2 * at + 1) * size).saturating_sub(out);
        let first = place / (2 * out);
        // Both terms are below 2^24, so that FP32 holds them.
        let fraction = (place % (2 * out)) as f32 / (2 * out) as f32;
        Tap { first: first as usize * step, second: (first + 1).min(size - 1) as usize * step, fraction }
    };
    (0..out).map(tap).collect()
}

#[inline]
fn between(a: f32, b: f32, fraction: f32) -> f32 {
    a + fraction * (b - a)
}

/// One picture. `lines` is memory for a row of each channel.
fn resize<const CHANNELS: usize, T: PixelElement>(
    to: &mut [T],
    picture: &[u8],
    (rows, columns): (&[Tap], &[Tap]),
    form: &Form,
    lines: &mut [f32],
) {
    let (width, plane) = (columns.len(), columns.len() * rows.len());
    for (y, tap) in rows.iter().enumerate() {
        let (upper, lower) = (&picture[tap.first..], &picture[tap.second..]);
        for (x, column) in columns.iter().enumerate() {
            let [upper_left, lower_left] = [upper, lower].map(|line| pixel::<CHANNELS>(line, column.first));
            let [upper_right, lower_right] = [upper, lower].map(|line| pixel::<CHANNELS>(line, column.second));
            for channel in 0..CHANNELS {
                let left = between(upper_left[channel], lower_left[channel], tap.fraction);
                let right = between(upper_right[channel], lower_right[channel], tap.fraction);
                let value = between(left, right, column.fraction);
                lines[channel * width + x] = (value - form.mean[channel]) * form.scale[channel];
            }
        }
        for (channel, line) in lines.chunks_exact(width).take(CHANNELS).enumerate() {
            let place = channel * plane + y * width;
            T::store(&mut to[place..place + width], line);
        }
    }
}

#[inline]
fn pixel<const CHANNELS: usize>(line: &[u8], place: usize) -> [f32; CHANNELS] {
    let bytes = line.get(place..).and_then(<[u8]>::first_chunk::<CHANNELS>);
    // A tap lies within the picture, whose size was checked.
    bytes.map_or([0.0; CHANNELS], |bytes| bytes.map(f32::from))
}

#[cfg(test)]
mod tests;
