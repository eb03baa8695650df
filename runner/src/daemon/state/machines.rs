//! The table of machines: one row per developer.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use garret_api::runner::{Desired, EventKind, MachinePhase};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{Json, ReadTx, WriteTx, events, json, now_ms, operations};

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

/// One developer's machine as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MachineRow {
    pub uid: u32,
    /// The developer's primary group.
    pub gid: u32,
    /// The machine's name, which its files, control group and network use. It never changes.
    pub name: String,
    /// The developer's current name: the account's name, or the uid's digits.
    pub owner: String,
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

const COLUMNS: &str = "uid, gid, name, slot, desired, removed, vcpus, memory_mib, phase, reason, since, vmm,
    guaranteed_mib, weight, owner, account, home FROM machines";

fn row(row: &Row<'_>) -> rusqlite::Result<MachineRow> {
    Ok(MachineRow {
        uid: row.get(0)?,
        gid: row.get(1)?,
        name: row.get(2)?,
        slot: row.get(3)?,
        desired: row.get::<_, Json<_>>(4)?.0,
        removed: row.get(5)?,
        vcpus: row.get(6)?,
        memory_mib: row.get(7)?,
        phase: row.get::<_, Json<_>>(8)?.0,
        reason: row.get(9)?,
        since: row.get(10)?,
        vmm: row.get::<_, Option<Json<_>>>(11)?.map(|json| json.0),
        guaranteed_mib: row.get(12)?,
        weight: row.get(13)?,
        owner: row.get(14)?,
        account: row.get(15)?,
        home: row.get::<_, Option<Vec<u8>>>(16)?.map(|home| OsString::from_vec(home).into()),
    })
}

/// All machines, ordered by owner.
pub(crate) fn all(db: &ReadTx<'_>) -> rusqlite::Result<Vec<MachineRow>> {
    db.select(&format!("SELECT {COLUMNS} ORDER BY owner, uid"))?.query_map([], row)?.collect()
}

pub(crate) fn get(db: &ReadTx<'_>, uid: u32) -> rusqlite::Result<Option<MachineRow>> {
    db.select(&format!("SELECT {COLUMNS} WHERE uid = ?"))?.query_row([uid], row).optional()
}

/// The machine whose developer had this name when last seen.
pub(crate) fn by_owner(db: &ReadTx<'_>, owner: &str) -> rusqlite::Result<Option<MachineRow>> {
    db.select(&format!("SELECT {COLUMNS} WHERE owner = ?"))?.query_row([owner], row).optional()
}

/// Whether no other machine has this name.
pub(crate) fn is_free(db: &ReadTx<'_>, name: &str) -> rusqlite::Result<bool> {
    Ok(!db.select("SELECT 1 FROM machines WHERE name = ?")?.exists([name])?)
}

/// Stores the developer's current names. Another machine under the same name is named by its uid from now on.
pub(crate) fn set_owner(db: &WriteTx<'_>, machine: &MachineRow) -> rusqlite::Result<()> {
    let MachineRow { uid, gid, owner, account, home, .. } = machine;
    db.change("UPDATE machines SET owner = CAST(uid AS TEXT) WHERE owner = ? AND uid != ?")?
        .execute(params![owner, uid])?;
    let home = home.as_ref().map(|home| home.as_os_str().as_bytes());
    db.change("UPDATE machines SET gid = ?, owner = ?, account = ?, home = ? WHERE uid = ?")?
        .execute(params![gid, owner, account, home, uid])?;
    Ok(())
}

/// Writes a new machine, or the part of an old one that a request may change (desired state and figures, not what is
/// observed).
pub(crate) fn put(db: &WriteTx<'_>, machine: &MachineRow) -> rusqlite::Result<()> {
    db.change(
        "INSERT INTO machines (uid, gid, name, owner, slot, desired, removed, vcpus, memory_mib, phase, reason, since,
             guaranteed_mib, weight)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (uid) DO UPDATE SET desired = excluded.desired, removed = excluded.removed,
             vcpus = excluded.vcpus, memory_mib = excluded.memory_mib, guaranteed_mib = excluded.guaranteed_mib,
             weight = excluded.weight",
    )?
    .execute(params![
        machine.uid,
        machine.gid,
        machine.name,
        machine.owner,
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
    set_owner(db, machine)
}

/// The lowest free slot below `slots`.
pub(crate) fn free_slot(db: &ReadTx<'_>, slots: u16) -> rusqlite::Result<Option<u16>> {
    let mut statement = db.select("SELECT slot FROM machines ORDER BY slot")?;
    let taken: Vec<u16> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok((0..slots).find(|slot| taken.binary_search(slot).is_err()))
}

/// Sets the machine's phase and adds an event.
pub(crate) fn set_phase(db: &WriteTx<'_>, uid: u32, phase: MachinePhase, reason: &str) -> rusqlite::Result<()> {
    db.change("UPDATE machines SET phase = ?, reason = ?, since = ? WHERE uid = ?")?.execute(params![
        json(&phase)?,
        reason,
        now_ms() / 1000,
        uid
    ])?;
    events::add(db, uid, None, &EventKind::Machine { phase, reason: reason.into() })
}

/// Changes only the desired state.
pub(crate) fn set_desired(db: &WriteTx<'_>, uid: u32, desired: Desired) -> rusqlite::Result<()> {
    db.change("UPDATE machines SET desired = ? WHERE uid = ?")?.execute(params![json(&desired)?, uid])?;
    Ok(())
}

/// Sets the VMM's process; `None` once it was cleaned up.
pub(crate) fn set_vmm(db: &WriteTx<'_>, uid: u32, vmm: Option<&VmmId>) -> rusqlite::Result<()> {
    db.change("UPDATE machines SET vmm = ? WHERE uid = ?")?.execute(params![vmm.map(json).transpose()?, uid])?;
    Ok(())
}

/// Deletes the machine, its environments and its events. Its operations stay, and end.
pub(crate) fn forget(db: &WriteTx<'_>, uid: u32) -> rusqlite::Result<()> {
    for statement in [
        "DELETE FROM environments WHERE uid = ?",
        "DELETE FROM events WHERE uid = ?",
        "DELETE FROM machines WHERE uid = ?",
    ] {
        db.change(statement)?.execute([uid])?;
    }
    operations::end_with_machine(db, uid)
}
