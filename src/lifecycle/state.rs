//! The states of a model version, as Triton's repository index names them. Pure: decides, does nothing.
//!
//! ## Unavailable => Loading => (Ready | Unavailable)
//! A load begins; it ends well, or with the reason.
//! ## Ready => Unloading => Unavailable
//! Nobody new gets in; the last request leaves; memory is free. A reload goes Ready => Ready: the new copy is loaded
//! beside the old one and takes its place between two requests.

use crate::inference::Version;

/// Where a version stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// Being fetched and loaded.
    Loading,
    /// Answers.
    Ready,
    /// Finishing its last requests.
    Unloading,
    /// Not in memory.
    Unavailable,
}

impl ModelState {
    /// The word in the repository index.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loading => "LOADING",
            Self::Ready => "READY",
            Self::Unloading => "UNLOADING",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// The state of one version, with the reason where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionStatus {
    /// The version; `None` where a load failed before its versions were known.
    pub version: Option<Version>,
    /// Where it stands.
    pub state: ModelState,
    /// Why it is not ready: `unloaded`, or a load's error.
    pub reason: String,
}

/// The states of a model's versions, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionStates(Vec<VersionStatus>);

impl VersionStates {
    /// The rows of the index.
    #[must_use]
    pub fn rows(&self) -> &[VersionStatus] {
        &self.0
    }

    /// Puts `versions` into `state`; the others stay.
    pub fn set(&mut self, versions: &[Version], state: ModelState, reason: &str) {
        self.0.retain(|row| row.version.is_some_and(|version| !versions.contains(&version)));
        self.0.extend(versions.iter().map(|&version| VersionStatus {
            version: Some(version),
            state,
            reason: reason.to_owned(),
        }));
        self.0.sort_by_key(|row| row.version);
    }

    /// A load that begins where nothing answers.
    pub fn loading(&mut self) {
        self.all(ModelState::Loading, "");
        if self.0.is_empty() {
            self.0.push(VersionStatus { version: None, state: ModelState::Loading, reason: String::new() });
        }
    }

    /// A load that ended with `ready` versions: those answer, whatever else was there is unloaded.
    pub fn loaded(&mut self, ready: &[Version]) {
        for row in &mut self.0 {
            row.state = ModelState::Unavailable;
            "unloaded".clone_into(&mut row.reason);
        }
        self.set(ready, ModelState::Ready, "");
    }

    /// A load that failed for `reason`. Versions that answered before go on answering.
    pub fn failed(&mut self, versions: &[Version], reason: &str) {
        self.0.retain(|row| row.state == ModelState::Ready);
        let fresh: Vec<_> =
            versions.iter().copied().filter(|version| self.0.iter().all(|row| row.version != Some(*version))).collect();
        if fresh.is_empty() && self.0.is_empty() {
            self.0.push(VersionStatus { version: None, state: ModelState::Unavailable, reason: reason.to_owned() });
        } else {
            self.set(&fresh, ModelState::Unavailable, reason);
        }
    }

    /// A load that nobody waited for any more, where nothing answers. A model that was never loaded leaves no row.
    pub fn abandoned(&mut self) {
        self.0.retain(|row| row.version.is_some());
        self.all(ModelState::Unavailable, "load abandoned");
    }

    /// Every version into `state`.
    pub fn all(&mut self, state: ModelState, reason: &str) {
        for row in &mut self.0 {
            row.state = state;
            reason.clone_into(&mut row.reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_that_fails_leaves_what_answers() {
        let mut states = VersionStates::default();
        states.loaded(&[1, 2]);
        states.failed(&[2, 3], "broken");
        let rows: Vec<_> = states.rows().iter().map(|row| (row.version, row.state)).collect();
        assert_eq!(
            rows,
            [(Some(1), ModelState::Ready), (Some(2), ModelState::Ready), (Some(3), ModelState::Unavailable)]
        );
    }

    #[test]
    fn a_load_that_fails_before_its_versions_are_known_has_a_row() {
        let mut states = VersionStates::default();
        states.failed(&[], "no config");
        assert_eq!(states.rows()[0].version, None);
        assert_eq!(states.rows()[0].reason, "no config");
        states.loaded(&[1]);
        assert_eq!(states.rows().len(), 1);
        assert_eq!(states.rows()[0].state, ModelState::Ready);
    }

    #[test]
    fn an_abandoned_load_leaves_a_row_only_where_versions_are_known() {
        let mut states = VersionStates::default();
        states.loading();
        states.abandoned();
        assert!(states.rows().is_empty());
        states.loaded(&[3]);
        states.loading();
        states.abandoned();
        assert_eq!((states.rows()[0].version, states.rows()[0].state), (Some(3), ModelState::Unavailable));
    }

    #[test]
    fn a_version_that_a_reload_leaves_out_is_unloaded() {
        let mut states = VersionStates::default();
        states.loaded(&[1]);
        states.loaded(&[2]);
        let rows: Vec<_> = states.rows().iter().map(|row| (row.version, row.state, row.reason.as_str())).collect();
        assert_eq!(rows, [(Some(1), ModelState::Unavailable, "unloaded"), (Some(2), ModelState::Ready, "")]);
    }
}
