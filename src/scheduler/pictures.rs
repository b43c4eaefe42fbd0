//! The pixels that requests brought as the one tensor that the model takes. They may differ in size: what comes out does
//! not, so that they share a batch. It is done where other inputs are copied together, on the thread that runs the model,
//! and counted with that as computing of inputs.

use half::f16;

use crate::error::{Error, Result};
use crate::kernels::image::{PixelElement, Pixels, preprocess};
use crate::model_config::image::ImageInput;
use crate::tensor::{DataType, Element, Shape, Tensor};

/// The pictures of all parts, whose shapes were checked with [`ImageInput::pictures`], in order.
///
/// # Errors
/// `Internal` if they were not.
pub(super) fn gather(image: &ImageInput, parts: &[&Tensor]) -> Result<Tensor> {
    match image.data_type {
        DataType::Fp16 => gather_as::<f16>(image, parts, f16::ZERO),
        _ => gather_as::<f32>(image, parts, 0.0),
    }
}

fn gather_as<T: Element + PixelElement>(image: &ImageInput, parts: &[&Tensor], zero: T) -> Result<Tensor> {
    let sizes = parts.iter().map(|part| image.pictures(part.shape())).collect::<Result<Vec<_>, _>>();
    let sizes = sizes.map_err(Error::internal)?;
    let count: usize = sizes.iter().map(|(count, ..)| count).sum();
    let each = image.form.elements();
    // All zeros come from the system as they are: nothing is written twice.
    let mut elements = vec![zero; count * each];
    let mut rest = elements.as_mut_slice();
    for (part, (count, height, width)) in parts.iter().zip(sizes) {
        let (to, behind) = rest.split_at_mut(count * each);
        preprocess(to, &Pixels { bytes: part.data(), height, width }, &image.form)?;
        rest = behind;
    }
    let dim = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
    let picture = [dim(image.form.channels), i64::from(image.form.height), i64::from(image.form.width)];
    let is_alone = parts.first().is_some_and(|part| part.shape().rank() == picture.len());
    let shape: Shape = (!is_alone).then_some(dim(count)).into_iter().chain(picture).collect();
    Tensor::from_vec(shape, elements)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model_config::image::written;
    use crate::model_config::{UnknownFields, parse};

    fn image(data_type: &str, max_batch_size: u32) -> ImageInput {
        let input = format!("input {{ name: 'x' data_type: {data_type} dims: [3, 2, 2] }}");
        let text = format!("max_batch_size: {max_batch_size} {input} {}", written("image_input", "x"));
        parse(&text, UnknownFields::Deny).unwrap().config.image_input.unwrap()
    }

    fn grey(shape: &[i64], level: u8) -> Tensor {
        let bytes = vec![level; shape.iter().product::<i64>() as usize];
        Tensor::new(DataType::Uint8, Shape::new(shape), Bytes::from(bytes)).unwrap()
    }

    #[test]
    fn pictures_of_all_sizes_become_one_tensor_in_order() {
        let parts = [grey(&[2, 1, 1, 3], 10), grey(&[0, 7, 7, 3], 0), grey(&[1, 5, 9, 3], 20)];
        let tensor = gather(&image("TYPE_FP32", 4), &parts.each_ref()).unwrap();
        assert_eq!(tensor.shape().dims(), [3, 3, 2, 2]);
        let levels = tensor.elements::<f32>().unwrap();
        assert!(levels[..24].iter().all(|level| *level == 10.0) && levels[24..].iter().all(|level| *level == 20.0));
    }

    #[test]
    fn a_picture_alone_stays_without_a_batch_dimension() {
        let tensor = gather(&image("TYPE_FP16", 0), &[&grey(&[4, 4, 3], 3)]).unwrap();
        assert_eq!((tensor.shape().dims(), tensor.data_type()), (&[3, 2, 2][..], DataType::Fp16));
        assert!(tensor.elements::<f16>().unwrap().iter().all(|level| level.to_f32() == 3.0));
    }
}
