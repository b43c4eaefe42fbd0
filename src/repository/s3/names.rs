//! Which keys say what of a name. Pure.
//!
//! Of `resnet` speak the keys `resnet.<ending>` and all below `resnet/`. `.` and `/` are neighbours in the order of
//! bytes, so a listing that begins at `resnet.` has them at its head; siblings such as `resnet-50` come before.

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::repository::layout::{self, ARCHIVE_ENDINGS, CONFIG, MODEL_FILES};
use crate::repository::manifest::{Form, ModelManifest, Object};
use crate::repository::{MAX_NAME_LENGTH, check_name};

/// The most objects of a model's folder.
const MAX_OBJECTS: usize = 100_000;

/// Folders are looked into this deep for models, as in a repository on a disk.
const MAX_DEPTH: usize = 6;

/// An object, its key relative to the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) tag: String,
}

impl Entry {
    /// An empty object that stands for a folder: some tools make them.
    fn is_folder_marker(&self) -> bool {
        self.size == 0 && self.key.ends_with('/')
    }
}

/// Where a listing stands, seen from the name that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// Keys below `name/` may still come, and files beside it.
    Before,
    /// Only keys below `name/` may still come.
    Within,
    /// Nothing of interest comes any more.
    Past,
}

/// What was found of one name.
#[derive(Debug)]
pub(super) struct Candidates {
    name: String,
    /// The name itself as a key, and the name with each ending.
    beside: Vec<(String, Form, Option<Entry>)>,
    below: Vec<Entry>,
}

impl Candidates {
    pub(super) fn new(name: &str) -> Self {
        let exact = layout::form_of(name).map(|form| (name.to_owned(), form, None));
        let archives = ARCHIVE_ENDINGS.iter().map(|ending| (*ending, Form::Archive));
        let files = MODEL_FILES.iter().map(|(_, ending, _)| (*ending, Form::File));
        let endings = archives.chain(files).map(|(ending, form)| (format!("{name}{ending}"), form, None));
        Self { name: name.to_owned(), beside: exact.into_iter().chain(endings).collect(), below: Vec::new() }
    }

    /// Where a listing with the name as its prefix may begin: past the siblings that the name is only a part of. The
    /// name itself comes before them, if it may be a key.
    pub(super) fn start_after(&self) -> Option<String> {
        layout::form_of(&self.name).is_none().then(|| format!("{}.", self.name))
    }

    /// Notes the entry if it speaks of the name.
    ///
    /// # Errors
    /// `TooLarge` for a folder of too many objects.
    pub(super) fn take(&mut self, entry: Entry) -> Result<Stand> {
        let Some(rest) = entry.key.strip_prefix(&*self.name) else {
            return Ok(if entry.key > self.name { Stand::Past } else { Stand::Before });
        };
        if let Some(path) = rest.strip_prefix('/') {
            if !path.is_empty() && !entry.is_folder_marker() {
                self.below.push(entry);
            }
            if self.below.len() > MAX_OBJECTS {
                let text = format!("the folder of model '{}' holds more than {MAX_OBJECTS} objects", self.name);
                return Err(Error::too_large(text));
            }
            return Ok(Stand::Within);
        }
        let stand = if rest.as_bytes().first() > Some(&b'/') { Stand::Past } else { Stand::Before };
        if let Some((_, _, found)) = self.beside.iter_mut().find(|(key, _, _)| *key == entry.key) {
            *found = Some(entry);
        }
        Ok(stand)
    }

