//! Changes the remote user's ids to the ids of the workspace's files (`updateRemoteUserUID`).
//!
//! If another user or group already has these ids, it receives the remote user's ids in exchange. The reference
//! implementation does not change the remote user in this case, so that user could not write to the workspace.

/// The ids of every file of a workspace in the guest, regardless of its owner on the host.
pub(super) const OWNER: u32 = 1000;

/// New user and group files, and the home folders whose files change their owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Renumbered {
    /// `/etc/passwd`.
    pub passwd: String,
    /// `/etc/group`.
    pub group: String,
    /// Home folders, each with its new owner as `uid:gid`.
    pub homes: Vec<(String, String)>,
}

/// Returns `None` if there is nothing to do: the user is root, is given by number, has no line, or already has the ids.
pub(super) fn renumber(passwd: &str, group: &str, user: &str) -> Option<Renumbered> {
    let fields = line_of(passwd, user)?;
    let (uid, gid) = (fields[2].parse::<u32>().ok()?, fields[3].parse::<u32>().ok()?);
    if uid == 0 || (uid == OWNER && gid == OWNER) {
        return None;
    }
    let users = Swap { from: uid, to: OWNER };
    // Root keeps its group.
    let groups = Swap { from: if gid == 0 { OWNER } else { gid }, to: OWNER };
    let mut homes = Vec::new();
    let passwd_lines = passwd.lines().map(|line| {
        let mut fields: Vec<String> = line.split(':').map(str::to_owned).collect();
        if fields.len() < 7 {
            return line.to_owned();
        }
        let before = (fields[2].clone(), fields[3].clone());
        users.apply(&mut fields[2]);
        groups.apply(&mut fields[3]);
        if before != (fields[2].clone(), fields[3].clone()) && is_home(&fields[5]) {
            homes.push((fields[5].clone(), format!("{}:{}", fields[2], fields[3])));
        }
        fields.join(":")
    });
    let passwd = joined(passwd_lines);
    let group = joined(group.lines().map(|line| {
        let mut fields: Vec<String> = line.split(':').map(str::to_owned).collect();
        if fields.len() >= 3 {
            groups.apply(&mut fields[2]);
        }
        fields.join(":")
    }));
    Some(Renumbered { passwd, group, homes })
}

/// Two numbers to exchange.
struct Swap {
    from: u32,
    to: u32,
}

impl Swap {
    fn apply(&self, field: &mut String) {
        match field.parse::<u32>() {
            Ok(number) if number == self.from => *field = self.to.to_string(),
            Ok(number) if number == self.to => *field = self.from.to_string(),
            _ => {}
        }
    }
}

fn line_of<'a>(passwd: &'a str, user: &str) -> Option<Vec<&'a str>> {
    let lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.into_iter().find(|fields| fields.len() >= 7 && fields[0] == user)
}

/// False for a folder that is the home of more than one user.
fn is_home(folder: &str) -> bool {
    folder.starts_with('/') && folder.trim_end_matches('/').matches('/').count() >= 2
}

fn joined(lines: impl Iterator<Item = String>) -> String {
    lines.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nnode:x:1000:1000::/home/node:/bin/bash\n\
                          joe:x:1001:1001::/home/joe:/bin/bash\nsvc:x:33:1001::/var/www:/bin/sh\nwheel:x:1002:0::/home/wheel:\n";
    const GROUP: &str = "root:x:0:\nnode:x:1000:\njoe:x:1001:svc\n";

    #[test]
    fn ids_change_places() {
        let new = renumber(PASSWD, GROUP, "joe").unwrap();
        assert!(new.passwd.contains("joe:x:1000:1000:") && new.passwd.contains("node:x:1001:1001:"), "{}", new.passwd);
        assert!(new.passwd.contains("svc:x:33:1000:") && new.passwd.contains("root:x:0:0:"), "{}", new.passwd);
        assert_eq!(new.group, "root:x:0:\nnode:x:1001:\njoe:x:1000:svc\n");
        let home = |path: &str, owner: &str| (path.to_owned(), owner.to_owned());
        assert_eq!(
            new.homes,
            [home("/home/node", "1001:1001"), home("/home/joe", "1000:1000"), home("/var/www", "33:1000")]
        );
    }

    #[test]
    fn a_free_number_is_taken() {
        let passwd = "joe:x:500:500::/home/joe:/bin/sh\n";
        let new = renumber(passwd, "joe:x:500:\n", "joe").unwrap();
        assert_eq!(
            (new.passwd.as_str(), new.group.as_str()),
            ("joe:x:1000:1000::/home/joe:/bin/sh\n", "joe:x:1000:\n")
        );
    }

    #[test]
    fn a_user_of_roots_group_keeps_it() {
        let new = renumber(PASSWD, GROUP, "wheel").unwrap();
        assert!(new.passwd.contains("wheel:x:1000:0:") && new.group == GROUP, "{new:?}");
    }

    #[test]
    fn equal_ids_need_no_change() {
        for user in ["root", "node", "1001", "nobody-here"] {
            assert_eq!(renumber(PASSWD, GROUP, user), None, "{user}");
        }
    }
}
