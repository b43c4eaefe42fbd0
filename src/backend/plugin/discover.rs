//! Which plugins lie in a folder.

use std::path::{Path, PathBuf};

/// A backend's library, found and not opened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// The backend's name, by the name of its file.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

/// The name of a backend's library.
#[must_use]
pub fn library_name(backend: &str) -> String {
    format!("libroundhouse_{backend}.so")
}

/// The plugins of a folder by name: `libroundhouse_NAME.so` in it, or in its folder NAME. A folder that cannot be read
/// has none.
#[must_use]
pub fn plugins(folder: &Path) -> Vec<Found> {
    let mut found: Vec<_> =
        folder.read_dir().into_iter().flatten().flatten().filter_map(|entry| found(&entry.path())).collect();
    found.sort();
    found.dedup_by(|later, earlier| later.name == earlier.name);
    found
}

fn found(path: &Path) -> Option<Found> {
    let file = path.file_name()?.to_str()?;
    if path.is_dir() {
        let library = path.join(library_name(file));
        return library.is_file().then(|| Found { name: file.to_owned(), path: library });
    }
    let name = file.strip_prefix("libroundhouse_")?.strip_suffix(".so").filter(|name| !name.is_empty())?;
    path.is_file().then(|| Found { name: name.to_owned(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_lie_in_the_folder_or_in_one_of_their_name() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        let b = put("b/libroundhouse_b.so");
        let a = put("libroundhouse_a.so");
        for other in ["libroundhouse_.so", "libother.so", "c/libroundhouse_d.so", "libroundhouse_e.so.1"] {
            put(other);
        }
        let found: Vec<_> = plugins(folder.path()).into_iter().map(|found| (found.name, found.path)).collect();
        assert_eq!(found, [("a".to_owned(), a), ("b".to_owned(), b)]);
        assert_eq!(plugins(&folder.path().join("none")), []);
    }
}
