//! What must not come out of an archive, and what must.

use std::io::{self, Cursor, Read, Seek, SeekFrom};

use super::super::{Everything, Format, Limits, Selection, Space, unpack};
use super::{Place, Tar, Zipped, gz, names, tree, unpack_alone, zip_of, zst};
use crate::error::{Error, ErrorKind, Result};

/// Holds that an archive is refused, by a text that has `expected` in it.
fn refuses(archive: &[u8], expected: &str) -> Error {
    let error = unpack_alone(archive).expect_err(expected);
    assert!(matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::TooLarge), "{error:?}");
    assert!(error.report().contains(expected), "expected '{expected}': {}", error.report());
    error
}

#[test]
fn a_sound_archive_of_each_format_gives_its_files() {
    let tar = Tar::default().entry(b"./", b'5', b"").entry(b"m/", b'5', b"").file("./m/config.pbtxt", b"x");
    let tar = tar.file("m/1/model.onnx", &[7; 2000]).file("._x", b"").entry(b"__MACOSX/._m", 0, b"apple");
    let tar = tar.end();
    let zip = [
        Zipped { mode: 0o040_755, ..Zipped::stored("m/", b"") },
        Zipped::stored("m/config.pbtxt", b"x"),
        Zipped::deflated("m/1/model.onnx", &[7; 2000]),
        Zipped::stored("._x", b""),
        Zipped { mode: 0, ..Zipped::deflated("__MACOSX/._m", b"apple") },
    ];
    let half = tar.len() / 2;
    let members = [gz(&tar[..half]), gz(&tar[half..])].concat();
    let frames = [zst(&tar[..half]), b"\x50\x2a\x4d\x18\x04\0\0\0skip".to_vec(), zst(&tar[half..])].concat();
    let unended = &tar[..tar.len() - 1024];
    let padded = [tar.clone(), vec![0; 9 * 512]].concat();
    for archive in [tar.clone(), padded, gz(&tar), members, zst(&tar), frames, gz(unended), zip_of(&zip)] {
        let place = Place::new();
        let unpacked = place.unpack(&archive, &Limits::default()).unwrap();
        assert_eq!(unpacked.bytes, 2006);
        let mut paths: Vec<_> = unpacked.files.iter().map(|(path, bytes)| (path.as_str(), *bytes)).collect();
        paths.sort_unstable();
        assert_eq!(paths, [("._x", 0), ("__MACOSX/._m", 5), ("m/1/model.onnx", 2000), ("m/config.pbtxt", 1)]);
        let tree = tree(&place.target());
        assert_eq!(tree.len(), 7);
        assert!(tree.contains(&("m/1/model.onnx".to_owned(), Some(vec![7; 2000]))));
    }
}

#[test]
fn names_that_leave_the_folder_or_cannot_be_shown_are_refused_in_tar_and_zip() {
    let names: [(&[u8], &str); 9] = [
        (b"../x", "'..'"),
        (b"a/../../x", "'..'"),
        (b"/tmp/x", "absolute"),
        (b"a\\..\\x", "backslash"),
        (b"a\nb", "control character"),
        (b"a\x1b[0m", "control character"),
        (b"\xff\xfe", "UTF-8"),
        (b"a//b", "empty part"),
        (b"a/./b", "empty part"),
    ];
    for (name, expected) in names {
        let tar = Tar::default().file("good", b"x").entry(name, b'0', b"evil").end();
        refuses(&tar, expected);
        refuses(&gz(&tar), expected);
        refuses(&Tar::default().entry(name, b'5', b"").end(), expected);
        let named = Zipped { name: name.to_owned(), local_name: name.to_owned(), ..Zipped::stored("x", b"evil") };
        let flagged = Zipped { flags: 1 << 11, ..named.clone() };
        assert!(unpack_alone(&zip_of(&[named])).is_err() && unpack_alone(&zip_of(&[flagged])).is_err(), "{expected}");
    }
    // In the name field of a header NUL ends the name; in the records it does not.
    refuses(&Tar::default().extended(&[("path", "a\0b")]).file("x", b"").end(), "control character");
    refuses(&Tar::default().entry(b"././@LongLink", b'L', b"a\0b\0").file("x", b"").end(), "control character");
    refuses(&Tar::default().extended(&[("path", "../../x")]).file("x", b"").end(), "'..'");
    refuses(&Tar::default().entry(b"././@LongLink", b'L', b"/etc/x\0").file("x", b"").end(), "absolute");
}

