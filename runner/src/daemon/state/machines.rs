//! The table of machines.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use garret_api::MachineId;
use garret_api::runner::{Desired, EventKind, MachinePhase};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{Json, ReadTx, Text, WriteTx, events, json, now_ms, operations};

/// Identifies a VMM's process. Process ids are reused: only boot id and start time make them unique.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmmId {
    /// Its process id on the host.
    pub pid: u32,
    /// When it started, in clock ticks since the host's boot.
    pub started: u64,
    /// The id of the host's boot.
    pub boot_id: String,
}

/// A machine as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MachineRow {
    /// Names its files, control group and network. It never changes, and no other developer's machine gets it later.
    pub id: MachineId,
    /// The developer's uid.
    pub owner: u32,
    /// The developer's primary group.
    pub gid: u32,
    /// The developer's current name: the account's name, or the uid's digits.
    pub developer: String,
    /// The account's own name, as last seen; `None` if the uid had no account.
    pub account: Option<String>,
    /// The account's home folder, as last seen.
    pub home: Option<PathBuf>,
    /// Its place in the address pool.
    pub slot: u16,
    pub desired: Desired,
    /// It should be removed with everything that belongs to it.
    pub removed: bool,
    /// Virtual CPUs from the next start on.
    pub vcpus: u8,
    /// The most memory it can have from the next start on, in MiB.
    pub memory_mib: u32,
    /// Memory that it can always have, whatever other machines do, in MiB.
    pub guaranteed_mib: u32,
    /// Its weight when memory beyond the guarantees is shared.
    pub weight: u32,
    /// The actual state.
    pub phase: MachinePhase,
    /// The reason for the phase.
    pub reason: String,
    /// When the phase began, in seconds since 1970.
    pub since: u64,
    /// Its VMM, from launch until it was cleaned up.
    pub vmm: Option<VmmId>,
}

const COLUMNS: &str = "id, owner, gid, developer, account, home, slot, desired, removed, vcpus, memory_mib,
    guaranteed_mib, weight, phase, reason, since, vmm FROM machines";

fn row(row: &Row<'_>) -> rusqlite::Result<MachineRow> {
    Ok(MachineRow {
        id: row.get::<_, Text<_>>(0)?.0,
        owner: row.get(1)?,
        gid: row.get(2)?,
        developer: row.get(3)?,
        account: row.get(4)?,
        home: row.get::<_, Option<Vec<u8>>>(5)?.map(|home| OsString::from_vec(home).into()),
        slot: row.get(6)?,
        desired: row.get::<_, Json<_>>(7)?.0,
        removed: row.get(8)?,
        vcpus: row.get(9)?,
        memory_mib: row.get(10)?,
        guaranteed_mib: row.get(11)?,
        weight: row.get(12)?,
        phase: row.get::<_, Json<_>>(13)?.0,
        reason: row.get(14)?,
        since: row.get(15)?,
        vmm: row.get::<_, Option<Json<_>>>(16)?.map(|json| json.0),
    })
}

/// All machines, ordered by developer.
pub(crate) fn all(db: &ReadTx<'_>) -> rusqlite::Result<Vec<MachineRow>> {
    db.select(&format!("SELECT {COLUMNS} ORDER BY developer, owner"))?.query_map([], row)?.collect()
}

pub(crate) fn get(db: &ReadTx<'_>, id: MachineId) -> rusqlite::Result<Option<MachineRow>> {
    db.select(&format!("SELECT {COLUMNS} WHERE id = ?"))?.query_row([id.as_str()], row).optional()
}

/// The machine of the developer with this uid. The schema allows one for each.
pub(crate) fn of_owner(db: &ReadTx<'_>, owner: u32) -> rusqlite::Result<Option<MachineRow>> {
    db.select(&format!("SELECT {COLUMNS} WHERE owner = ?"))?.query_row([owner], row).optional()
}

/// The machine whose developer had this name when last seen.
pub(crate) fn by_developer(db: &ReadTx<'_>, developer: &str) -> rusqlite::Result<Option<MachineRow>> {
    db.select(&format!("SELECT {COLUMNS} WHERE developer = ?"))?.query_row([developer], row).optional()
}

