//! Which user Postgres runs as: this process's own, unless that is root, as whom Postgres refuses to run.
//!
//! Invariant: everything Postgres is started through here has one user, and none of this process's `PG…` settings.
//! It deliberately makes no users, and looks only into `/etc/passwd`: who has no such file does not run as root here.

use std::{
    fs, io,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use super::Error;

const PASSWD: &str = "/etc/passwd";
/// In order of preference: Debian's package makes the first one, every system has the second.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// The user Postgres runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Name, user and group; none: this process's own.
    other: Option<Other>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Other {
    name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    /// This process's user, or for root an unprivileged one.
    ///
    /// # Errors
    /// [`Error::NoAccount`] when this is root and there is none.
    pub fn choose() -> Result<Self, Error> {
        let answer = Command::new("id").arg("-u").output().map_err(|error| Error::Io("id".into(), error))?;
        if answer.stdout.trim_ascii() != b"0" {
            return Ok(Self { other: None });
        }
        let passwd = fs::read_to_string(PASSWD).map_err(|error| Error::Io(PASSWD.into(), error))?;
        let other = unprivileged(&passwd).ok_or(Error::NoAccount)?;
        Ok(Self { other: Some(other) })
    }

    /// Its name, when it is not this process's own.
    pub fn other_name(&self) -> Option<&str> {
        self.other.as_ref().map(|other| other.name.as_str())
    }

    /// Makes `folder` with its missing parents, owned by this user and closed to all others.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Foreign`] when it is there and is somebody else's, or not a folder.
    pub fn make_private_folder(&self, folder: &Path) -> Result<(), Error> {
        let failed = |error| Error::Io(folder.to_owned(), error);
        let made = match folder.parent() {
            Some(parent) => fs::create_dir_all(parent).and_then(|()| fs::create_dir(folder)),
            None => fs::create_dir(folder),
        };
        match made {
            Ok(()) => self.own(folder, 0o700),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A link or another's folder, where everybody may write, could be a trap.
                let found = fs::symlink_metadata(folder).map_err(failed)?;
                let owned = self.other.as_ref().is_none_or(|other| found.uid() == other.uid);
                if found.is_dir() && owned { Ok(()) } else { Err(Error::Foreign(folder.to_owned())) }
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Gives a file or folder to this user, with these permissions.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn own(&self, path: &Path, mode: u32) -> Result<(), Error> {
        let failed = |error| Error::Io(path.to_owned(), error);
        if let Some(other) = &self.other {
            chown(path, Some(other.uid), Some(other.gid)).map_err(failed)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
    }

    /// Whether this user can enter `folder`. Asks the system, by a program that starts there.
    pub fn can_enter(&self, folder: &Path) -> bool {
        let mut probe = self.command(Path::new("true"));
        probe.current_dir(folder).status().is_ok_and(|status| status.success())
    }

    /// A program run as this user, in a process group of its own: a terminal's Ctrl-C is not for it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.process_group(0).current_dir("/").env("LC_ALL", "C");
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        if let Some(other) = &self.other {
            command.uid(other.uid).gid(other.gid);
        }
        command
    }
}

fn unprivileged(passwd: &str) -> Option<Other> {
    UNPRIVILEGED.iter().find_map(|wanted| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| name == wanted)?;
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            (uid != 0).then(|| Other { name: name.to_owned(), uid, gid })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: &str =
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65533:nobody:/nonexistent:/usr/sbin/nologin\n";

    #[test]
    fn postgres_is_preferred_to_nobody() {
        let passwd = format!("{NOBODY}postgres:x:105:111:,,,:/var/lib/postgresql:/bin/bash\n");
        assert_eq!(unprivileged(&passwd), Some(Other { name: "postgres".into(), uid: 105, gid: 111 }));
        assert_eq!(unprivileged(NOBODY), Some(Other { name: "nobody".into(), uid: 65_534, gid: 65_533 }));
    }

    #[test]
    fn another_name_for_root_is_no_unprivileged_user() {
        assert_eq!(unprivileged("postgres:x:0:0::/:/bin/sh\n"), None);
        assert_eq!(unprivileged("postgres2:x:105:111::/:/bin/sh\nbroken\npostgres:x\n"), None);
    }

    #[test]
    fn a_folder_that_is_not_there_cannot_be_entered() {
        let account = Account { other: None };
        assert!(account.can_enter(Path::new("/")));
        assert!(!account.can_enter(Path::new("/does/not/exist")));
    }
}
