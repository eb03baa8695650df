//! `garret logs`

use std::time::Duration;

use clap::Args;
use garret_api::client::Client;

use super::output;
use super::target::{MachineFlag, Target};

/// How often a followed log is read again.
const INTERVAL: Duration = Duration::from_secs(1);

/// Show the output of an environment's container, or of the machine's console.
#[derive(Debug, Args)]
pub(super) struct Logs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    machine: MachineFlag,
    /// Continue with new output until interrupted.
    #[arg(short, long)]
    follow: bool,
}

impl Logs {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<u8> {
        let path = match self.machine.name() {
            Some(name) => format!("/v1/machines/{name}/log"),
            None => format!("/v1/environments/{}/log", self.target.find(client).await?.id),
        };
        let mut shown = client.text(&path).await?;
        output::print_untrusted(&shown)?;
        if !self.follow {
            return Ok(0);
        }
        loop {
            tokio::time::sleep(INTERVAL).await;
            let text = client.text(&path).await?;
            output::print_untrusted(new_part(&shown, &text))?;
            shown = text;
        }
    }
}

/// The part of `text` that is not in `shown`. Both are the last part of one growing log, whose beginning is dropped in
/// time.
fn new_part<'a>(shown: &str, text: &'a str) -> &'a str {
    if let Some(new) = text.strip_prefix(shown) {
        return new;
    }
    // The beginning is gone: the last part that was shown is found by its end.
    let mut from = shown.len().saturating_sub(4096);
    while !shown.is_char_boundary(from) {
        from += 1;
    }
    match text.rfind(&shown[from..]) {
        Some(at) => &text[at + shown.len() - from..],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_shown() {
        for (shown, text, new) in [
            ("", "a\n", "a\n"),
            ("a\n", "a\n", ""),
            ("a\n", "a\nb\n", "b\n"),
            ("a\nb\n", "b\nc\n", "b\nc\n"),
            ("x", "y", "y"),
        ] {
            assert_eq!(new_part(shown, text), new, "{shown:?} {text:?}");
        }
    }

    #[test]
    fn a_forgotten_beginning_does_not_matter() {
        let whole: String = (0..5000).map(|n| format!("line {n} ü\n")).collect();
        let at = |line: usize| whole.find(&format!("line {line} ")).unwrap();
        assert_eq!(new_part(&whole[at(100)..at(4000)], &whole[at(2000)..at(4002)]), &whole[at(4000)..at(4002)]);
    }
}
