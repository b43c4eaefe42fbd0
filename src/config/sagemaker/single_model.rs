//! Which model an endpoint with one model serves: the checks of its folder before anything is started.

use std::path::{Component, Path};

use super::Remarks;
use super::environment::DEFAULT_MODEL_NAME;
use crate::config::ServeOptions;
use crate::error::{Error, Result};

/// Endings of files that are models by themselves.
const FILES: [&str; 7] = [".tar.gz", ".tgz", ".tar.zst", ".tar", ".zip", ".onnx", ".pt"];

/// Files in a model's folder that say that it is one.
const MARKS: [&str; 3] = ["config.pbtxt", "model.onnx", "model.pt"];

/// Settles the model of `/invocations`, which is loaded at start: the one that is named, else the only one in the folder
/// of the platform (`folder`), or in the one of `--model-repository`.
///
/// # Errors
/// `InvalidArgument` where the folder is not there, holds a model's files instead of its folder, no model, not the
/// one that is named, or several and none is named.
pub(in crate::config) fn settle(options: &mut ServeOptions, folder: &Path, remarks: &mut Remarks) -> Result<()> {
    let repository = options.model_repository.get_or_insert_with(|| folder.display().to_string());
    let is_remote = repository.contains("://");
    let name = match (options.sagemaker_model.take(), is_remote) {
        (Some(name), true) => name,
        (Some(name), false) => named(Path::new(repository.as_str()), name)?,
        (None, true) => {
            return Err(Error::invalid(format!(
                "no model is named for the invocations of {repository}: set {DEFAULT_MODEL_NAME}, or give --sagemaker-model"
            )));
        }
        (None, false) => only(Path::new(repository.as_str()), remarks)?,
    };
    let at_start = options.load_model.get_or_insert_default();
    if !at_start.iter().any(|one| *one == name || one == "*") {
        at_start.push(name.clone());
    }
    options.sagemaker_model = Some(name);
    Ok(())
}

/// `name`, if there is such a model.
fn named(repository: &Path, name: String) -> Result<String> {
    let entries = entries(repository)?;
    let is_inside = Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
    let file = |ending: &&str| repository.join(format!("{name}{ending}")).is_file();
    if is_inside && (repository.join(&name).is_dir() || FILES.iter().any(file)) {
        return Ok(name);
    }
    Err(Error::invalid(format!(
        "there is no folder {}, which {DEFAULT_MODEL_NAME} or --sagemaker-model names; {}",
        repository.join(&name).display(),
        match models(repository, &entries) {
            models if models.is_empty() => "there is no model at all".to_owned(),
            models => format!("there is {}", models.join(", ")),
        }
    )))
}

/// The only model.
fn only(repository: &Path, remarks: &mut Remarks) -> Result<String> {
    let mut models = models(repository, &entries(repository)?);
    let place = repository.display();
    match (models.pop(), models.is_empty()) {
        (None, _) => Err(Error::invalid(format!(
            "No model found in model repository {place}: pack a model's folder into the archive, so that {place}/NAME/config.pbtxt \
             is there"
        ))),
        (Some(model), true) if is_version(&model) => Err(misplaced(repository)),
        (Some(model), true) => {
            remarks.warnings.push(format!("no {DEFAULT_MODEL_NAME}: serving '{model}', the only model of {place}"));
            Ok(model)
        }
        (Some(last), false) => Err(Error::invalid(format!(
            "more than one model found in {place}: {}, {last}: set {DEFAULT_MODEL_NAME} to the one that is invoked, or pack one \
             alone",
            models.join(", ")
        ))),
    }
}

/// The names in the repository, in order.
fn entries(repository: &Path) -> Result<Vec<String>> {
    let unreadable = |error| {
        Error::invalid(format!(
            "cannot read {}, where SageMaker puts the model of an endpoint with one model",
            repository.display()
        ))
        .with_source(error)
    };
    let entries = repository.read_dir().map_err(unreadable)?;
    let mut names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>();
    names.sort_unstable();
    match names.iter().any(|name| name == "config.pbtxt") {
        true => Err(misplaced(repository)),
        false => Ok(names),
    }
}

/// Those of the names that are models: folders that look like one, and files with an ending of ours.
fn models(repository: &Path, names: &[String]) -> Vec<String> {
    let model = |name: &String| {
        let path = repository.join(name);
        if path.is_dir() {
            return is_model(&path).then(|| name.clone());
        }
        let stem = FILES.iter().find_map(|ending| name.strip_suffix(ending))?;
        (!stem.is_empty()).then(|| stem.to_owned())
    };
    let mut models = names.iter().filter(|name| !name.starts_with('.')).filter_map(model).collect::<Vec<_>>();
    models.sort_unstable();
    models.dedup();
    models
}

