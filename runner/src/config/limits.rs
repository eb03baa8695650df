//! `[limits]`: who may have a machine, and how much of the host.

use std::collections::BTreeMap;

use garret_api::{Code, Problem};
use serde::Deserialize;

/// Accounts below this uid and `nobody` are system accounts: they have no machine unless a group allows it.
const UID_MIN: u32 = 1000;
const NOBODY: u32 = 65_534;

/// `[limits]`. The figures here apply to everyone. `[limits.group.NAME]` replaces a figure for a group's members; if
/// several groups set it, the largest counts. `[limits.developer.NAME]` replaces both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsSection {
    /// Only members of these groups, and root, may have a machine. Empty: all accounts but system accounts.
    pub allow_groups: Vec<String>,
    /// The most virtual CPUs.
    pub vcpus: Option<u32>,
    /// The most memory, in MiB.
    pub memory_mib: Option<u32>,
    /// The most guaranteed memory, in MiB.
    pub guaranteed_mib: Option<u32>,
    /// The largest data disk, in GiB; checked when a machine starts. A raised limit lets disks grow at the next start,
    /// at most to the template's size. A lowered limit applies to disks that are created later.
    pub disk_gib: Option<u32>,
    /// Figures by group.
    pub group: BTreeMap<String, Maxima>,
    /// Figures by developer.
    pub developer: BTreeMap<String, Maxima>,
}

/// One table of maxima; a missing figure is taken from the next wider table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Maxima {
    /// The most virtual CPUs.
    pub vcpus: Option<u32>,
    /// The most memory, in MiB.
    pub memory_mib: Option<u32>,
    /// The most guaranteed memory, in MiB.
    pub guaranteed_mib: Option<u32>,
    /// The largest data disk, in GiB.
    pub disk_gib: Option<u32>,
}

/// One developer's limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The limit on virtual CPUs.
    pub vcpus: Limit,
    /// The limit on memory, in MiB.
    pub memory_mib: Limit,
    /// The limit on guaranteed memory, in MiB.
    pub guaranteed_mib: Limit,
    /// The limit on the data disk's size, in GiB.
    pub disk_gib: Limit,
}

/// A maximum, and the configuration table that sets it; `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limit(Option<(u32, String)>);

impl Limit {
    #[cfg(test)]
    pub(crate) fn of(max: u32) -> Self {
        Self(Some((max, "limits".into())))
    }

    /// The value, or the limit if the value is above it.
    pub(crate) fn clip(&self, value: u32) -> u32 {
        self.0.as_ref().map_or(value, |(max, _)| value.min(*max))
    }

    /// # Errors
    /// The value is above the limit: the problem names `what` and where the limit is configured.
    pub(crate) fn check(&self, what: &str, value: u32) -> Result<(), Problem> {
        match &self.0 {
            Some((max, table)) if value > *max => {
                let said = format!(
                    "{what} is {value}, but at most {max} is allowed ([{table}] {what} in the daemon's configuration)"
                );
                Err(Problem::new(Code::Forbidden, said))
            }
            _ => Ok(()),
        }
    }
}

impl LimitsSection {
    /// The limits of a developer in these groups.
    ///
    /// # Errors
    /// The account may not have a machine.
    pub(crate) fn limits_for(&self, uid: u32, developer: &str, groups: &[&str]) -> Result<Limits, Problem> {
        self.admit(uid, developer, groups)?;
        Ok(Limits {
            vcpus: self.limit(developer, groups, self.vcpus, |maxima| maxima.vcpus),
            memory_mib: self.limit(developer, groups, self.memory_mib, |maxima| maxima.memory_mib),
            guaranteed_mib: self.limit(developer, groups, self.guaranteed_mib, |maxima| maxima.guaranteed_mib),
            disk_gib: self.limit(developer, groups, self.disk_gib, |maxima| maxima.disk_gib),
        })
    }

