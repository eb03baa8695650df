//! The caller's terminal.

use std::io;

use garret_api::stream::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal's size, if standard output is one.
pub(super) fn size() -> Option<WindowSize> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some(known(size.ws_row, size.ws_col))
}

/// A terminal that does not know its size reports 0; the usual size is assumed then.
fn known(rows: u16, columns: u16) -> WindowSize {
    let or = |said: u16, usual| if said > 0 { said } else { usual };
    WindowSize { rows: or(rows, 24), columns: or(columns, 80) }
}

/// Raw mode until this is dropped: every key is sent to the process.
pub(super) struct RawMode(Termios);

impl RawMode {
    /// Enables raw mode on standard input.
    ///
    /// # Errors
    /// Standard input is not a terminal.
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_without_a_size_is_of_the_usual_one() {
        for ((rows, columns), expected) in [((0, 0), (24, 80)), ((50, 0), (50, 80)), ((1, 132), (1, 132))] {
            let size = known(rows, columns);
            assert_eq!((size.rows, size.columns), expected);
        }
    }
}
