//! `roundhouse pack`: a model's folder as an archive, the same bytes each time.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::progress::Progress;
use crate::artifact::Format;
use crate::artifact::pack::{Packed, pack_with};
use crate::error::{Error, ErrorKind, Result};

/// What `roundhouse pack` was asked.
#[derive(Debug, clap::Args)]
pub struct PackArgs {
    /// The model's folder
    pub folder: PathBuf,
    /// The archive to write; its ending, .tar.zst, .tar or .tar.gz, says how it is packed
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// Packs and prints what went in.
///
/// # Errors
/// As [`pack_with`]; `InvalidArgument` for an ending that names no format.
pub fn run(args: &PackArgs) -> Result<()> {
    let name = args.output.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let format = Format::of_ending(name).ok_or_else(|| {
        Error::invalid(format!("'{name}' does not say how to pack: end it in .tar.zst, .tar or .tar.gz"))
    })?;
    let progress = Progress::new();
    let mut is_begun = false;
    let mut show = |done: u64, all: u64| {
        if !std::mem::replace(&mut is_begun, true) {
            progress.step("packing", all);
        }
        progress.reach(done);
    };
    let (packed, length, sha256) = write(&args.folder, &args.output, name, format, &mut show)?;
    drop(progress);
    let text = format!(
        "{name}: {} files of {} bytes, packed to {length} bytes\nsha256 {sha256}\n",
        packed.files, packed.bytes
    );
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Error::internal("cannot write to standard output").with_source(error))
}

/// Packs beside `output` and renames, so that there is never half an archive under its name: what was packed, the
/// archive's bytes, and its sha256.
fn write(
    folder: &Path,
    output: &Path,
    name: &str,
    format: Format,
    show: &mut dyn FnMut(u64, u64),
) -> Result<(Packed, u64, String)> {
    let into = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if let (Ok(into), Ok(folder)) = (into.canonicalize(), folder.canonicalize())
        && into.starts_with(folder)
    {
        return Err(Error::invalid("the archive would lie inside the folder that is packed: put it somewhere else"));
    }
    let failed = |error| unwritten(name, error);
    let partial = Partial::new(into.join(format!(".{name}.partial-{}", std::process::id())));
    let file = File::options().write(true).create_new(true).open(&partial.0).map_err(failed)?;
    let mut out = BufWriter::with_capacity(256 << 10, Hashing { file, sum: Sha256::new(), length: 0 });
    let packed = pack_with(folder, &mut out, format, show)?;
    let Hashing { file, sum, length } = out.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&partial.0, output).map_err(failed)?;
    File::open(into).and_then(|folder| folder.sync_all()).map_err(failed)?;
    let sha256 = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((packed, length, sha256))
}

fn unwritten(name: &str, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::OutOfDisk,
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("cannot write '{name}'")).with_source(error)
}

/// A file that goes away unless it was renamed.
struct Partial(PathBuf);

impl Partial {
    fn new(path: PathBuf) -> Self {
        // What a process of the same number left behind.
        let _ = std::fs::remove_file(&path);
        Self(path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file whose sum is known when it is written.
struct Hashing {
    file: File,
    sum: Sha256,
    length: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.sum.update(&bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_appears_whole_with_its_sum_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("model");
        std::fs::create_dir_all(model.join("1")).unwrap();
        std::fs::write(model.join("1/model.onnx"), [1; 1000]).unwrap();
        let names = || {
            let entries = root.path().read_dir().unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        for (name, format) in [("m.tar.zst", Format::TarZst), ("m.tar", Format::Tar), ("m.tgz", Format::TarGz)] {
            let output = root.path().join(name);
            let (packed, length, sha256) = write(&model, &output, name, format, &mut |_, _| {}).unwrap();
            let bytes = std::fs::read(&output).unwrap();
            assert_eq!((packed, length), (Packed { files: 1, bytes: 1000 }, bytes.len() as u64));
            let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(sha256, sum);
        }
        std::os::unix::fs::symlink("1", model.join("link")).unwrap();
        let args = |output: &str| PackArgs { folder: model.clone(), output: root.path().join(output) };
        assert!(run(&args("x.tar")).unwrap_err().to_string().contains("is a link"));
        assert!(run(&args("x.rar")).unwrap_err().to_string().contains("end it in .tar.zst"));
        assert!(run(&args("model/x.tar")).unwrap_err().to_string().contains("inside the folder"));
        assert_eq!(run(&args("gone/x.tar")).unwrap_err().kind(), ErrorKind::InvalidArgument);
        assert_eq!(names(), ["m.tar", "m.tar.zst", "m.tgz", "model"]);
    }
}
