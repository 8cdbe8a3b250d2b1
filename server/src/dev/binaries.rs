//! Finds an installed Postgres.
//!
//! Invariant: what is found can run a server; and an existing cluster gets the major version that made it, if that is
//! still installed. It deliberately installs nothing: its error says what to install.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Error;

/// Where Debian's packages put each major version.
const DEBIAN: &str = "/usr/lib/postgresql";
const NEEDED: [&str; 3] = ["initdb", "pg_ctl", "postgres"];

/// The folder of Postgres's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries(PathBuf);

impl Binaries {
    /// In `named` only, if given; else the newest of Debian's folders, but `major` if it is there; else in `PATH`.
    ///
    /// # Errors
    /// [`Error::NoPostgres`] with where it looked.
    pub(super) fn find(named: Option<&Path>, major: Option<u32>) -> Result<Self, Error> {
        let folders = match named {
            Some(folder) => vec![folder.to_owned()],
            None => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let mut folders = debian(Path::new(DEBIAN), major);
                folders.extend(std::env::split_paths(&path));
                folders
            }
        };
        let found = folders.into_iter().find(|folder| NEEDED.iter().all(|program| folder.join(program).is_file()));
        let looked = || match named {
            Some(folder) => folder.display().to_string(),
            None => format!("{DEBIAN}/*/bin and PATH"),
        };
        found.map(Self).ok_or_else(|| Error::NoPostgres(looked()))
    }

    /// One of the programs.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// The folders of all versions, `major` first and then the newest first.
fn debian(root: &Path, major: Option<u32>) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut versions: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    versions.sort_by_key(|version| (Some(*version) == major, *version));
    versions.iter().rev().map(|version| root.join(version.to_string()).join("bin")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_comes_first_but_for_the_one_asked_for() {
        let root = std::env::temp_dir().join(format!("outboxd-binaries-{}", uuid::Uuid::now_v7()));
        for version in ["9", "15", "17", "common"] {
            fs::create_dir_all(root.join(version)).expect("a folder can be made");
        }
        let (free, bound) = (debian(&root, None), debian(&root, Some(15)));
        fs::remove_dir_all(&root).expect("the folder is there");
        let paths = |versions: [&str; 3]| versions.map(|version| root.join(version).join("bin")).to_vec();
        assert_eq!(free, paths(["17", "15", "9"]));
        assert_eq!(bound, paths(["15", "17", "9"]));
    }

    #[test]
    fn a_folder_without_postgres_is_refused_with_what_to_do() {
        let error = Binaries::find(Some(Path::new("/does/not/exist")), None).expect_err("there is none");
        let message = error.to_string();
        assert!(message.contains("/does/not/exist") && message.contains("apt-get install postgresql"), "{message}");
    }
}