/// Stores the developer's current names. The developer of another machine who had the same name is shown by uid from
/// now on.
pub(crate) fn set_developer(db: &WriteTx<'_>, machine: &MachineRow) -> rusqlite::Result<()> {
    let MachineRow { owner, gid, developer, account, home, .. } = machine;
    db.change("UPDATE machines SET developer = CAST(owner AS TEXT) WHERE developer = ? AND owner != ?")?
        .execute(params![developer, owner])?;
    let home = home.as_ref().map(|home| home.as_os_str().as_bytes());
    db.change("UPDATE machines SET gid = ?, developer = ?, account = ?, home = ? WHERE owner = ?")?
        .execute(params![gid, developer, account, home, owner])?;
    Ok(())
}

/// Writes a new machine, or the part of an old one that a request may change (desired state and figures, not what is
/// observed).
pub(crate) fn put(db: &WriteTx<'_>, machine: &MachineRow) -> rusqlite::Result<()> {
    db.change(
        "INSERT INTO machines (id, owner, gid, developer, slot, desired, removed, vcpus, memory_mib, phase, reason,
             since, guaranteed_mib, weight)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET desired = excluded.desired, removed = excluded.removed,
             vcpus = excluded.vcpus, memory_mib = excluded.memory_mib, guaranteed_mib = excluded.guaranteed_mib,
             weight = excluded.weight",
    )?
    .execute(params![
        machine.id.as_str(),
        machine.owner,
        machine.gid,
        machine.developer,
        machine.slot,
        json(&machine.desired)?,
        machine.removed,
        machine.vcpus,
        machine.memory_mib,
        json(&machine.phase)?,
        machine.reason,
        machine.since,
        machine.guaranteed_mib,
        machine.weight,
    ])?;
    set_developer(db, machine)
}

/// The lowest free slot below `slots`.
pub(crate) fn free_slot(db: &ReadTx<'_>, slots: u16) -> rusqlite::Result<Option<u16>> {
    let mut statement = db.select("SELECT slot FROM machines ORDER BY slot")?;
    let taken: Vec<u16> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok((0..slots).find(|slot| taken.binary_search(slot).is_err()))
}

/// Sets the machine's phase and adds an event.
pub(crate) fn set_phase(db: &WriteTx<'_>, id: MachineId, phase: MachinePhase, reason: &str) -> rusqlite::Result<()> {
    db.change("UPDATE machines SET phase = ?, reason = ?, since = ? WHERE id = ?")?.execute(params![
        json(&phase)?,
        reason,
        now_ms() / 1000,
        id.as_str()
    ])?;
    events::add(db, id, None, &EventKind::Machine { phase, reason: reason.into() })
}

/// Changes only the desired state.
pub(crate) fn set_desired(db: &WriteTx<'_>, id: MachineId, desired: Desired) -> rusqlite::Result<()> {
    db.change("UPDATE machines SET desired = ? WHERE id = ?")?.execute(params![json(&desired)?, id.as_str()])?;
    Ok(())
}

/// Sets the VMM's process; `None` once it was cleaned up.
pub(crate) fn set_vmm(db: &WriteTx<'_>, id: MachineId, vmm: Option<&VmmId>) -> rusqlite::Result<()> {
    db.change("UPDATE machines SET vmm = ? WHERE id = ?")?.execute(params![vmm.map(json).transpose()?, id.as_str()])?;
    Ok(())
}

/// Deletes the machine, its environments and its events. Of its operations, the removal stays.
pub(crate) fn forget(db: &WriteTx<'_>, id: MachineId) -> rusqlite::Result<()> {
    operations::end_with_machine(db, id)?;
    for statement in [
        "DELETE FROM environments WHERE machine = ?",
        "DELETE FROM events WHERE machine = ?",
        "DELETE FROM machines WHERE id = ?",
    ] {
        db.change(statement)?.execute([id.as_str()])?;
    }
    Ok(())
}