#[test]
fn links_devices_and_sparse_files_are_refused_by_name() {
    let target = "../canary/bird";
    for (kind, expected) in [(b'2', "symbolic link"), (b'1', "hard link"), (b'3', "device"), (b'4', "device")] {
        let error = refuses(&Tar::default().link("way", kind, target).file("way/x", b"x").end(), expected);
        assert!(error.to_string().starts_with("archive entry 'way'"), "{error}");
    }
    refuses(&Tar::default().entry(b"pipe", b'6', b"").end(), "pipe");
    for kind in *b"7DMVAXNz" {
        refuses(&Tar::default().entry(b"odd", kind, b"").end(), "neither a file nor a folder");
    }
    refuses(&Tar::default().entry(b"s", b'S', b"").end(), "sparse");
    let sparse = [("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "8589934592")];
    refuses(&Tar::default().extended(&sparse).file("s", b"1\n0\n0\n").end(), "sparse");
    for mode in [0o120_777, 0o020_644, 0o060_644, 0o010_644, 0o140_644, 0o040_755] {
        refuses(&zip_of(&[Zipped { mode, ..Zipped::stored("x", b"/etc/passwd") }]), "neither a file nor a folder");
    }
}

#[test]
fn one_name_is_one_file() {
    for (first, second) in [("a", "a"), ("a", "A"), ("a", "./a"), ("a", "a/b"), ("a/b", "a"), ("a/x", "A/y")] {
        refuses(&Tar::default().file(first, b"1").file(second, b"2").end(), "archive entry");
        refuses(&zip_of(&[Zipped::stored(first, b"1"), Zipped::stored(second, b"2")]), "");
    }
    refuses(&Tar::default().file("a", b"").entry(b"a/", b'5', b"").end(), "twice");
    refuses(&Tar::default().entry(b"a", b'5', b"").file("a", b"").end(), "twice");
    refuses(&Tar::default().entry(b"a/", b'0', b"x").end(), "folder's name");
    refuses(&Tar::default().entry(b"a", b'5', b"x").end(), "folder with data");
    // Two names in one zip entry.
    let entry = Zipped { local_name: b"evil".to_vec(), ..Zipped::stored("good", b"x") };
    refuses(&zip_of(&[entry]), "good");
}

#[test]
fn sizes_are_believed_once_and_held() {
    let lie = Tar::default().extended(&[("size", "512")]).header(b"x", b'0', 1024).data(&[b'1'; 512]);
    // The extended header counts: what follows its 512 bytes is the next header, here no sound one.
    refuses(&lie.clone().data(&[b'2'; 512]).end(), "damaged");
    assert_eq!(unpack_alone(&lie.end()).unwrap().files, [("x".to_owned(), 512)]);
    refuses(&Tar::default().extended(&[("size", "4"), ("size", "8")]).file("x", b"12345678").end(), "twice");
    refuses(&Tar::default().entry(b"g", b'g', b"10 size=4\n").file("x", b"").end(), "for all its entries");
    refuses(&Tar::default().header(b"x", b'0', 4096).data(&[1; 512]).end(), "cut off");
    refuses(&gz(&Tar::default().header(b"x", b'0', 7 << 30).data(&[1; 512]).end()), "cut off");
    refuses(&Tar::default().header(b"l", b'L', 1 << 30).data(&[b'x'; 512]).end(), "describes another one");
    refuses(&Tar::default().extended(&[("size", "18446744073709551615")]).file("x", b"").end(), "unpack to more than");
    for (size, packed) in [(3, 5), (9, 5), (5, 4), (5, 6), (0, 5)] {
        assert!(unpack_alone(&zip_of(&[Zipped { size, packed, ..Zipped::stored("x", b"12345") }])).is_err());
    }
    let deflated = Zipped::deflated("x", &[7; 5000]);
    for size in [4999, 5001, 0] {
        refuses(&zip_of(&[Zipped { size, ..deflated.clone() }]), "archive entry 'x'");
    }
    refuses(&zip_of(&[Zipped { crc: 1, ..deflated }]), "cannot be read");
}

#[test]
fn what_zip_can_and_a_model_does_not_need_is_refused_by_name() {
    refuses(&zip_of(&[Zipped { flags: 1, ..Zipped::stored("secret", b"x") }]), "'secret' is encrypted");
    for method in [1, 9, 12, 14, 93, 95, 98] {
        refuses(&zip_of(&[Zipped { method, ..Zipped::stored("odd", b"x") }]), "'odd' is compressed by");
    }
    let overlapping = [Zipped::stored("a", b"12345678"), Zipped { start: Some(0), ..Zipped::stored("b", b"12345678") }];
    refuses(&zip_of(&overlapping), "over another entry");
    // One file quoted by another: the second begins inside of the first.
    let inner = zip_of(&[Zipped::stored("b", b"quoted")]);
    let inner = &inner[..30 + 1 + 6];
    let quoting = [Zipped::stored("a", inner), Zipped { start: Some(31), ..Zipped::stored("b", b"quoted") }];
    refuses(&zip_of(&quoting), "over another entry");
    let sound = zip_of(&[Zipped::stored("x", b"y")]);
    refuses(&[&sound[..], b"more"].concat(), "");
    refuses(&[&sound[..], &sound[..]].concat(), "");
    refuses(&[b"PK\x03\x04 a program before it".to_vec(), sound].concat(), "");
}

#[test]
fn bombs_end_early() {
    let limits = Limits::default();
    let zeros = vec![0; 100 << 20];
    let tar = Tar::default().file("zeros", &zeros).end();
    for bomb in [gz(&tar), zst(&tar), zip_of(&[Zipped::deflated("zeros", &zeros)])] {
        assert!(bomb.len() < 110 << 10);
        let place = Place::new();
        let error = place.unpack(&bomb, &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().contains("200 times"), "{error}");
        let written: u64 = tree(&place.target()).iter().map(|(_, data)| data.as_ref().map_or(0, Vec::len) as u64).sum();
        assert!(written <= 64 << 20);
        assert!(place.root.path().exists());
    }
    // The padding after the end is no way around it.
    let padded = gz(&[Tar::default().file("x", b"x").end(), zeros].concat());
    assert_eq!(unpack_alone(&padded).unwrap_err().kind(), ErrorKind::TooLarge);
    let small = Limits { bytes: 10, ..Limits::default() };
    let two = Tar::default().file("a", b"123456").file("b", b"123456").end();
    for archive in [two, zip_of(&[Zipped::stored("a", b"123456"), Zipped::stored("b", b"123456")])] {
        assert_eq!(Place::new().unpack(&archive, &small).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}

#[test]
fn entries_are_counted_whatever_they_are() {
    let limits = Limits { entries: 10, ..Limits::default() };
    let many = |kind: u8| {
        (0..11).fold(Tar::default(), |tar, at| tar.entry(format!("e{at}").as_bytes(), kind, b"")).file("x", b"")
    };
    for archive in [many(b'0').end(), many(b'5').end(), gz(&many(b'g').end())] {
        let error = Place::new().unpack(&archive, &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    }
    let zip: Vec<_> = (0..11).map(|at| Zipped::stored(&format!("e{at}"), b"")).collect();
    let place = Place::new();
    assert_eq!(place.unpack(&zip_of(&zip), &limits).unwrap_err().kind(), ErrorKind::TooLarge);
    assert!(names(&place.target()).is_empty(), "a zip is counted before anything is written");
    assert!(Place::new().unpack(&zip_of(&zip[..10]), &limits).is_ok());
    // A directory that would fill the memory is not read to its end.
    let long: Vec<_> = (0..5000).map(|at| Zipped::stored(&format!("{at}{}", "x".repeat(250)), b"")).collect();
    let error = Place::new().unpack(&zip_of(&long), &limits).unwrap_err();
    assert!(error.to_string().contains("directory is too large"), "{error}");
}

#[test]
fn an_archive_ends_where_it_ends() {
    let tar = Tar::default().file("a", b"x");
    let ended = tar.clone().end();
    refuses(&[&ended[..], &Tar::default().file("b", b"y").end()].concat(), "goes on after its end");
    refuses(&gz(&[&ended[..], b"garbage"].concat()), "");
    refuses(&[gz(&ended), gz(&ended)].concat(), "goes on after its end");
    refuses(&[zst(&ended), zst(&ended)].concat(), "goes on after its end");
    refuses(&[gz(&ended), b"garbage".to_vec()].concat(), "");
    refuses(&[zst(&ended), b"garbage".to_vec()].concat(), "");
    refuses(&tar.clone().data(&[0; 512]).file("b", b"y").end(), "goes on after its end");
    refuses(&tar.clone().extended(&[("comment", "x")]).end(), "announced");
    refuses(&Tar::default().end(), "neither");
    refuses(&gz(&Tar::default().end()), "empty");
    refuses(&zst(b""), "empty");
    refuses(&zip_of(&[]), "empty");
    refuses(b"", "neither");
    refuses(&[0x7f; 4096], "neither");
    refuses(&gz(&[0x7f; 4096]), "holds no tar");
    refuses(&zst(&gz(&ended)), "");
}

#[test]
fn a_frame_that_wants_too_much_memory_is_refused() {
    // Frame header: magic, descriptor without single segment, window of 2^31 bytes, then a raw last block of nothing.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 0x01, 0x00, 0x00];
    refuses(&frame, "damaged");
}

#[test]
fn every_cut_of_an_archive_is_an_error() {
    let tar = Tar::default().entry(b"d/", b'5', b"").extended(&[("path", "d/long")]).file("x", &[3; 700]).end();
    let zip = zip_of(&[Zipped::stored("a/b", b"12345"), Zipped::deflated("c", &[3; 700])]);
    for archive in [tar.clone(), gz(&tar), zst(&tar), zip] {
        let place = Place::new();
        for length in 0..archive.len() {
            let _ = std::fs::remove_dir_all(place.target());
            std::fs::create_dir(place.target()).unwrap();
            let error = place.unpack(&archive[..length], &Limits::default()).expect_err("a cut archive");
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "at {length} of {}: {error:?}", archive.len());
        }
        assert!(Format::sniff(&archive).is_some() && unpack_alone(&archive).is_ok());
    }
}

#[test]
fn flipped_bits_never_panic_and_checksums_catch_them() {
    let tar = Tar::default().file("model", &[3; 600]).end();
    let zip = zip_of(&[Zipped::stored("a/b", b"12345"), Zipped::deflated("c", &[3; 700])]);
    for (archive, is_summed) in [(tar.clone(), false), (gz(&tar), true), (zst(&tar), true), (zip, false)] {
        let place = Place::new();
        for at in 0..archive.len() {
            for bit in [0x01, 0x80] {
                let _ = std::fs::remove_dir_all(place.target());
                std::fs::create_dir(place.target()).unwrap();
                let mut flipped = archive.clone();
                flipped[at] ^= bit;
                if place.unpack(&flipped, &Limits::default()).is_ok() && is_summed {
                    let files = tree(&place.target());
                    assert_eq!(files, [("model".to_owned(), Some(vec![3; 600]))], "at {at}");
                }
            }
        }
    }
}

/// Gives out `good` bytes and then fails.
struct Failing(Cursor<Vec<u8>>, u64);

impl Read for Failing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.1.saturating_sub(self.0.position());
        if left == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the line went dead"));
        }
        let most = into.len().min(left as usize).min(100);
        self.0.read(&mut into[..most])
    }
}

impl Seek for Failing {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn a_reader_that_fails_is_told_from_a_damaged_archive() {
    let tar = Tar::default().file("x", &[3; 700]).end();
    for archive in [tar.clone(), gz(&tar), zst(&tar), zip_of(&[Zipped::deflated("c", &[3; 700])])] {
        for good in [0, 10, archive.len() as u64 / 2, archive.len() as u64 - 1] {
            let place = Place::new();
            let reader = Failing(Cursor::new(archive.clone()), good);
            let error = unpack(reader, 0, &place.target(), &Limits::default(), &mut Everything, &mut Everything)
                .expect_err("the reader failed");
            assert_eq!(error.kind(), ErrorKind::RepositoryFailed, "{error:?}");
            let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
            assert_eq!(source.unwrap().to_string(), "the line went dead");
        }
    }
}

/// A book with so many bytes left.
struct Left(u64);

impl Space for Left {
    fn take(&mut self, bytes: u64) -> Result<()> {
        self.0 = self.0.checked_sub(bytes).ok_or_else(|| Error::new(ErrorKind::OutOfDisk, "no room"))?;
        Ok(())
    }
}

#[test]
fn space_is_asked_for_before_it_is_used() {
    let tar = Tar::default().file("a", &[1; 600]).file("b", &[2; 600]).end();
    for archive in [gz(&tar), zip_of(&[Zipped::stored("a", &[1; 600]), Zipped::stored("b", &[2; 600])])] {
        let (place, mut left) = (Place::new(), Left(1000));
        let reader = || Cursor::new(archive.clone());
        let limits = Limits::default();
        let error = unpack(reader(), 0, &place.target(), &limits, &mut left, &mut Everything).unwrap_err();
        assert_eq!((error.kind(), left.0), (ErrorKind::OutOfDisk, 400));
        assert_eq!(std::fs::metadata(place.target().join("b")).unwrap().len(), 0);
        let (place, mut left) = (Place::new(), Left(1200));
        let unpacked = unpack(reader(), 0, &place.target(), &limits, &mut left, &mut Everything).unwrap();
        assert_eq!((unpacked.bytes, left.0), (1200, 0));
    }
}

/// Wants what the content of the first file names.
struct ByContent;

impl Selection for ByContent {
    fn choose(
        &mut self,
        entries: &[(String, u64)],
        read: &mut dyn FnMut(usize) -> Result<Vec<u8>>,
    ) -> Result<Vec<bool>> {
        let config = entries.iter().position(|(path, _)| path == "config.pbtxt").unwrap();
        let wanted = String::from_utf8(read(config)?).unwrap();
        assert_eq!(read(usize::MAX).unwrap_err().kind(), ErrorKind::Internal);
        Ok(entries.iter().map(|(path, _)| wanted.contains(path.as_str())).collect())
    }
}

#[test]
fn a_zip_gives_the_files_that_are_wanted_and_no_empty_version_folders() {
    let zip = zip_of(&[
        Zipped { mode: 0o040_755, ..Zipped::stored("1/", b"") },
        Zipped::stored("1/model.onnx", &[1; 600]),
        Zipped { mode: 0o040_755, ..Zipped::stored("2/", b"") },
        Zipped::deflated("2/model.onnx", &[2; 600]),
        Zipped::deflated("config.pbtxt", b"2/model.onnx"),
    ]);
    let (place, mut left) = (Place::new(), Left(600));
    let unpacked = unpack(Cursor::new(zip), 0, &place.target(), &Limits::default(), &mut left, &mut ByContent).unwrap();
    assert_eq!((unpacked.files, left.0), (vec![("2/model.onnx".to_owned(), 600)], 0));
    assert_eq!(names(&place.target()), ["2"]);
}

#[test]
fn what_zip_programs_write_is_read() {
    use std::io::Write;

    use ::zip::write::{SimpleFileOptions, ZipWriter};

    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, method) in [("a/größe", ::zip::CompressionMethod::Deflated), ("b", ::zip::CompressionMethod::Stored)] {
        let options = SimpleFileOptions::default().compression_method(method).large_file(true);
        writer.start_file(name, options).unwrap();
        writer.write_all(&[5; 3000]).unwrap();
    }
    writer.set_comment("a comment").unwrap();
    let archive = writer.finish().unwrap().into_inner();
    assert_eq!(unpack_alone(&archive).unwrap().files, [("a/größe".to_owned(), 3000), ("b".to_owned(), 3000)]);

    let mut stream = ZipWriter::new_stream(Vec::new());
    for at in 0..70_000 {
        stream.start_file(format!("{at}"), SimpleFileOptions::default()).unwrap();
    }
    let archive = stream.finish().unwrap().into_inner();
    let zip64 = archive.windows(4).rev().take(100).any(|window| window == b"PK\x06\x06");
    assert!(zip64, "more entries than the narrow end record can count");
    let limits = Limits { entries: 70_000, ..Limits::default() };
    let error = Place::new().unpack(&archive[..archive.len() - 1], &limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let error = Place::new().unpack(&archive, &Limits { entries: 69_999, ..limits }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}
