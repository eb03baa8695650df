//! The host's accounts, read from `/etc/passwd` and `/etc/group`: a static program has no name service to ask.

use std::fs;
use std::path::PathBuf;

/// One line of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its home folder.
    pub home: PathBuf,
}

/// The tables, as they are when they are read.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads the host's tables; one that cannot be read counts as empty.
    pub fn read() -> Self {
        Self::parse(
            fs::read_to_string("/etc/passwd").unwrap_or_default(),
            fs::read_to_string("/etc/group").unwrap_or_default(),
        )
    }

    /// The same from text.
    pub fn parse(passwd: String, group: String) -> Self {
        Self { passwd, group }
    }

    /// The account with this uid.
    pub fn by_uid(&self, uid: u32) -> Option<Account> {
        self.accounts().find(|account| account.uid == uid)
    }

    /// The account with this name.
    pub fn by_name(&self, name: &str) -> Option<Account> {
        self.accounts().find(|account| account.name == name)
    }

    /// The account of a developer, by the name [`developer`](Self::developer) gives.
    pub fn by_developer(&self, developer: &str) -> Option<Account> {
        self.accounts().find(|account| self.developer(account.uid) == developer)
    }

    /// What a developer is called: the account's name, or the uid's digits where there is none. The name is also that of a
    /// folder, a control group and a network namespace, and it must not look like another's uid: one that begins with
    /// anything but a lower-case letter, or has unusual characters, is not used either.
    pub fn developer(&self, uid: u32) -> String {
        self.by_uid(uid).map(|account| account.name).filter(|name| is_plain(name)).unwrap_or_else(|| uid.to_string())
    }

    /// All groups of this uid: its primary one first, then those that list it.
    pub fn groups_of(&self, uid: u32) -> Vec<u32> {
        let Some(account) = self.by_uid(uid) else { return Vec::new() };
        let listed = self
            .groups()
            .filter(|(_, gid, members)| *gid != account.gid && members.contains(&account.name.as_str()))
            .map(|(_, gid, _)| gid);
        std::iter::once(account.gid).chain(listed).collect()
    }

    /// Whether this uid is in the group of this name.
    pub fn is_member(&self, uid: u32, group: &str) -> bool {
        let Some((_, gid, _)) = self.groups().find(|(name, _, _)| *name == group) else { return false };
        self.groups_of(uid).contains(&gid)
    }

    fn accounts(&self) -> impl Iterator<Item = Account> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid, gid, _, home) =
                (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some(Account { name: name.into(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.into() })
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, Vec<&str>)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some((name, gid.parse().ok()?, members.split(',').collect()))
        })
    }
}

fn is_plain(name: &str) -> bool {
    name.len() <= 32
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::parse(
            "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000:Alice,,,:/home/alice:/bin/zsh\n\
             1001:x:1002:1002::/home/odd:/bin/sh\nbroken line\nbob.b:x:1003:100::/home/bob:/bin/sh\n"
                .into(),
            "root:x:0:\nalice:x:1000:\ngarret:x:50:bob.b,alice\nusers:x:100:\ndocker:x:60:\n".into(),
        )
    }

    #[test]
    fn accounts_are_found_both_ways() {
        let alice = accounts().by_uid(1000).unwrap();
        assert_eq!((alice.name.as_str(), alice.gid), ("alice", 1000));
        assert_eq!(alice.home, PathBuf::from("/home/alice"));
        assert_eq!(accounts().by_name("bob.b").unwrap().uid, 1003);
        assert_eq!(accounts().by_uid(7), None);
    }

    #[test]
    fn a_name_that_looks_like_another_uid_is_not_used() {
        for (uid, name) in [(0, "root"), (1000, "alice"), (1001, "1001"), (1002, "1002"), (1003, "bob.b"), (9, "9")] {
            assert_eq!(accounts().developer(uid), name);
        }
        assert_eq!(accounts().by_developer("1002").unwrap().name, "1001");
        assert_eq!(accounts().by_developer("1001"), None);
    }

    #[test]
    fn names_that_could_not_be_folders_are_not_used() {
        for name in ["", "..", "Upper", "a/b", "-a", "a b", "ä", &"a".repeat(33)] {
            assert!(!is_plain(name), "{name}");
        }
    }

    #[test]
    fn groups_are_the_primary_and_the_listed() {
        assert_eq!(accounts().groups_of(1003), [100, 50]);
        assert!(accounts().is_member(1000, "garret"));
        assert!(accounts().is_member(1003, "users"));
        assert!(!accounts().is_member(1000, "docker"));
        assert!(!accounts().is_member(1000, "nonexistent"));
        assert!(!accounts().is_member(4242, "garret"));
    }
}
