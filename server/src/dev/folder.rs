//! The data folder of `outboxd dev`: its lock, the sample catalog, and where the Postgres cluster lives.
//!
//! ```text
//! .outboxd/lock                 held by the one running `outboxd dev`
//! .outboxd/catalog/*.sql        the commands, to be edited; schema.psql makes their tables
//! .outboxd/catalog/*.binpb      the sample's RPCs, compiled out of shop.proto beside them
//! .outboxd/postgres/            the cluster's home, see `postgres`
//! ```
//!
//! Invariant: a file that is there is never overwritten: the catalog is its user's from the first start on.

use std::{
    fs::{self, File, TryLockError},
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{Error, account::Account};

/// The sample catalog: file names and contents.
const CATALOG: [(&str, &[u8]); 4] = [
    ("shop.sql", include_bytes!("../../../deploy/catalog/shop.sql")),
    ("shop.proto", include_bytes!("../../../deploy/catalog/shop.proto")),
    ("shop.binpb", include_bytes!("../../../deploy/catalog/shop.binpb")),
    (SCHEMA, include_bytes!("../../../deploy/catalog/schema.psql")),
];
const SCHEMA: &str = "schema.psql";

/// A data folder in use by this process.
pub struct Folder {
    path: PathBuf,
    /// Unlocked by the system when this process ends, however it ends.
    _lock: File,
}

impl Folder {
    /// Makes the folder unless it is there, and takes it for this process alone.
    ///
    /// # Errors
    /// [`Error::Busy`] when another process has it; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |error| Error::Io(path.to_owned(), error);
        if !path.is_dir() {
            fs::create_dir_all(path).map_err(failed)?;
            // Whatever the umask: Postgres's user may have to pass through.
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        let path = path.canonicalize().map_err(failed)?;
        let lock = lock(&path)?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the sample catalog unless there is a catalog; returns its folder.
    ///
    /// All or nothing: its files fit together, and a newer sample's need not fit an older one's that was kept.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_catalog(&self) -> Result<PathBuf, Error> {
        let (folder, draft) = (self.path.join("catalog"), self.path.join("catalog.draft"));
        if folder.is_dir() {
            return Ok(folder);
        }
        fs::create_dir_all(&draft).map_err(|error| Error::Io(draft.clone(), error))?;
        for (name, contents) in CATALOG {
            let file = draft.join(name);
            fs::write(&file, contents).map_err(|error| Error::Io(file.clone(), error))?;
        }
        fs::rename(&draft, &folder).map_err(|error| Error::Io(folder.clone(), error))?;
        Ok(folder)
    }

    /// The statements that make the catalog's tables, and the file they are in.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn schema(&self) -> Result<(PathBuf, String), Error> {
        let file = self.path.join("catalog").join(SCHEMA);
        let text = fs::read_to_string(&file).map_err(|error| Error::Io(file.clone(), error))?;
        Ok((file, text))
    }

    /// Where the cluster lives: in this folder, or, if Postgres's user cannot get here (as into `/root`), in a folder
    /// of the system's temporary one that is named after this folder, so that the next start finds it.
    pub fn cluster_home(&self, account: &Account) -> PathBuf {
        if account.can_enter(&self.path) {
            return self.path.join("postgres");
        }
        let digest = Sha256::digest(self.path.as_os_str().as_encoded_bytes());
        std::env::temp_dir().join(format!("outboxd-{}", hex::encode(&digest[..8])))
    }
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("lock");
    let failed = |error| Error::Io(path.clone(), error);
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(failed)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let known = file.read_to_string(&mut pid).is_ok() && !pid.is_empty();
            Err(Error::Busy { folder: folder.to_owned(), pid: known.then_some(pid) })
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> PathBuf {
        std::env::temp_dir().join(format!("outboxd-folder-{}", uuid::Uuid::now_v7()))
    }

    #[test]
    fn a_folder_is_one_process_s_at_a_time() {
        let path = fresh();
        let first = Folder::open(&path).expect("the folder can be made");
        let second = Folder::open(&path).err().expect("it is in use").to_string();
        drop(first);
        let third = Folder::open(&path).map(drop);
        fs::remove_dir_all(&path).expect("the folder is there");
        assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
        third.expect("it is free again");
    }

    #[test]
    fn an_edited_catalog_is_kept() {
        let path = fresh();
        let folder = Folder::open(&path).expect("the folder can be made");
        let catalog = folder.write_catalog().expect("the catalog can be written");
        fs::write(catalog.join("shop.sql"), "-- mine").expect("a file can be written");
        fs::remove_file(catalog.join("shop.binpb")).expect("the file is there");
        folder.write_catalog().expect("the catalog is there");
        let kept = fs::read_to_string(catalog.join("shop.sql"));
        let left_out = !catalog.join("shop.binpb").exists();
        let schema = folder.schema();
        fs::remove_dir_all(&path).expect("the folder is there");
        assert_eq!((kept.expect("the file is there").as_str(), left_out), ("-- mine", true));
        assert!(schema.expect("the schema is there").1.contains("create table if not exists users"));
    }
}
