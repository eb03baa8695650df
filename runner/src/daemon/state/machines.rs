//! The table of machines: one row per developer.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use garret_api::runner::{Desired, Happening, MachinePhase};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{Json, events, json, now_ms};

/// Which process a VMM is. Process ids come round again: only with boot and start time is it that very process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmId {
    /// Its process id on the host.
    pub pid: u32,
    /// When it started, in clock ticks since the host's boot.
    pub started: u64,
    /// The host's boot.
    pub boot_id: String,
}

/// One developer's machine, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineRow {
    /// The developer's uid.
    pub uid: u32,
    /// The developer's primary group.
    pub gid: u32,
    /// The machine's name: its files, control group and network are called so. It never changes.
    pub name: String,
    /// What the developer is called now: the account's name, or the uid's digits.
    pub owner: String,
    /// The account's own name, as it was last seen; none if the uid had no account.
    pub account: Option<String>,
    /// The account's home folder, as it was last seen.
    pub home: Option<PathBuf>,
    /// Its place in the address pool.
    pub slot: u16,
    /// What should be.
    pub desired: Desired,
    /// It should go away with everything that belongs to it.
    pub removed: bool,
    /// Virtual CPUs of the next start.
    pub vcpus: u8,
    /// The most memory it can have from the next start on, in MiB.
    pub memory_mib: u32,
    /// Memory that is its own whatever the others do, in MiB.
    pub guaranteed_mib: u32,
    /// Its share of what is left beyond the guarantees.
    pub weight: u32,
    /// What is.
    pub phase: MachinePhase,
    /// Why.
    pub reason: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Its VMM, from launch to burial.
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
pub fn all(db: &Connection) -> rusqlite::Result<Vec<MachineRow>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} ORDER BY owner, uid"))?.query_map([], row)?.collect()
}

/// The machine of this uid.
pub fn get(db: &Connection, uid: u32) -> rusqlite::Result<Option<MachineRow>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} WHERE uid = ?"))?.query_row([uid], row).optional()
}

/// The machine whose developer was last seen under this name.
pub fn by_owner(db: &Connection, owner: &str) -> rusqlite::Result<Option<MachineRow>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} WHERE owner = ?"))?.query_row([owner], row).optional()
}

/// Whether no other machine has this name.
pub fn is_free(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    Ok(!db.prepare_cached("SELECT 1 FROM machines WHERE name = ?")?.exists([name])?)
}

/// Keeps who the developer is now. Another machine that went by this name goes by its uid from now on.
pub fn set_owner(db: &Connection, machine: &MachineRow) -> rusqlite::Result<()> {
    let MachineRow { uid, gid, owner, account, home, .. } = machine;
    db.prepare_cached("UPDATE machines SET owner = CAST(uid AS TEXT) WHERE owner = ? AND uid != ?")?
        .execute(params![owner, uid])?;
    let home = home.as_ref().map(|home| home.as_os_str().as_bytes());
    db.prepare_cached("UPDATE machines SET gid = ?, owner = ?, account = ?, home = ? WHERE uid = ?")?
        .execute(params![gid, owner, account, home, uid])?;
    Ok(())
}

/// Writes a new machine, or what a request may change of an old one (wish and figures, not what is observed).
pub fn put(db: &Connection, machine: &MachineRow) -> rusqlite::Result<()> {
    db.prepare_cached(
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

/// The lowest slot no machine has, below `slots`.
pub fn free_slot(db: &Connection, slots: u16) -> rusqlite::Result<Option<u16>> {
    let mut statement = db.prepare_cached("SELECT slot FROM machines ORDER BY slot")?;
    let taken: Vec<u16> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok((0..slots).find(|slot| taken.binary_search(slot).is_err()))
}

/// The machine is in another phase from now on, and everybody may know.
pub fn set_phase(db: &Connection, uid: u32, phase: MachinePhase, reason: &str) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE machines SET phase = ?, reason = ?, since = ? WHERE uid = ?")?.execute(params![
        json(&phase)?,
        reason,
        now_ms() / 1000,
        uid
    ])?;
    events::add(db, uid, None, &Happening::Machine { phase, reason: reason.into() })
}

/// Only what should be changes.
pub fn set_desired(db: &Connection, uid: u32, desired: Desired) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE machines SET desired = ? WHERE uid = ?")?.execute(params![json(&desired)?, uid])?;
    Ok(())
}

/// Which process the VMM is; `None` once it has been buried.
pub fn set_vmm(db: &Connection, uid: u32, vmm: Option<&VmmId>) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE machines SET vmm = ? WHERE uid = ?")?
        .execute(params![vmm.map(json).transpose()?, uid])?;
    Ok(())
}

/// Forgets the machine, its environments and its events.
pub fn forget(db: &Connection, uid: u32) -> rusqlite::Result<()> {
    for statement in [
        "DELETE FROM environments WHERE uid = ?",
        "DELETE FROM events WHERE uid = ?",
        "DELETE FROM machines WHERE uid = ?",
    ] {
        db.prepare_cached(statement)?.execute([uid])?;
    }
    Ok(())
}
