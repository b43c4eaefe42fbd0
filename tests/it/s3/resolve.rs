//! Which requests a name costs, which keys it may have, and what is said where a store fails.

use std::time::Duration;

use roundhouse::error::ErrorKind;
use roundhouse::repository::conformance::{Tree, repository_conformance};
use roundhouse::repository::manifest::Form;
use roundhouse::repository::s3::{Keys, S3Options};
use roundhouse::repository::{FetchError, ModelRepository};

use super::double::{Fault, Operation, S3Double};
use super::{DoubleTree, open, options};

#[tokio::test]
async fn s3_does_what_every_repository_must() {
    for ordered in [true, false] {
        let mut tree = DoubleTree::start().await;
        tree.repository = open(&tree.double, "bucket/models", S3Options { ordered: Some(ordered), ..options() });
        repository_conformance(&tree).await.unwrap();
    }
    let at_the_root = S3Double::start().await;
    at_the_root.put("bucket/m.onnx", "x");
    assert_eq!(open(&at_the_root, "bucket", options()).list().await.unwrap(), ["m"]);
}

#[tokio::test]
async fn a_name_costs_one_listing_however_many_siblings_share_its_beginning() {
    let mut tree = DoubleTree::start().await;
    tree.repository = open(&tree.double, "bucket/models", S3Options { ordered: Some(true), ..options() });
    for sibling in 0..1500 {
        tree.put(&format!("m-{sibling}/1/model.onnx"), b"x").await.unwrap();
        tree.put(&format!("m+{sibling}.onnx"), b"x").await.unwrap();
    }
    for (file, name) in [("m/1/model.onnx", "m"), ("n.tar.gz", "n"), ("o.pt", "o.pt")] {
        tree.put(file, b"x").await.unwrap();
        let before = tree.double.requests().len();
        tree.repository.resolve(name).await.unwrap();
        assert_eq!(tree.double.requests().len() - before, 1, "{name}");
    }
    tree.put("team/a/1/model.onnx", b"x").await.unwrap();
    tree.put("team/b/1/model.onnx", b"x").await.unwrap();
    tree.repository.resolve("team/a").await.unwrap();
    let before = tree.double.requests().len();
    tree.repository.resolve("team/b").await.unwrap();
    assert_eq!(tree.double.requests().len() - before, 1, "that the team is no model is known by now");
}

#[tokio::test]
async fn a_page_full_of_siblings_hides_nothing_whether_listings_have_an_order_or_not() {
    for ordered in [true, false] {
        let mut tree = DoubleTree::start().await;
        tree.repository = open(&tree.double, "bucket/models", S3Options { ordered: Some(ordered), ..options() });
        siblings_hide_nothing(&tree).await;
    }
}

async fn siblings_hide_nothing(tree: &DoubleTree) {
    for sibling in 0..2500 {
        tree.put(&format!("m.a{sibling:05}.onnx"), b"x").await.unwrap();
    }
    assert_eq!(tree.repository.resolve("m").await.unwrap_err().kind(), ErrorKind::NotFound);
    tree.put("m.onnx", b"x").await.unwrap();
    assert_eq!(tree.repository.resolve("m").await.unwrap().key, "m.onnx");
    tree.put("m.zip", b"x").await.unwrap();
    assert_eq!(tree.repository.resolve("m").await.unwrap().key, "m.zip");
    tree.put("m/1/model.onnx", b"x").await.unwrap();
    assert_eq!(tree.repository.resolve("m").await.unwrap().form, Form::Directory);
    assert_eq!(tree.repository.list().await.unwrap().len(), 2501, "pages and all");
}

#[tokio::test]
async fn a_folder_of_more_than_a_page_comes_as_a_whole() {
    let tree = DoubleTree::start().await;
    tree.put("m/config.pbtxt", b"x").await.unwrap();
    for file in 0..2345 {
        tree.put(&format!("m/1/{file}"), b"x").await.unwrap();
    }
    tree.put("m0/1/x", b"x").await.unwrap();
    let manifest = tree.repository.resolve("m").await.unwrap();
    assert_eq!(manifest.objects.len(), 2346);
    assert!(manifest.objects.is_sorted_by(|one, other| one.path < other.path));
    // A page of the folder and its siblings, then the folder by itself.
    assert_eq!(tree.double.count(Operation::List), 1 + 3);
}

