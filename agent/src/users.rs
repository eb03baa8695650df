//! `/etc/passwd` and `/etc/group` of the guest or of a container, read without NSS (the agent is static).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use garret_api::{Code, Problem};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::blocking::Blocking;

/// The size limit of a user file, in bytes: a container writes its own.
const FILE_MAX: u64 = 1 << 20;
/// The most supplementary groups of a user.
const GROUPS_MAX: usize = 256;

/// Numeric user, group and supplementary groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The user id.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// One user, with the values that a login sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// The name, or the number if the user has no line.
    pub name: String,
    /// The numeric ids.
    pub credentials: Credentials,
    /// The home folder; `/` if the user has no line.
    pub home: PathBuf,
    /// The login shell; `/bin/sh` if the user has no line or an empty shell.
    pub shell: PathBuf,
}

/// The user and group files of one root file system.
#[derive(Clone, Debug, Default)]
pub(crate) struct Users {
    passwd: String,
    group: String,
}

/// Reading the guest's own user files.
static GUEST: Blocking = Blocking::new("reading the machine's user files", 4, Duration::from_secs(10));

impl Users {
    /// The users of the guest itself.
    pub(crate) async fn of_guest() -> Result<Self, Problem> {
        let read = GUEST.run(|| Self::load(Path::new("/"))).await?;
        read.map_err(|error| Problem::new(Code::Internal, format!("cannot read the machine's users: {error}")))
    }

    /// Reads the files below `root` (`/`, or `/proc/<pid>/root`). Links that lead out of it are not followed. A missing
    /// file counts as empty.
    pub(crate) fn load(root: &Path) -> io::Result<Self> {
        Ok(Self { passwd: read_below(root, "etc/passwd")?, group: read_below(root, "etc/group")? })
    }

    #[cfg(test)]
    pub(crate) fn parse(passwd: &str, group: &str) -> Self {
        Self { passwd: passwd.into(), group: group.into() }
    }

    /// The text of the user and of the group file.
    pub(crate) fn texts(&self) -> (&str, &str) {
        (&self.passwd, &self.group)
    }

    /// Finds `user[:group]`, each by name or number, as container images and `docker exec` write it. A number without a
    /// line is valid; a name without a line returns `None`.
    pub(crate) fn find(&self, wanted: &str) -> Option<User> {
        let (name, group) = match wanted.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (wanted, None),
        };
        let number = name.parse::<u32>().ok();
        let line = self.line_of(|fields| fields[0] == name).or_else(|| {
            let number = number?;
            self.line_of(|fields| fields[2].parse() == Ok(number))
        });
        let mut user = match line {
            Some(user) => user,
            None => User {
                name: name.into(),
                credentials: Credentials { uid: number?, gid: 0, groups: Vec::new() },
                home: "/".into(),
                shell: "/bin/sh".into(),
            },
        };
        match group {
            Some(group) => user.credentials.gid = self.group_id(group)?,
            None => user.credentials.groups = self.groups_of(&user.name),
        }
        Some(user)
    }

    fn line_of(&self, wanted: impl Fn(&[&str]) -> bool) -> Option<User> {
        self.passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            if fields.len() < 7 || fields[0].is_empty() || !wanted(&fields) {
                return None;
            }
            let credentials =
                Credentials { uid: fields[2].parse().ok()?, gid: fields[3].parse().ok()?, groups: Vec::new() };
            let or = |text: &str, default: &str| PathBuf::from(if text.is_empty() { default } else { text });
            Some(User {
                name: fields[0].into(),
                credentials,
                home: or(fields[5], "/"),
                shell: or(fields[6].trim_end(), "/bin/sh"),
            })
        })
    }

    fn group_id(&self, wanted: &str) -> Option<u32> {
        let named = self.group_lines().find(|(name, ..)| *name == wanted).map(|(_, id, _)| id);
        named.or_else(|| wanted.parse().ok())
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let member = |members: &str| members.split(',').any(|member| member.trim() == user);
        self.group_lines().filter(|(.., members)| member(members)).map(|(_, id, _)| id).take(GROUPS_MAX).collect()
    }

    fn group_lines(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, id, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some((name, id.parse().ok()?, members))
        })
    }
}

fn read_below(root: &Path, path: &str) -> io::Result<String> {
    let root = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // NONBLOCK: a container may have put a FIFO there.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken line\nvscode:x:1000:1000::/home/vscode:/bin/zsh\n\
                          1000:x:7:7::/odd:\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:other,vscode\ndocker:x:999:vscode\nvscode:x:1000:\n";

    fn users() -> Users {
        Users::parse(PASSWD, GROUP)
    }

    #[test]
    fn finds_by_name_with_groups() {
        let user = users().find("vscode").unwrap();
        assert_eq!(user.credentials, Credentials { uid: 1000, gid: 1000, groups: vec![27, 999] });
        assert_eq!((user.home.to_str(), user.shell.to_str()), (Some("/home/vscode"), Some("/bin/zsh")));
    }

    #[test]
    fn a_name_made_of_digits_wins_over_the_number() {
        let user = users().find("1000").unwrap();
        assert_eq!((user.credentials.uid, user.shell.to_str()), (7, Some("/bin/sh")));
    }

    #[test]
    fn numbers_need_no_line_but_names_do() {
        let user = users().find("4242").unwrap();
        assert_eq!((user.credentials.uid, user.credentials.gid, user.home.to_str()), (4242, 0, Some("/")));
        assert_eq!(users().find("nobody-here"), None);
        assert_eq!(users().find("vscode:no-such-group"), None);
    }

    #[test]
    fn an_explicit_group_replaces_all_groups() {
        let user = users().find("vscode:docker").unwrap();
        assert_eq!(user.credentials, Credentials { uid: 1000, gid: 999, groups: vec![] });
        assert_eq!(users().find("0:5").unwrap().credentials.gid, 5);
    }

    proptest::proptest! {
        /// A container writes these files: `find` must work for any content, and the number of groups is bounded.
        #[test]
        fn any_file_is_survived(passwd in "([a-z0:1,-]{0,12}:?\n?){0,40}", group in "([a-z0:1,-]{0,12}:?\n?){0,40}", wanted in "[a-z0-9:]{0,6}") {
            let user = Users::parse(&passwd, &group).find(&wanted);
            assert!(user.is_none_or(|user| user.credentials.groups.len() <= GROUPS_MAX));
        }
    }

    #[test]
    fn links_stay_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", root.path().join("etc/passwd")).unwrap();
        assert!(Users::load(root.path()).unwrap().passwd.is_empty());
        std::fs::write(root.path().join("etc/hostname"), PASSWD).unwrap();
        assert_eq!(Users::load(root.path()).unwrap().find("vscode").unwrap().credentials.uid, 1000);
    }
}
