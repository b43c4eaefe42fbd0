//! The CPU's twins of `gather.cu` and `scatter.cu`: tensors of requests into one batch, and its outputs back out.

use crate::error::{Error, Result};

/// A request's tensor on its way into a batch.
#[derive(Clone, Copy, Debug)]
pub struct GatherPart<'a> {
    /// Its bytes.
    pub source: &'a [u8],
    /// Where they go, in bytes from the batch's first.
    pub offset: usize,
    /// The bytes it has there; what it does not fill is padded.
    pub room: usize,
}

/// A request's part of an output.
#[derive(Debug)]
pub struct ScatterPart<'a> {
    /// Where it goes; all of it is written.
    pub target: &'a mut [u8],
    /// Where it stands, in bytes from the output's first.
    pub offset: usize,
}

/// Copies each part to its place in `destination` and pads its room: byte i of the padding is byte i % 8 of `padding`.
/// What no part has room in stays as it is.
///
/// # Errors
/// `Internal` for a part that is larger than its room, or whose room ends behind the destination; nothing more is copied.
pub fn gather(destination: &mut [u8], parts: &[GatherPart<'_>], padding: [u8; 8]) -> Result<()> {
    for part in parts {
        let end = part.offset.checked_add(part.room);
        let room = end.and_then(|end| destination.get_mut(part.offset..end));
        let split = room.and_then(|room| room.split_at_mut_checked(part.source.len()));
        let Some((filled, padded)) = split else {
            return Err(Error::internal(format!(
                "a part of {} bytes has room for {} at {} of a batch of {}",
                part.source.len(),
                part.room,
                part.offset,
                destination.len()
            )));
        };
        filled.copy_from_slice(part.source);
        pad(padded, padding);
    }
    Ok(())
}

fn pad(target: &mut [u8], padding: [u8; 8]) {
    if padding.iter().all(|byte| *byte == padding[0]) {
        return target.fill(padding[0]);
    }
    let (words, tail) = target.as_chunks_mut::<8>();
    words.fill(padding);
    tail.copy_from_slice(&padding[..tail.len()]);
}

/// Copies what stands at each part's offset of `source` to its target.
///
/// # Errors
/// `Internal` for a part that ends behind the source; nothing more is copied.
pub fn scatter(source: &[u8], parts: &mut [ScatterPart<'_>]) -> Result<()> {
    for part in parts {
        let end = part.offset.checked_add(part.target.len());
        let Some(found) = end.and_then(|end| source.get(part.offset..end)) else {
            return Err(Error::internal(format!(
                "a part of {} bytes at {} of an output of {}",
                part.target.len(),
                part.offset,
                source.len()
            )));
        };
        part.target.copy_from_slice(found);
    }
    Ok(())
}

/// An element as the eight bytes that pad with it, where its size is 1, 2, 4 or 8.
#[must_use]
pub fn padding_of(element: &[u8]) -> Option<[u8; 8]> {
    let mut padding = [0; 8];
    match element.len() {
        size @ (1 | 2 | 4 | 8) => {
            padding.chunks_exact_mut(size).for_each(|chunk| chunk.copy_from_slice(element));
            Some(padding)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_padded_batch_is_what_bytes_one_by_one_make_and_scatters_back(
            rows in vec((vec(any::<u8>(), 0..40), 0_usize..9), 1..12),
            padding in any::<[u8; 8]>(),
            gap in 0_usize..3,
        ) {
            let mut offsets = Vec::new();
            let mut expected = Vec::new();
            for (row, more) in &rows {
                expected.extend(std::iter::repeat_n(0xEE, gap));
                offsets.push(expected.len());
                expected.extend(row);
                expected.extend((0..*more).map(|at| padding[at % 8]));
            }
            let mut batch = vec![0xEE; expected.len()];
            let parts = rows.iter().zip(&offsets).map(|((row, more), offset)| {
                GatherPart { source: row, offset: *offset, room: row.len() + more }
            });
            gather(&mut batch, &parts.collect::<Vec<_>>(), padding).unwrap();
            prop_assert_eq!(&batch, &expected);

            let mut targets: Vec<_> = rows.iter().map(|(row, _)| vec![0; row.len()]).collect();
            let back = targets.iter_mut().zip(&offsets).map(|(target, offset)| ScatterPart { target, offset: *offset });
            scatter(&batch, &mut back.collect::<Vec<_>>()).unwrap();
            prop_assert!(targets.iter().zip(&rows).all(|(target, (row, _))| target == row));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut batch = [0; 8];
        for (length, offset, room) in [(3, 0, 2), (2, 7, 2), (2, 9, 2), (0, usize::MAX, 1)] {
            let source = vec![1; length];
            assert!(gather(&mut batch, &[GatherPart { source: &source, offset, room }], [0; 8]).is_err());
        }
        assert_eq!(batch, [0; 8]);
        let mut target = [0; 3];
        for offset in [6, usize::MAX] {
            assert!(scatter(&batch, &mut [ScatterPart { target: &mut target, offset }]).is_err());
        }
    }

    #[test]
    fn an_element_pads_if_eight_bytes_hold_it_evenly() {
        assert_eq!(padding_of(&[7]), Some([7; 8]));
        assert_eq!(padding_of(&[1, 2]), Some([1, 2, 1, 2, 1, 2, 1, 2]));
        assert_eq!(padding_of(&[1, 2, 3]), None);
        assert_eq!(padding_of(&[]), None);
    }
}
