//! The peer of a connection, and what it may see.

use axum::extract::FromRequestParts;
use garret_api::Code;
use hyper::http::request::Parts;

use super::Refusal;
use crate::daemon::state::{MachineRow, Scope};

/// The peer of a connection, identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Whether it may do everything.
    pub administrator: bool,
}

/// The peer's uid and group, as the kernel reported them when it connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credentials(pub Option<(u32, u32)>);

impl Credentials {
    pub(super) fn uid(&self) -> Option<u32> {
        self.0.map(|(uid, _)| uid)
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// See, change or enter a machine of this uid, or anything in it.
    Use { owner: u32 },
    /// Set a machine's weight or its owner, which concerns the machines of others.
    Administer,
    /// See the figures and events of all machines.
    SeeAll,
}

impl Peer {
    /// The one place that decides who may do what.
    pub(super) fn allows(&self, action: Action) -> bool {
        match action {
            Action::Use { owner } => self.administrator || self.uid == owner,
            Action::Administer | Action::SeeAll => self.administrator,
        }
    }

    /// Whether the peer may see and change what belongs to this uid.
    pub(crate) fn may(&self, owner: u32) -> bool {
        self.allows(Action::Use { owner })
    }

    /// The events the peer may see.
    pub(crate) fn scope(&self) -> Scope {
        if self.allows(Action::SeeAll) { Scope::All } else { Scope::Owner(self.uid) }
    }

    /// The machine, if it exists and the peer may see it. Otherwise the result is the same as if it did not exist.
    pub(crate) fn admit(&self, machine: Option<MachineRow>, name: &str) -> Result<MachineRow, Refusal> {
        machine.filter(|machine| self.may(machine.owner)).ok_or_else(|| {
            Refusal::new(Code::NotFound, format!("there is no machine of {name}: `garret up` makes one"))
        })
    }
}

/// Each request was given its peer before it came to a handler (`authenticate`).
impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parts.extensions.get().copied().ok_or_else(|| Refusal::new(Code::Internal, "the request has no peer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::state::tests::machine;

    #[test]
    fn machine_of_another_developer_looks_absent() {
        let alice = Peer { uid: 1000, gid: 1000, administrator: false };
        let admin = Peer { administrator: true, ..alice };
        assert!(alice.admit(Some(machine(1000)), "alice").is_ok());
        assert!(admin.admit(Some(machine(1001)), "bob").is_ok());
        let hidden = alice.admit(Some(machine(1001)), "bob").unwrap_err();
        let nothing = alice.admit(None, "bob").unwrap_err();
        assert_eq!(format!("{hidden:?}"), format!("{nothing:?}"));
        assert_eq!(alice.scope(), Scope::Owner(1000));
        assert_eq!(admin.scope(), Scope::All);
    }
}
