//! The parameters of a model: Triton's for its PyTorch backend, and ours.

use roundhouse_abi::plugin::Failure;

/// What is done with a module before it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimize {
    /// Nothing: it runs as it was saved.
    #[default]
    Nothing,
    /// `torch.jit.freeze`: weights become constants.
    Freeze,
    /// `torch.jit.optimize_for_inference`: frozen, and rewritten for the processor. Holds the weights twice.
    Inference,
}

/// How a module runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `INFERENCE_MODE`: neither gradients nor versions of tensors are kept.
    pub inference_mode: bool,
    /// Not `DISABLE_OPTIMIZED_EXECUTION`: the executor optimises a graph in its first two runs.
    pub optimized: bool,
    /// `optimize`.
    pub optimize: Optimize,
    /// `INTRA_OP_THREAD_COUNT`: threads inside one operator.
    pub threads: i32,
    /// `warmup`: runs with zeros before the model is ready; `None` for two where nothing speaks against it.
    pub warmup: Option<u32>,
}

/// More threads than this help no operator.
const MOST_THREADS: i32 = 256;

/// More runs than this warm nothing further.
const MOST_WARMUP: u32 = 100;

impl Options {
    /// Reads the parameters, and says of those that have no effect why.
    ///
    /// # Errors
    /// A value that is none.
    pub fn read<'a>(parameters: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(Self, Vec<String>), Failure> {
        let mut options =
            Self { inference_mode: true, optimized: true, optimize: Optimize::Nothing, threads: 1, warmup: None };
        let mut remarks = Vec::new();
        for (key, value) in parameters {
            match key {
                "INFERENCE_MODE" => options.inference_mode = flag(key, value)?,
                "DISABLE_OPTIMIZED_EXECUTION" => options.optimized = !flag(key, value)?,
                "INTRA_OP_THREAD_COUNT" => options.threads = number(key, value, MOST_THREADS)?.max(1),
                "optimize" => {
                    options.optimize = match value {
                        "none" => Optimize::Nothing,
                        "freeze" => Optimize::Freeze,
                        "inference" => Optimize::Inference,
                        _ => return Err(wrong(key, value, "none, freeze or inference")),
                    }
                }
                "warmup" => options.warmup = Some(number(key, value, MOST_WARMUP)?),
                "INTER_OP_THREAD_COUNT" => {
                    number(key, value, MOST_THREADS)?;
                    remarks.push(format!("parameter {key} has no effect: it is a setting of the whole process"));
                }
                "ENABLE_WEIGHT_SHARING" | "ENABLE_CACHE_CLEANING" => {
                    flag(key, value)?;
                    remarks.push(format!("parameter {key} has no effect: weights are always shared, and what a model leaves is always given back"));
                }
                "ENABLE_NVFUSER" | "ENABLE_TENSOR_FUSION" if flag(key, value)? => {
                    remarks.push(format!("parameter {key} has no effect: the fuser is torch's default"));
                }
                "ENABLE_JIT_EXECUTOR" | "ENABLE_JIT_PROFILING" if !flag(key, value)? => {
                    return Err(Failure::unsupported(format!(
                        "parameter {key} is a setting of the whole process: set DISABLE_OPTIMIZED_EXECUTION for this model"
                    )));
                }
                _ => {}
            }
        }
        Ok((options, remarks))
    }
}

fn flag(key: &str, value: &str) -> Result<bool, Failure> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(wrong(key, value, "true or false")),
    }
}

fn number<T: std::str::FromStr + PartialOrd + Default + std::fmt::Display>(
    key: &str,
    value: &str,
    most: T,
) -> Result<T, Failure> {
    let number = value.trim().parse().ok().filter(|number| (T::default()..=most).contains(number));
    number.ok_or_else(|| wrong(key, value, "a whole number in bounds"))
}

fn wrong(key: &str, value: &str, expected: &str) -> Failure {
    Failure::invalid(format!("parameter {key} is '{value}', expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parameters: &[(&str, &str)]) -> Result<(Options, Vec<String>), Failure> {
        Options::read(parameters.iter().copied())
    }

    #[test]
    fn tritons_parameters_are_read() {
        let (options, remarks) = read(&[]).unwrap();
        assert!(options.inference_mode && options.optimized && options.threads == 1 && remarks.is_empty());
        let given = [
            ("INFERENCE_MODE", "false"),
            ("DISABLE_OPTIMIZED_EXECUTION", "True"),
            ("INTRA_OP_THREAD_COUNT", "4"),
            ("optimize", "freeze"),
            ("warmup", "0"),
            ("retain", "true"),
        ];
        let expected = Options {
            inference_mode: false,
            optimized: false,
            optimize: Optimize::Freeze,
            threads: 4,
            warmup: Some(0),
        };
        assert_eq!(read(&given).unwrap(), (expected, Vec::new()));
        assert_eq!(read(&[("ENABLE_WEIGHT_SHARING", "true"), ("INTER_OP_THREAD_COUNT", "2")]).unwrap().1.len(), 2);
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for (key, value) in [
            ("INFERENCE_MODE", "yes"),
            ("INTRA_OP_THREAD_COUNT", "-1"),
            ("INTRA_OP_THREAD_COUNT", "257"),
            ("optimize", "2"),
            ("warmup", "x"),
        ] {
            let failure = read(&[(key, value)]).unwrap_err();
            assert!(failure.text.starts_with(&format!("parameter {key} is '{value}', expected ")), "{failure:?}");
        }
        assert_eq!(read(&[("ENABLE_JIT_PROFILING", "false")]).unwrap_err().kind, roundhouse_abi::UNSUPPORTED);
        assert!(read(&[("ENABLE_JIT_PROFILING", "true")]).is_ok());
    }
}