fn is_model(folder: &Path) -> bool {
    folder.read_dir().is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { return false };
            MARKS.contains(&name) || (is_version(name) && entry.path().is_dir())
        })
    })
}

fn is_version(name: &str) -> bool {
    !name.starts_with('0') && !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
}

fn misplaced(repository: &Path) -> Error {
    let place = repository.display();
    Error::invalid(format!(
        "Incorrect directory structure: the files of a model lie in {place} itself; its folder must be in the archive, so that they \
         are in {place}/NAME"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files, each empty.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    /// The model that is served, and what is loaded at start, of a folder with these files.
    fn settled(files: &[&str], named: Option<&str>) -> Result<(String, Vec<String>, Vec<String>)> {
        let folder = folder(files);
        let mut options = ServeOptions { sagemaker_model: named.map(str::to_owned), ..ServeOptions::default() };
        let mut remarks = Remarks::default();
        settle(&mut options, folder.path(), &mut remarks)?;
        assert_eq!(options.model_repository.as_deref(), folder.path().to_str());
        Ok((options.sagemaker_model.unwrap(), options.load_model.unwrap(), remarks.warnings))
    }

    #[test]
    fn the_only_model_is_served_with_a_warning() {
        for files in [
            &["resnet/config.pbtxt"][..],
            &["resnet/1/model.onnx"],
            &["resnet/model.pt"],
            &["resnet.onnx"],
            &["resnet.tar.gz"],
            &["resnet/1/model.onnx", "resnet.onnx", ".DS_Store", "code/inference.py", "notes.txt"],
        ] {
            let (model, at_start, warnings) = settled(files, None).unwrap();
            assert_eq!((model.as_str(), &at_start[..]), ("resnet", &["resnet".to_owned()][..]), "{files:?}");
            assert!(warnings[0].contains("'resnet'") && warnings[0].contains(DEFAULT_MODEL_NAME), "{warnings:?}");
        }
    }

    #[test]
    fn the_model_that_is_named_is_served_among_others() {
        let files = ["ensemble/config.pbtxt", "part/config.pbtxt", "team/resnet/config.pbtxt", "bare.onnx"];
        for name in ["ensemble", "team/resnet", "bare"] {
            let (model, at_start, warnings) = settled(&files, Some(name)).unwrap();
            assert_eq!((model.as_str(), &at_start[..], warnings.len()), (name, &[name.to_owned()][..], 0));
        }
    }

    #[test]
    fn a_folder_that_cannot_be_served_says_what_is_wrong() {
        let cases: [(&[&str], Option<&str>, &[&str]); 9] = [
            (&["config.pbtxt", "1/model.onnx"], None, &["Incorrect directory structure"]),
            (&["config.pbtxt", "a/config.pbtxt"], Some("a"), &["Incorrect directory structure"]),
            (&["1/model.onnx"], None, &["Incorrect directory structure"]),
            (&[], None, &["No model found in model repository"]),
            (&["code/inference.py", ".a/config.pbtxt", ".onnx"], None, &["No model found"]),
            (&["a/config.pbtxt", "b.zip"], None, &["more than one", "a, b", DEFAULT_MODEL_NAME]),
            (&["a/config.pbtxt"], Some("b"), &["/b, which SAGEMAKER_TRITON_DEFAULT_MODEL_NAME", "there is a"]),
            (&["code/x"], Some("b"), &["there is no model at all"]),
            (&["a/config.pbtxt"], Some("a/../a"), &["there is no folder"]),
        ];
        for (files, named, parts) in cases {
            let error = settled(files, named).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{files:?} {named:?}: {error}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let mut options = ServeOptions::default();
        let error = settle(&mut options, Path::new("/nowhere/at/all"), &mut Remarks::default()).unwrap_err();
        assert!(error.to_string().contains("cannot read /nowhere/at/all"), "{error}");
    }

    #[test]
    fn a_remote_repository_needs_the_name() {
        let at = |model: Option<&str>| ServeOptions {
            model_repository: Some("s3://bucket/models".to_owned()),
            sagemaker_model: model.map(str::to_owned),
            load_model: Some(vec!["other".to_owned()]),
            ..ServeOptions::default()
        };
        let mut named = at(Some("a"));
        settle(&mut named, Path::new("/nowhere"), &mut Remarks::default()).unwrap();
        assert_eq!(named.load_model.unwrap(), ["other", "a"]);
        let error = settle(&mut at(None), Path::new("/nowhere"), &mut Remarks::default()).unwrap_err().to_string();
        assert!(error.contains(DEFAULT_MODEL_NAME) && error.contains("--sagemaker-model"), "{error}");
    }
}
