//! The rules of the house, held by reading the sources.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Module, what it must not name, and why.
const BOUNDARIES: [(&str, &[&str], &str); 8] = [
    (
        "model",
        &["crate::api", "crate::store", "crate::relay", "crate::commit", "sqlx", "tonic", "rdkafka"],
        "model depends on nothing",
    ),
    ("store", &["crate::api", "crate::relay", "crate::commit", "tonic", "rdkafka"], "store is below these"),
    (
        "catalog",
        &["crate::api", "crate::relay", "crate::store", "crate::commit", "tonic", "rdkafka"],
        "catalog is below these",
    ),
    ("commit", &["crate::api", "crate::relay", "sqlx", "tonic", "rdkafka"], "commit knows neither gRPC nor SQL"),
    ("relay", &["crate::api", "crate::commit", "sqlx", "tonic"], "relay and api meet in the outbox table"),
    ("api", &["crate::relay", "sqlx", "rdkafka"], "api and relay meet in the outbox table"),
    ("ops", &["crate::api", "sqlx", "rdkafka"], "ops only looks"),
    ("config", &["crate::api", "crate::relay", "crate::store", "crate::commit"], "configuration comes first"),
];

/// Files that may be longer than the limit, each with its reason.
const LONG: [(&str, &str); 0] = [];
const LINES_MAX: usize = 500;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the entry can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn dependencies_go_one_way() {
    let mut broken = Vec::new();
    for (module, forbidden, why) in BOUNDARIES {
        let files = sources(&root().join(module));
        assert!(!files.is_empty(), "there is no module {module}");
        for file in files {
            let text = fs::read_to_string(&file).expect("the file can be read");
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for (line, name) in code.flat_map(|line| forbidden.iter().map(move |name| (line, name))) {
                if names(line, name) {
                    broken.push(format!("{}: {} ({why})", file.display(), line.trim()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Whether a line of code names a path or crate, and not only a longer word.
fn names(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        edge(line[..at].chars().next_back()) && edge(line[at + name.len()..].chars().next())
    })
}

#[test]
fn rdkafka_stays_in_its_files() {
    let allowed = ["relay/kafka", "dev/broker.rs", "demo/"];
    for file in sources(&root()) {
        let path = file.strip_prefix(root()).expect("below the root").display().to_string();
        let text = fs::read_to_string(&file).expect("the file can be read");
        let uses = text.lines().any(|line| !line.trim_start().starts_with("//") && names(line, "rdkafka"));
        assert!(!uses || allowed.iter().any(|prefix| path.starts_with(prefix)), "{path} uses rdkafka");
    }
}

#[test]
fn every_module_says_its_job_and_no_file_is_too_long() {
    for file in sources(&root()) {
        let path = file.strip_prefix(root()).expect("below the root").display().to_string();
        let text = fs::read_to_string(&file).expect("the file can be read");
        assert!(text.starts_with("//!"), "{path} does not begin with its job");
        let long = LONG.iter().any(|(name, _)| *name == path);
        assert!(long || text.lines().count() <= LINES_MAX, "{path} has more than {LINES_MAX} lines");
    }
}
