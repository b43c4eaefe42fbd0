//! The C header is what the crate says.

#![expect(clippy::disallowed_methods, reason = "the variable has it write")]

use std::path::Path;

#[test]
fn the_header_is_what_the_crate_says() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(crate_folder.join("cbindgen.toml")).unwrap();
    let mut made = Vec::new();
    // The one source with what C sees: no cargo is asked, so the test needs no network and no lock.
    let builder = cbindgen::Builder::new().with_config(config).with_src(crate_folder.join("src/lib.rs"));
    builder.generate().unwrap().write(&mut made);
    let path = crate_folder.join("roundhouse_backend.h");
    if std::env::var_os("ROUNDHOUSE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read(&path).unwrap_or_default();
    assert!(
        kept == made,
        "roundhouse_backend.h is not made of this crate: ROUNDHOUSE_WRITE_HEADER=1 cargo test -p roundhouse-abi --test header"
    );
}
