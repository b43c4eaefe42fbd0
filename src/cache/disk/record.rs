//! `Record`: what `manifest.json` says of an entry, and `EntryId`, which names its folder.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::inference::Version;
use crate::repository::manifest::{Fingerprint, Form, ModelManifest};

/// What this server writes; what is written otherwise is not adopted.
const FORMAT: u32 = 1;

/// A file takes whole blocks of this many bytes on the usual file systems.
const BLOCK: u64 = 4096;

/// Bytes that a file of `size` bytes takes on the disk.
pub(super) const fn on_disk(size: u64) -> u64 {
    size.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// Names an entry: the hash of the model's name, its content, and a number that tells entries of the same content apart,
/// which differ in the versions they keep. The same content has the same id again after it was evicted, so that the
/// demand for it is remembered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId([u8; 16]);

impl EntryId {
    pub(super) fn new(name: &str, fingerprint: Fingerprint, serial: u32) -> Self {
        let mut hash = Sha256::new();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(fingerprint.to_string());
        hash.update(serial.to_le_bytes());
        let digest = hash.finalize();
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        Self(short)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a load from this entry went: what the next one is booked and ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadRecord {
    /// What the model took on the device, in bytes.
    pub bytes: u64,
    /// From disk to ready, in seconds.
    pub seconds: f64,
}

/// What `manifest.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    pub(super) name: String,
    pub(super) key: String,
    fingerprint: String,
    serial: u32,
    #[serde(with = "FormName")]
    pub(super) form: Form,
    /// The text of `config.pbtxt`, so that versions are chosen without a look at the files.
    pub(super) config: Option<String>,
    /// Versions the repository had, ascending.
    pub(super) available: Vec<Version>,
    /// Versions of these that are here.
    pub(super) kept: Vec<Version>,
    /// Path below `files/` and bytes.
    pub(super) files: Vec<(String, u64)>,
    /// The fetch took so long.
    pub(super) seconds: f64,
    /// When it was complete, in milliseconds since 1970.
    committed: u64,
    /// By the device's name.
    pub(super) history: BTreeMap<String, LoadRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Form", rename_all = "lowercase")]
enum FormName {
    Directory,
    Archive,
    File,
}

impl Record {
    /// Of a model of which nothing is here yet.
    pub(super) fn new(manifest: &ModelManifest, serial: u32) -> Self {
        Self {
            format: FORMAT,
            name: manifest.name.clone(),
            key: manifest.key.clone(),
            fingerprint: manifest.fingerprint().to_string(),
            serial,
            form: manifest.form,
            config: None,
            available: Vec::new(),
            kept: Vec::new(),
            files: Vec::new(),
            seconds: 0.0,
            committed: 0,
            history: BTreeMap::new(),
        }
    }

    /// The number that the book gave it.
    pub(super) fn set_serial(&mut self, serial: u32) {
        self.serial = serial;
    }

    /// Reads what [`Record::to_json`] wrote; `None` for what this server does not understand.
    pub(super) fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(json)
            .ok()
            .filter(|record| record.format == FORMAT && record.fingerprint().is_some())
    }

    pub(super) fn to_json(&self) -> std::io::Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(std::io::Error::other)
    }

    /// `None` where the text is none.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        Fingerprint::parse(&self.fingerprint)
    }

    /// The id the record is stored under.
    pub(super) fn id(&self) -> Option<EntryId> {
        self.fingerprint().map(|fingerprint| EntryId::new(&self.name, fingerprint, self.serial))
    }

    /// The fetch is over, now.
    pub(super) fn complete(&mut self, seconds: f64) {
        self.seconds = seconds;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.committed = u64::try_from(since.as_millis()).unwrap_or_default();
    }

    pub(super) fn committed(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.committed)
    }

    /// Bytes of the files and the manifest on the disk, without `derived/`.
    pub(super) fn bytes(&self) -> u64 {
        let files = self.files.iter().fold(0_u64, |sum, (_, size)| sum.saturating_add(on_disk(*size)));
        let manifest = self.to_json().map_or(0, |json| json.len() as u64);
        files.saturating_add(on_disk(manifest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> ModelManifest {
        let (name, key) = ("team/m".into(), "team/m.tar".into());
        ModelManifest { name, form: Form::Archive, key, objects: Vec::new(), local: None }
    }

    #[test]
    fn a_record_reads_back_and_an_unknown_format_does_not() {
        let mut record = Record::new(&manifest(), 3);
        record.files.push(("1/model.onnx".into(), 4097));
        record.history.insert("cpu".into(), LoadRecord { bytes: 7, seconds: 0.5 });
        record.complete(1.25);
        let json = record.to_json().unwrap();
        assert_eq!(Record::parse(&json), Some(record.clone()));
        assert_eq!(record.id(), Some(EntryId::new("team/m", manifest().fingerprint(), 3)));
        assert_eq!(record.bytes(), 8192 + 4096);
        record.format = 2;
        assert_eq!(Record::parse(&record.to_json().unwrap()), None);
        assert_eq!(Record::parse(b"{"), None);
    }

    #[test]
    fn another_name_content_or_serial_is_another_entry() {
        let fingerprint = manifest().fingerprint();
        let other = ModelManifest { key: "other".into(), ..manifest() }.fingerprint();
        let base = EntryId::new("a", fingerprint, 0);
        assert_eq!(base, EntryId::new("a", fingerprint, 0));
        for id in [EntryId::new("b", fingerprint, 0), EntryId::new("a", other, 0), EntryId::new("a", fingerprint, 1)] {
            assert_ne!(id, base);
        }
    }
}
