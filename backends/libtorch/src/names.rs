//! Which input of a configuration is which argument of `forward`, and which output is which part of what it gives: Triton's
//! rules. TorchScript has argument names and no output names, and neither types nor shapes.

use roundhouse_abi::BYTES;
use roundhouse_abi::plugin::{Failure, TensorInfo};

/// What an argument of `forward` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// A tensor.
    Tensor,
    /// A tensor or None.
    OptionalTensor,
    /// A dictionary of tensors by name.
    Dictionary,
    /// What no request can bring.
    Other,
}

/// An argument of `forward`, `self` left out.
#[derive(Clone, Debug)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Its type in TorchScript's words.
    pub type_name: String,
    /// What it takes.
    pub takes: Takes,
    /// Whether a call may leave it out.
    pub has_default: bool,
}

/// Where an input goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To this argument.
    Argument(usize),
    /// Into the dictionary that is the only argument, under its name.
    Entry,
}

/// The place of each input: by `NAME__INDEX` where all are called so, else by the arguments' names where all are names of
/// arguments, else in the order of the configuration. Where `forward` takes one dictionary they are its entries.
///
/// # Errors
/// An argument that nothing fills or that no tensor can be, two inputs for one argument, or one too many.
pub fn places(inputs: &[TensorInfo], arguments: &[Argument]) -> Result<Vec<Place>, Failure> {
    refuse_strings("input", inputs)?;
    if let [Argument { takes: Takes::Dictionary, .. }] = arguments {
        return Ok(vec![Place::Entry; inputs.len()]);
    }
    let by_index: Option<Vec<usize>> = inputs.iter().map(|input| index_of(&input.name)).collect();
    let by_name = || -> Option<Vec<usize>> {
        inputs.iter().map(|input| arguments.iter().position(|argument| argument.name == input.name)).collect()
    };
    let chosen = by_index.or_else(by_name).unwrap_or_else(|| (0..inputs.len()).collect());
    for (at, (input, argument)) in inputs.iter().zip(&chosen).enumerate() {
        let Some(found) = arguments.get(*argument) else {
            return Err(Failure::invalid(format!(
                "input '{}' is for argument {argument} of forward, which takes {}: {}",
                input.name,
                arguments.len(),
                list(arguments)
            )));
        };
        if !matches!(found.takes, Takes::Tensor | Takes::OptionalTensor) {
            return Err(Failure::unsupported(format!(
                "argument '{}' of forward is a {}: only tensors can be served",
                found.name, found.type_name
            )));
        }
        if chosen[..at].contains(argument) {
            return Err(Failure::invalid(format!("two inputs are for argument '{}' of forward", found.name)));
        }
        if input.optional && !found.has_default && found.takes != Takes::OptionalTensor {
            return Err(Failure::invalid(format!(
                "input '{}' is optional in the configuration, but forward cannot do without '{}'",
                input.name, found.name
            )));
        }
    }
    let is_filled = |at: usize, argument: &Argument| {
        chosen.contains(&at) || argument.has_default || argument.takes == Takes::OptionalTensor
    };
    match arguments.iter().enumerate().find(|(at, argument)| !is_filled(*at, argument)) {
        None => Ok(chosen.into_iter().map(Place::Argument).collect()),
        Some((at, argument)) => Err(Failure::invalid(format!(
            "forward needs its argument '{}', which no input of the configuration is for: call one '{}' or INPUT__{at}",
            argument.name, argument.name
        ))),
    }
}

/// The part of what `forward` gives that each output is, where that is a tensor, a tuple or a list: by `NAME__INDEX` where
/// all are called so, else in the order of the configuration. In a dictionary they are found by their names.
///
/// # Errors
/// Two outputs that are the same part, or a type that no tensor of torch has.
pub fn parts(outputs: &[TensorInfo]) -> Result<Vec<usize>, Failure> {
    refuse_strings("output", outputs)?;
    let by_index: Option<Vec<usize>> = outputs.iter().map(|output| index_of(&output.name)).collect();
    let chosen = by_index.unwrap_or_else(|| (0..outputs.len()).collect());
    for (at, (output, part)) in outputs.iter().zip(&chosen).enumerate() {
        if chosen[..at].contains(part) {
            return Err(Failure::invalid(format!("output '{}' has the index of another", output.name)));
        }
    }
    Ok(chosen)
}