    /// The path of an object below the name's folder.
    fn path<'a>(&self, entry: &'a Entry) -> &'a str {
        entry.key.get(self.name.len() + 1..).unwrap_or_default()
    }

    /// Whether the folder says that it is a model.
    pub(super) fn is_folder_model(&self) -> bool {
        self.below.iter().any(|entry| marks_model(self.path(entry)))
    }

    /// The keys with an ending that come after `last` in a listing, the best form first.
    pub(super) fn keys_after(&self, last: &str) -> Vec<String> {
        self.beside.iter().map(|(key, _, _)| key).filter(|key| key.as_str() > last).cloned().collect()
    }

    /// The model, if there is one: the folder, the key itself, archives and bare files in the order of their endings.
    ///
    /// # Errors
    /// `InvalidArgument` for a folder with a key that can be no file's path.
    pub(super) fn choose(mut self) -> Result<Option<ModelManifest>> {
        if self.is_folder_model() {
            let mut objects = Vec::with_capacity(self.below.len());
            for entry in std::mem::take(&mut self.below) {
                let path = self.path(&entry).to_owned();
                check_name(&path).map_err(|error| {
                    let key = entry.key.escape_debug();
                    Error::invalid(format!(
                        "model '{}' has an object whose key can be no file's path: '{key}'",
                        self.name
                    ))
                    .with_source(error)
                })?;
                objects.push(Object { path, size: entry.size, tag: entry.tag });
            }
            objects.sort_unstable_by(|one, other| one.path.cmp(&other.path));
            objects.dedup_by(|one, other| one.path == other.path);
            let key = self.name.clone();
            return Ok(Some(ModelManifest { name: self.name, form: Form::Directory, key, objects, local: None }));
        }
        let found = self.beside.into_iter().find_map(|(key, form, entry)| Some((key, form, entry?)));
        Ok(found.map(|(key, form, entry)| {
            let path = key.rsplit_once('/').map_or(&*key, |(_, file)| file).to_owned();
            let objects = vec![Object { path, size: entry.size, tag: entry.tag }];
            ModelManifest { name: self.name, form, key, objects, local: None }
        }))
    }
}

/// Whether an object at this path below a folder makes the folder a model.
fn marks_model(path: &str) -> bool {
    match path.split_once('/') {
        Some((folder, file)) => !file.is_empty() && layout::version(folder).is_some(),
        None => is_root_file(path),
    }
}

/// Whether a file or folder of this name, right below a folder, makes the folder a model.
pub(super) fn is_root_file(file: &str) -> bool {
    file == CONFIG || MODEL_FILES.iter().any(|(name, _, _)| *name == file)
}

/// The files that make a folder a model, in the order of a listing.
pub(super) fn root_files() -> impl Iterator<Item = &'static str> {
    std::iter::once(CONFIG).chain(MODEL_FILES.iter().map(|(name, _, _)| *name))
}

/// The folders above a name, the outermost first: what lies in a model's folder is a part of it, not a model of its own.
pub(super) fn folders_above(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').map(|(at, _)| &name[..at])
}

