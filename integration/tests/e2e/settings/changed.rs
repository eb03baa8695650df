//! Other settings for the daemon while a test runs.

use std::fs;

use toml::{Table, Value};

use garret_integration::stage::{CONFIG, restart_daemon};

/// The daemon's configuration is changed, and the daemon restarted; at the end both are undone. Machines run through it.
pub(crate) struct Settings {
    before: Option<Vec<u8>>,
}

impl Settings {
    pub(crate) fn change(change: impl FnOnce(&mut Table)) -> Self {
        let before = fs::read(CONFIG).ok();
        let text = String::from_utf8(before.clone().unwrap_or_default()).expect("UTF-8");
        let mut config: Table = text.parse().expect("the configuration is TOML");
        change(&mut config);
        put_in_force(Some(config.to_string().into_bytes()));
        Self { before }
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        put_in_force(self.before.take());
    }
}

fn put_in_force(config: Option<Vec<u8>>) {
    match config {
        Some(text) => fs::write(CONFIG, text),
        None => fs::remove_file(CONFIG),
    }
    .expect("the configuration is root's");
    restart_daemon();
}

/// `[name]`, made if it is not there.
pub(crate) fn table<'a>(config: &'a mut Table, name: &str) -> &'a mut Table {
    config.entry(name).or_insert(Value::Table(Table::new())).as_table_mut().expect("a table")
}

/// `[network]`, made if it is not there.
pub(crate) fn network(config: &mut Table) -> &mut Table {
    table(config, "network")
}

/// Adds to a list, made if it is not there.
pub(crate) fn append(table: &mut Table, list: &str, value: impl Into<Value>) {
    table.entry(list).or_insert(Value::Array(Vec::new())).as_array_mut().expect("a list").push(value.into());
}