fn refuse_strings(role: &str, tensors: &[TensorInfo]) -> Result<(), Failure> {
    match tensors.iter().find(|tensor| tensor.data_type == BYTES) {
        Some(tensor) => Err(Failure::unsupported(format!(
            "{role} '{}' is TYPE_STRING, and torch has no tensors of strings: send numbers, such as UINT8",
            tensor.name
        ))),
        None => Ok(()),
    }
}

/// The number after the last `__` of a name.
fn index_of(name: &str) -> Option<usize> {
    let (_, digits) = name.rsplit_once("__")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn list(arguments: &[Argument]) -> String {
    let names: Vec<_> = arguments.iter().map(|argument| format!("'{}'", argument.name)).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use roundhouse_abi::FP32;

    use super::*;

    fn tensors(names: &[&str]) -> Vec<TensorInfo> {
        let tensor =
            |name: &&str| TensorInfo { name: (*name).to_owned(), data_type: FP32, dims: vec![-1], optional: false };
        names.iter().map(tensor).collect()
    }

    fn arguments(named: &[(&str, Takes, bool)]) -> Vec<Argument> {
        let argument = |(name, takes, has_default): &(&str, Takes, bool)| Argument {
            name: (*name).to_owned(),
            type_name: "int".to_owned(),
            takes: *takes,
            has_default: *has_default,
        };
        named.iter().map(argument).collect()
    }

    const TWO: [(&str, Takes, bool); 2] = [("x", Takes::Tensor, false), ("y", Takes::Tensor, false)];

    fn placed(names: &[&str], named: &[(&str, Takes, bool)]) -> Result<Vec<usize>, String> {
        let placed = places(&tensors(names), &arguments(named)).map_err(|failure| failure.text)?;
        Ok(placed
            .iter()
            .map(|place| match place {
                Place::Argument(at) => *at,
                Place::Entry => 99,
            })
            .collect())
    }

    #[test]
    fn inputs_find_their_arguments_by_index_by_name_or_in_order() {
        assert_eq!(placed(&["INPUT__1", "INPUT__0"], &TWO), Ok(vec![1, 0]));
        assert_eq!(placed(&["y", "x"], &TWO), Ok(vec![1, 0]));
        assert_eq!(placed(&["a", "b"], &TWO), Ok(vec![0, 1]));
        assert_eq!(placed(&["y", "b"], &TWO), Ok(vec![0, 1]), "names that are half right say nothing");
        assert_eq!(placed(&["a", "b"], &[("d", Takes::Dictionary, false)]), Ok(vec![99, 99]));
        assert_eq!(placed(&["x"], &[TWO[0], ("y", Takes::OptionalTensor, false)]), Ok(vec![0]));
        assert_eq!(placed(&["x"], &[TWO[0], ("k", Takes::Other, true)]), Ok(vec![0]));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cases = [
            (
                placed(&["x"], &TWO),
                "forward needs its argument 'y', which no input of the configuration is for: call one 'y' or INPUT__1",
            ),
            (placed(&["a", "b", "c"], &TWO), "input 'c' is for argument 2 of forward, which takes 2: 'x', 'y'"),
            (placed(&["A__0", "B__0"], &TWO), "two inputs are for argument 'x' of forward"),
            (
                placed(&["x", "k"], &[TWO[0], ("k", Takes::Other, false)]),
                "argument 'k' of forward is a int: only tensors can be served",
            ),
            (placed(&["x"], &[]), "input 'x' is for argument 0 of forward, which takes 0: none"),
        ];
        for (placed, text) in cases {
            assert_eq!(placed, Err(text.to_owned()));
        }
        let mut strings = tensors(&["x", "y"]);
        strings[1].data_type = BYTES;
        assert!(places(&strings, &arguments(&TWO)).unwrap_err().text.contains("torch has no tensors of strings"));
    }

    #[test]
    fn outputs_are_parts_by_index_or_in_order() {
        assert_eq!(parts(&tensors(&["OUTPUT__2", "OUTPUT__0"])), Ok(vec![2, 0]));
        assert_eq!(parts(&tensors(&["a", "OUTPUT__0"])), Ok(vec![0, 1]));
        assert!(parts(&tensors(&["a__0", "b__0"])).is_err());
        assert_eq!((index_of("x__"), index_of("__3"), index_of("a__99999999999999999999999")), (None, Some(3), None));
    }
}
