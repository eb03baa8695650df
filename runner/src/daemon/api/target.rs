//! Decides which machine a request means: a path has a machine's id, or a developer, whose machine it is.

use garret_api::{Code, MachineId};

use super::identity::{Owner, check_owner};
use super::peer::Action;
use super::{Peer, Refusal};
use crate::accounts::Account;
use crate::daemon::Daemon;
use crate::daemon::state::{MachineRow, ReadTx, machines};

/// The machine that a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// This machine, and the uid of its developer.
    Machine(MachineId, u32),
    /// The machine of the developer with this uid, which may not exist yet.
    OfOwner(u32),
}

impl Target {
    /// The uid of the machine's developer.
    pub(super) fn owner(self) -> u32 {
        match self {
            Target::Machine(_, owner) | Target::OfOwner(owner) => owner,
        }
    }

    /// The machine, if it exists.
    pub(super) fn row(self, db: &ReadTx<'_>) -> rusqlite::Result<Option<MachineRow>> {
        match self {
            Target::Machine(id, _) => machines::get(db, id),
            Target::OfOwner(owner) => machines::of_owner(db, owner),
        }
    }
}

/// The one place that reads `{machine}` of a path. It is a uid's digits, the peer's own name, or the id of a machine that
/// the peer may see. An administrator may also give any account's name, or the last name of a machine's developer. A machine
/// of an earlier version has its developer's former name as its id: a name that means two machines is refused.
pub(super) async fn resolve(daemon: &Daemon, peer: Peer, name: &str) -> Result<Option<Target>, Refusal> {
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(name.parse().ok().map(Target::OfOwner));
    }
    let own = Owner::find(daemon, peer.uid, peer.gid).await?;
    if own.name() == name {
        return Ok(Some(Target::OfOwner(peer.uid)));
    }
    let administers = peer.allows(Action::SeeAll);
    if administers && let Some(account) = by_name(daemon, name).await? {
        let owner = Owner { uid: account.uid, gid: account.gid, account: Some(account) };
        refuse_if_another_has_this_id(daemon, name, owner.uid).await?;
        // A machine that may be another person's is visible to the administrator, under its earlier name.
        let _other = check_owner(daemon, &owner).await;
        return Ok(Some(Target::OfOwner(owner.uid)));
    }
    let (name, id) = (name.to_owned(), name.parse().ok());
    let found = daemon
        .read(move |db| {
            let named = if administers { machines::by_developer(db, &name)? } else { None };
            match (named, id) {
                (None, Some(id)) => machines::get(db, id),
                (named, _) => Ok(named),
            }
        })
        .await?;
    let seen = found.filter(|machine| peer.may(machine.owner));
    Ok(seen.map(|machine| Target::Machine(machine.id, machine.owner)))
}

/// # Errors
/// The name of the account `uid` is the id of another developer's machine.
async fn refuse_if_another_has_this_id(daemon: &Daemon, name: &str, uid: u32) -> Result<(), Refusal> {
    let Ok(id) = name.parse() else { return Ok(()) };
    match daemon.read(move |db| machines::get(db, id)).await? {
        Some(machine) if machine.owner != uid => {
            let both =
                format!("{name} is the account with uid {uid}, and the id of the machine of uid {}", machine.owner);
            Err(Refusal::new(Code::Conflict, format!("{both}: name the machine by its uid")))
        }
        _ => Ok(()),
    }
}

async fn by_name(daemon: &Daemon, name: &str) -> Result<Option<Account>, Refusal> {
    daemon.names.by_name(name).await.map_err(|error| Refusal::new(Code::Unavailable, error.to_string()))
}

/// The machine that `{machine}` of a path names, if the peer may see it.
pub(super) async fn find(daemon: &Daemon, peer: Peer, name: &str) -> Result<MachineRow, Refusal> {
    let machine = match resolve(daemon, peer, name).await? {
        Some(target) => daemon.read(move |db| target.row(db)).await?,
        None => None,
    };
    peer.admit(machine, name)
}
