//! Holds the committed generated code against the `.proto` files.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use prost::Message as _;

const FILES: [&str; 10] = [
    "outbox/v1/command.proto",
    "outbox/v1/document.proto",
    "outbox/v1/event.proto",
    "outbox/v1/inbox.proto",
    "outbox/v1/options.proto",
    "outbox/v1/outbox.proto",
    "outbox/v1/reference.proto",
    "outbox/v1/relay.proto",
    "outbox/v1/state.proto",
    "outbox/v1/value.proto",
];

#[test]
fn generated_code_matches_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let committed = root.join("src/gen");

    generate(root, &fresh);

    for name in ["outbox.v1.rs", "descriptor.bin"] {
        let (new, old) = (fresh.join(name), committed.join(name));
        if env::var_os("UPDATE_GENERATED").is_some() {
            fs::copy(&new, &old).expect("the generated file can be written");
        }
        let same = fs::read(&old).ok() == fs::read(&new).ok();
        assert!(same, "{} has drifted: run `UPDATE_GENERATED=1 cargo test -p outbox-proto`", old.display());
    }
}

fn generate(root: &Path, out: &Path) {
    let descriptors = protox::compile(FILES, [root]).expect("the proto files compile");
    fs::write(out.join("descriptor.bin"), descriptors.encode_to_vec()).expect("the descriptor can be written");
    tonic_prost_build::configure()
        .out_dir(out)
        .bytes(".outbox.v1")
        .compile_fds(descriptors)
        .expect("the code can be generated");
}
