//! Models inside another one's archive: the steps of an ensemble that came with it. They are known by the ensemble's name
//! and their own, joined so that no key of a repository can be the same and no client can name them: two archives may each
//! have a `preprocess`.

use super::Name;

/// Between the two names. A key has no empty part (`check_name`).
const BORDER: &str = "//";

/// The name of a model that came with another.
pub(super) fn name_of(owner: &str, part: &str) -> Name {
    format!("{owner}{BORDER}{part}").into()
}

/// The model that a model came with, and its own name; the name itself and `None` for any other.
pub(super) fn split(name: &str) -> (&str, Option<&str>) {
    match name.split_once(BORDER) {
        Some((owner, part)) => (owner, Some(part)),
        None => (name, None),
    }
}

/// Whether the model came with another one.
pub(super) fn is_part(name: &str) -> bool {
    split(name).1.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::check_name;

    #[test]
    fn a_part_has_a_name_that_no_key_can_be_and_that_leads_back() {
        let name = name_of("team/x", "preprocess");
        assert_eq!(split(&name), ("team/x", Some("preprocess")));
        assert!(is_part(&name) && check_name(&name).is_err());
        assert_eq!(split("team/x"), ("team/x", None));
    }
}
