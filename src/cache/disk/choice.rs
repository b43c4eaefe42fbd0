//! Which files of a model are wanted, told from their paths: those outside version folders and those of the chosen ones.

use super::ChooseVersions;
use crate::artifact::Selection;
use crate::error::Result;
use crate::inference::Version;
use crate::repository::layout::{self, CONFIG, MODEL_FILES};
use crate::repository::tree;

/// The chosen versions that are there, ascending.
pub(super) fn choose(choose: &ChooseVersions, config: Option<&str>, available: &[Version]) -> Result<Vec<Version>> {
    let mut chosen = choose(config, available)?;
    chosen.retain(|version| available.contains(version));
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

/// The version whose folder this file is in.
pub(super) fn version_of(path: &str) -> Option<Version> {
    path.split_once('/').and_then(|(folder, _)| layout::version(folder))
}

/// The versions that a folder of these files has, ascending: version folders, or 1 for a bare model file.
pub(super) fn versions_of<'a>(paths: impl Iterator<Item = &'a str> + Clone) -> Vec<Version> {
    let mut versions: Vec<_> = paths.clone().filter_map(version_of).collect();
    versions.sort_unstable();
    versions.dedup();
    let is_bare = |path: &str| MODEL_FILES.iter().any(|(file, _, _)| *file == path);
    if versions.is_empty() && paths.clone().any(is_bare) {
        versions.push(1);
    }
    versions
}

/// Where in an archive with these files the model is, as a prefix of its paths: at the root or in its one folder. `None`
/// where that takes more than the paths to tell; [`tree::ModelTree::read_unpacked`] does so once all is unpacked.
fn model_prefix<'a>(paths: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
    let is_model = |prefix: &str| {
        let below = paths.clone().filter_map(|path| path.strip_prefix(prefix));
        below.clone().any(|path| path == CONFIG) || !versions_of(below).is_empty()
    };
    if is_model("") {
        return Some(String::new());
    }
    if paths.clone().any(|path| !path.contains('/') && layout::backend_of(path).is_some()) {
        return None;
    }
    let mut folders: Vec<_> = paths.clone().filter_map(|path| path.split_once('/')).map(|(folder, _)| folder).collect();
    folders.sort_unstable();
    folders.dedup();
    let mut models = folders.into_iter().map(|folder| format!("{folder}/")).filter(|prefix| is_model(prefix));
    models.next().filter(|_| models.next().is_none())
}

/// Chooses versions from the listing of an archive that has one.
pub(super) struct ArchiveSelection<'a> {
    pub(super) name: &'a str,
    pub(super) choose: &'a ChooseVersions,
    /// The versions there are and those chosen, where the listing told.
    pub(super) found: Option<(Vec<Version>, Vec<Version>)>,
}

impl Selection for ArchiveSelection<'_> {
    fn choose(
        &mut self,
        entries: &[(String, u64)],
        read: &mut dyn FnMut(usize) -> Result<Vec<u8>>,
    ) -> Result<Vec<bool>> {
        let paths = entries.iter().map(|(path, _)| path.strip_prefix("./").unwrap_or(path));
        let Some(prefix) = model_prefix(paths.clone()) else { return Ok(vec![true; entries.len()]) };
        let below = paths.clone().map(|path| path.strip_prefix(&*prefix).unwrap_or_default());
        let available = versions_of(below.clone());
        let config = match below.clone().position(|path| path == CONFIG) {
            Some(index) => {
                // One that is too large is unpacked to be refused like any other.
                if entries.get(index).is_some_and(|(_, size)| *size > tree::MAX_CONFIG_BYTES) {
                    return Ok(vec![true; entries.len()]);
                }
                Some(tree::config_text(self.name, read(index)?)?)
            }
            None => None,
        };
        let kept = choose(self.choose, config.as_deref(), &available)?;
        let wanted = below.map(|path| version_of(path).is_none_or(|version| kept.contains(&version))).collect();
        self.found = Some((available, kept));
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_in_an_archive_is_found_by_paths_where_they_tell() {
        let prefix = |paths: &[&'static str]| model_prefix(paths.iter().copied());
        assert_eq!(prefix(&["config.pbtxt", "1/model.onnx"]).as_deref(), Some(""));
        assert_eq!(prefix(&["resnet/1/model.onnx", "README"]).as_deref(), Some("resnet/"));
        assert_eq!(prefix(&["model.onnx", "other/1/x"]).as_deref(), Some(""));
        assert_eq!(prefix(&["a/config.pbtxt", "b/1/model.onnx"]), None);
        assert_eq!(prefix(&["resnet.onnx", "b/1/model.onnx"]), None);
        assert_eq!(prefix(&["README"]), None);
    }

    #[test]
    fn only_chosen_versions_of_a_listing_are_wanted() {
        let entries = ["m/config.pbtxt", "m/1/model.onnx", "m/2/model.onnx", "m/labels.txt", "m/02/odd", "m/warmup/x"];
        let entries = entries.map(|path| (path.to_owned(), 1));
        let newest = |config: Option<&str>, available: &[Version]| {
            assert_eq!(config, Some("x"));
            Ok(available.last().copied().into_iter().chain([9]).collect())
        };
        let mut selection = ArchiveSelection { name: "m", choose: &newest, found: None };
        let wanted = selection.choose(&entries, &mut |_| Ok(b"x".to_vec())).unwrap();
        assert_eq!(wanted, [true, false, true, true, true, true]);
        assert_eq!(selection.found, Some((vec![1, 2], vec![2])));
    }
}