#[tokio::test]
async fn what_lies_in_a_model_is_no_model_even_in_a_folder_of_thousands() {
    let tree = DoubleTree::start().await;
    for sibling in 0..1200 {
        tree.put(&format!("team/A{sibling}/1/x"), b"x").await.unwrap();
    }
    tree.put("team/z/1/x", b"x").await.unwrap();
    assert_eq!(tree.repository.resolve("team/z").await.unwrap().key, "team/z");
    let tree = DoubleTree::start().await;
    for sibling in 0..1200 {
        tree.put(&format!("team/A{sibling}/1/x"), b"x").await.unwrap();
    }
    tree.put("team/z/1/x", b"x").await.unwrap();
    tree.put("team/config.pbtxt", b"x").await.unwrap();
    assert_eq!(tree.repository.resolve("team/z").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(tree.repository.list().await.unwrap(), ["team"]);
}

#[tokio::test]
async fn odd_keys_come_through_the_wire_as_they_are() {
    let tree = DoubleTree::start().await;
    for name in ["a b", "größe", "100%", "a+b", "a&b=c", "<x>\"'", "日本/モデル", "a%20b", "q?x#y", "~a!$()*,;:@"]
    {
        tree.put(&format!("{name}/1/a b+c%&<ö>.onnx"), name.as_bytes()).await.unwrap();
        let manifest = tree.repository.resolve(name).await.unwrap();
        assert_eq!(manifest.objects[0].path, "1/a b+c%&<ö>.onnx", "{name}");
        let bytes = super::download::read_all(&tree.repository, &manifest, 0).await.unwrap();
        assert_eq!(bytes, name.as_bytes());
        assert!(tree.repository.list().await.unwrap().iter().any(|listed| listed == name), "{name}");
    }
}

#[tokio::test]
async fn markers_of_folders_are_no_files_and_bad_keys_are_refused_by_name() {
    let tree = DoubleTree::start().await;
    tree.put("m/", b"").await.unwrap();
    tree.put("m/1/", b"").await.unwrap();
    assert_eq!(tree.repository.resolve("m").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(tree.repository.list().await.unwrap().is_empty());
    tree.put("m/1/model.onnx", b"x").await.unwrap();
    assert_eq!(tree.repository.resolve("m").await.unwrap().objects.len(), 1);
    tree.put("m/a//b", b"x").await.unwrap();
    let error = tree.repository.resolve("m").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("m/a//b"), "{error}");
}

#[tokio::test]
async fn a_hot_name_that_is_not_there_costs_one_listing_a_while() {
    let double = S3Double::start().await;
    let s3 = open(&double, "bucket", S3Options { negative_ttl: Duration::from_secs(3600), ..options() });
    for _ in 0..100 {
        assert_eq!(s3.resolve("nowhere").await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!(double.count(Operation::List), 1);
    assert_eq!(s3.resolve("elsewhere").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(double.count(Operation::List), 2);
}

#[tokio::test]
async fn listings_are_asked_again_until_the_attempts_are_used_up() {
    let tree = DoubleTree::start().await;
    tree.put("m.onnx", b"x").await.unwrap();
    tree.double.faults(Operation::List, "bucket", 4, Fault::Status(503, "SlowDown"));
    tree.repository.resolve("m").await.unwrap();
    assert_eq!(tree.double.count(Operation::List), 5);
    tree.double.faults(Operation::List, "bucket", 5, Fault::Status(500, "InternalError"));
    let error = tree.repository.resolve("m").await.unwrap_err();
    assert!(error.kind() == ErrorKind::RepositoryFailed && error.is_retryable(), "{error:?}");
    tree.repository.resolve("m").await.unwrap();
}

#[tokio::test]
async fn what_no_retry_can_mend_is_said_at_once_with_the_mend() {
    let tree = DoubleTree::start().await;
    let table = [
        (403, "AccessDenied", "policy"),
        (403, "SignatureDoesNotMatch", "credentials"),
        (404, "NoSuchBucket", "no such bucket"),
        (301, "PermanentRedirect", "AWS_REGION"),
    ];
    for (status, code, mend) in table {
        let before = tree.double.requests().len();
        tree.double.fault(Operation::List, "bucket", Fault::Status(status, code));
        let error = tree.repository.resolve("m").await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::RepositoryFailed, false), "{error:?}");
        assert!(error.to_string().contains(mend) && error.to_string().contains(code), "{error}");
        assert_eq!(tree.double.requests().len() - before, 1);
    }
}

#[tokio::test]
async fn a_store_that_is_down_may_come_back() {
    let tree = DoubleTree::start().await;
    tree.put("m.onnx", b"x").await.unwrap();
    tree.double.down();
    for error in [tree.repository.resolve("m").await.err(), tree.repository.list().await.err()] {
        let error = error.unwrap();
        assert!(error.kind() == ErrorKind::RepositoryFailed && error.is_retryable(), "{error:?}");
    }
    tree.double.up();
    tree.repository.resolve("m").await.unwrap();
}

#[tokio::test]
async fn requests_are_signed_with_the_keys_and_errors_do_not_repeat_them() {
    let double = S3Double::start().await;
    let keys = Keys { id: "AKIDEXAMPLE".into(), secret: "hunter2".into(), session_token: None };
    let s3 = open(&double, "bucket", S3Options { anonymous: false, keys: Some(keys), ..options() });
    double.fault(Operation::List, "bucket", Fault::Status(403, "InvalidAccessKeyId"));
    let error = format!("{:?}", s3.resolve("m").await.unwrap_err());
    assert!(!error.contains("hunter2") && !error.contains("AKIDEXAMPLE"), "{error}");
    assert!(double.requests().iter().all(|asked| asked.signed));
    let anonymous = open(&double, "bucket", options());
    assert_eq!(anonymous.resolve("m").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!double.requests().last().unwrap().signed);
}

#[tokio::test]
async fn an_answer_that_is_not_what_was_asked_for_is_an_error() {
    let tree = DoubleTree::start().await;
    tree.put("m.onnx", b"0123456789").await.unwrap();
    let manifest = tree.repository.resolve("m").await.unwrap();
    for fault in [Fault::IgnoreRange, Fault::ShiftRange] {
        tree.double.fault(Operation::Get, "bucket/models/m.onnx", fault.clone());
        match tree.repository.fetch(&manifest, 0, 2..5).await {
            Err(FetchError::Failed(error)) => assert_eq!(error.kind(), ErrorKind::RepositoryFailed, "{fault:?}"),
            other => panic!("{fault:?}: {:?}", other.err()),
        }
    }
    tree.double.fault(Operation::Get, "bucket/models/m.onnx", Fault::OtherTag);
    assert!(matches!(tree.repository.fetch(&manifest, 0, 2..5).await, Err(FetchError::Changed)));
}
