//! Blocking calls of a VMM's HTTP API on a Unix socket.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use garret_api::client::{Client, Result};

const DEADLINE: Duration = Duration::from_secs(30);

/// Makes `call` to the API at `socket`.
///
/// # Errors
/// The server rejects the call, or does not answer in time.
pub(super) fn call<T>(socket: &Path, call: impl AsyncFnOnce(Client) -> Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::unix(socket).with_deadline(DEADLINE);
    runtime.block_on(call(client)).with_context(|| format!("API {}", socket.display()))
}
