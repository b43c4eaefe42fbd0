//! Which backends the server has: those built in, and the plugins of a folder.

use std::path::Path;
use std::sync::Arc;

use crate::backend::identity::Identity;
use crate::backend::onnxruntime::{self, OnnxRuntime};
use crate::backend::plugin::discover::{Found, library_name, plugins};
use crate::backend::plugin::libtorch::Libtorch;
use crate::backend::plugin::{Opening, Plugin};
use crate::backend::registry::BackendRegistry;
use crate::backend::repeat::Repeat;
use crate::backend::runtime_paths::onnxruntime_choice;
use crate::backend::{Backend, plugin};
use crate::config::{DeviceChoice, ServerConfig};
use crate::error::{Error, ErrorKind, Result};

/// The backends of a configuration. Plugins are found here and opened by their first model.
pub(super) fn backends(config: &ServerConfig) -> BackendRegistry {
    let may_use_gpus = config.devices.iter().any(|device| *device != DeviceChoice::Cpu);
    let library = config
        .onnxruntime_library
        .clone()
        .unwrap_or_else(|| onnxruntime_choice(&config.runtime_dir, may_use_gpus, Path::is_file));
    let mut backends = BackendRegistry::default()
        .with(Arc::new(Identity))
        .with(Arc::new(Repeat))
        .with_opened(onnxruntime::NAME, OnnxRuntime::open(&library, config.executor_threads));
    let libtorch = Libtorch::find(config.libtorch_dir.as_deref(), &config.runtime_dir);
    for found in config.backend_directory.as_deref().map(plugins).unwrap_or_default() {
        if backends.knows(&found.name) {
            tracing::warn!(library = %found.path.display(), "there is a backend called {} already", found.name);
            continue;
        }
        backends = match (found.name.as_str(), &libtorch) {
            (plugin::libtorch::NAME, Err(why)) => backends.without(plugin::libtorch::NAME, why.clone()),
            (plugin::libtorch::NAME, Ok(libtorch)) => {
                with_plugin(backends, found, plugin::libtorch::opening(libtorch, config))
            }
            _ => {
                let opening = Opening { executor_threads: config.executor_threads, ..Opening::default() };
                with_plugin(backends, found, opening)
            }
        };
    }
    if backends.knows(plugin::libtorch::NAME) {
        return backends;
    }
    backends.without(plugin::libtorch::NAME, no_plugin(config.backend_directory.as_deref()))
}

fn with_plugin(backends: BackendRegistry, found: Found, opening: Opening) -> BackendRegistry {
    // A name of the registry lives as long as the process; there are as many as files in a folder, once.
    let name: &'static str = found.name.leak();
    backends.with_installed(name, move || open(name, &found.path, &opening))
}

fn open(name: &'static str, path: &Path, opening: &Opening) -> Result<Arc<dyn Backend>> {
    let plugin = Plugin::open(path, opening)?;
    if plugin.name() != name {
        return Err(Error::new(
            ErrorKind::NotReady,
            format!("{} is the backend '{}': call it {}", path.display(), plugin.name(), library_name(plugin.name())),
        ));
    }
    tracing::info!(backend = name, description = plugin.description(), "backend opened");
    Ok(Arc::new(plugin))
}

/// Why there is no libtorch backend, and the mend.
fn no_plugin(folder: Option<&Path>) -> Error {
    let library = library_name(plugin::libtorch::NAME);
    let place = folder.map_or_else(String::new, |folder| format!(" in {}", folder.display()));
    Error::new(
        ErrorKind::NotReady,
        format!(
            "there is no {library}{place}: build it with `make libtorch`, or name the folder that has it with \
             --backend-directory"
        ),
    )
}