    /// The names of the groups that the limits refer to.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &str> {
        self.allow_groups.iter().chain(self.group.keys()).map(String::as_str)
    }

    fn admit(&self, uid: u32, developer: &str, groups: &[&str]) -> Result<(), Problem> {
        let allowed = match self.allow_groups.is_empty() {
            true => uid >= UID_MIN && uid != NOBODY,
            false => self.allow_groups.iter().any(|group| groups.contains(&group.as_str())),
        };
        if allowed || uid == 0 {
            return Ok(());
        }
        let said = match self.allow_groups.is_empty() {
            true => {
                format!("{developer} is a system account (uid {uid}) and has no machine: name one of its groups in")
            }
            false => format!("{developer} is in none of the groups that may have a machine: see"),
        };
        Err(Problem::new(Code::Forbidden, format!("{said} [limits] allow_groups in the daemon's configuration")))
    }

    fn limit(&self, developer: &str, groups: &[&str], all: Option<u32>, get: impl Fn(&Maxima) -> Option<u32>) -> Limit {
        if let Some(max) = self.developer.get(developer).and_then(&get) {
            return Limit(Some((max, format!("limits.developer.{developer}"))));
        }
        let of_groups =
            groups.iter().filter_map(|group| Some((get(self.group.get(*group)?)?, format!("limits.group.{group}"))));
        Limit(of_groups.max_by_key(|(max, _)| *max).or_else(|| Some((all?, "limits".into()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(text: &str) -> LimitsSection {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_narrowest_table_decides_and_the_largest_group() {
        let limits = section(
            "memory_mib = 1000\nvcpus = 4\n[group.ml]\nmemory_mib = 8000\n[group.web]\nmemory_mib = 2000\nvcpus = 2\n\
             [developer.eve]\nmemory_mib = 500\n[developer.bob]\ndisk_gib = 8\n",
        );
        for (developer, groups, memory, vcpus, disk) in [
            ("alice", &[][..], 1000, 4, 99),
            ("alice", &["web"][..], 2000, 2, 99),
            ("alice", &["ml", "web"][..], 8000, 2, 99),
            ("eve", &["ml"][..], 500, 4, 99),
            ("bob", &["ml"][..], 8000, 4, 8),
        ] {
            let found = limits.limits_for(1000, developer, groups).unwrap();
            assert_eq!(found.memory_mib.clip(9999), memory, "{developer} {groups:?}");
            assert_eq!(found.vcpus.clip(99), vcpus, "{developer} {groups:?}");
            assert_eq!(found.disk_gib.clip(99), disk, "{developer} {groups:?}");
            assert_eq!(found.guaranteed_mib, Limit(None));
        }
    }

    #[test]
    fn a_refusal_names_the_limit_and_its_table() {
        let limits = section("[group.ml]\nmemory_mib = 8000\n").limits_for(1000, "alice", &["ml"]).unwrap();
        assert_eq!(limits.memory_mib.check("memory_mib", 8000), Ok(()));
        let problem = limits.memory_mib.check("memory_mib", 8001).unwrap_err();
        assert_eq!(problem.code, Code::Forbidden);
        let said = "memory_mib is 8001, but at most 8000 is allowed ([limits.group.ml] memory_mib in the daemon's configuration)";
        assert_eq!(problem.detail, said);
    }

    #[test]
    fn system_accounts_and_strangers_have_no_machine() {
        let (open, closed) = (LimitsSection::default(), section("allow_groups = [\"dev\", \"ops\"]"));
        for (uid, groups, by_default, by_group) in [
            (0, &[][..], true, true),
            (33, &[][..], false, false),
            (33, &["ops"][..], false, true),
            (1000, &[][..], true, false),
            (1000, &["dev"][..], true, true),
            (65_534, &[][..], false, false),
        ] {
            assert_eq!(open.limits_for(uid, "x", groups).is_ok(), by_default, "{uid} {groups:?}");
            assert_eq!(closed.limits_for(uid, "x", groups).is_ok(), by_group, "{uid} {groups:?}");
        }
        for limits in [open, closed] {
            let problem = limits.limits_for(33, "www-data", &[]).unwrap_err();
            assert!(problem.detail.contains("www-data") && problem.detail.contains("allow_groups"), "{problem}");
        }
    }
}
