//! `ModelManifest`: what a repository says of a model before anything of it is fetched.

use std::fmt;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// How a model lies in its repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A folder in Triton's layout, a file an object.
    Directory,
    /// One archive; its format is told by its first bytes.
    Archive,
    /// One model file.
    File,
}

/// One file of a model, or the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its path below the model's folder (`1/model.onnx`; `1/` for a local folder that is empty), or the file's own name
    /// (`resnet.tar.gz`).
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// Another one whenever the content is another: S3's ETag; size, time and inode of a local file.
    pub tag: String,
}

/// What a repository says of a model: its objects, of all its versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelManifest {
    /// The model's key, as it was asked for.
    pub name: String,
    /// How it lies there.
    pub form: Form,
    /// The folder or the object below the repository that `name` stands for: `resnet.tar.gz` for `resnet`.
    pub key: String,
    /// The files, by path; for an archive or a bare file it alone.
    pub objects: Vec<Object>,
    /// Where it lies on this machine; `None` where it must be fetched.
    pub local: Option<PathBuf>,
}

impl ModelManifest {
    /// All bytes of it, in the repository.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects.iter().fold(0, |sum, object| sum.saturating_add(object.size))
    }

    /// Names this content of this model: another one if any object is another.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.hash_of(|_| true)
    }

    /// Names this content but for the text of a folder's `config.pbtxt`: the same one where that alone is another. What
    /// lies in an archive cannot be told apart.
    #[must_use]
    pub fn weights(&self) -> Fingerprint {
        self.hash_of(|object| object.path != "config.pbtxt")
    }

    fn hash_of(&self, counts: impl Fn(&Object) -> bool) -> Fingerprint {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(self.key.as_bytes());
        for object in self.objects.iter().filter(|object| counts(object)) {
            field(object.path.as_bytes());
            field(&object.size.to_le_bytes());
            field(object.tag.as_bytes());
        }
        let digest = hash.finalize();
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        Fingerprint(short)
    }
}

/// The hash of a manifest: what is cached under it is what the repository had.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// Names the same content as that of one of several models in it.
    #[must_use]
    pub fn of_part(self, part: &str) -> Self {
        let digest = Sha256::new().chain_update(self.0).chain_update(part.as_bytes()).finalize();
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        Self(short)
    }

    /// Reads what [`fmt::Display`] wrote: 32 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(objects: &[(&str, u64, &str)]) -> ModelManifest {
        let objects = objects.iter().map(|&(path, size, tag)| Object { path: path.into(), size, tag: tag.into() });
        let objects = objects.collect();
        ModelManifest { name: "m".into(), form: Form::Directory, key: "m".into(), objects, local: None }
    }

    #[test]
    fn any_other_object_is_another_fingerprint() {
        let base = manifest(&[("a", 1, "x"), ("b", 2, "y")]);
        assert_eq!(base.fingerprint(), base.clone().fingerprint());
        assert_eq!(base.bytes(), 3);
        let others = [
            manifest(&[("a", 1, "x"), ("b", 2, "z")]),
            manifest(&[("a", 1, "x"), ("b", 3, "y")]),
            manifest(&[("a", 1, "x"), ("c", 2, "y")]),
            manifest(&[("a", 1, "x")]),
            ModelManifest { key: "m.tar".into(), ..base.clone() },
        ];
        for other in others {
            assert_ne!(base.fingerprint(), other.fingerprint());
        }
        // The name it was asked for by says nothing of the content.
        assert_eq!(base.fingerprint(), ModelManifest { name: "n".into(), ..base.clone() }.fingerprint());
    }

    #[test]
    fn another_configuration_leaves_the_weights_as_they_are() {
        let base = manifest(&[("1/model.onnx", 9, "x"), ("config.pbtxt", 2, "y")]);
        let config = manifest(&[("1/model.onnx", 9, "x"), ("config.pbtxt", 3, "z")]);
        assert_ne!(base.fingerprint(), config.fingerprint());
        assert_eq!(base.weights(), config.weights());
        assert_eq!(base.weights(), manifest(&[("1/model.onnx", 9, "x")]).weights());
        assert_ne!(base.weights(), manifest(&[("1/model.onnx", 9, "w"), ("config.pbtxt", 2, "y")]).weights());
        assert_ne!(base.weights(), manifest(&[("1/config.pbtxt", 2, "y"), ("1/model.onnx", 9, "x")]).weights());
    }

    #[test]
    fn a_fingerprint_reads_back() {
        let fingerprint = manifest(&[]).fingerprint();
        assert_eq!(Fingerprint::parse(&fingerprint.to_string()), Some(fingerprint));
        for other in ["", "0", &"g".repeat(32), &format!("+{}", "1".repeat(31)), &"0".repeat(33)] {
            assert_eq!(Fingerprint::parse(other), None);
        }
    }
}
