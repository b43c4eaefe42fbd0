//! The kernels' texts, the names in them, and what the build has compiled of them.

use std::fmt;

/// A file of `kernels/`.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its name, without the ending.
    pub name: &'static str,
    /// Its text, which needs [`COMMON`] before it.
    pub text: &'static str,
    /// The functions that are launched.
    pub functions: &'static [&'static str],
}

macro_rules! text {
    ($file:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $file))
    };
}

/// What the kernels share.
pub const COMMON: &str = text!("common.cuh");

/// Every kernel.
pub const ALL: [Kernel; 6] = [
    Kernel { name: "gather", text: text!("gather.cu"), functions: &["gather"] },
    Kernel { name: "scatter", text: text!("scatter.cu"), functions: &["scatter"] },
    Kernel {
        name: "cast",
        text: text!("cast.cu"),
        functions: &["cast_f32_f16", "cast_f32_bf16", "cast_f32_i8", "cast_f16_f32", "cast_bf16_f32", "cast_i8_f32"],
    },
    Kernel { name: "image", text: text!("image.cu"), functions: &["image_f32", "image_f16"] },
    Kernel { name: "softmax", text: text!("softmax.cu"), functions: &["softmax_f32"] },
    Kernel { name: "top_k", text: text!("top_k.cu"), functions: &["top_k_f32"] },
];

// Pairs of a kernel's name and its fatbin, with machine code for `PREBUILT_FOR`; none where the build had no nvcc.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// What the build has compiled of a kernel, if it has and the architecture is among those it compiled for.
#[must_use]
pub fn prebuilt(name: &str, architecture: Architecture) -> Option<&'static [u8]> {
    let is_there = PREBUILT_FOR.contains(&(architecture.major, architecture.minor));
    PREBUILT.iter().find(|(known, _)| is_there && *known == name).map(|(_, image)| *image)
}

/// The whole text to compile. Errors in it show the kernel's own lines.
#[must_use]
pub fn program(kernel: &Kernel) -> String {
    format!("{COMMON}#line 1 \"{}.cu\"\n{}", kernel.name, kernel.text)
}

/// What NVRTC is asked beside the text.
#[must_use]
pub fn options(architecture: Architecture) -> Vec<String> {
    vec![format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()]
}

/// A GPU's compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// 8 of 8.6.
    pub major: u32,
    /// 6 of 8.6.
    pub minor: u32,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_and_function_is_known() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let files = folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let files: BTreeSet<_> = files.filter_map(|name| name.strip_suffix(".cu").map(str::to_owned)).collect();
        assert_eq!(files, ALL.iter().map(|kernel| kernel.name.to_owned()).collect());
        for kernel in ALL {
            let declared = kernel.text.split("extern \"C\" __global__").skip(1).filter_map(|rest| {
                // The name is the last word before the parameters; launch bounds come before the return type's end.
                let words = rest.split_once("{").map(|(head, _)| head.to_owned())?;
                let words = words.replace("__launch_bounds__(TILE_WIDTH* BLOCK_HEIGHT)", "");
                let words = words.replace("__launch_bounds__(THREADS)", "");
                words.split_once('(').and_then(|(head, _)| head.split_whitespace().last().map(str::to_owned))
            });
            assert_eq!(declared.collect::<Vec<_>>(), kernel.functions, "{}", kernel.name);
        }
    }

    #[test]
    fn every_kernel_begins_with_its_contract() {
        for kernel in ALL {
            let comment: Vec<_> = kernel.text.lines().take_while(|line| line.starts_with("//")).collect();
            let text = comment.join("\n");
            assert!(comment.len() > 5 && text.contains("Grid") && text.contains("lock: "), "{}", kernel.name);
        }
    }
}
