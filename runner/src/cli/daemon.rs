//! `garret daemon`

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::config::{CONFIG, Config};
use crate::daemon;

/// Run the host daemon. It needs root, and /dev/kvm for the machines.
#[derive(Debug, Args)]
pub(super) struct Daemon {
    /// The configuration file. Without it, all defaults apply.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Which messages are logged: `info`, `debug`, or a list such as `garret=debug,hyper=info`.
    #[arg(long, value_name = "FILTER", env = "GARRET_LOG", default_value = "info")]
    log: String,
}

impl Daemon {
    pub(super) async fn run(self, socket: PathBuf) -> anyhow::Result<u8> {
        let filter: Targets = self.log.parse().with_context(|| format!("--log {}", self.log))?;
        let filter = filter.with_target(daemon::AUDIT, LevelFilter::INFO);
        let ansi = io::stderr().is_terminal();
        let lines = tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(io::stderr);
        tracing_subscriber::registry().with(lines).with(filter).init();
        daemon::serve(Config::read(&self.config)?, socket).await?;
        Ok(0)
    }
}
