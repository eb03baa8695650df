//! Decides whose machine it is: accounts are renamed and deleted, and their uids and names are reused.
//!
//! A machine belongs to a uid and stores the account that it had. The same name, or another name with the same personal
//! home folder (a rename), is the same person. Any other account may be another person. That person is rejected until
//! an administrator removes the machine or assigns it to them.

use std::path::Path;

use garret_api::{Code, Problem};

use super::Refusal;
use crate::accounts::{Account, display_name};
use crate::daemon::Daemon;
use crate::daemon::state::{MachineRow, machines};

/// A uid and its account, as the host knows them now.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// The account; a uid may have none.
    pub account: Option<Account>,
}

impl Owner {
    /// Queries the name service. `gid` is the group of a uid without an account.
    ///
    /// # Errors
    /// The name service does not answer.
    pub(super) async fn find(daemon: &Daemon, uid: u32, gid: u32) -> Result<Self, Refusal> {
        let account = daemon.account(uid).await.map_err(|error| Refusal::new(Code::Unavailable, error.to_string()))?;
        Ok(Self { uid, gid: account.as_ref().map_or(gid, |account| account.gid), account })
    }

    pub(super) fn name(&self) -> String {
        display_name(self.uid, self.account.as_ref())
    }

    /// The machine with this owner's current names.
    pub(super) fn of(&self, machine: MachineRow) -> MachineRow {
        MachineRow {
            gid: self.gid,
            developer: self.name(),
            account: self.account.as_ref().map(|account| account.name.clone()),
            home: self.account.as_ref().map(|account| account.home.clone()),
            ..machine
        }
    }
}

/// Checks that the owner is the person that the machine was created for, and stores their current names. Returns whether
/// there is a machine.
///
/// # Errors
/// They may be another person.
pub(super) async fn check_owner(daemon: &Daemon, owner: &Owner) -> Result<bool, Refusal> {
    let uid = owner.uid;
    let Some(machine) = daemon.read(move |db| machines::of_owner(db, uid)).await? else { return Ok(false) };
    if !is_same_person(&machine, owner.account.as_ref()) {
        return Err(owned_by_another(&machine, owner).into());
    }
    let known = owner.of(machine.clone());
    if known != machine {
        daemon.write(move |db| machines::set_developer(db, &known)).await?;
    }
    Ok(true)
}

fn is_same_person(machine: &MachineRow, account: Option<&Account>) -> bool {
    match (&machine.account, account) {
        (None, None) => true,
        (Some(was), Some(account)) => {
            *was == account.name || (is_personal(&account.home) && machine.home.as_ref() == Some(&account.home))
        }
        // A uid that had no account got one, or lost it: there is no evidence that this is the same person.
        _ => false,
    }
}

/// Whether a home folder identifies a person: service accounts share theirs.
fn is_personal(home: &Path) -> bool {
    home.starts_with("/home") && home.components().count() > 2
}

fn owned_by_another(machine: &MachineRow, owner: &Owner) -> Problem {
    let MachineRow { owner: uid, account, .. } = machine;
    let was = account.as_ref().map_or("that of a uid without an account".into(), |name| format!("{name}'s"));
    let message = match &owner.account {
        Some(account) => format!(
            "the machine of uid {uid} was {was}, and the uid is {0}'s now: an administrator can remove it (`garret rm \
             --machine={uid}`) or assign it to {0} (`garret start --machine={uid} --owner={0}`)",
            account.name
        ),
        None => {
            format!(
                "the machine of uid {uid} was {was}, and the uid has no account now: only an administrator can use it"
            )
        }
    };
    Problem::new(Code::Forbidden, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::state::tests::machine;

    #[test]
    fn a_rename_is_the_same_person_and_another_account_may_not_be() {
        let account = |name: &str, home: &str| Account { name: name.into(), uid: 7, gid: 7, home: home.into() };
        for (was, home, now, same) in [
            (None, None, None, true),
            (Some("alice"), Some("/home/alice"), Some(account("alice", "/home/alice")), true),
            (Some("alice"), Some("/home/alice"), Some(account("alice", "/mnt/alice")), true),
            (Some("alice"), None, Some(account("alice", "/home/alice")), true),
            (Some("alice"), Some("/home/alice"), Some(account("alicia", "/home/alice")), true),
            (Some("alice"), Some("/home/alice"), Some(account("alicia", "/home/alicia")), false),
            (Some("alice"), None, Some(account("alicia", "/home/alice")), false),
            (Some("www"), Some("/nonexistent"), Some(account("bob", "/nonexistent")), false),
            (Some("www"), Some("/home"), Some(account("bob", "/home")), false),
            (Some("alice"), Some("/home/alice"), None, false),
            (None, None, Some(account("bob", "/home/bob")), false),
        ] {
            let machine = MachineRow { account: was.map(String::from), home: home.map(Into::into), ..machine(7) };
            assert_eq!(is_same_person(&machine, now.as_ref()), same, "{was:?} {home:?} {now:?}");
        }
    }
}
