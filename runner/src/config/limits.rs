//! `[limits]`: who may have a machine, and how much of the host.

use std::collections::BTreeMap;

use anyhow::bail;
use garret_api::vmm::{Bucket, RateLimit};
use garret_api::{Code, Problem};
use serde::Deserialize;

use crate::host::Rates;

/// Accounts below this uid and `nobody` are system accounts: they have no machine unless a group allows it.
const UID_MIN: u32 = 1000;
const NOBODY: u32 = 65_534;
/// The minimum of limits on requests and packets per second: with fewer, a machine does not boot in time.
const OPERATIONS_MIN: u32 = 100;

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
    /// The most that is read from and written to the data disk together, in MiB per second, 1 or more. This and the
    /// next three apply from the machine's next start.
    pub disk_mib_per_s: Option<u32>,
    /// The most requests to the data disk per second, 100 or more.
    pub disk_requests_per_s: Option<u32>,
    /// The most network traffic, in MiB per second in each direction, 1 or more.
    pub network_mib_per_s: Option<u32>,
    /// The most packets per second in each direction, 100 or more. Up to 64 KiB of a stream count as one packet.
    pub network_packets_per_s: Option<u32>,
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
    /// The most that is read from and written to the data disk together, in MiB per second.
    pub disk_mib_per_s: Option<u32>,
    /// The most requests to the data disk per second.
    pub disk_requests_per_s: Option<u32>,
    /// The most network traffic, in MiB per second in each direction.
    pub network_mib_per_s: Option<u32>,
    /// The most packets per second in each direction.
    pub network_packets_per_s: Option<u32>,
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
    /// The limits on the use of disk and network per second.
    pub rates: Rates,
}

/// A maximum, and the configuration table that sets it; `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limit(Option<(u32, String)>);

impl Limit {
    #[cfg(test)]
    pub(crate) fn of(max: u32) -> Self {
        Self(Some((max, "limits".into())))
    }

    fn max(&self) -> Option<u32> {
        self.0.as_ref().map(|(max, _)| *max)
    }

    /// The value, or the limit if the value is above it.
    pub(crate) fn clip(&self, value: u32) -> u32 {
        self.max().map_or(value, |max| value.min(max))
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
        let limit = |get: fn(&Maxima) -> Option<u32>| self.limit(developer, groups, get);
        Ok(Limits {
            vcpus: limit(|maxima| maxima.vcpus),
            memory_mib: limit(|maxima| maxima.memory_mib),
            guaranteed_mib: limit(|maxima| maxima.guaranteed_mib),
            disk_gib: limit(|maxima| maxima.disk_gib),
            rates: Rates {
                disk: rate_limit(
                    limit(|maxima| maxima.disk_mib_per_s).max(),
                    limit(|maxima| maxima.disk_requests_per_s).max(),
                ),
                network: rate_limit(
                    limit(|maxima| maxima.network_mib_per_s).max(),
                    limit(|maxima| maxima.network_packets_per_s).max(),
                ),
            },
        })
    }

    /// # Errors
    /// A rate is so low that no machine would start.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let groups = self.group.iter().map(|(name, maxima)| (format!("limits.group.{name}"), *maxima));
        let developers = self.developer.iter().map(|(name, maxima)| (format!("limits.developer.{name}"), *maxima));
        for (table, maxima) in [("limits".to_owned(), self.of_all())].into_iter().chain(groups).chain(developers) {
            for (name, rate, min) in [
                ("disk_mib_per_s", maxima.disk_mib_per_s, 1),
                ("disk_requests_per_s", maxima.disk_requests_per_s, OPERATIONS_MIN),
                ("network_mib_per_s", maxima.network_mib_per_s, 1),
                ("network_packets_per_s", maxima.network_packets_per_s, OPERATIONS_MIN),
            ] {
                if rate.is_some_and(|rate| rate < min) {
                    bail!("[{table}] {name} must be {min} or more");
                }
            }
        }
        Ok(())
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

    /// The figures of `[limits]` itself.
    fn of_all(&self) -> Maxima {
        Maxima {
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            guaranteed_mib: self.guaranteed_mib,
            disk_gib: self.disk_gib,
            disk_mib_per_s: self.disk_mib_per_s,
            disk_requests_per_s: self.disk_requests_per_s,
            network_mib_per_s: self.network_mib_per_s,
            network_packets_per_s: self.network_packets_per_s,
        }
    }

    fn limit(&self, developer: &str, groups: &[&str], get: fn(&Maxima) -> Option<u32>) -> Limit {
        if let Some(max) = self.developer.get(developer).and_then(get) {
            return Limit(Some((max, format!("limits.developer.{developer}"))));
        }
        let of_groups =
            groups.iter().filter_map(|group| Some((get(self.group.get(*group)?)?, format!("limits.group.{group}"))));
        Limit(of_groups.max_by_key(|(max, _)| *max).or_else(|| Some((get(&self.of_all())?, "limits".into()))))
    }
}

fn rate_limit(mib_per_s: Option<u32>, operations_per_s: Option<u32>) -> Option<RateLimit> {
    let bytes = mib_per_s.map(|mib| bucket(u64::from(mib) << 20));
    let operations = operations_per_s.map(|operations| bucket(operations.into()));
    (bytes.is_some() || operations.is_some()).then_some(RateLimit { bytes, operations })
}

/// A machine that was idle may use one second's worth at once.
fn bucket(per_second: u64) -> Bucket {
    Bucket { per_second, burst: per_second }
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
    fn rates_are_of_the_same_tables() {
        let limits = section(
            "disk_mib_per_s = 10\n[group.web]\ndisk_requests_per_s = 500\n[developer.bob]\nnetwork_mib_per_s = 2\n\
             network_packets_per_s = 700\n",
        );
        let rates = |developer, groups: &[&str]| limits.limits_for(1000, developer, groups).unwrap().rates;
        let limit = |bytes, operations| Some(RateLimit { bytes, operations });
        let of = |per_second| Some(Bucket { per_second, burst: per_second });
        assert_eq!(rates("alice", &[]), Rates { disk: limit(of(10 << 20), None), network: None });
        assert_eq!(rates("alice", &["web"]).disk, limit(of(10 << 20), of(500)));
        assert_eq!(rates("bob", &[]).network, limit(of(2 << 20), of(700)));
        assert_eq!(LimitsSection::default().limits_for(1000, "alice", &[]).unwrap().rates, Rates::default());
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
