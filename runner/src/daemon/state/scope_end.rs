//! Whether more events can follow in a scope.

use super::{ReadTx, Scope, environments, machines};

/// Whether the machine or environment of the scope no longer exists, so that no event of it will follow.
pub(crate) fn is_over(db: &ReadTx<'_>, scope: &Scope) -> rusqlite::Result<bool> {
    match scope {
        Scope::All | Scope::Owner(_) => Ok(false),
        Scope::Machine(id) => Ok(machines::get(db, *id)?.is_none()),
        Scope::Environment(machine, id) => {
            Ok(environments::get(db, id)?
                .is_none_or(|environment| environment.machine != *machine || environment.removed))
        }
    }
}
