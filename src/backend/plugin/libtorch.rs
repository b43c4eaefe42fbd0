//! What the libtorch plugin needs before it can be opened: libtorch itself, in a folder that the operator names or that
//! was installed, and a process that treats it well.

use std::path::{Path, PathBuf};

use super::Opening;
use crate::backend::runtime_paths::{LIBTORCH_INSTALL, LIBTORCH_VERSION, libtorch_folder};
use crate::config::ServerConfig;
use crate::error::{Error, ErrorKind, Result};

/// The backend's name in `config.pbtxt`.
pub const NAME: &str = "pytorch";

/// The libraries that the plugin is linked to, in the order they are opened. Being open they are found by their names,
/// wherever they lie. `libtorch.so` is what models compiled ahead of time are linked to.
const LIBRARIES: [&str; 3] = ["libc10.so", "libtorch_cpu.so", "libtorch.so"];

/// The same for CUDA, after those above. They are opened before torch is asked for a GPU the first time, since it looks
/// for its CUDA part once.
const CUDA_LIBRARIES: [&str; 2] = ["libc10_cuda.so", "libtorch_cuda.so"];

/// A libtorch that is there.
#[derive(Clone, Debug)]
pub struct Libtorch {
    /// What is to be opened, in this order.
    pub libraries: Vec<PathBuf>,
    /// Whether it can run on GPUs.
    pub has_cuda: bool,
}

impl Libtorch {
    /// The libtorch of a folder, or the installed one.
    ///
    /// # Errors
    /// `NotReady` with the mend where there is none, or one of another version.
    pub fn find(named: Option<&Path>, runtime_dir: &Path) -> Result<Self> {
        let folder = named.map_or_else(|| libtorch_folder(runtime_dir).join("torch"), Path::to_owned);
        let mend = match named {
            None => format!("run `{LIBTORCH_INSTALL}`, or name the folder of an installed torch with --libtorch-dir"),
            Some(_) => format!(
                "give --libtorch-dir the folder of an installed torch {LIBTORCH_VERSION} (`python3 -c 'import torch; \
                 print(torch.__path__[0])'`), or leave it out and run `{LIBTORCH_INSTALL}`"
            ),
        };
        let unavailable = |why: String| Err(Error::new(ErrorKind::NotReady, format!("{why}: {mend}")));
        let lib = [folder.join("lib"), folder.clone()].into_iter().find(|lib| lib.join("libtorch_cpu.so").is_file());
        let Some(lib) = lib else {
            return unavailable(format!("there is no libtorch_cpu.so in {}", folder.display()));
        };
        if let Some(version) = version_beside(&lib)
            && !is_same_minor(&version)
        {
            return unavailable(format!("{} is torch {version}, not {LIBTORCH_VERSION}", lib.display()));
        }
        let there = |names: &[&str]| -> Vec<PathBuf> {
            names.iter().map(|name| lib.join(name)).filter(|path| path.is_file()).collect()
        };
        let (mut libraries, cuda) = (there(&LIBRARIES), there(&CUDA_LIBRARIES));
        let has_cuda = cuda.len() == CUDA_LIBRARIES.len();
        if has_cuda {
            libraries.extend(cuda);
        }
        Ok(Self { libraries, has_cuda })
    }
}

/// How the plugin is opened over a libtorch.
#[must_use]
pub fn opening(libtorch: &Libtorch, config: &ServerConfig) -> Opening {
    let settings = vec![("allow_aotinductor".to_owned(), config.allow_aotinductor.to_string())];
    Opening { first: libtorch.libraries.clone(), executor_threads: config.executor_threads, settings }
}

/// Has threads of OpenMP that wait for work sleep instead of spin, unless the operator says otherwise: where many models run
/// beside each other, threads that spin take the processor from those that compute (a convolutional net with two threads on two busy cores:
/// 1171 ms spinning, 91 ms sleeping). OpenMP reads it when it is loaded. And has packages of AOTInductor look at the shapes that
/// they are given, whatever the environment says of it: without that they read past the end of what is too small.
///
/// To be called before the process has a second thread.
pub fn prepare_process() {
    // SAFETY: the strings end with a NUL; no other thread reads or writes the environment, by this function's contract.
    unsafe {
        libc::setenv(c"OMP_WAIT_POLICY".as_ptr(), c"PASSIVE".as_ptr(), 0);
        libc::setenv(c"AOTI_RUNTIME_CHECK_INPUTS".as_ptr(), c"1".as_ptr(), 1);
    }
}

/// The version that an installed torch says of itself: in `version.py` of Python's, in `build-version` of others.
fn version_beside(lib: &Path) -> Option<String> {
    let folder = lib.parent()?;
    let python = || {
        let text = std::fs::read_to_string(folder.join("version.py")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?.to_owned();
        Some(line.trim().trim_matches(['\'', '"']).to_owned())
    };
    let text = std::fs::read_to_string(folder.join("build-version")).ok().or_else(python)?;
    Some(text.trim().chars().take(64).collect())
}

/// Patch releases and builds (`+cpu`, `+cu130`) share the C++ interface.
fn is_same_minor(version: &str) -> bool {
    let minor = |version: &str| version.split('.').take(2).map(str::to_owned).collect::<Vec<_>>();
    minor(version) == minor(LIBTORCH_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn a_torch_is_found_by_its_folder_or_its_lib_and_cuda_only_where_it_is_whole() {
        let files =
            [("torch/lib/libc10.so", ""), ("torch/lib/libtorch_cpu.so", ""), ("torch/build-version", "2.11.1+cpu\n")];
        let place = folder(&files);
        let torch = place.path().join("torch");
        for named in [torch.clone(), torch.join("lib")] {
            let found = Libtorch::find(Some(&named), Path::new("none")).unwrap();
            assert_eq!(found.libraries, [torch.join("lib/libc10.so"), torch.join("lib/libtorch_cpu.so")]);
            assert!(!found.has_cuda);
        }
        std::fs::write(torch.join("lib/libc10_cuda.so"), "").unwrap();
        assert!(!Libtorch::find(Some(&torch), Path::new("none")).unwrap().has_cuda);
        std::fs::write(torch.join("lib/libtorch_cuda.so"), "").unwrap();
        let found = Libtorch::find(Some(&torch), Path::new("none")).unwrap();
        assert!(found.has_cuda && found.libraries.len() == 4);
    }

    #[test]
    fn another_version_or_none_is_refused_with_the_mend() {
        let error = Libtorch::find(None, Path::new("rt")).unwrap_err();
        assert!(
            error.report().contains("rt/libtorch-2.11.0/torch: run `roundhouse runtime install libtorch`"),
            "{error}"
        );
        let place =
            folder(&[("lib/libtorch_cpu.so", ""), ("version.py", "from x import y\n__version__ = '2.15.0+cu132'\n")]);
        let error = Libtorch::find(Some(place.path()), Path::new("rt")).unwrap_err();
        assert!(error.report().contains("is torch 2.15.0+cu132, not 2.11.0: give --libtorch-dir"), "{error}");
        assert!(is_same_minor("2.11.0+cu130") && !is_same_minor("2.1.1") && !is_same_minor("2.110.0"));
    }
}
