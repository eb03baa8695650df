//! Whether more events can follow in a scope.

use super::{ReadTx, Scope, environments, machines};

/// Whether the machine or environment of the scope no longer exists, so that no event of it will follow.
pub(crate) fn is_over(db: &ReadTx<'_>, scope: &Scope) -> rusqlite::Result<bool> {
    match scope {
        Scope::All => Ok(false),
        Scope::Developer(uid) => Ok(machines::get(db, *uid)?.is_none()),
        Scope::Environment(uid, id) => {
            Ok(environments::get(db, id)?.is_none_or(|environment| environment.uid != *uid || environment.removed))
        }
    }
}
