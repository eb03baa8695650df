//! The owner of files: on the host it is the VMM's own user; in the guest it is one configured id.

use virtiofsd::soft_idmap::cmdline::IdMap;

/// The id that the guest sees for files of any other host user.
pub(super) const NOBODY: u32 = 65534;

/// The largest id means "no change" in every call that takes one, so the valid ids end before it.
const IDS_END: u32 = u32::MAX;

/// Maps every guest id to `host_id`. Shows `host_id` as `guest_id`, and any other id as [`NOBODY`].
pub(super) fn squash(host_id: u32, guest_id: u32) -> Vec<IdMap> {
    let others = [0..host_id, host_id.saturating_add(1)..IDS_END];
    let others = others.into_iter().filter(|ids| !ids.is_empty()).map(|ids| IdMap::SquashHost {
        from_host: ids.start,
        to_guest: NOBODY,
        count: ids.end - ids.start,
    });
    let all = IdMap::SquashGuest { from_guest: 0, to_host: host_id, count: IDS_END };
    let owner = IdMap::SquashHost { from_host: host_id, to_guest: guest_id, count: 1 };
    [all, owner].into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use virtiofsd::soft_idmap::{GuestUid, HostUid, Id, IdMap as Map};

    use super::*;

    #[test]
    fn all_guest_ids_are_the_owner_and_only_the_owner_is_shown() {
        for host_id in [0, 1, 1000, 70000, u32::MAX - 1] {
            let map: Map<GuestUid, HostUid> = squash(host_id, 1000).try_into().unwrap();
            for guest_id in [0, 1, 999, 1000, 65534, u32::MAX - 1] {
                assert_eq!(map.map_guest(guest_id.into()).unwrap().into_inner(), host_id);
            }
            assert_eq!(map.map_host(host_id.into()).unwrap().into_inner(), 1000);
            for other in [0, 1, 2, 999, 1000, 1001, 69999, 70001, u32::MAX - 2, u32::MAX - 1] {
                if other != host_id {
                    assert_eq!(map.map_host(other.into()).unwrap().into_inner(), NOBODY, "{other} beside {host_id}");
                }
            }
        }
    }
}
