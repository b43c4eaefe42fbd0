//! The classification extension of KServe v2: the top classes of an output instead of its values, as BYTES elements
//! `score:index[:label]`.

use std::cmp::Ordering;
use std::fmt::Write;

use crate::error::{Error, Result};
use crate::tensor::{DataType, Element, Shape, Tensor, push_string};

/// The `count` best classes of each row of `scores`, best first, the lower index of equals first. The last dimension is
/// that of the classes; with `batched`, everything behind the first dimension is (as Triton counts).
///
/// # Errors
/// `InvalidArgument` for types that have no order.
pub fn top_classes(scores: &Tensor, count: u32, labels: &[String], batched: bool) -> Result<Tensor> {
    macro_rules! by_type {
        ($($data_type:ident => $element:ty),* $(,)?) => {
            match scores.data_type() {
                $(DataType::$data_type => rank::<$element>(scores, count as usize, labels, batched),)*
                other => Err(Error::invalid(format!("class result not available for output due to unsupported type {other}"))),
            }
        };
    }
    by_type! {
        Uint8 => u8, Uint16 => u16, Uint32 => u32, Uint64 => u64, Int8 => i8, Int16 => i16, Int32 => i32, Int64 => i64,
        Fp16 => half::f16, Bf16 => half::bf16, Fp32 => f32, Fp64 => f64,
    }
}

/// A score as it is printed: like C's `%f`, integers plainly.
trait Score: Element + PartialOrd {
    fn write(self, text: &mut String);
}

macro_rules! scores {
    ($($integer:ty),*; $($float:ty),*) => {
        $(impl Score for $integer {
            fn write(self, text: &mut String) {
                let _ = write!(text, "{self}");
            }
        })*
        $(impl Score for $float {
            fn write(self, text: &mut String) {
                let _ = write!(text, "{:.6}", f64::from(self));
            }
        })*
    };
}

scores!(u8, u16, u32, u64, i8, i16, i32, i64; half::f16, half::bf16, f32, f64);

fn rank<T: Score>(scores: &Tensor, count: usize, labels: &[String], batched: bool) -> Result<Tensor> {
    let aligned;
    let values: &[T] = match scores.elements::<T>() {
        Some(values) => values,
        None => {
            aligned = bytemuck::allocation::pod_collect_to_vec::<u8, T>(scores.data());
            &aligned
        }
    };
    let dims = scores.shape().dims();
    let rows = match dims.first() {
        Some(&rows) if batched => usize::try_from(rows).unwrap_or(0),
        _ => 1,
    };
    let classes = values.len().checked_div(rows).unwrap_or(0);
    let kept = count.min(classes);
    let mut data = Vec::with_capacity(rows * kept * 24);
    let mut order: Vec<usize> = Vec::with_capacity(classes);
    let mut text = String::new();
    for row in values.chunks(classes.max(1)) {
        let better = |one: &usize, other: &usize| {
            // NaN is worse than any number.
            let by_value = row[*other].partial_cmp(&row[*one]).unwrap_or_else(|| {
                let is_nan = |index: usize| row[index].partial_cmp(&row[index]).is_none();
                is_nan(*one).cmp(&is_nan(*other))
            });
            match by_value {
                Ordering::Equal => one.cmp(other),
                unequal => unequal,
            }
        };
        order.clear();
        order.extend(0..row.len());
        if kept < order.len() && kept > 0 {
            order.select_nth_unstable_by(kept - 1, better);
            order.truncate(kept);
        }
        order.sort_unstable_by(better);
        for &index in order.iter().take(kept) {
            text.clear();
            row[index].write(&mut text);
            let _ = write!(text, ":{index}");
            if let Some(label) = labels.get(index) {
                let _ = write!(text, ":{label}");
            }
            push_string(&mut data, text.as_bytes())?;
        }
    }
    let mut shape = Shape::default();
    if batched {
        shape.push(i64::try_from(rows).unwrap_or(i64::MAX));
    }
    shape.push(i64::try_from(kept).unwrap_or(i64::MAX));
    Tensor::new(DataType::Bytes, shape, data.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(tensor: &Tensor) -> Vec<String> {
        tensor.strings().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
    }

    #[test]
    fn the_best_come_first_with_index_and_label() {
        let scores = Tensor::from_vec(Shape::new(&[1, 4]), vec![0.1_f32, 0.7, 0.7, f32::NAN]).unwrap();
        let labels = ["zero".to_owned(), "one".to_owned()];
        let top = top_classes(&scores, 3, &labels, true).unwrap();
        assert_eq!(top.shape().dims(), [1, 3]);
        assert_eq!(strings(&top), ["0.700000:1:one", "0.700000:2", "0.100000:0:zero"]);
        assert_eq!(top_classes(&scores, 99, &labels, true).unwrap().shape().dims(), [1, 4]);
    }

    #[test]
    fn rows_are_ranked_apart_and_integers_are_plain() {
        let scores = Tensor::from_vec(Shape::new(&[2, 2]), vec![5_i32, -1, 2, 9]).unwrap();
        assert_eq!(strings(&top_classes(&scores, 1, &[], true).unwrap()), ["5:0", "9:1"]);
        let flat = top_classes(&scores, 2, &[], false).unwrap();
        assert_eq!(strings(&flat), ["9:3", "5:0"]);
        assert_eq!(flat.shape().dims(), [2]);
    }

    #[test]
    fn strings_have_no_order() {
        let tensor = Tensor::from_strings(Shape::new(&[1]), &["a"]).unwrap();
        assert!(top_classes(&tensor, 1, &[], false).is_err());
        let empty = Tensor::from_vec::<f32>(Shape::new(&[0, 3]), Vec::new()).unwrap();
        assert_eq!(top_classes(&empty, 1, &[], true).unwrap().element_count(), 0);
    }
}
