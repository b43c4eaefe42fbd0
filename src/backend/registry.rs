//! Which backends there are, and why some cannot be used.

use std::sync::{Arc, OnceLock};

use super::Backend;
use crate::error::{Error, ErrorKind, Result};

/// A backend that is there, or the reason why it is not.
pub enum Entry {
    /// Ready to load models.
    Available(Arc<dyn Backend>),
    /// Known, but its library is missing, too old or broken; the error says which and names the mend.
    Unavailable(Error),
    /// There, and opened when a model first asks for it: a runtime that nobody uses costs neither time nor memory.
    Installed(Installed),
}

type Open = Box<dyn Fn() -> Result<Arc<dyn Backend>> + Send + Sync>;

/// A backend that is opened when it is first asked for.
pub struct Installed {
    open: Open,
    opened: OnceLock<Result<Arc<dyn Backend>>>,
}

impl Entry {
    /// Why it cannot be used, as far as it is known.
    #[must_use]
    pub fn unavailable(&self) -> Option<&Error> {
        match self {
            Self::Available(_) => None,
            Self::Unavailable(why) => Some(why),
            Self::Installed(installed) => installed.opened.get().and_then(|opened| opened.as_ref().err()),
        }
    }
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

    /// Adds a backend that is opened when it is first asked for. The work blocks.
    #[must_use]
    pub fn with_installed(
        mut self,
        name: &'static str,
        open: impl Fn() -> Result<Arc<dyn Backend>> + Send + Sync + 'static,
    ) -> Self {
        let installed = Installed { open: Box::new(open), opened: OnceLock::new() };
        self.entries.push((name, Entry::Installed(installed)));
        self
    }

    /// Whether there is an entry called `name`.
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.entries.iter().any(|(known, _)| *known == name)
    }

    /// The backend called `name`. Blocking where it is opened by this.
    ///
    /// # Errors
    /// The reason why it is unavailable, or `InvalidArgument` for a name nobody knows.
    pub fn get(&self, name: &str) -> Result<&Arc<dyn Backend>> {
        let unavailable =
            |why: &Error| why.clone().wrap(format!("the {name} backend is unavailable")).with_retryable(false);
        match self.entries.iter().find(|(known, _)| *known == name) {
            Some((_, Entry::Available(backend))) => Ok(backend),
            Some((_, Entry::Unavailable(why))) => Err(unavailable(why)),
            Some((_, Entry::Installed(Installed { open, opened }))) => {
                opened.get_or_init(open).as_ref().map_err(unavailable)
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

    #[test]
    fn an_installed_backend_is_opened_once_and_only_when_it_is_asked_for() {
        let times = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&times);
        let registry = BackendRegistry::default()
            .with_installed("identity", move || {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(Arc::new(Identity))
            })
            .with_installed("broken", || Err(Error::not_ready("its library is torn")));
        let why = |name| registry.iter().find(|(known, _)| *known == name).unwrap().1.unavailable().map(Error::report);
        assert_eq!((why("identity"), why("broken")), (None, None));
        assert_eq!(times.load(std::sync::atomic::Ordering::Relaxed), 0);
        assert!(registry.get("identity").is_ok() && registry.get("identity").is_ok());
        assert_eq!(times.load(std::sync::atomic::Ordering::Relaxed), 1);
        let error = registry.get("broken").err().unwrap();
        assert_eq!(error.report(), "the broken backend is unavailable: its library is torn");
        assert_eq!(why("broken").unwrap(), "its library is torn");
    }
}