/// The names of the models among all keys of a repository.
#[derive(Debug, Default)]
pub(super) struct Names {
    folders: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Names {
    pub(super) fn take(&mut self, entry: &Entry) {
        let key = &*entry.key;
        if entry.is_folder_marker() || key.split('/').any(str::is_empty) {
            return;
        }
        // The outermost folder that this key makes a model; what lies deeper is a part of it.
        if let Some(folder) = folders_above(key).find(|folder| marks_model(&key[folder.len() + 1..])) {
            if is_listed(folder) && !self.folders.contains(folder) {
                self.folders.insert(folder.to_owned());
            }
        } else if let Some(name) = layout::name_of(key).filter(|_| is_listed(key)) {
            self.files.insert(name.to_owned());
        }
    }

    /// The names, ascending, without those of files and folders that lie inside a model.
    pub(super) fn finish(self) -> Vec<String> {
        let folders = self.folders;
        let is_inside = |name: &str| folders_above(name).any(|folder| folders.contains(folder));
        let names: BTreeSet<&String> = folders.iter().chain(&self.files).filter(|name| !is_inside(name)).collect();
        names.into_iter().cloned().collect()
    }
}

/// Neither hidden, nor too deep, nor a name that nobody could ask for.
fn is_listed(key: &str) -> bool {
    key.len() <= MAX_NAME_LENGTH
        && key.split('/').count() <= MAX_DEPTH
        && !key.split('/').any(|part| part.starts_with('.'))
        && check_name(key).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(key: &str) -> Entry {
        Entry { key: key.to_owned(), size: u64::from(!key.ends_with('/')), tag: "\"t\"".to_owned() }
    }

    fn chosen(name: &str, keys: &[&str]) -> Option<(String, Form)> {
        let mut candidates = Candidates::new(name);
        for key in keys {
            candidates.take(entry(key)).unwrap();
        }
        candidates.choose().unwrap().map(|manifest| (manifest.key, manifest.form))
    }

    #[test]
    fn the_forms_of_a_name_come_in_their_order() {
        let mut keys = vec!["m/1/model.onnx", "m.tar.gz", "m.tgz", "m.tar.zst", "m.tar", "m.zip", "m.onnx", "m.pt"];
        assert_eq!(chosen("m", &keys), Some(("m".to_owned(), Form::Directory)));
        while keys.len() > 1 {
            keys.remove(0);
            let form = if keys.len() > 2 { Form::Archive } else { Form::File };
            assert_eq!(chosen("m", &keys), Some((keys[0].to_owned(), form)));
        }
        assert_eq!(chosen("m.zip", &["m.zip", "m.zip.tar"]), Some(("m.zip".to_owned(), Form::Archive)));
        assert_eq!(chosen("m.zip", &["m.zip.tar"]), Some(("m.zip.tar".to_owned(), Form::Archive)));
        assert_eq!(chosen("m", &["m", "m-x.onnx", "m/notes/read.me", "m/01/x", "m/1", "m/1/", "m2/1/x"]), None);
    }

    #[test]
    fn a_listing_says_when_nothing_more_of_interest_comes() {
        let mut candidates = Candidates::new("m");
        let stand = |key: &str, candidates: &mut Candidates| candidates.take(entry(key)).unwrap();
        assert_eq!(stand("m.v2/1/x", &mut candidates), Stand::Before);
        assert_eq!(stand("m/1/x", &mut candidates), Stand::Within);
        assert_eq!(stand("m0", &mut candidates), Stand::Past);
        assert_eq!(stand("n", &mut candidates), Stand::Past);
        assert_eq!(stand("m-1", &mut Candidates::new("m")), Stand::Before);
    }

    #[test]
    fn a_key_that_can_be_no_path_is_refused_by_name() {
        for key in ["m/../x", "m/a//b", "m/./x", "m/a\nb"] {
            let mut candidates = Candidates::new("m");
            candidates.take(entry("m/config.pbtxt")).unwrap();
            candidates.take(entry(key)).unwrap();
            let text = candidates.choose().unwrap_err().to_string();
            assert!(text.contains(&key.escape_debug().to_string()), "{text}");
        }
    }

    #[test]
    fn a_folder_of_too_many_objects_is_refused() {
        let mut candidates = Candidates::new("m");
        for index in 0..MAX_OBJECTS {
            candidates.take(entry(&format!("m/{index}"))).unwrap();
        }
        let error = candidates.take(entry("m/more")).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::TooLarge);
    }

    #[test]
    fn what_lies_in_a_model_is_not_listed_whichever_key_comes_first() {
        let mut names = Names::default();
        for key in [
            "a/007/model.onnx",
            "a/1/model.onnx",
            "a/config.pbtxt",
            "a/zoo/1/x",
            "b/extra.onnx",
            "b/model.pt",
            "deep/1x/y/z.tar",
            "e/1/",
            ".hidden/1/x",
            "1/2/3/4/5/6/7.onnx",
            "one/two/three/four/five/six/seven.onnx",
            "x.onnx",
            "x.zip",
        ] {
            names.take(&entry(key));
        }
        // A folder right below the root that is named as a version makes the root no model: the root has no name.
        assert_eq!(names.finish(), ["1", "a", "b", "deep/1x/y/z", "x"]);
    }

    proptest! {
        /// A name that is listed is found under its name, and what is found was listed (but for hidden and deep ones).
        #[test]
        fn what_is_listed_is_what_resolves(keys in prop::collection::btree_set("[ab1](/[ab1]|/model|\\.v|-x){0,3}(/config\\.pbtxt|/1/w|\\.onnx|\\.tar|/x)", 0..12)) {
            let mut names = Names::default();
            keys.iter().for_each(|key| names.take(&entry(key)));
            let names = names.finish();
            let marks = |folder: &str| {
                let mut candidates = Candidates::new(folder);
                keys.iter().for_each(|key| { candidates.take(entry(key)).unwrap(); });
                candidates.is_folder_model()
            };
            for name in &names {
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                prop_assert!(chosen(name, &keys).is_some(), "{}", name);
                prop_assert!(!folders_above(name).any(marks), "{} lies in a model", name);
            }
            for key in &keys {
                let inside = folders_above(key).find(|folder| marks(folder));
                let name = inside.or(layout::name_of(key));
                prop_assert!(name.is_none_or(|name| names.iter().any(|listed| listed == name)), "{}", key);
            }
        }
    }
}
