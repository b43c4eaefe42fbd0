//! Packing and unpacking over random folders, and unpacking over random damage.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::pack::{Packed, pack, pack_with};
use super::super::{Format, Limits};
use super::{Place, Tar, Zipped, gz, names, tree, zip_of, zst};
use crate::error::ErrorKind;

const FORMATS: [Format; 3] = [Format::Tar, Format::TarZst, Format::TarGz];

fn folder_of(files: &BTreeMap<Vec<String>, Vec<u8>>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (parts, data) in files {
        let path = folder.path().join(parts.join("/"));
        // A part may be a file already; then this one is left out.
        if std::fs::create_dir_all(path.parent().unwrap()).is_ok() {
            let _ = std::fs::write(path, data);
        }
    }
    folder
}

fn part() -> impl Strategy<Value = String> {
    prop_oneof!["[a-c]", "[a-z0-9 ._-]{1,12}", "[äöüßé]{1,4}", "[x]{90,130}"]
        .prop_filter("no name", |part| part != "." && part != "..")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_packed_unpacks_to_the_same_tree(
        files in proptest::collection::btree_map(
            proptest::collection::vec(part(), 1..5),
            prop_oneof![Just(vec![]), proptest::collection::vec(any::<u8>(), 0..2000), Just(vec![7; 300 << 10])],
            1..12,
        ),
    ) {
        let folder = folder_of(&files);
        for format in FORMATS {
            let mut archive = Vec::new();
            let packed = pack(folder.path(), &mut archive, format).unwrap();
            prop_assert_eq!(Format::sniff(&archive), Some(format));
            let place = Place::new();
            let unpacked = place.unpack(&archive, &Limits::default()).unwrap();
            prop_assert_eq!(tree(&place.target()), tree(folder.path()));
            prop_assert_eq!((packed.files, packed.bytes), (unpacked.files.len() as u64, unpacked.bytes));
        }
    }

    #[test]
    fn no_damage_gets_out_of_the_folder(
        which in 0..4_usize,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        swap in proptest::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>())),
    ) {
        let tar = Tar::default().entry(b"d/", b'5', b"").extended(&[("path", "d/long")]).file("x", &[3; 700])
            .link("way", b'2', "../canary").file("way/bird", b"dead").end();
        let zip = zip_of(&[Zipped::stored("d/x", b"12345"), Zipped::deflated("../canary/bird", b"dead")]);
        let mut damaged = [tar.clone(), gz(&tar), zst(&tar), zip][which].clone();
        for (at, byte) in edits {
            let at = at.index(damaged.len());
            damaged[at] = byte;
            if which == 0 {
                // A plain tar hides behind its headers' sums; make them right again.
                let block = at / 512 * 512;
                damaged = Tar(damaged).sum_again(block).0;
            }
        }
        if let Some((a, b)) = swap {
            let (a, b) = (a.index(damaged.len()), b.index(damaged.len()));
            damaged.swap(a, b);
        }
        if let Some(cut) = cut {
            damaged.truncate(cut.index(damaged.len()));
        }
        // The place holds that nothing beside the target changed.
        let _ = Place::new().unpack(&damaged, &Limits::default());
    }
}

#[test]
fn the_same_folder_gives_the_same_bytes_in_a_known_order() {
    let files = [("b/2", "x"), ("a", "y"), ("b/10", "z"), ("b.txt", "")];
    let files: BTreeMap<_, _> = files
        .iter()
        .map(|(path, text)| (path.split('/').map(str::to_owned).collect(), text.as_bytes().to_vec()))
        .collect();
    let (first, second) = (folder_of(&files), folder_of(&files));
    std::fs::create_dir(first.path().join("empty")).unwrap();
    std::fs::create_dir(second.path().join("empty")).unwrap();
    let old = std::fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    std::fs::File::open(second.path().join("a")).unwrap().set_times(old).unwrap();
    for format in FORMATS {
        let (mut one, mut other, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        let packed = pack_with(first.path(), &mut one, format, &mut |done, all| steps.push((done, all))).unwrap();
        pack(second.path(), &mut other, format).unwrap();
        assert_eq!(packed, Packed { files: 4, bytes: 3 });
        assert!(one == other, "{format:?}");
        assert_eq!(steps, [(1, 3), (2, 3), (3, 3)]);
        let unpacked = Place::new().unpack(&one, &Limits::default()).unwrap();
        let order: Vec<_> = unpacked.files.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(order, ["a", "b.txt", "b/10", "b/2"]);
    }
}

#[test]
fn what_could_not_be_unpacked_is_not_packed() {
    let folder = tempfile::tempdir().unwrap();
    let refused = || pack(folder.path(), &mut Vec::new(), Format::Tar).unwrap_err();
    assert!(refused().to_string().contains("no file"));
    std::fs::write(folder.path().join("model"), "x").unwrap();
    let zip = pack(folder.path(), &mut Vec::new(), Format::Zip).unwrap_err();
    assert_eq!(zip.kind(), ErrorKind::Unsupported);
    std::os::unix::fs::symlink("model", folder.path().join("way")).unwrap();
    assert!(refused().to_string().starts_with("archive entry 'way' is a link"), "{}", refused());
    std::fs::remove_file(folder.path().join("way")).unwrap();
    std::fs::write(folder.path().join("MODEL"), "x").unwrap();
    assert!(refused().to_string().contains("only in case"));
    assert_eq!(names(folder.path()), ["MODEL", "model"]);
}

#[test]
fn a_full_disk_ends_the_packing_as_such() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model"), vec![1; 1 << 20]).unwrap();
    for format in FORMATS {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(pack(folder.path(), full, format).unwrap_err().kind(), ErrorKind::OutOfDisk, "{format:?}");
    }
}
