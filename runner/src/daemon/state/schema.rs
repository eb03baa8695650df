//! The tables and their migrations: `user_version` counts the migrations done.

use rusqlite::Connection;

use super::free_pages;

const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE machines (
        uid INTEGER PRIMARY KEY,
        gid INTEGER NOT NULL,
        developer TEXT NOT NULL UNIQUE,
        slot INTEGER NOT NULL UNIQUE,
        desired TEXT NOT NULL,
        removed INTEGER NOT NULL DEFAULT 0,
        vcpus INTEGER NOT NULL,
        memory_mib INTEGER NOT NULL,
        phase TEXT NOT NULL,
        reason TEXT NOT NULL,
        since INTEGER NOT NULL,
        vmm TEXT
    ) STRICT;
    CREATE TABLE environments (
        id TEXT PRIMARY KEY,
        uid INTEGER NOT NULL REFERENCES machines (uid),
        workspace BLOB NOT NULL,
        config TEXT,
        local_env TEXT NOT NULL,
        desired TEXT NOT NULL,
        rebuild INTEGER NOT NULL,
        removed INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        observed_generation INTEGER NOT NULL,
        status TEXT NOT NULL
    ) STRICT;
    CREATE INDEX environments_of_machine ON environments (uid);
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        uid INTEGER NOT NULL,
        developer TEXT NOT NULL,
        environment TEXT,
        what TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_of_developer ON events (uid, id);
",
    "
    ALTER TABLE machines ADD COLUMN guaranteed_mib INTEGER NOT NULL DEFAULT 256;
    ALTER TABLE machines ADD COLUMN weight INTEGER NOT NULL DEFAULT 100;
    UPDATE machines SET guaranteed_mib = min(max(memory_mib / 4, 256), memory_mib);
",
    "
    ALTER TABLE environments ADD COLUMN rebuild_key TEXT;
    CREATE INDEX events_of_environment ON events (uid, environment, id);
",
    "
    ALTER TABLE machines RENAME COLUMN developer TO name;
    ALTER TABLE machines ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    ALTER TABLE machines ADD COLUMN account TEXT;
    ALTER TABLE machines ADD COLUMN home BLOB;
    UPDATE machines SET owner = name, account = CASE WHEN name GLOB '[0-9]*' THEN NULL ELSE name END;
",
    "
    CREATE TABLE operations (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        developer TEXT NOT NULL,
        uid INTEGER NOT NULL,
        environment TEXT,
        generation INTEGER,
        requested_by INTEGER NOT NULL,
        begun_ms INTEGER NOT NULL,
        deadline_ms INTEGER,
        step TEXT,
        ended_ms INTEGER,
        outcome TEXT
    ) STRICT;
    CREATE INDEX operations_of_developer ON operations (uid, environment, number);
    CREATE UNIQUE INDEX operations_in_progress ON operations (uid, coalesce(environment, '')) WHERE outcome IS NULL;
",
    // Machines have ids. An earlier machine keeps its name as its id, because its folders, control group and network
    // namespace are named so. Output of runs, which is most of the events, is dropped: rewriting it may take minutes and as
    // much disk as it has.
    "
    ALTER TABLE machines RENAME TO earlier_machines;
    ALTER TABLE environments RENAME TO earlier_environments;
    CREATE TABLE machines (
        id TEXT PRIMARY KEY,
        owner INTEGER NOT NULL,
        gid INTEGER NOT NULL,
        developer TEXT NOT NULL,
        account TEXT,
        home BLOB,
        slot INTEGER NOT NULL UNIQUE,
        desired TEXT NOT NULL,
        removed INTEGER NOT NULL,
        vcpus INTEGER NOT NULL,
        memory_mib INTEGER NOT NULL,
        guaranteed_mib INTEGER NOT NULL,
        weight INTEGER NOT NULL,
        phase TEXT NOT NULL,
        reason TEXT NOT NULL,
        since INTEGER NOT NULL,
        vmm TEXT
    ) STRICT;
    INSERT INTO machines SELECT name, uid, gid, owner, account, home, slot, desired, removed, vcpus, memory_mib,
        guaranteed_mib, weight, phase, reason, since, vmm FROM earlier_machines;
    -- A developer has one machine. To allow several, drop this index.
    CREATE UNIQUE INDEX machine_of_owner ON machines (owner);
    CREATE TABLE environments (
        id TEXT PRIMARY KEY,
        machine TEXT NOT NULL REFERENCES machines (id),
        workspace BLOB NOT NULL,
        config TEXT,
        local_env TEXT NOT NULL,
        desired TEXT NOT NULL,
        rebuild INTEGER NOT NULL,
        rebuild_key TEXT,
        removed INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        observed_generation INTEGER NOT NULL,
        status TEXT NOT NULL
    ) STRICT;
    INSERT INTO environments SELECT environment.id, machine.name, workspace, config, local_env, environment.desired,
        rebuild, rebuild_key, environment.removed, generation, observed_generation, status
        FROM earlier_environments AS environment JOIN earlier_machines AS machine USING (uid);

    DROP INDEX events_of_developer;
    DROP INDEX events_of_environment;
    ALTER TABLE events ADD COLUMN machine TEXT NOT NULL DEFAULT '';
    DELETE FROM events WHERE uid NOT IN (SELECT uid FROM earlier_machines) OR what LIKE '%\"output\"%';
    UPDATE events SET machine = (SELECT name FROM earlier_machines WHERE uid = events.uid);
    ALTER TABLE events DROP COLUMN uid;
    CREATE INDEX events_of_machine ON events (machine, id);
    CREATE INDEX events_of_environment ON events (machine, environment, id);

    DROP INDEX operations_of_developer;
    DROP INDEX operations_in_progress;
    ALTER TABLE operations RENAME COLUMN uid TO owner;
    ALTER TABLE operations ADD COLUMN machine TEXT NOT NULL DEFAULT '';
    DELETE FROM operations WHERE owner NOT IN (SELECT uid FROM earlier_machines);
    UPDATE operations SET machine = (SELECT name FROM earlier_machines WHERE uid = operations.owner);
    CREATE INDEX operations_of_owner ON operations (owner, number);
    CREATE INDEX operations_of_machine ON operations (machine, environment, number);
    CREATE UNIQUE INDEX operations_in_progress ON operations (machine, coalesce(environment, ''))
        WHERE outcome IS NULL;

    DROP TABLE earlier_environments;
    DROP TABLE earlier_machines;
    CREATE INDEX environments_of_machine ON environments (machine);
",
];

/// Migrates the state to the current version.
///
/// # Errors
/// A newer runner has written it, or the file is not a state.
pub(super) fn prepare(connection: &mut Connection) -> anyhow::Result<()> {
    // WAL: a commit writes and syncs one file. FULL: clients are assured that a committed change is
    // stored, so it must survive a power loss of the host.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "wal_autocheckpoint", free_pages::LOG_PAGES)?;
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > MIGRATIONS.len() {
        anyhow::bail!("a newer garret has written it (version {version}): install the newer garret again");
    }
    migrate(connection, MIGRATIONS.len())
}

/// Runs the missing migrations, up to this version.
pub(super) fn migrate(connection: &mut Connection, to: usize) -> anyhow::Result<()> {
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (step, migration) in MIGRATIONS.iter().enumerate().take(to).skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", step + 1)?;
        transaction.commit()?;
    }
    Ok(())
}
