//! Decides the response of virtio-mem to a request, and the action before it. It is the whole policy, and pure.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::protocol::{Blocks, Request, Response, State};
use crate::memory::{BLOCK, Plugged};

/// The plan for a request. Ranges are bytes from the region's beginning, whole blocks inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// No action, only a response.
    Answer(Response),
    /// Plug the whole range, of which nothing is plugged.
    Plug(Range<u64>),
    /// Unplug the whole range.
    Unplug(Range<u64>),
}

/// The plan for `request`. `map` holds the plugged blocks of the region at `base`, and `requested` bytes should be
/// plugged (§5.15.6).
pub(super) fn plan(request: &Request, base: u64, map: &Plugged, requested: u64) -> Plan {
    match request {
        Request::Plug(blocks) => plug(range(*blocks, base, map.size()), map, requested),
        Request::Unplug(blocks) => unplug(range(*blocks, base, map.size()), map),
        Request::UnplugAll => Plan::Unplug(0..map.size()),
        Request::State(blocks) => Plan::Answer(state(range(*blocks, base, map.size()), map)),
        Request::Unknown => Plan::Answer(Response::Error),
    }
}

/// The range of `blocks`, if they are whole blocks of a region of `size` bytes at `base`.
fn range(blocks: Blocks, base: u64, size: u64) -> Option<Range<u64>> {
    let start = blocks.address.checked_sub(base)?;
    let end = start.checked_add(u64::from(blocks.count) * BLOCK)?;
    let is_good = start.is_multiple_of(BLOCK) && blocks.count > 0 && end <= size;
    is_good.then_some(start..end)
}

fn plug(range: Option<Range<u64>>, map: &Plugged, requested: u64) -> Plan {
    let Some(range) = range else { return Plan::Answer(Response::Error) };
    let answer = if map.bytes() + (range.end - range.start) > requested {
        Response::Nack
    } else if map.plugged_in(&range) > 0 {
        Response::Error
    } else if is_sparse(&range, map, requested) {
        // Not `Nack`: Linux would then retry at once, forever.
        Response::Busy
    } else {
        return Plan::Plug(range);
    };
    Plan::Answer(answer)
}

/// Whether plugging `range` would use more granules than needed plus one. The guest can access all of a granule that is
/// in use. With a few blocks in each granule, it would get much more than `requested`. Linux fills a granule before it
/// begins another, so this check never affects it.
fn is_sparse(range: &Range<u64>, map: &Plugged, requested: u64) -> bool {
    let new = map.granules_of(range).filter(|granule| !map.is_active(*granule)).count();
    let active = (0..map.granules()).filter(|granule| map.is_active(*granule)).count();
    new > 0 && (active + new) as u64 > requested.div_ceil(map.granule()) + 1
}

fn unplug(range: Option<Range<u64>>, map: &Plugged) -> Plan {
    match range {
        Some(range) if map.is_plugged(&range) => Plan::Unplug(range),
        _ => Plan::Answer(Response::Error),
    }
}

fn state(range: Option<Range<u64>>, map: &Plugged) -> Response {
    let Some(range) = range else { return Response::Error };
    Response::State(match map.plugged_in(&range) {
        0 => State::Unplugged,
        bytes if bytes == range.end - range.start => State::Plugged,
        _ => State::Mixed,
    })
}
