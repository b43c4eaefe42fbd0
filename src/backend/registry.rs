//! Which backends there are, and why some cannot be used.

use std::sync::Arc;

use super::Backend;
use crate::error::{Error, ErrorKind, Result};

/// A backend that is there, or the reason why it is not.
pub enum Entry {
    /// Ready to load models.
    Available(Arc<dyn Backend>),
    /// Known, but its library is missing, too old or broken; the error says which and names the mend.
    Unavailable(Error),
}

/// The backends by name. Made once at start.
#[derive(Default)]
pub struct BackendRegistry {
    entries: Vec<(&'static str, Entry)>,
}

impl BackendRegistry {
    /// Adds a backend that can be used.
    #[must_use]
    pub fn with(mut self, backend: Arc<dyn Backend>) -> Self {
        self.entries.push((backend.name(), Entry::Available(backend)));
        self
    }

    /// Adds what became of opening the backend called `name`.
    #[must_use]
    pub fn with_opened<B: Backend + 'static>(self, name: &'static str, opened: Result<B>) -> Self {
        match opened {
            Ok(backend) => self.with(Arc::new(backend)),
            Err(error) => self.without(name, error),
        }
    }

    /// Adds a backend that cannot be used.
    #[must_use]
    pub fn without(mut self, name: &'static str, why: Error) -> Self {
        self.entries.push((name, Entry::Unavailable(why)));
        self
    }

    /// The backend called `name`.
    ///
    /// # Errors
    /// The reason why it is unavailable, or `InvalidArgument` for a name nobody knows.
    pub fn get(&self, name: &str) -> Result<&Arc<dyn Backend>> {
        match self.entries.iter().find(|(known, _)| *known == name) {
            Some((_, Entry::Available(backend))) => Ok(backend),
            Some((_, Entry::Unavailable(why))) => {
                Err(why.clone().wrap(format!("the {name} backend is unavailable")).with_retryable(false))
            }
            None => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "unknown backend '{name}', known are: {}",
                    self.entries.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ")
                ),
            )),
        }
    }

    /// Every backend, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (*name, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::Identity;
    use super::*;

    #[test]
    fn an_unavailable_backend_says_why_and_an_unknown_one_what_is_known() {
        let registry = BackendRegistry::default()
            .with(Arc::new(Identity))
            .without("onnxruntime", Error::new(ErrorKind::NotReady, "no library: run the install command"));
        assert!(registry.get("identity").is_ok());
        let error = registry.get("onnxruntime").err().unwrap();
        assert_eq!(error.report(), "the onnxruntime backend is unavailable: no library: run the install command");
        let error = registry.get("tensorrt").err().unwrap();
        assert!(error.to_string().contains("identity, onnxruntime"), "{error}");
    }
}
