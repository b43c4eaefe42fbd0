//! How many threads a kernel is launched with: pure, so that it can be tested without a GPU. Any geometry gives a right
//! answer (the kernels stride over what is left); these keep a device full and give each thread enough to do.

use super::image::Form;

/// A grid of blocks of threads, by x, y and z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
}

/// CUDA's limit on the grid's y and z.
const MAX_YZ: u32 = 65_535;

/// Threads of a block where nothing speaks for another number.
const THREADS: u32 = 256;

/// Blocks that a multiprocessor holds at once of those threads, at 64 registers each.
const BLOCKS_A_MULTIPROCESSOR: u32 = 8;

/// Bytes that a thread of a copy moves a turn: four words of 16.
const COPY_BYTES: u64 = 64;

/// Elements that a thread of a softmax keeps in registers.
const SOFTMAX_KEPT: u32 = 8;

/// Rows side by side in a block of a softmax over short rows.
const SOFTMAX_ROWS: u32 = 8;

/// The output's tile of one block of image pre-processing, and that block.
const IMAGE_TILE: [u32; 2] = [64, 16];
const IMAGE_BLOCK: [u32; 3] = [64, 4, 1];

/// The most that [`top_k`] takes.
pub const MAX_TOP_K: u32 = 1024;

/// `need` blocks, of as many as the device holds at once at most.
fn blocks(need: u64, multiprocessors: u32) -> u32 {
    let most = multiprocessors.max(1).saturating_mul(BLOCKS_A_MULTIPROCESSOR);
    u32::try_from(need).unwrap_or(u32::MAX).clamp(1, most)
}

/// `gather` and `scatter` of so many parts, the largest of so many bytes.
#[must_use]
pub fn copy(parts: u32, largest: u64, multiprocessors: u32) -> Geometry {
    let rows = parts.clamp(1, MAX_YZ);
    // The parts share the device: many small ones get a block each, a single large one gets all.
    let need = largest.div_ceil(COPY_BYTES * u64::from(THREADS));
    let share = blocks(u64::MAX, multiprocessors).div_ceil(rows);
    Geometry { grid: [blocks(need, multiprocessors).min(share.max(1)), rows, 1], block: [THREADS, 1, 1] }
}

/// Any of the casts of so many elements, four a thread and turn.
#[must_use]
pub fn cast(elements: u64, multiprocessors: u32) -> Geometry {
    let need = elements.div_ceil(4 * u64::from(THREADS));
    Geometry { grid: [blocks(need, multiprocessors), 1, 1], block: [THREADS, 1, 1] }
}

/// Image pre-processing of so many pictures.
#[must_use]
pub fn image(pictures: u32, form: &Form) -> Geometry {
    let [width, height] = IMAGE_TILE;
    let tiles = [form.width.div_ceil(width).max(1), form.height.div_ceil(height).max(1)];
    Geometry { grid: [tiles[0], tiles[1], pictures.clamp(1, MAX_YZ)], block: IMAGE_BLOCK }
}

/// Softmax of rows of so many columns: a warp a row where the row fits its registers, else a block.
#[must_use]
pub fn softmax(rows: u64, columns: u32, multiprocessors: u32) -> Geometry {
    let threads = columns.div_ceil(SOFTMAX_KEPT).clamp(32, 1024).next_power_of_two();
    let side_by_side = if threads == 32 { SOFTMAX_ROWS } else { 1 };
    let need = rows.div_ceil(u64::from(side_by_side));
    Geometry { grid: [blocks(need, multiprocessors), 1, 1], block: [threads, side_by_side, 1] }
}

/// Top-k of so many rows.
#[must_use]
pub fn top_k(rows: u64, multiprocessors: u32) -> Geometry {
    Geometry { grid: [blocks(rows, multiprocessors), 1, 1], block: [THREADS, 1, 1] }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn form(height: u32, width: u32) -> Form {
        Form { channels: 3, height, width, mean: [0.0; 4], scale: [1.0; 4] }
    }

    proptest! {
        #[test]
        fn every_geometry_keeps_to_the_limits_of_cuda(
            (small, large, multiprocessors) in (any::<u32>(), any::<u64>(), 0_u32..300),
            (height, width) in (1_u32..=16_384, 1_u32..=16_384),
        ) {
            for geometry in [
                copy(small, large, multiprocessors),
                cast(large, multiprocessors),
                image(small, &form(height, width)),
                softmax(large, small, multiprocessors),
                top_k(large, multiprocessors),
            ] {
                let Geometry { grid, block } = geometry;
                prop_assert!(grid.iter().chain(&block).all(|size| *size >= 1), "{geometry:?}");
                prop_assert!(grid[0] <= i32::MAX as u32 && grid[1] <= MAX_YZ && grid[2] <= MAX_YZ, "{geometry:?}");
                prop_assert!(block.iter().product::<u32>() <= 1024 && block[0] * block[1] >= 32, "{geometry:?}");
            }
        }

        #[test]
        fn a_softmax_block_is_one_that_the_kernel_takes(rows in any::<u64>(), columns in any::<u32>()) {
            let [x, y, _] = softmax(rows, columns, 108).block;
            prop_assert!(x.is_power_of_two() && (32..=1024).contains(&x) && (y == 1 || x == 32));
            prop_assert!(columns > 8192 || columns <= SOFTMAX_KEPT * x);
        }

        #[test]
        fn the_tiles_cover_the_picture(height in 1_u32..=16_384, width in 1_u32..=16_384) {
            let [x, y, _] = image(1, &form(height, width)).grid;
            prop_assert!(x * 64 >= width && (x - 1) * 64 < width && y * 16 >= height && (y - 1) * 16 < height);
        }
    }

    #[test]
    fn one_large_copy_gets_the_device_and_many_small_ones_a_block_each() {
        assert_eq!(copy(1, 1 << 30, 108).grid, [864, 1, 1]);
        assert_eq!(copy(1, 100, 108).grid, [1, 1, 1]);
        assert_eq!(copy(4, 1 << 30, 108).grid, [216, 4, 1]);
        assert_eq!(copy(100_000, 64, 108).grid, [1, 65_535, 1]);
    }
}
